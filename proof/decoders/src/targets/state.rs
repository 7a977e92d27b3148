//! What clients sign and what they get back, down to the store: frames are executed, commands applied, and what is
//! refused must have changed nothing.

use crate::Seal::{Form, Sums};
use crate::keys::{START_MS, genesis};
use crate::meter::bounded;
use crate::seal::Sealer;
use crate::world::{commands, commands_frame, machine, open_frame, world};
use crate::{Target, Verdict};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::configuration::Role;
use dwcp_base::limits::TXN_DEPTH_MAX;
use dwcp_base::{Hash, LogTime, Mutants, Position, decode, encode};
use dwcp_replica::ClientReply;
use dwcp_state::kv::{Kv, KvBody, KvCommand, KvReply, Txn, TxnOp, TxnReply};
use dwcp_state::{
    AdminReply, ClientFrame, Command, CommandResult, Context, FrameOutcome, OpenReply, Outcome, Refusal,
    SessionId, State, StateMachine,
};
use std::sync::LazyLock;

pub static CLIENT_FRAME: Target =
    Target::new("client_frame", run_frame, frames, Sums(seal_frame)).bombs(frame_bombs);
pub static FRAME_EXECUTED: Target = Target::new("frame_executed", run_executed, frames, Sums(seal_frame))
    .bombs(frame_bombs)
    .live(5, EXECUTES, &["client_frame"]);
pub static COMMAND: Target =
    Target::new("command", run_command, command_seeds, Form(has_command)).bombs(command_bombs);
pub static KV_COMMAND: Target =
    Target::new("kv_command", run_kv_command, kv_commands, Form(|b| KvCommand::decode(b).is_ok()))
        .bombs(kv_bombs);
pub static KV_EXECUTED: Target =
    Target::new("kv_executed", run_kv_executed, kv_commands, Form(|b| KvCommand::decode(b).is_ok()))
        .bombs(kv_bombs)
        .live(5, EXECUTES, &["kv_command"]);
pub static KV_REPLY: Target =
    Target::new("kv_reply", run_kv_reply, kv_replies, Form(|b| KvReply::decode(b).is_ok()))
        .bombs(reply_bombs);
pub static RESULTS: Target =
    Target::new("results", run_results, result_seeds, Form(|b| run_results(b) == Verdict::Accepted));

const EXECUTES: &str =
    "each is executed by a state of its own, and the digests of all its chunks are compared";

fn has_command(bytes: &[u8]) -> bool {
    Command::decode(&Bytes::copy_from_slice(bytes)).is_ok()
}

/// A state with a session of each role and a few keys.
fn state() -> State<Kv> {
    static STATE: LazyLock<State<Kv>> = LazyLock::new(|| {
        let mut state = State::new(&genesis(), machine(), Mutants::default());
        state.begin_entry(Position(1), LogTime(START_MS));
        for principal in 0..3 {
            run_good(&mut state, open_frame(principal, principal, START_MS));
        }
        let some = commands().iter().take(5).map(Command::encode).collect();
        run_good(&mut state, commands_frame(0, 1, some));
        state
    });
    STATE.clone()
}

fn run_good(state: &mut State<Kv>, bytes: Bytes) {
    state.execute(&ClientFrame::decode(bytes).expect("a good frame"));
}

/// Accepted when its signature is good.
fn run_frame(bytes: &[u8]) -> Verdict {
    let input = Bytes::copy_from_slice(bytes);
    let Ok(checked) = bounded(bytes, || ClientFrame::decode(input.clone())) else { return Verdict::Refused };
    assert!(checked.frame().encode() == input, "a frame was accepted that is not its own encoding");
    assert!(SessionId::claimed_by(&input) == Some(checked.session()), "a frame claims another session");
    let asked = checked.sequences();
    assert!(asked.start <= asked.end, "a frame ends before it begins");
    let (key, hash, signature) = checked.signature_item(crate::keys::cluster());
    Verdict::of(crate::keys::sign(&key, &hash) == signature)
}

/// Accepted when something of it was done.
fn run_executed(bytes: &[u8]) -> Verdict {
    let input = Bytes::copy_from_slice(bytes);
    let Ok(checked) = ClientFrame::decode(input) else { return Verdict::Refused };
    let mut first = state();
    let mut second = state();
    let _ = first.admit(&checked);
    let mut outcome = None;
    // Execution is a function of the state and the frame, and a frame that comes again runs nothing again.
    for state in [&mut first, &mut second] {
        state.begin_entry(Position(2), LogTime(START_MS + 1_000));
        let result = state.execute(&checked);
        assert!(outcome.as_ref().is_none_or(|known| *known == result), "two replicas answer differently");
        outcome = Some(result);
    }
    assert!(first.digest() == second.digest(), "two replicas end in different states");
    let outcome = outcome.expect("there were two");
    let asked = checked.sequences();
    assert!(outcome.results.len() as u64 == asked.end - asked.start, "a command has no answer");
    crate::story::canonical::<FrameOutcome>(&encode(&outcome), "an outcome");
    let before = (first.digest(), outcome);
    if before.1.results.iter().all(|result| matches!(result.outcome, Outcome::Done(_))) {
        let revision = first.machine().revision();
        first.execute(&checked);
        assert!(first.machine().revision() == revision, "a retry wrote again");
    }
    Verdict::of(before.1.results.iter().any(|result| matches!(result.outcome, Outcome::Done(_))))
}

