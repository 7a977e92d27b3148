//! A short history that goes through everything a replica writes down, told again once for each of its records, with a crash
//! of that replica at this record: while it is written, and when it is durable and nobody was told.

use check::{Operation, Outcome};
use dwcp_base::{Mutants, NetworkMode, ReplicaId, Ticket, encode};
use dwcp_log::{ModeOrder, OperatorOrder, SignedModeOrder};
use dwcp_replica::ClientRequest;
use sim::dials::{Dials, Profile};
use sim::ending::Report;
use sim::keys::Identity;
use sim::node::Down;
use sim::runner::quiet_panics;
use sim::world::{Event, Moment, OPERATOR, Strike, World};

/// Histories for one replica. Where it writes more than that allows, every second, third, ... record is taken, beginning
/// with another one for each replica.
const HISTORIES_MAX: u64 = 80;
/// Commands of the script.
const COMMANDS: usize = 12;
/// How long the script waits for anything.
const PATIENCE_US: u64 = 4_000_000;
/// The first leader of the segment. Neither replica that is watched.
const LEADER: u8 = 3;

fn dials() -> Dials {
    let mut dials = Profile::named("calm").expect("a profile").draw(1, 60);
    for (name, value) in [
        ("n", 4),
        ("f", 1),
        ("safety_ms", 8_000),
        ("clients", 1),
        ("lying_clients", 0),
        ("ed25519", 0),
        ("delay_us", 1_000),
        ("jitter_us", 0),
        ("skew_ms", 0),
        ("sync_us", 500),
        ("pipelined_sync", 1),
        ("down_ms", 300),
        ("view_timeout_ms", 500),
        ("checkpoint_interval", 4),
        ("window_checkpoints", 2),
        ("pipeline_depth", 4),
        ("retry_ms", 300),
        ("leases_pm", 0),
        // The root alone, until the operator orders otherwise.
        ("mode", 3),
        ("segment_calm_ms", 2_000),
        // A dead leader is missed by the fast path long before the segment elects another.
        ("election_ms", 3_000),
        ("fast_path_ms", 300),
        ("anchor_ms", 100),
        ("link_down_pm", 0),
        ("mode_order_ms", 0),
        // Whoever the script kills was writing; and what stops then is not called stopped without a fault.
        ("torn_pm", 500),
        ("convergent_ms", 0),
    ] {
        assert!(dials.set(name, value), "{name} is no dial");
    }
    dials.settle();
    dials
}

fn until(world: &mut World, done: impl Fn(&World) -> bool) {
    let end = world.now_us + PATIENCE_US;
    while !done(world) && world.now_us < end && world.advance() {}
}

/// A write, and its answer.
fn put(world: &mut World, key: &str) {
    until(world, |world| world.clients[0].is_open());
    let asked = world.clients[0].journal.commands.len();
    world.send_commands(0, vec![Operation::put(key, "v")]);
    world.schedule(1_000, Event::ClientWake { client: 0 });
    until(world, |world| {
        let place = world.clients[0].journal.commands.get(asked);
        place.is_some_and(|command| !matches!(command.outcome, Outcome::Unknown { .. }))
    });
}

/// It stays down until it is started.
fn kill(world: &mut World, node: usize) {
    if world.nodes[node].is_up() {
        world.crash(node, Down::DiskFull);
        world.nodes[node].disk.full = false;
    }
}

fn start(world: &mut World, node: usize) {
    let boot = world.nodes[node].boot;
    world.schedule(0, Event::Start { node, boot });
}

fn order_hybrid(world: &mut World) {
    let order = ModeOrder { number: 1, mode: NetworkMode::Hybrid, first_leader: Some(ReplicaId(LEADER)) };
    let admin = Identity::Principal { number: 0 };
    let signer = world.keys.signer(admin, &[]);
    let signed = SignedModeOrder::new(order, world.cluster, world.keys.public(admin), &*signer);
    let bytes = bytes::Bytes::from(encode(&OperatorOrder::Mode(signed)));
    for to in 0..world.nodes.len() {
        world.request(OPERATOR, to, ClientRequest::Order { id: 1, bytes: bytes.clone() });
    }
}

struct Played {
    report: Report,
    /// How many records each replica wrote in the script.
    written: Vec<u64>,
    /// Commands of the script with an answer.
    answered: usize,
}

/// The whole script: commands in the root beyond a checkpoint, a view change, a segment, commands in it, its leader dead and
/// its end forced, commands in the root again, and what every history ends with.
fn play(strike: Option<Strike>) -> Played {
    let mut world = World::new(1, &dials(), Mutants::default(), false);
    world.clients[0].manual = true;
    world.strike = strike;
    for key in ["a", "b", "c", "d", "e"] {
        put(&mut world, key);
    }
    // The primary of the first view.
    kill(&mut world, 0);
    put(&mut world, "f");
    start(&mut world, 0);
    order_hybrid(&mut world);
    until(&mut world, |world| world.coverage.segments_opened > 0);
    for key in ["g", "h", "i"] {
        put(&mut world, key);
    }
    let leader = usize::from(LEADER);
    kill(&mut world, leader);
    put(&mut world, "j");
    until(&mut world, |world| world.coverage.closed_by_force > 0);
    start(&mut world, leader);
    for key in ["k", "l"] {
        put(&mut world, key);
    }
    let written = world.nodes.iter().map(|node| node.disk.last_ticket().0).collect();
    world.clients[0].stop();
    world.run_to_end();
    let asked = world.strike;
    let answered = world.clients[0].journal.commands.iter();
    let answered = answered.filter(|command| matches!(command.outcome, Outcome::Ok { .. })).count();
    let report = world.report();
    assert_eq!(asked, None, "the history took another way before the crash it was told for");
    Played { report, written, answered }
}

fn found(report: &Report) -> Vec<String> {
    report.found.iter().map(|found| found.text.clone()).collect()
}

#[test]
fn a_replica_may_die_at_any_record_that_it_writes() {
    quiet_panics();
    let Played { report, written, answered } = play(None);
    let seen = &report.coverage;
    assert_eq!(found(&report), [""; 0]);
    assert_eq!(answered, COMMANDS, "a command of the script had no answer");
    for (what, count) in [
        ("views", seen.view_changes),
        ("checkpoints", seen.checkpoints),
        ("segments", seen.segments_opened),
        ("entries", seen.entries_executed),
        ("forced ends", seen.closed_by_force),
    ] {
        assert!(count > 0, "the script goes through no {what}");
    }
    // The primary of the second view, and one that only follows.
    for node in [1, 2] {
        let tickets = written[node];
        let stride = (2 * tickets).div_ceil(HISTORIES_MAX);
        let first = 1 + node as u64 % stride;
        println!("replica {node}: every record from {first} to {tickets} by {stride}, two histories each");
        let mut cut = 0;
        for ticket in (first..=tickets).step_by(usize::try_from(stride).expect("few records")) {
            for when in [Moment::Written, Moment::Durable] {
                let strike = Strike { node, ticket: Ticket(ticket), when };
                let Played { report, answered, .. } = play(Some(strike));
                assert_eq!(found(&report), [""; 0], "{strike:?}");
                assert_eq!(answered, COMMANDS, "{strike:?}: a command had no answer");
                cut += u64::from(when == Moment::Written) * report.coverage.torn_writes.min(1);
            }
        }
        assert!(cut * stride >= tickets / 2, "replica {node}: few writes were cut: {cut}");
    }
}
