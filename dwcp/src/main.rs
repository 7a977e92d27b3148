//! The program `dwcp`: everything a person does with a cluster, from making its keys to watching it survive.
//!
//! Only the way in stands here. Arguments and dispatch are in `cli.rs`, one file per subcommand below it. The program
//! holds no rule of the cluster: what it can do, a program that embeds the library can do as well.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
