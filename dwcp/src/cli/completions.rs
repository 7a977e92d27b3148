//! `dwcp completions`: the script with which a shell completes subcommands and options. It knows only the parser.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::{Outcome, print_bytes};

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp completions bash > ~/.local/share/bash-completion/completions/dwcp
  dwcp completions zsh > ~/.zfunc/_dwcp
  dwcp completions fish > ~/.config/fish/completions/dwcp.fish")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Arguments::command(), "dwcp", &mut script);
    print_bytes(&script)
}
