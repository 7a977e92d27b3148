//! The conformance suite on our own Raft: `cargo run --release -p conformance -- --seeds 0..1000`.

use std::process::ExitCode;

fn main() -> ExitCode {
    conformance::cli::main(&conformance::Own::default(), 0..200)
}
