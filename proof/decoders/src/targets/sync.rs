//! State sync: frames, messages, records and snapshots as others send them and disks keep them; and a live engine with its
//! store, to which peers and the log say damaged things under good signatures.

use super::messages::reads;
use crate::Seal::{Form, Sums};
use crate::keys::START_MS;
use crate::meter::bounded;
use crate::steps::{self, Step};
use crate::sync_world::{
    NODES, at, is_signed, origin, seal_base, seal_frame, seal_message, seal_record, world,
};
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::{Chance, Hash, Now, decode, encode};
use dwcp_crdt::{Applied, Bundle, Floor, FloorState, Op, OriginId, Plain, Resolvers, Restore, Store, Write};
use dwcp_sync::message::Load;
use dwcp_sync::{Action, Base, Cut, FloorStep, Message, Reason, Received, Record, Sync, audit, repair};
use std::sync::LazyLock;

pub static FRAME: Target =
    Target::new("sync_frame", run_frame, frames, Sums(|b| seal_frame_bytes(b))).bombs(frame_bombs);
pub static MESSAGE: Target =
    Target::new("sync_message", run_message, messages, Sums(seal_message_bytes)).bombs(message_bombs);
pub static RECORD: Target = Target::new("sync_record", run_record, records, Sums(seal_record_bytes));
pub static BUNDLE: Target =
    Target::new("crdt_bundle", run_bundle, bundles, Form(is_bundle)).bombs(bundle_bombs);
pub static STORE: Target = Target::new("crdt_store", run_store, bundles, Form(is_bundle)).live(
    5,
    "each is applied twice by a store of its own, and digests are compared",
    &["crdt_bundle"],
);
pub static JSON: Target = Target::new("crdt_json", run_json, jsons, Form(is_json)).bombs(json_bombs);
pub static SNAPSHOT: Target =
    Target { damage: steps::damage, ..Target::new("crdt_snapshot", run_snapshot, snapshots, Form(is_whole)) };
pub static RESTORED: Target =
    Target { damage: steps::damage, ..Target::new("crdt_restored", run_restored, snapshots, Form(is_whole)) }
        .live(20, "each builds a store, which goes on and is written down again", &["crdt_snapshot"]);
pub static LOG: Target =
    Target { damage: steps::damage, ..Target::new("sync_log", run_log, logs, Sums(seal_log)) }.live(
        20,
        ENGINE,
        &["sync_record", "sync_frame"],
    );
pub static NODE: Target =
    Target { damage: steps::damage, ..Target::new("sync_node", run_node, stories, Sums(seal_story)) }
        .bombs(swept_messages)
        .live(20, ENGINE, &["sync_message", "sync_frame", "sync_record"]);

const ENGINE: &str = "each opens an engine with its log and its store, and checks all of both";

