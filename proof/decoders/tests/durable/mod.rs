//! `docs/durable.md` against the code: what the page lists of a structure are its fields, each under its name, in order and
//! with these bytes. Whoever adds, drops or moves a field must change the page and this file with it.
//!
//! `state` holds chunks of the replicated state to the page, which are made by running commands; here is all the rest.

mod state;

use borsh::BorshSerialize;
use bytes::Bytes;
use decoders::keys::{genesis, key};
use dwcp_base::{
    Ack, Configuration, ConfigurationId, Epoch, Hash, Incarnation, LogTime, NetworkMode, Policy, Position,
    Quorum, ReplicaId, Sequence, Signature, Trust, View, decode, encode,
};
use dwcp_crdt::FloorState;
use dwcp_log::close::CloseProof;
use dwcp_log::consent::{Agreed, Ground};
use dwcp_log::place::{Index, Place, Term};
use dwcp_log::seal::{Sealed, Signed, Speaker};
use dwcp_log::segment::{AnchorPoint, Protocol};
use dwcp_log::{
    Anchor, Close, Decide, ExcludeOrder, Fold, MemberOrder, ModeOrder, Open, PolicyOrder, RootEntry, Segment,
    SignedOrder, Switch, VirtualLog,
};
use dwcp_pbft::{Certificate, Claim, NewViewProof, PreparedCertificate, SignedBody, Statement, Vote};
use dwcp_raft::{Border, HardState};
use dwcp_replica::control::CONTROL_FORMAT;
use dwcp_replica::wire::{FetchedEntries, SNAPSHOT_FORMAT};
use dwcp_replica::{Control, Ending, LogRecord, SnapshotMeta, Steering};
use dwcp_sync::{Base, Cut, FloorStep};
use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../../../docs/durable.md");

/// The page's list behind these words: up to the end of its sentence, cut at semicolons.
fn sentence(begins: &str) -> Vec<String> {
    let found: Vec<&str> = PAGE.split(begins).collect();
    assert_eq!(found.len(), 2, "the page says {begins:?} once");
    let text = found[1].split(".\n").next().expect("splitting gives something");
    cut(text)
}

/// A cell of the one row that begins so, cut at semicolons.
fn cell(begins: &str, number: usize) -> Vec<String> {
    let rows: Vec<&str> = PAGE.lines().filter(|line| line.starts_with(begins)).collect();
    assert_eq!(rows.len(), 1, "the page has one row {begins:?}");
    cut(rows[0].split('|').nth(number).expect("the row has that cell"))
}

fn cut(text: &str) -> Vec<String> {
    text.split(';').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn bytes<T: BorshSerialize>(value: &T) -> Vec<u8> {
    encode(value)
}

/// The page lists these fields, and nothing but them make up the value.
fn agree(listed: &[String], fields: &[(&str, Vec<u8>)], whole: &[u8]) {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, names, "docs/durable.md names other fields");
    let expected: Vec<u8> = fields.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(whole, expected, "the bytes of {names:?}");
}

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn place(number: u64) -> Place {
    Place { index: Index(number), term: Term(number + 1), chain: hash(3) }
}

fn place_bytes(number: u64) -> Vec<u8> {
    [bytes(&number), bytes(&(number + 1)), vec![3; 32]].concat()
}

fn configuration() -> Configuration {
    Configuration { id: ConfigurationId(9), ..Configuration::of(&genesis()) }
}

