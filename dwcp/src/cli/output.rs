//! How the program speaks: results on standard output, everything else on standard error, failures in one line with an
//! exit code that a script can act on. Nothing here knows what is being said.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// What a script may conclude from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Refused: what was asked did not happen.
    Refused = 1,
    /// The question itself makes no sense. Also the code of the argument parser.
    Usage = 2,
    /// It may have happened.
    Unknown = 3,
    /// Nobody answered; nothing was applied as far as can be known.
    Unreachable = 4,
    /// The cluster broke a promise: data lost, doubled or different between nodes.
    Broken = 5,
}

/// Why the program ends without doing what it was asked. One line.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string().trim().replace('\n', "; ") }
    }

    pub fn refused(message: impl Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    pub fn usage(message: impl Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn report(&self) -> ExitCode {
        let mark = if colour(&std::io::stderr()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        eprintln!("{mark} {}", self.message);
        ExitCode::from(self.kind as u8)
    }
}

/// Libraries' errors already are one line with the remedy.
macro_rules! refusals {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::refused(error)
            }
        }
    )*};
}

refusals!(
    dwcp::ServerError,
    dwcp_base::CodecError,
    dwcp_client::ClientFileError,
    dwcp_client::ConnectError,
    dwcp_node::NodeError,
    dwcp_node::SettingsError,
    dwcp_node::genesis_file::GenesisError,
    dwcp_node::init::InitError,
    dwcp_node::keys::KeyError,
);

pub type Outcome<T = ()> = Result<T, Failure>;

/// Colours are for people at a terminal who did not ask otherwise.
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Wraps text in a colour where standard output takes it.
pub fn paint(text: impl Display, code: &str) -> String {
    if colour(&std::io::stdout()) { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

pub const RED: &str = "31";
pub const GREEN: &str = "32";
pub const YELLOW: &str = "33";

/// Colours the first of these words in each line of a finished table: cells that are coloured before would be measured
/// with their invisible characters and shift what stands behind them.
pub fn paint_words(text: &str, words: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let found = words.iter().find(|(word, _)| line.contains(word));
        let line = line.trim_end();
        found.map_or_else(|| line.to_string(), |(word, code)| line.replacen(word, &paint(word, code), 1))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One line for a machine.
pub fn print_json(value: &impl serde::Serialize) -> Outcome {
    let mut line = serde_json::to_string(value).map_err(Failure::refused)?;
    line.push('\n');
    print_bytes(line.as_bytes())
}

/// Writes to standard output. A reader that has gone (`| head`) is no failure.
pub fn print_bytes(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::refused(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

pub fn print_line(line: impl Display) -> Outcome {
    print_bytes(format!("{line}\n").as_bytes())
}

/// A word about what goes on, for people; never part of the result.
pub fn say(line: impl Display) {
    eprintln!("{line}");
}

/// A table without frames: columns are told apart by space, so that `awk` and eyes both can.
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header);
    table
}

/// Right-aligns columns of numbers.
pub fn align_numbers(table: &mut comfy_table::Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
}

/// 1234567 as 1,234,567.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds with as many digits as say something.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_it_was_made_from() {
        assert_eq!(Failure::refused("one\ntwo\n").message, "one; two");
    }

    #[test]
    fn numbers_are_grouped_from_the_right() {
        let groups = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in groups {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn milliseconds_keep_three_digits() {
        assert_eq!([0.1234, 12.34, 1234.5].map(milliseconds), ["0.12", "12.3", "1234"]);
    }
}