fn chance_of(bytes: &[u8]) -> Chance {
    let hash = Hash::of(bytes);
    Chance::new(u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes")))
}

// --- what is read ---

/// Accepted when its bundle is its header's and its signature its origin's.
fn run_frame(bytes: &[u8]) -> Verdict {
    let shared = Bytes::copy_from_slice(bytes);
    let Ok(received) = bounded(bytes, || Received::read(shared)) else { return Verdict::Refused };
    let signed = *received.signed();
    let Ok(frame) = bounded(bytes, || received.open()) else { return Verdict::Refused };
    assert!(frame.bytes() == bytes, "a frame is other bytes than it came in");
    let (bundle, header) = (frame.bundle(), frame.header());
    assert!(
        bundle.encode() == bytes[bytes.len() - bundle.encode().len()..],
        "a bundle is not its own encoding"
    );
    assert!((bundle.first(), bundle.last()) == (header.first, header.last), "header and bundle differ");
    Verdict::of(is_signed(&signed))
}

fn run_message(bytes: &[u8]) -> Verdict {
    let Ok(message) = bounded(bytes, || Message::read(bytes)) else { return Verdict::Refused };
    assert!(message.to_bytes() == bytes, "a message was accepted that is not its own encoding");
    Verdict::Accepted
}

fn run_record(bytes: &[u8]) -> Verdict {
    let Ok(record) = bounded(bytes, || Record::read(bytes)) else { return Verdict::Refused };
    assert!(record.to_bytes() == bytes, "a record was accepted that is not its own encoding");
    if let Record::Frame(frame) = &record {
        return Verdict::of(
            bounded(frame, || Received::read(frame.clone()).and_then(Received::open)).is_ok(),
        );
    }
    Verdict::Accepted
}

fn is_bundle(bytes: &[u8]) -> bool {
    Bundle::decode(Bytes::copy_from_slice(bytes)).is_ok()
}

fn run_bundle(bytes: &[u8]) -> Verdict {
    let shared = Bytes::copy_from_slice(bytes);
    let Ok(bundle) = bounded(bytes, || Bundle::decode(shared)) else { return Verdict::Refused };
    assert!(bundle.encode() == bytes, "a bundle was accepted that is not its own encoding");
    assert!(bundle.first() <= bundle.last(), "a bundle ends before it begins");
    Verdict::Accepted
}

/// Accepted when a store that holds much took it. Twice is once, and what is refused or waits leaves no trace.
fn run_store(bytes: &[u8]) -> Verdict {
    let Ok(bundle) = Bundle::decode(Bytes::copy_from_slice(bytes)) else { return Verdict::Refused };
    static STORE: LazyLock<(Store, Hash)> = LazyLock::new(|| {
        let mut store = world().store.clone();
        let digest = store.digest();
        (store, digest)
    });
    let (mut store, before) = STORE.clone();
    let outcome = store.apply(&bundle, START_MS);
    store.check();
    let digest = store.digest();
    if !matches!(outcome, Ok(Applied::Done { .. })) {
        assert!(digest == before, "what was refused or waits changed the store");
        return Verdict::of(outcome.is_ok());
    }
    assert!(store.apply(&bundle, START_MS) == Ok(Applied::Duplicate), "a bundle counts twice");
    assert!(store.digest() == digest, "a bundle that came again changed the store");
    read_all(&store);
    Verdict::Accepted
}

/// Whatever a key has become, it can be shown.
fn read_all(store: &Store) {
    let keys: Vec<Bytes> = store.keys(b"").cloned().collect();
    for key in keys {
        let _ = (store.get(&key), store.siblings(&key, &[]), store.kinds(&key, &[]));
    }
}

fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| Plain::json(text).is_ok())
}

/// Another reader of JSON must be of the same mind, but for how deep documents may nest.
fn run_json(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let read = bounded(bytes, || Plain::json(text));
    if let Ok(value) = &read {
        assert!(value.as_json() == Some(text), "a document is kept as other text");
    }
    let theirs = serde_json::from_slice::<serde::de::IgnoredAny>(bytes);
    let deep =
        bytes.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() > dwcp_crdt::limits::JSON_DEPTH_MAX;
    let long = bytes.len() > dwcp_crdt::limits::VALUE_BYTES_MAX;
    assert!(
        deep || long || read.is_ok() == theirs.is_ok(),
        "two readers differ: {read:?} {theirs:?} {text:?}"
    );
    Verdict::of(read.is_ok())
}

// --- a snapshot of the store ---

/// The first step is the head, the others are pieces.
fn restore(bytes: &[u8]) -> Option<Store> {
    let mut parts = steps::read(bytes).into_iter();
    let (_, head) = parts.next()?;
    let mut restore = Restore::new(origin(0), Resolvers::default(), &head).ok()?;
    for (_, piece) in parts {
        restore.piece(&piece).ok()?;
    }
    restore.finish().ok()
}

fn is_whole(bytes: &[u8]) -> bool {
    restore(bytes).is_some()
}