#[test]
fn the_page_says_what_the_control_chunk_holds() {
    let mut control = Control::new(&genesis());
    control.executed = Sequence(77);
    control.bytes_executed = 78;
    control.ends = vec![Bytes::from_static(b"end")];
    control.excluded = vec![(Sequence(80), ReplicaId(2), Incarnation(3))];
    let ended = BTreeMap::from([(dwcp_crdt::Origin::new(1, 2), 81u64)]);
    let floor = dwcp_crdt::Floor::of(79, &BTreeMap::new(), ended.clone());
    control.floors.pass(floor.clone());
    control.convicted = [(ReplicaId(2), Incarnation(4))].into();
    control.orders.push((Sequence(5), decoders::world::member_order()));
    control.configurations = dwcp_pbft::Configurations::new(configuration());
    let listed = cell("| 0 | control of the replica |", 3);
    let format = format!("format (u16, {CONTROL_FORMAT})");
    agree(
        &listed,
        &[
            (&*format, bytes(&CONTROL_FORMAT)),
            ("last sequence executed", bytes(&77u64)),
            ("fold", bytes(&control.fold)),
            ("steering", bytes(&control.steering)),
            (
                "configurations: vec of (last sequence not governed, configuration)",
                bytes(&vec![(0u64, configuration())]),
            ),
            ("vec of (sequence, member order)", bytes(&vec![(5u64, decoders::world::member_order())])),
            (
                "bytes of log executed since the genesis (u64: each slot counts its payload and 2,048)",
                bytes(&78u64),
            ),
            (
                "vec of the ends of origins of convergent state that were decided (origin, last counter, hash, in bytes of their own)",
                bytes(&vec![b"end".to_vec()]),
            ),
            (
                "vec of (sequence of the order, replica, incarnation) excluded from it",
                bytes(&vec![(80u64, 2u8, 3u32)]),
            ),
            ("what its collection floors come to: number of the last (u64)", bytes(&79u64)),
            ("vec of the floors that are not settled", bytes(&vec![floor])),
            ("version vector of what is stable", bytes(&0u32)),
            ("map of the origins that ended to their last counters", bytes(&ended)),
            ("set of those of which all is stable", bytes(&0u32)),
            (
                "set of (replica, incarnation) that were shown to have contradicted themselves",
                bytes(&vec![(2u8, 4u32)]),
            ),
        ],
        &bytes(&control),
    );
}

#[test]
fn the_page_says_what_the_fold_holds() {
    let mut fold = Fold::default();
    fold.batch(Sequence(4), LogTime(5), &hash(6), Vec::new);
    let chain = fold.log().chain;
    let open = Open { protocol: Protocol::Raft, first_leader: None, members: vec![ReplicaId(0)] };
    let segment = fold.open(Sequence(7), hash(8), open).expect("nothing is open").clone();
    fold.batch(Sequence(9), LogTime(10), &hash(6), || vec![([11; 16], Bytes::from_static(b"frame"))]);
    let deferred = [
        (
            "vec of (sequence, log time, vec of (client tag, 16 bytes, and frame))",
            bytes(&vec![(9u64, 10u64, vec![([11u8; 16], b"frame".to_vec())])]),
        ),
        ("map from client tag to its frames (u32)", bytes(&vec![([11u8; 16], 1u32)])),
        ("bytes (u64)", bytes(&(5u64 + 64))),
    ];
    agree(&sentence("What is deferred is: "), &deferred, &bytes(fold.deferred()));
    let fields = [
        (
            "the virtual log as far as the root says, with a segment open its base (position, chain)",
            [bytes(&1u64), chain.0.to_vec()].concat(),
        ),
        ("last epoch (u64)", bytes(&1u64)),
        ("option of the open segment", bytes(&Some(&segment))),
        ("what is deferred", bytes(fold.deferred())),
        (
            "vec of (epoch, position before its first entry) of the last 256 epochs",
            bytes(&vec![(1u64, 1u64)]),
        ),
    ];
    agree(&sentence("The fold is: "), &fields, &bytes(&fold));
}

#[test]
fn the_page_says_what_an_open_segment_is() {
    let open = Open {
        protocol: Protocol::Raft,
        first_leader: Some(ReplicaId(1)),
        members: vec![ReplicaId(1), ReplicaId(2)],
    };
    let anchor = AnchorPoint { number: 5, index: Index(6), term: Term(7), chain: hash(8), state: hash(9) };
    let base = VirtualLog { position: Position(3), chain: hash(4) };
    let segment = Segment { epoch: Epoch(1), opened_at: Sequence(2), base, open, anchor };
    let fields = [
        ("epoch", bytes(&1u64)),
        ("sequence of its Open", bytes(&2u64)),
        ("base (position, chain)", [bytes(&3u64), vec![4; 32]].concat()),
        ("open as in a switch", [vec![1, 1, 1], bytes(&vec![1u8, 2])].concat()),
        (
            "last Anchor (number, index, term, u64 each, chain, state digest)",
            [bytes(&(5u64, 6u64, 7u64)), vec![8; 32], vec![9; 32]].concat(),
        ),
    ];
    agree(&sentence("The open segment is: "), &fields, &bytes(&segment));
}

