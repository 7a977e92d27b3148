//! Arguments and dispatch: one subcommand, one file. It knows how each begins and what its failure means for the exit
//! code, nothing of what it does.

mod bench;
mod cluster;
mod completions;
mod demo;
mod init;
mod kv;
mod local;
mod member;
mod mode;
mod order;
mod output;
mod policy;
mod principal;
mod server;
mod status;
mod sync;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dwcp_client::client_settings_table;

use self::output::Failure;

const AFTER_HELP: &str = "\
Try it:
  dwcp demo                                        four nodes here, killed under load
  dwcp init --nodes 4 --out trial                  keys and settings of a trial cluster
  dwcp server --config trial/node0/config.toml     one node (start all four, each in its own shell)
  export DWCP_CLUSTER=trial/client.toml
  dwcp kv put a 1 && dwcp kv get a
  dwcp sync incr likes && dwcp sync get likes      any node, with or without the others
  dwcp status
  dwcp init --nodes 4 --mode hybrid --out trial    a cluster that `dwcp mode set` may switch between Raft and PBFT

Every subcommand's --help has examples. Results go to standard output, everything else to standard error.";

fn after_help() -> String {
    format!(
        "{AFTER_HELP}\n\nA client's patience, under [settings] in its client.toml:\n{}",
        client_settings_table()
    )
}

/// Keep state the same on every node, whatever network lies between the nodes
#[derive(Debug, Parser)]
#[command(name = "dwcp", version, after_help = after_help(), max_term_width = 120)]
pub struct Arguments {
    /// Answer in JSON, for programs
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Init(init::InitArgs),
    Keygen(init::KeygenArgs),
    Server(server::ServerArgs),
    Kv(kv::KvArgs),
    Sync(sync::SyncArgs),
    Status(status::StatusArgs),
    Mode(mode::ModeArgs),
    Policy(policy::PolicyArgs),
    Member(member::MemberArgs),
    Principal(principal::PrincipalArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

pub fn main() -> ExitCode {
    // Wrong usage ends here, with the parser's own message and code 2.
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let json = arguments.json;
    match &arguments.command {
        Command::Demo(args) => demo::run(args, json),
        Command::Init(args) => init::run(args, json),
        Command::Keygen(args) => init::run_keygen(args, json),
        Command::Server(args) => return server::run(args),
        Command::Kv(args) => kv::run(args, json),
        Command::Sync(args) => sync::run(args, json),
        Command::Status(args) => status::run(args, json),
        Command::Mode(args) => mode::run(args, json),
        Command::Policy(args) => policy::run(args, json),
        Command::Member(args) => member::run(args, json),
        Command::Principal(args) => principal::run(args, json),
        Command::Bench(args) => bench::run(args, json),
        Command::Completions(args) => completions::run(args),
    }
    .map(|()| 0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_parser_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_subcommand_teaches_with_an_example() {
        fn look(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let name = format!("{path} {}", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("dwcp "), "`{name} --help` has no example");
                assert!(sub.get_about().is_some(), "`{name}` does not say what it is");
                for argument in sub.get_arguments() {
                    assert!(
                        argument.get_help().is_some(),
                        "`{name}`: {} is not explained",
                        argument.get_id()
                    );
                }
                look(sub, &name);
            }
        }
        look(&Arguments::command(), "dwcp");
    }
}