/// What a store says of itself is what it was made of.
fn run_snapshot(bytes: &[u8]) -> Verdict {
    let Some(store) = bounded(bytes, || restore(bytes)) else { return Verdict::Refused };
    let parts = steps::read(bytes);
    assert!(store.snapshot_head() == parts[0].1, "a head was accepted that is not its own encoding");
    if let [_, (_, piece)] = &parts[..] {
        let own = store.snapshot_piece(None, usize::MAX);
        assert!(own.next.is_none() && own.bytes == *piece, "a piece is not its own encoding");
    }
    Verdict::Accepted
}

/// A donor may send what no honest store holds. Its receiver compares digests before it writes to the store or says
/// anything of it, so a write is not asked for: it would name changes that nobody has.
fn run_restored(bytes: &[u8]) -> Verdict {
    let Some(mut store) = bounded(bytes, || restore(bytes)) else { return Verdict::Refused };
    store.check();
    let digest = store.digest();
    let again = restore(&snapshot_of(&store, usize::MAX)).expect("its own snapshot");
    assert!({ again }.digest() == digest, "a store does not survive its own snapshot");
    read_all(&store);
    for frame in &world().lacking {
        let _ = store.apply(frame.bundle(), START_MS);
    }
    let _ = store.raise_floor(world().floor.clone());
    store.end_origin(origin(3), 1);
    store.check();
    read_all(&store);
    Verdict::Accepted
}

fn snapshot_of(store: &Store, piece_bytes_max: usize) -> Vec<u8> {
    let mut parts: Vec<Step> = vec![(0, store.snapshot_head())];
    let mut after: Option<Bytes> = None;
    loop {
        let piece = store.snapshot_piece(after.as_deref(), piece_bytes_max);
        parts.push((1, piece.bytes));
        after = piece.next;
        if after.is_none() {
            return steps::write(&parts);
        }
    }
}

// --- the engine ---

/// A log whose last records are these. What an engine wrote itself it may believe, so its invariants are not asked for:
/// it begins, or says why not, and whatever it is told next does not make it panic.
fn run_log(bytes: &[u8]) -> Verdict {
    let extra: Vec<Bytes> = steps::read(bytes).into_iter().map(|(_, record)| Bytes::from(record)).collect();
    let Ok(mut sync) = bounded_more(bytes, || world().open(&extra)) else { return Verdict::Refused };
    let now = Now { mono: sync.next_wakeup(), ..at(0) };
    sync.on_time(now);
    for (from, message) in &world().messages {
        sync.on_message(now, OriginId(*from), &message.to_bytes());
    }
    sync.take();
    let _ = (sync.floor_candidate(), sync.endings(), sync.may_write());
    Verdict::Accepted
}

/// As [`bounded`], with room for the log that is read anew.
fn bounded_more<T>(bytes: &[u8], work: impl FnOnce() -> T) -> T {
    let log: usize = world().records.iter().map(Bytes::len).sum();
    bounded(&vec![0; bytes.len() + log], work)
}

const FROM_LOG: u8 = 4;
const TIME: u8 = 5;
const DURABLE: u8 = 6;
const CUT: u8 = 7;
const FLOOR: u8 = 8;
const INSTALL: u8 = 9;
const WRITE: u8 = 10;
const TAGS: u8 = 11;

struct Live {
    sync: Sync,
    store: Store,
    now: Now,
    /// What it wrote down since it was opened; nothing of what was before an install.
    written: Vec<Bytes>,
    installed: bool,
    refused: bool,
}

/// What one step led to.
#[derive(Default)]
struct Led {
    refused: bool,
    evidence: bool,
    persisted: usize,
    applied: usize,
}

fn run_node(bytes: &[u8]) -> Verdict {
    let sync = world().open(&[]).expect("honest records");
    let now = Now { mono: sync.next_wakeup(), ..at(0) };
    let (written, store) = (Vec::new(), world().store.clone());
    let mut live = Live { sync, store, now, written, installed: false, refused: false };
    live.sync.on_time(now);
    live.carry_out();
    for (tag, body) in steps::read(bytes) {
        live.take(tag % TAGS, &Bytes::from(body));
    }
    live.end();
    Verdict::of(!live.refused)
}