#[test]
fn the_page_says_what_was_ordered_about_protocols() {
    let steering = Steering {
        time: LogTime(1),
        mode: NetworkMode::Hybrid,
        policy: Policy::new(Trust::Crash, Quorum::new(7, Some(1)).expect("one of seven may lie")),
        last_order: 3,
        first_leader: Some(ReplicaId(4)),
        ending: Some(Ending::Sealed),
        calm_until: LogTime(5),
        failures: 6,
        opened: LogTime(7),
        failovers: 8,
        admins: vec![key("admin", 1, 0)],
        voters: Some(configuration()),
        sealed_alone: BTreeMap::from([(ReplicaId(2), (Incarnation(1), 9))]),
    };
    let fields = [
        ("time", bytes(&1u64)),
        ("mode", vec![2]),
        ("policy", vec![0, 7, 1, 1, 0]),
        ("last order's number (u64)", bytes(&3u64)),
        ("option of the first leader", vec![1, 4]),
        ("option of why the segment is to end", vec![1, 5]),
        ("calm until (log time)", bytes(&5u64)),
        ("failures (u32)", bytes(&6u32)),
        ("opened (log time)", bytes(&7u64)),
        ("failovers (u64)", bytes(&8u64)),
        ("vec of admins' keys", bytes(&vec![key("admin", 1, 0)])),
        ("option of the configuration at the Open", bytes(&Some(configuration()))),
        (
            "for each member by id that had a segment ended by its word alone, its incarnation and how often (u32)",
            bytes(&vec![(ReplicaId(2), Incarnation(1), 9u32)]),
        ),
    ];
    agree(&sentence("Steering is: "), &fields, &bytes(&steering));
    let policy = [
        ("trust (0 crash, 1 byzantine)", vec![0]),
        ("n (u8)", vec![7]),
        ("f (u8)", vec![1]),
        ("raft (bool)", vec![1]),
        ("default ack (0 majority, 1 anchored)", vec![0]),
    ];
    agree(&sentence("A policy is: "), &policy, &bytes(&steering.policy));
    assert_eq!((bytes(&Trust::Byzantine), bytes(&Ack::Anchored)), (vec![1], vec![1]));
}

/// Every number that is a reason, and no other.
#[test]
fn the_page_says_why_a_segment_is_to_end() {
    let reasons: Vec<String> = (0..=u8::MAX)
        .filter_map(|number| Some(format!("{number} {}", decode::<Ending>(&[number]).ok()?.word())))
        .collect();
    assert_eq!(sentence("Why a segment is to end: "), reasons);
}

#[test]
fn the_page_says_what_a_configuration_is() {
    let configuration = configuration();
    let fields = [
        ("id", bytes(&9u32)),
        ("policy", bytes(&configuration.policy)),
        ("vec of members", bytes(&configuration.members)),
    ];
    agree(&sentence("A configuration is: "), &fields, &bytes(&configuration));
    let mut member = configuration.members[1].clone();
    member.incarnation = Incarnation(2);
    member.votes_after = Sequence(3);
    let fields = [
        ("replica", vec![1]),
        ("incarnation", bytes(&2u32)),
        ("vote key", member.vote_key.0.to_vec()),
        ("TLS key", member.tls_key.0.to_vec()),
        ("peer address", bytes(&member.peer_address)),
        ("client address", bytes(&member.client_address)),
        ("the last sequence its votes do not count for", bytes(&3u64)),
    ];
    agree(&sentence("A member is: "), &fields, &bytes(&member));
}

fn certificate() -> Certificate {
    let claim = Claim {
        vote: Vote::Checkpoint,
        configuration: ConfigurationId(1),
        view: View(0),
        sequence: Sequence(2),
        digest: hash(3),
    };
    Certificate { claim, vouchers: Vec::new() }
}

#[test]
fn the_page_says_what_a_snapshot_says_of_itself() {
    let orders = vec![decoders::world::member_order()];
    let meta = SnapshotMeta {
        format: SNAPSHOT_FORMAT,
        certificate: certificate(),
        digests: vec![hash(4), hash(5)],
        orders: orders.clone(),
    };
    let fields = [
        (&*format!("format (u16, {SNAPSHOT_FORMAT})"), bytes(&SNAPSHOT_FORMAT)),
        ("certificate of the checkpoint", bytes(&certificate())),
        ("vec of chunk digests", bytes(&vec![hash(4), hash(5)])),
        ("vec of the member orders in force since the genesis", bytes(&orders)),
    ];
    agree(&sentence("Metadata is: "), &fields, &bytes(&meta));
}