fn run_command(bytes: &[u8]) -> Verdict {
    let input = Bytes::copy_from_slice(bytes);
    let decoded = bounded(bytes, || Command::decode(&input));
    if let Ok(command) = &decoded {
        assert!(command.encode() == input, "a command was accepted that is not its own encoding");
    }
    // A question only borrows the state, so it cannot write.
    static STATE: LazyLock<State<Kv>> = LazyLock::new(state);
    let answer = STATE.query(bytes);
    assert!(decoded.is_ok() || answer.is_err(), "what cannot be read was answered");
    Verdict::of(decoded.is_ok())
}

fn digests(kv: &mut Kv) -> Vec<Hash> {
    (0..kv.chunk_count()).map(|index| kv.chunk_digest(index)).collect()
}

fn run_kv_command(bytes: &[u8]) -> Verdict {
    let decoded = bounded(bytes, || KvCommand::decode(bytes));
    static EMPTY: LazyLock<Kv> = LazyLock::new(machine);
    let read_only = EMPTY.read_only(bytes);
    let Ok(command) = decoded else { return Verdict::Refused };
    assert!(command.encode() == bytes, "a command was accepted that is not its own encoding");
    assert!(command.read_only() == read_only, "the peek and the command disagree about reading only");
    Verdict::Accepted
}

fn run_kv_executed(bytes: &[u8]) -> Verdict {
    let decoded = KvCommand::decode(bytes);
    static KV: LazyLock<Kv> = LazyLock::new(|| {
        let mut kv = state().machine().clone();
        // As every entry does before its commands run; else the clock itself would count as a change.
        kv.advance(2_000);
        kv
    });
    let mut kv = KV.clone();
    let read_only = kv.read_only(bytes);
    let before = (digests(&mut kv), kv.no_space());
    let _ = kv.query(bytes);
    let context = Context {
        position: Position(3),
        log_time: LogTime(START_MS + 2_000),
        expiry_ms: 2_000,
        principal: "admin",
        role: Role::Admin,
    };
    let answer = kv.apply(&context, bytes);
    assert!(decoded.is_ok() || answer.is_err(), "what cannot be read was applied");
    if read_only || (answer.is_err() && kv.no_space() == before.1) {
        assert!(digests(&mut kv) == before.0, "a refused or reading command changed the store");
    }
    if let Ok(reply) = &answer {
        let read = KvReply::decode(reply).expect("the store's own reply");
        assert!(read.encode() == *reply, "the store's reply is not its own encoding");
    }
    kv.advance(u64::MAX);
    Verdict::of(answer.is_ok())
}

fn run_kv_reply(bytes: &[u8]) -> Verdict {
    let Ok(reply) = bounded(bytes, || KvReply::decode(bytes)) else { return Verdict::Refused };
    assert!(reply.encode() == bytes, "a reply was accepted that is not its own encoding");
    Verdict::Accepted
}

fn same<T: BorshDeserialize + BorshSerialize>(bytes: &[u8]) -> Option<T> {
    let value = bounded(bytes, || decode::<T>(bytes)).ok()?;
    assert!(encode(&value) == bytes, "bytes were accepted that are not the encoding of what they mean");
    Some(value)
}

/// Whatever a client decodes of a result. The first byte chooses the type.
fn run_results(bytes: &[u8]) -> Verdict {
    let Some((kind, bytes)) = bytes.split_first() else { return Verdict::Refused };
    Verdict::of(match kind % 5 {
        0 => same::<FrameOutcome>(bytes).is_some(),
        1 => same::<Vec<CommandResult>>(bytes).is_some(),
        2 => same::<Refusal>(bytes).is_some_and(|refusal| {
            let _ = (refusal.fate(), refusal.definite());
            !refusal.to_string().is_empty()
        }),
        3 => same::<AdminReply>(bytes).is_some(),
        _ => same::<OpenReply>(bytes).is_some(),
    })
}

fn seal_frame(bytes: &mut Vec<u8>) -> bool {
    let mut frame = Bytes::copy_from_slice(bytes);
    let good = Sealer::of(bytes).client_frame(&mut frame);
    *bytes = frame.to_vec();
    good
}

fn frames() -> Vec<Vec<u8>> {
    let mut seeds = vec![open_frame(0, 7, START_MS).to_vec(), open_frame(1, 1, START_MS).to_vec()];
    for (index, command) in commands().iter().enumerate() {
        let session = (index % 3) as u64;
        seeds.push(commands_frame(session, 10 + index as u64, vec![command.encode()]).to_vec());
    }
    seeds.push(commands_frame(0, 1, commands().iter().map(Command::encode).collect()).to_vec());
    seeds
}