impl Live {
    fn heads(&self) -> Vec<Option<Cut>> {
        (0..NODES).map(|id| self.sync.head(origin(id))).collect()
    }

    fn take(&mut self, tag: u8, body: &Bytes) {
        let before = (self.heads(), self.store.digest());
        let mut single = false;
        match tag {
            0..=3 => {
                single = !matches!(Message::read(body), Ok(Message::Answer { .. } | Message::Rest { .. }));
                bounded(body, || self.sync.on_message(self.now, OriginId(tag.into()), body));
            }
            FROM_LOG => {
                single = true;
                bounded(body, || self.sync.deliver_from_log(self.now, body.clone()));
            }
            TIME => {
                let ms = body.first_chunk::<4>().map_or(0, |field| u32::from_le_bytes(*field) % 200_000);
                self.now.mono = self.now.mono.plus(dwcp_base::Micros::from_millis(ms.into()));
                self.now.wall_ms += u64::from(ms);
                self.sync.on_time(self.now);
            }
            DURABLE => self.sync.on_durable(self.sync.last_ticket()),
            // What the log decides was agreed to by replicas that judged it as this one does.
            CUT => match decode::<Cut>(body) {
                Ok(cut) if self.sync.stance(&cut, 0).is_some() => self.sync.set_cut(cut),
                _ => self.refused = true,
            },
            FLOOR => match decode::<Floor>(body) {
                Ok(floor) if self.sync.judge_floor(&floor).is_ok() => {
                    self.sync.commit_floor(floor).expect("it was judged to be the next one");
                }
                _ => self.refused = true,
            },
            INSTALL => match decode::<Base>(body) {
                Ok(base) => match self.sync.install(&base, self.store.applied(), self.store.floor_number()) {
                    Ok(()) => self.installed = true,
                    Err(_) => {
                        assert!(self.heads() == before.0, "what was not installed moved a head");
                        self.refused = true;
                    }
                },
                Err(_) => self.refused = true,
            },
            _ => self.write(),
        }
        let led = self.carry_out();
        self.refused |= led.refused;
        if single && led.refused && !led.evidence {
            assert!((led.persisted, led.applied) == (0, 0), "what was refused was written down or applied");
            assert!((self.heads(), self.store.digest()) == before, "what was refused changed something");
        }
    }

    fn write(&mut self) {
        let Ok(written) = self.sync.may_write() else {
            self.refused = true;
            return;
        };
        let writes = [Write::new("stock", Op::Adjust(1))];
        match self.store.write(&writes, written, self.now.wall_ms) {
            Ok(Some(bundle)) => {
                self.sync.write(&bundle).expect("it said that it may");
            }
            Ok(None) => {}
            Err(_) => self.refused = true,
        }
    }