#[test]
fn the_page_says_what_a_view_change_and_a_new_view_are() {
    let prepared = PreparedCertificate { pre_prepare: vote(Vote::PrePrepare), prepares: Vec::new() };
    let held = dwcp_pbft::PrePrepared { sequence: Sequence(5), digest: hash(6), view: View(7) };
    let view_change = dwcp_pbft::ViewChange {
        view: View(1),
        configuration: ConfigurationId(2),
        sender: ReplicaId(3),
        incarnation: Incarnation(4),
        stable: Some(certificate()),
        prepared: vec![prepared.clone()],
        pre_prepared: vec![held],
    };
    let begins = [
        ("view", bytes(&1u64)),
        ("configuration", bytes(&2u32)),
        ("sender", vec![3]),
        ("incarnation", bytes(&4u32)),
    ];
    let ends = [
        ("option of the stable checkpoint's certificate", bytes(&Some(certificate()))),
        ("vec of prepared certificates ascending by sequence", bytes(&vec![prepared])),
        (
            "vec of (sequence, digest, view) ascending by (sequence, digest)",
            [bytes(&1u32), bytes(&5u64), vec![6; 32], bytes(&7u64)].concat(),
        ),
    ];
    let fields = [begins.as_slice(), &ends].concat();
    agree(&sentence("A VIEW-CHANGE's body is: "), &fields, &bytes(&view_change));
    let new_view = dwcp_pbft::NewView {
        view: View(1),
        configuration: ConfigurationId(2),
        sender: ReplicaId(3),
        incarnation: Incarnation(4),
        view_changes: vec![(ReplicaId(5), hash(6))],
        pre_prepares: vec![vote(Vote::PrePrepare)],
    };
    let ends = [
        (
            "vec of (sender, hash of a VIEW-CHANGE body) ascending by sender",
            [bytes(&1u32), vec![5], vec![6; 32]].concat(),
        ),
        ("vec of signed pre-prepares ascending by sequence", bytes(&vec![vote(Vote::PrePrepare)])),
    ];
    let fields = [begins.as_slice(), &ends].concat();
    agree(&sentence("A NEW-VIEW's body is: "), &fields, &bytes(&new_view));
}

fn vote(vote: Vote) -> dwcp_pbft::Signed {
    let claim = Claim { vote, ..certificate().claim };
    let statement = Statement { claim, sender: ReplicaId(1), incarnation: Incarnation(2) };
    dwcp_pbft::Signed { statement, signature: Signature([3; 64]) }
}

/// Sizes of the page's table of building blocks that say a number.
#[test]
fn the_page_says_how_long_votes_and_certificates_are() {
    let mut with_voucher = certificate();
    let voucher = dwcp_pbft::Voucher {
        sender: ReplicaId(0),
        incarnation: Incarnation(0),
        signature: Signature([0; 64]),
    };
    with_voucher.vouchers.push(voucher);
    let proof = |prepares| PreparedCertificate { pre_prepare: vote(Vote::PrePrepare), prepares };
    let lengths = [
        ("claim", bytes(&certificate().claim).len().to_string()),
        ("statement", bytes(&vote(Vote::Commit).statement).len().to_string()),
        ("signed vote", bytes(&vote(Vote::Commit)).len().to_string()),
        ("voucher", bytes(&voucher).len().to_string()),
        (
            "certificate",
            format!(
                "{} + {} v",
                bytes(&certificate()).len(),
                bytes(&with_voucher).len() - bytes(&certificate()).len()
            ),
        ),
        (
            "prepared certificate",
            format!(
                "{} + {} p",
                bytes(&proof(Vec::new())).len(),
                bytes(&proof(vec![vote(Vote::Prepare)])).len() - bytes(&proof(Vec::new())).len()
            ),
        ),
    ];
    for (name, length) in lengths {
        assert_eq!(cell(&format!("| {name} |"), 3), [length], "{name}");
    }
}

/// The numbers and names of a table's rows: those that begin with a number, from this line of the page on.
fn rows(heading: &str) -> Vec<(u8, String)> {
    let table = PAGE.split(heading).nth(1).expect("the page has that table");
    let first = |text: &str| text.split([':', '.']).next().unwrap_or_default().trim().to_string();
    table
        .lines()
        .skip(1)
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let mut cells = line.split('|').skip(1);
            let number = cells.next().and_then(|cell| cell.trim().parse().ok()).expect("a number");
            (number, first(cells.next().expect("a name")))
        })
        .collect()
}