fn command_seeds() -> Vec<Vec<u8>> {
    commands().iter().map(|command| command.encode().to_vec()).collect()
}

fn kv_commands() -> Vec<Vec<u8>> {
    let mut deepest = Txn::default().then(TxnOp::Range(dwcp_state::kv::Range::key("a")));
    for _ in 1..TXN_DEPTH_MAX {
        deepest = Txn::default().then(TxnOp::Txn(deepest));
    }
    let machine = commands().into_iter().filter_map(|command| match command {
        Command::Machine(bytes) => Some(bytes.to_vec()),
        _ => None,
    });
    machine.chain([KvCommand::Txn(deepest).encode().to_vec()]).collect()
}

fn kv_replies() -> Vec<Vec<u8>> {
    let mut state = state();
    let mut kv_outcomes = Vec::new();
    for (index, command) in commands().iter().take(14).enumerate() {
        let frame = commands_frame(0, 20 + index as u64, vec![command.encode()]);
        let outcome = state.execute(&ClientFrame::decode(frame).expect("a good frame"));
        if let Outcome::Done(bytes) = &outcome.results[0].outcome {
            kv_outcomes.push(bytes.to_vec());
        }
    }
    let nested =
        KvBody::Txn(TxnReply { succeeded: true, responses: vec![KvBody::LeaseRevoke, KvBody::Compact] });
    let body =
        KvBody::Txn(TxnReply { succeeded: false, responses: vec![nested, KvBody::Put { prev_kv: None }] });
    kv_outcomes.push(KvReply { revision: 9, body }.encode().to_vec());
    kv_outcomes
}

fn result_seeds() -> Vec<Vec<u8>> {
    let with = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    let mut state = state();
    let frame = commands_frame(0, 50, commands().iter().take(18).map(Command::encode).collect());
    let outcome = state.execute(&ClientFrame::decode(frame).expect("a good frame"));
    let mut seeds = vec![with(0, encode(&outcome))];
    for reply in world().replies.iter().take(40) {
        if let ClientReply::Executed(reply) = reply {
            seeds.push(with(1, encode(&reply.results)));
        }
    }
    let refusals = [
        Refusal::Malformed,
        Refusal::Forbidden { role: Role::Reader },
        Refusal::ClusterVersion { version: 1 },
        Refusal::BelowLowWater { low_water: 7 },
        Refusal::OpenNotValid { log_time_ms: 1, valid_until_ms: 2 },
    ];
    seeds.extend(refusals.iter().map(|refusal| with(2, encode(refusal))));
    seeds.push(with(3, encode(&AdminReply::Principals(genesis().principals.clone()))));
    seeds.push(with(3, encode(&AdminReply::PrincipalPut { sessions_ended: 1 })));
    seeds.push(with(4, vec![7; 24]));
    seeds
}

/// Each level of nesting costs nine bytes: no comparison, one operation, which is a transaction.
fn nesting_bomb(levels: usize) -> Vec<u8> {
    let mut bomb = vec![3];
    for _ in 0..levels {
        bomb.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 3]);
    }
    bomb
}

fn kv_bombs() -> Vec<Vec<u8>> {
    let mut bombs = vec![
        nesting_bomb(160_000),
        vec![3, 255, 255, 255, 255],
        vec![3, 0, 0, 0, 0, 255, 255, 255, 255],
        vec![0, 255, 255, 255, 127, 1],
    ];
    bombs.extend(
        kv_commands()
            .iter()
            .filter(|seed| seed.len() < 150)
            .flat_map(|seed| crate::mutate::sweep(seed, &[4, 8])),
    );
    bombs
}

fn command_bombs() -> Vec<Vec<u8>> {
    vec![[vec![0], nesting_bomb(160_000)].concat(), vec![1, 0, 255, 255, 255, 127]]
}

fn frame_bombs() -> Vec<Vec<u8>> {
    let bomb = [vec![0], nesting_bomb(160_000)].concat();
    // As many empty commands as fit: each is four bytes here and a `Bytes` in memory.
    let empty = vec![Bytes::new(); 500_000];
    let mut bombs =
        vec![commands_frame(0, 30, vec![Bytes::from(bomb)]).to_vec(), commands_frame(0, 30, empty).to_vec()];
    // Each number of an open and of numbered commands, as large as it can be, under a good signature.
    for seed in [open_frame(0, 7, START_MS), commands_frame(0, 40, vec![Command::Nothing.encode()])] {
        let mut swept = crate::mutate::sweep(&seed, &[4, 8]);
        swept.retain_mut(seal_frame);
        bombs.extend(swept);
    }
    bombs
}

fn reply_bombs() -> Vec<Vec<u8>> {
    let mut deep = vec![0; 8];
    for _ in 0..200_000 {
        deep.extend_from_slice(&[3, 1, 1, 0, 0, 0]);
    }
    let wide = [vec![0; 8], vec![3, 1, 255, 255, 255, 0], vec![6; 100_000]].concat();
    let ids = [vec![0; 8], vec![9, 255, 255, 255, 31], vec![6; 1_000]].concat();
    vec![deep, wide, ids]
}