    /// Does what the engine wants done, as its caller must.
    fn carry_out(&mut self) -> Led {
        let mut led = Led::default();
        loop {
            let actions = self.sync.take();
            if actions.is_empty() {
                break;
            }
            let mut applied = false;
            for action in actions {
                match action {
                    Action::Persist { record, .. } => {
                        led.persisted += 1;
                        self.written.push(record);
                    }
                    Action::Send { to, message, .. } => {
                        assert!(to != origin(0).id, "an engine does not write to itself");
                        Message::read(&message).expect("what it says can be read");
                    }
                    Action::Apply { bundle } => {
                        self.store.apply(&bundle, bundle.hlc().ms()).expect("what is handed over is taken");
                        (applied, led.applied) = (true, led.applied + 1);
                    }
                    Action::RaiseFloor(floor) => {
                        self.store.raise_floor(floor).expect("what a floor covers is here");
                        applied = true;
                    }
                    Action::AdoptFloors(floors) => {
                        self.store.adopt_floors(floors).expect("what floors cover is here");
                        applied = true;
                    }
                    Action::EndOrigin { origin, last } => {
                        self.store.end_origin(origin, last);
                        applied = true;
                    }
                    Action::Refused { reason, .. } => {
                        assert!(reason != Reason::Known, "what is known is counted, not told of");
                        led.refused = true;
                    }
                    Action::Evidence(proof) => {
                        let good = proof.headers().iter().all(|header| is_signed(header));
                        assert!(
                            good && proof.origin().incarnation.0 == 0,
                            "an origin is convicted by what it did not sign"
                        );
                        led.evidence = true;
                    }
                    Action::Audit { peer, work } => {
                        let stands = self.sync.stand(self.store.applied());
                        let step = audit::answer(&mut self.store, stands, work.as_ref());
                        self.sync.on_audited(self.now, peer, step);
                    }
                    Action::Copies { peer, question } => {
                        let stands = self.sync.stand(self.store.applied());
                        if let Some(copies) = repair::copies(&self.store, stands, &question) {
                            self.sync.give_copies(peer, question.round, copies);
                        }
                    }
                    Action::Repair { at, copies } => {
                        let stands = self.sync.stand(self.store.applied());
                        let adopted = repair::adopt(&mut self.store, stands, at, &copies);
                        self.sync.on_repaired(self.now, adopted.len());
                    }
                    Action::NeedSnapshot { .. }
                    | Action::Withholds { .. }
                    | Action::Accuses { .. }
                    | Action::Differs { .. }
                    | Action::Damaged { .. }
                    | Action::Exchanged { .. } => {}
                }
            }
            if applied {
                self.sync.on_applied(self.store.applied());
            }
        }
        self.sync.check();
        self.store.check();
        led
    }

    /// Whatever came, a restart finds what was written down, and stands where it stood.
    fn end(&mut self) {
        read_all(&self.store);
        if self.installed {
            return;
        }
        let again = world().open(&self.written).expect("what it wrote down is read back");
        let heads: Vec<Option<Cut>> = (0..NODES).map(|id| again.head(origin(id))).collect();
        assert!(heads == self.heads(), "a restart stands elsewhere");
        let frozen = |sync: &Sync| (0..NODES).map(|id| sync.is_frozen(origin(id))).collect::<Vec<_>>();
        assert!(frozen(&again) == frozen(&self.sync), "a restart has forgotten who lied");
    }
}

// --- sealing ---

fn seal_frame_bytes(bytes: &mut [u8]) -> bool {
    let mut chance = chance_of(bytes);
    seal_frame(bytes, &mut chance)
}

fn seal_message_bytes(bytes: &mut Vec<u8>) -> bool {
    seal_said(bytes, 1)
}

fn seal_said(bytes: &mut Vec<u8>, from: u32) -> bool {
    let mut chance = chance_of(bytes);
    let Ok(mut message) = decode::<Message>(bytes) else { return false };
    let good = seal_message(&mut message, from, &mut chance);
    *bytes = encode(&message);
    good
}

fn seal_record_bytes(bytes: &mut Vec<u8>) -> bool {
    let mut chance = chance_of(bytes);
    let Ok(mut record) = Record::read(bytes) else { return false };
    let good = seal_record(&mut record, &mut chance);
    *bytes = encode(&record);
    good
}

fn seal_log(bytes: &mut Vec<u8>) -> bool {
    let mut records = steps::read(bytes);
    let mut good = !records.is_empty();
    for (_, record) in &mut records {
        good &= seal_record_bytes(record);
    }
    *bytes = steps::write(&records);
    good
}