/// Examples of all kinds of a thing, each with its first byte, and the name that the page gives it.
fn kinds<T: BorshSerialize>(examples: &[T], name: impl Fn(&T) -> &'static str) -> Vec<(u8, String)> {
    examples.iter().map(|example| (bytes(example)[0], name(example).to_string())).collect()
}

fn sealed() -> Signed<Sealed> {
    let speaker =
        Speaker { id: ReplicaId(2), incarnation: Incarnation(3), configuration: ConfigurationId(4) };
    let said = Sealed { epoch: Epoch(1), speaker, last: place(5) };
    Signed { said, signature: Signature([9; 64]) }
}

fn agreed() -> Box<Agreed> {
    let ground = Ground { configuration: ConfigurationId(1), ends: 0 };
    let consents = vec![(ReplicaId(0), dwcp_log::Stance::Agrees, Signature([7; 64]))];
    Box::new(Agreed { bytes: Bytes::from_static(b"sync's"), ground, consents })
}

fn signed<O>(order: O) -> SignedOrder<O> {
    SignedOrder { order, admin_key: key("admin", 0, 0), signature: Signature([8; 64]) }
}

/// A new kind of entry does not compile here before it has a name, and then the page lacks it.
#[test]
fn the_page_lists_the_entries_of_a_payload() {
    let held = dwcp_log::anchor::Held {
        epoch: Epoch(1),
        index: Index(2),
        term: Term(3),
        chain: hash(4),
        state: hash(5),
    };
    let exclude = ExcludeOrder { id: ReplicaId(1), incarnation: Incarnation(2) };
    let close =
        Close { epoch: Epoch(1), tail: place(2), anchor: 7, proof: CloseProof::Reports(vec![sealed()]) };
    let mode = ModeOrder { number: 1, mode: NetworkMode::Internet, first_leader: Some(ReplicaId(2)) };
    let policy = PolicyOrder { number: 3, trust: Trust::Byzantine, raft: false, default_ack: Ack::Anchored };
    let examples = [
        RootEntry::Batch(vec![Bytes::from_static(b"frame")]),
        RootEntry::Switch(Box::new(Switch { close: Some(close), open: None })),
        RootEntry::Decide(Box::new(Decide { sealed: sealed() })),
        RootEntry::Mode(signed(mode)),
        RootEntry::Anchor(Box::new(Anchor { held, votes: Vec::new() })),
        RootEntry::Policy(signed(policy)),
        RootEntry::Member(decoders::world::member_order()),
        RootEntry::Evidence(agreed()),
        RootEntry::Noop,
        RootEntry::Floor(agreed()),
        RootEntry::Exclude(signed(exclude)),
    ];
    let name = |entry: &RootEntry| match entry {
        RootEntry::Batch(_) => "batch",
        RootEntry::Switch(_) => "switch",
        RootEntry::Decide(_) => "decide",
        RootEntry::Mode(_) => "mode",
        RootEntry::Anchor(_) => "anchor",
        RootEntry::Policy(_) => "policy",
        RootEntry::Member(_) => "member",
        RootEntry::Evidence(_) => "evidence",
        RootEntry::Noop => "no operation",
        RootEntry::Floor(_) => "floor",
        RootEntry::Exclude(_) => "exclude",
    };
    assert_eq!(rows("### Payload"), kinds(&examples, name));

    // Epoch, tail, number of the Anchor, proof; and in it a SEALED: epoch, speaker, last place, signature.
    let speaker = [vec![2], bytes(&3u32), bytes(&4u32)].concat();
    let one = [bytes(&1u64), speaker, place_bytes(5), vec![9; 64]].concat();
    let close = [bytes(&1u64), place_bytes(2), bytes(&7u64), vec![1], bytes(&1u32), one.clone()].concat();
    assert_eq!(bytes(&examples[1]), [vec![2, 1], close, vec![0]].concat(), "switch");
    assert_eq!(bytes(&examples[2]), [vec![3], one].concat(), "decide");
    let end = [key("admin", 0, 0).0.to_vec(), vec![8; 64]].concat();
    assert_eq!(bytes(&examples[3]), [vec![4], bytes(&1u64), vec![1, 1, 2], end.clone()].concat(), "mode");
    let anchor = [bytes(&(1u64, 2u64, 3u64)), vec![4; 32], vec![5; 32], bytes(&0u32)].concat();
    assert_eq!(bytes(&examples[4]), [vec![5], anchor].concat(), "anchor");
    assert_eq!(bytes(&examples[5]), [vec![7], bytes(&3u64), vec![1, 0, 1], end.clone()].concat(), "policy");
    let MemberOrder { id, incarnation, vote_key, tls_key, peer_address, client_address } =
        decoders::world::member_order().order;
    let member = [
        vec![8, id.0],
        bytes(&incarnation.0),
        [vote_key.0, tls_key.0].concat(),
        bytes(&(peer_address, client_address)),
    ];
    assert!(bytes(&examples[6]).starts_with(&member.concat()), "member");
    assert_eq!(bytes(&examples[10]), [vec![12, 1], bytes(&2u32), end].concat(), "exclude");
}

