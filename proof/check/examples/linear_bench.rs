//! How long the linearizability judge takes for 20 clients x 1,000 commands with transactions; and that it refuses the same history
//! with one fault of each kind built in. Exits with 1 if any verdict is wrong.
//!
//! cargo run --release -p check --example linear_bench

use check::rehearsal::{Fault, Shape, rehearse};
use check::{Budget, Start, Verdict, linear};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let shape = Shape {
        seed: 1,
        clients: 20,
        commands_each: 1_000,
        keys: 200,
        unknown_per_mille: 0,
        fault: None,
        final_read: true,
    };
    let mut right = judge("no fault", shape, true);
    right &= judge("no fault, 1 % unknown outcomes", Shape { unknown_per_mille: 10, ..shape }, true);
    for fault in Fault::ALL {
        right &= judge(&format!("{fault:?}"), Shape { fault: Some((fault, 50)), ..shape }, false);
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn judge(name: &str, shape: Shape, is_good: bool) -> bool {
    let rehearsal = rehearse(shape);
    let commands: usize = rehearsal.clients.iter().map(|journal| journal.commands.len()).sum();
    let began = Instant::now();
    let verdict = linear::judge(&rehearsal.clients, &Start::empty(1), Budget::default());
    let took_ms = began.elapsed().as_secs_f64() * 1_000.0;
    let said = match &verdict {
        Verdict::Linearizable => "linearizable".to_string(),
        Verdict::Violation { reason, .. } => format!("refused: {reason}"),
        Verdict::BudgetExceeded { steps } => format!("undecided after {steps} steps"),
    };
    println!("{name:32} {commands} commands  {took_ms:8.1} ms  {said}");
    if is_good { verdict.is_linearizable() } else { rehearsal.struck && verdict.is_violation() }
}