fn seal_story(bytes: &mut Vec<u8>) -> bool {
    let mut told = steps::read(bytes);
    let mut good = !told.is_empty();
    for (tag, body) in &mut told {
        good &= match *tag % TAGS {
            from @ 0..=3 => seal_said(body, from.into()),
            FROM_LOG => seal_frame_bytes(body),
            CUT => reads::<Cut>(body),
            FLOOR => reads::<Floor>(body),
            INSTALL => match decode::<Base>(body) {
                Ok(mut base) => {
                    seal_base(&mut base);
                    *body = encode(&base);
                    true
                }
                Err(_) => false,
            },
            _ => true,
        };
    }
    *bytes = steps::write(&told);
    good
}

// --- seeds ---

fn frames() -> Vec<Vec<u8>> {
    world().all.iter().map(|frame| frame.bytes().to_vec()).collect()
}

fn messages() -> Vec<Vec<u8>> {
    world().messages.iter().map(|(_, message)| message.to_bytes().to_vec()).collect()
}

fn bundles() -> Vec<Vec<u8>> {
    world().all.iter().map(|frame| frame.bundle().encode().to_vec()).collect()
}

fn records() -> Vec<Vec<u8>> {
    let world = world();
    let frames = world.lacking.iter().map(|frame| Record::Frame(frame.bytes().clone()));
    let full = Base {
        proofs: vec![world.proof],
        cuts: vec![world.cut],
        halted: vec![origin(2)],
        settled: vec![(origin(2), 1)],
        off_branch: vec![origin(3)],
        floor_last: Some(world.floor.clone()),
        ..world.base.clone()
    };
    let later = Floor { number: 2, ..world.floor.clone() };
    let mut passed = FloorState::default();
    for floor in [world.floor.clone(), later.clone(), Floor { number: 3, ..later.clone() }] {
        passed.pass(floor);
    }
    let steps = vec![FloorStep::One(later), FloorStep::Through(passed.clone())];
    let open = Base { floors: steps, ..world.base.clone() };
    let rest = [
        Record::Proof(world.proof),
        Record::Cut(world.cut),
        Record::Floor(world.floor.clone()),
        Record::Floors(passed),
        Record::Base(world.base.clone()),
        Record::Base(full),
        Record::Base(open),
        Record::Halt(origin(3)),
        Record::Settled(origin(3), 2),
    ];
    frames.chain(rest).map(|record| record.to_bytes().to_vec()).collect()
}

fn logs() -> Vec<Vec<u8>> {
    let all: Vec<Step> = records().into_iter().map(|record| (0, record)).collect();
    let mut logs: Vec<Vec<u8>> =
        all.iter().map(|record| steps::write(std::slice::from_ref(record))).collect();
    logs.push(steps::write(&all));
    logs.push(steps::write(&all[..all.len() - 4]));
    logs
}

fn snapshots() -> Vec<Vec<u8>> {
    let (whole, then) = (&world().whole, &world().store);
    // Few frames make small stores, which are read sooner.
    let small = |from: usize| {
        let mut store = Store::new(origin(0), Resolvers::default());
        let frames = world().all.iter().filter(|frame| frame.header().origin == origin(1)).take(from);
        frames.for_each(|frame| drop(store.apply(frame.bundle(), START_MS)));
        snapshot_of(&store, if from == 2 { 60 } else { usize::MAX })
    };
    vec![
        small(0),
        small(1),
        small(2),
        small(3),
        snapshot_of(whole, 200),
        snapshot_of(whole, usize::MAX),
        snapshot_of(then, 200),
        snapshot_of(then, 1),
    ]
}