#[test]
fn the_page_lists_the_records_of_the_log() {
    let body = SignedBody { body: Bytes::new(), signature: Signature([0; 64]) };
    let decided = dwcp_pbft::Decided { certificate: certificate(), payload: Bytes::new() };
    use dwcp_pbft::Record as Root;
    let examples = [
        Root::PrePrepared { proposal: vote(Vote::PrePrepare), payload: None },
        Root::Prepared(PreparedCertificate { pre_prepare: vote(Vote::PrePrepare), prepares: Vec::new() }),
        Root::Committed(certificate()),
        Root::Decided(decided),
        Root::ViewChange(body.clone()),
        Root::NewView(NewViewProof { new_view: body, view_changes: Vec::new() }),
        Root::Stable(certificate()),
        Root::Payload { sequence: Sequence(1), payload: Bytes::new() },
    ];
    let name = |record: &Root| match record {
        Root::PrePrepared { .. } => "accepted",
        Root::Prepared(_) => "prepared",
        Root::Committed(_) => "committed",
        Root::Decided(_) => "decided",
        Root::ViewChange(_) => "view change",
        Root::NewView(_) => "new view",
        Root::Stable(_) => "stable",
        Root::Payload { .. } => "payload",
    };
    assert_eq!(rows("A root record ("), kinds(&examples, name));

    use dwcp_raft::Record as Of;
    let hard = HardState { term: Term(1), vote: Some(ReplicaId(2)) };
    let border = Border { place: place(3), hard, sealed: Some(place(4)) };
    let examples = [
        Of::Hard(hard),
        Of::Entries { first: Index(1), entries: Vec::new() },
        Of::Sealed(place(1)),
        Of::Discarded(border),
        Of::Installed(border),
        Of::Pinned(Index(7)),
    ];
    let name = |record: &Of| match record {
        Of::Hard(_) => "hard state",
        Of::Entries { .. } => "entries",
        Of::Sealed(_) => "sealed",
        Of::Discarded(_) => "discarded",
        Of::Installed(_) => "installed",
        Of::Pinned(_) => "pinned",
    };
    assert_eq!(rows("A segment's record ("), kinds(&examples, name));
    let fields = [
        ("border: place", place_bytes(3)),
        ("hard state", [bytes(&1u64), vec![1, 2]].concat()),
        ("option of the sealed place", [vec![1], place_bytes(4)].concat()),
    ];
    agree(&cell("| 4 | discarded |", 3), &fields, &bytes(&border));

    use dwcp_sync::Record as Said;
    let origin = dwcp_crdt::Origin::new(1, 2);
    let cut = Cut { origin, last: 3, hash: hash(4) };
    let proof = contradiction(origin);
    let floor = dwcp_crdt::Floor {
        number: 5,
        seen: dwcp_crdt::VersionVector::new(),
        written: [(origin, 6)].into(),
        retired: [(origin, 7)].into(),
    };
    let mut passed = FloorState::default();
    passed.pass(floor.clone());
    let examples = [
        Said::Frame(Bytes::new()),
        Said::Proof(proof),
        Said::Cut(cut),
        Said::Floor(floor.clone()),
        Said::Base(Base::default()),
        Said::Halt(origin),
        Said::Settled(origin, 1),
        Said::Floors(passed.clone()),
    ];
    let name = |record: &Said| match record {
        Said::Frame(_) => "frame",
        Said::Proof(_) => "proof",
        Said::Cut(_) => "cut",
        Said::Floor(_) => "floor",
        Said::Base(_) => "base",
        Said::Halt(_) => "halt",
        Said::Settled(..) => "settled",
        Said::Floors(_) => "floors",
    };
    assert_eq!(rows("A record of state sync ("), kinds(&examples, name));
    assert_eq!(bytes(&cut), [bytes(&(1u32, 2u32, 3u64)), vec![4; 32]].concat(), "a cut");
    let later = dwcp_crdt::Floor { number: 9, ..floor.clone() };
    let base = Base {
        heads: Vec::new(),
        proofs: vec![proof],
        cuts: vec![cut],
        halted: vec![origin],
        settled: vec![(origin, 6)],
        off_branch: vec![dwcp_crdt::Origin::new(8, 8)],
        floor: 5,
        floors: vec![FloorStep::One(floor.clone()), FloorStep::Through(passed.clone())],
        floor_last: Some(later.clone()),
    };
    let fields = [
        ("signed heads", bytes(&0u32)),
        ("proofs", bytes(&vec![proof])),
        ("cuts", bytes(&vec![cut])),
        ("origins that were about to end without having lied", bytes(&vec![origin])),
        (
            "origins that have to end, each with the counter (u64) up to which the store has them",
            bytes(&vec![(origin, 6u64)]),
        ),
        ("origins of which the store holds what a cut leaves out", bytes(&vec![(8u32, 8u32)])),
        ("newest floor of the store (u64)", bytes(&5u64)),
        (
            "floors after that one: each is 1 and the floor, or 2 and what floors come to",
            [bytes(&2u32), vec![1], bytes(&floor), vec![2], bytes(&passed)].concat(),
        ),
        ("option of the last floor known", bytes(&Some(later))),
    ];
    agree(&cell("| 5 | base |", 3), &fields, &bytes(&base));
}

