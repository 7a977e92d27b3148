//! The journal: one line per event on standard error, quiet by default.
//!
//! Lines of a node's life (start, ready, view changes' outcome, stop) carry the target `dwcp::life` and are always
//! shown; everything else by the level of the settings. What an event of the core is worth stands in `events.rs`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::LogLevel;

/// The target of lines that are always shown.
pub const LIFE: &str = "dwcp::life";

/// Sends the process' journal to standard error. A second call changes nothing: the first reader of the settings wins.
pub fn start_journal(level: LogLevel) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter(level)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    let _ = subscriber.try_init();
}

fn filter(level: LogLevel) -> String {
    let word = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Libraries say at most `info`: their traces drown ours.
    let libraries = match level {
        LogLevel::Debug | LogLevel::Trace => "info",
        _ => word,
    };
    let ours = ["dwcp", "dwcp_node", "dwcp_transport", "dwcp_storage", "dwcp_api"];
    let ours: Vec<String> = ours.iter().map(|target| format!("{target}={word}")).collect();
    format!("{libraries},{},{LIFE}=info", ours.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_life_are_shown_at_every_level() {
        use tracing_subscriber::layer::SubscriberExt;
        for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace] {
            let subscriber = tracing_subscriber::registry().with(EnvFilter::new(filter(level)));
            tracing::subscriber::with_default(subscriber, || {
                assert!(tracing::enabled!(target: LIFE, tracing::Level::INFO));
                let info = matches!(level, LogLevel::Info | LogLevel::Debug | LogLevel::Trace);
                assert_eq!(tracing::enabled!(target: "dwcp_node", tracing::Level::INFO), info);
                assert!(!tracing::enabled!(target: "hyper", tracing::Level::DEBUG));
            });
        }
    }
}