fn stories() -> Vec<Vec<u8>> {
    let world = world();
    let said = |(from, message): &(u32, Message)| {
        (u8::try_from(*from).expect("few nodes"), message.to_bytes().to_vec())
    };
    let all: Vec<Step> = world.messages.iter().map(said).collect();
    let pushes: Vec<Step> = all[..world.lacking.len()].to_vec();
    let tail = |ms: u32| vec![(DURABLE, Vec::new()), (TIME, ms.to_le_bytes().to_vec()), (WRITE, Vec::new())];
    let ordered: Vec<Step> = world.lacking.iter().map(|frame| (FROM_LOG, frame.bytes().to_vec())).collect();
    let mut early = pushes.clone();
    early.reverse();
    let acknowledged: Vec<Step> = world
        .messages
        .iter()
        .filter(|(_, message)| matches!(message, Message::Ask { .. }))
        .step_by(4)
        .map(said)
        .chain([(FLOOR, encode(&world.floor))])
        .collect();
    let convicted: Vec<Step> = all
        .iter()
        .filter(|(_, bytes)| bytes.first() == Some(&5))
        .take(1)
        .cloned()
        .chain([(DURABLE, Vec::new()), (CUT, encode(&world.cut))])
        .collect();
    let installed = vec![pushes[0].clone(), (DURABLE, Vec::new()), (INSTALL, encode(&world.base))];
    let mut stories: Vec<Vec<u8>> = [pushes, early, ordered, acknowledged, convicted, installed]
        .into_iter()
        .map(|steps| steps::write(&[steps, tail(3_000)].concat()))
        .collect();
    stories.extend(all.iter().map(|step| steps::write(std::slice::from_ref(step))));
    stories.push(steps::write(&[all, tail(120_000)].concat()));
    stories
}

fn jsons() -> Vec<Vec<u8>> {
    let mixed =
        r#" {"a" : [1, -0.5e+10, true, false, null, "x\u00e9\ud83d\ude00\n"], "b":{"c":{}}, "é":[[],[0]]} "#;
    let nested = format!("{}1{}", "[".repeat(60), "]".repeat(60));
    let texts = [mixed, &nested, "0", r#""\\\"\/""#, r#"[1.10,1e9,{"k":"v"}]"#, "-12.50E-3"];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

// --- bombs ---

fn frame_bombs() -> Vec<Vec<u8>> {
    frames().iter().take(4).flat_map(|frame| crate::mutate::sweep(frame, &[8])).collect()
}

fn message_bombs() -> Vec<Vec<u8>> {
    messages()
        .iter()
        .flat_map(|message| {
            let ends = (0..message.len().saturating_sub(4).min(300)).map(|at| {
                let mut bomb = message.clone();
                bomb[at..at + 4].copy_from_slice(&[255, 255, 255, 127]);
                bomb
            });
            ends.collect::<Vec<_>>()
        })
        .collect()
}

/// Each number of the short messages as large as it can be, as it is and under good signatures.
fn swept_messages() -> Vec<Vec<u8>> {
    let first = |kind: u8| {
        let of_kind = messages().into_iter().filter(move |message| message.first() == Some(&kind));
        of_kind.min_by_key(Vec::len)
    };
    let hints = Load { hints: world().hints(), ..Load::default() };
    let short = [first(1), first(2), first(5), Some(encode(&Message::Rest { load: hints }))];
    let mut bombs = Vec::new();
    for message in short.into_iter().flatten() {
        for bytes in crate::mutate::sweep(&message, &[8]) {
            let mut sealed = bytes.clone();
            bombs.push(steps::write(&[(1, bytes)]));
            if seal_said(&mut sealed, 1) {
                bombs.push(steps::write(&[(1, sealed)]));
            }
        }
    }
    bombs
}

/// Every place a number may stand, made the longest count there is.
fn bundle_bombs() -> Vec<Vec<u8>> {
    let largest = [255, 255, 255, 255, 255, 255, 255, 255, 127];
    let mut bombs = Vec::new();
    for bundle in bundles().iter().take(10) {
        for at in 0..bundle.len() {
            let mut bomb = bundle.clone();
            bomb.splice(at..=at, largest);
            bombs.push(bomb);
        }
    }
    bombs
}

fn json_bombs() -> Vec<Vec<u8>> {
    const DEEP: usize = 60_000;
    let open = |text: &str| text.repeat(DEEP).into_bytes();
    vec![open("["), open("{\"a\":"), open("[["), vec![b'"'; DEEP], vec![b'9'; DEEP], open("\\u")]
}