fn contradiction(origin: dwcp_crdt::Origin) -> dwcp_sync::Proof {
    let header = |body| dwcp_sync::Header {
        origin,
        first: 1,
        last: 1,
        prev: Hash::ZERO,
        hlc: dwcp_crdt::Hlc(1),
        body: hash(body),
    };
    let signed = |body| dwcp_sync::SignedHeader { header: header(body), signature: Signature([0; 64]) };
    dwcp_sync::Proof::of(signed(1), signed(2)).expect("one counter, two frames")
}

#[test]
fn the_page_says_whose_a_record_is() {
    let fetched = FetchedEntries {
        epoch: Epoch(1),
        tail: place(2),
        from: VirtualLog { position: Position(3), chain: hash(4) },
        from_index: Index(5),
        entries: Vec::new(),
    };
    let committed = dwcp_pbft::Record::Committed(certificate());
    let written = [
        (LogRecord::root(&committed), "the root log's", bytes(&committed)),
        (LogRecord::segment(Epoch(6), b"record"), "a segment's", [bytes(&6u64), b"record".to_vec()].concat()),
        (
            LogRecord::fetched(&fetched),
            "entries of a segment that were fetched because its end was not in the own log",
            bytes(&fetched),
        ),
        (LogRecord::sync(7, b"record"), "convergent state's", [bytes(&7u64), b"record".to_vec()].concat()),
        (
            LogRecord::sync_snapshot(8, 9, 10, 11, b"piece"),
            "a part of a snapshot of the convergent store",
            [bytes(&(8u64, 9u32, 10u32, 11u64)), b"piece".to_vec()].concat(),
        ),
    ];
    let expected: Vec<(u8, String)> =
        written.iter().map(|(record, whose, _)| (record[0], (*whose).to_string())).collect();
    assert_eq!(rows("Its first byte says whose it is:"), expected);
    for (record, whose, behind) in &written {
        assert_eq!(record[1..], behind[..], "{whose}");
    }
    let fields = [
        ("epoch", bytes(&1u64)),
        ("tail (index, term, chain)", place_bytes(2)),
        ("the virtual log before the first entry (position, chain)", [bytes(&3u64), vec![4; 32]].concat()),
        ("the index there", bytes(&5u64)),
        ("vec of entries (term, body), at most about 1 MiB of them: the next record goes on", bytes(&0u32)),
    ];
    agree(&cell("| 3 | entries of a segment that were fetched", 3), &fields, &bytes(&fetched));
}
