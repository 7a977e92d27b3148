//! What the root log orders, one entry of every kind: decoded, and handed to whoever judges it: the fold with a segment
//! open, the engine of convergent state, the registry of admins. Sealing signs what is signed in it, as its speakers.

use super::messages::checked;
use crate::Seal::Sums;
use crate::keys::{N, Signer, admin_key, cluster, genesis, sign, vote_key};
use crate::meter::bounded;
use crate::seal::Sealer;
use crate::world::{commands_frame, member_order, open_frame};
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::{
    Ack, Configuration, ConfigurationId, Epoch, Hash, Incarnation, LogTime, Mutants, NetworkMode, Position,
    PublicKey, ReplicaId, Sequence, Signature, Trust, decode, encode,
};
use dwcp_crdt::Floor;
use dwcp_log::anchor::Held;
use dwcp_log::close::Bench;
use dwcp_log::consent::{Agreed, ConsentCourt, Ground, Matter, Stance, consent, consent_hash};
use dwcp_log::order::OrderBody;
use dwcp_log::seal::{Sealed, Signed, Speaker, Statement};
use dwcp_log::segment::Protocol;
use dwcp_log::{
    Anchor, AnchorVote, Close, CloseProof, Decide, ExcludeOrder, Fold, Index, ModeOrder, Open, Place,
    PolicyOrder, Proposal, RootEntry, SignedOrder, Switch, Term,
};
use dwcp_state::ClientFrame;
use dwcp_sync::End;
use std::collections::BTreeSet;
use std::sync::LazyLock;

pub static ROOT_ENTRY: Target = Target::new("root_entry", run, seeds, Sums(seal)).bombs(bombs);

const EPOCH: Epoch = Epoch(1);

fn speaker(id: u8) -> Speaker {
    Speaker { id: ReplicaId(id), incarnation: Incarnation(0), configuration: ConfigurationId(1) }
}

fn voter(speaker: Speaker) -> Option<PublicKey> {
    let is_one = speaker.id.0 < N
        && speaker.incarnation == Incarnation(0)
        && speaker.configuration == ConfigurationId(1);
    is_one.then(|| vote_key(speaker.id, speaker.incarnation))
}

fn with_bench<T>(judge: impl FnOnce(&Bench<'_>) -> T) -> T {
    let crypto = Signer(admin_key());
    let (quorum, mutants) = (genesis().policy.quorum, Mutants::default());
    judge(&Bench { cluster: cluster(), quorum, crypto: &crypto, voters: &voter, gone: 0, mutants })
}

fn open() -> Open {
    Open {
        protocol: Protocol::Raft,
        first_leader: Some(ReplicaId(1)),
        members: (0..N).map(ReplicaId).collect(),
    }
}

/// A log of some entries with a segment open, anchored once, and a batch that waits for its end.
fn fold() -> Fold {
    static FOLD: LazyLock<Fold> = LazyLock::new(|| {
        let mut fold = Fold::default();
        for number in 0..5u64 {
            fold.batch(Sequence(number), LogTime(number), &Hash::of(&number.to_le_bytes()), Vec::new);
        }
        fold.open(Sequence(6), Hash::ZERO, open()).expect("nothing is open");
        fold.anchor(EPOCH, anchor(4).point()).expect("it goes on");
        fold.batch(Sequence(7), LogTime(7), &Hash::ZERO, || vec![([3; 16], Bytes::from_static(b"later"))]);
        fold
    });
    FOLD.clone()
}

/// How many different voters have signed this: counted by hand, to check the judge.
fn count<T: Statement>(words: &[Signed<T>]) -> usize {
    let good = |word: &&Signed<T>| {
        let Some(key) = voter(word.said.speaker()) else { return false };
        let (key, hash, signature) = word.signature_item(cluster(), key);
        sign(&key, &hash) == signature
    };
    let mut ids: Vec<ReplicaId> = words.iter().filter(good).map(|word| word.said.speaker().id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

fn by_admin<O: OrderBody>(order: &SignedOrder<O>) -> bool {
    let (key, hash, signature) = order.signature_item(cluster());
    key == admin_key() && sign(&key, &hash) == signature
}

/// Accepted when whoever judges it takes it.
fn run(bytes: &[u8]) -> Verdict {
    let Some(entry) = checked::<RootEntry>(bytes) else { return Verdict::Refused };
    Verdict::of(bounded(bytes, || judge(&entry)))
}

fn judge(entry: &RootEntry) -> bool {
    let q = genesis().policy.quorum.q();
    match entry {
        RootEntry::Batch(frames) => frames.iter().all(|frame| ClientFrame::decode(frame.clone()).is_ok()),
        RootEntry::Switch(switch) => switch_is_good(switch),
        RootEntry::Decide(decide) => count(&[decide.sealed]) == 1 && decide.sealed.said.epoch == EPOCH,
        RootEntry::Anchor(anchor) => {
            let mut after = fold();
            let good = with_bench(|bench| bench.judge_anchor(anchor)).is_ok();
            assert!(!good || count(&anchor.votes) >= q, "an Anchor counts without its voters");
            let _ = anchor.clock_ms();
            let taken = good && after.anchor(anchor.held.epoch, anchor.point()).is_ok();
            assert!(taken || after == fold(), "an Anchor that does not count moved the fold");
            let index = |fold: &Fold| fold.segment().map(|segment| segment.anchor.index);
            assert!(!taken || index(&after) > index(&fold()), "an Anchor went back");
            taken
        }
        RootEntry::Member(order) => by_admin(order),
        RootEntry::Mode(order) => by_admin(order),
        RootEntry::Policy(order) => by_admin(order),
        RootEntry::Exclude(order) => by_admin(order),
        RootEntry::Evidence(agreed) => is_agreed(Matter::End, agreed) && decode::<End>(&agreed.bytes).is_ok(),
        RootEntry::Floor(agreed) => {
            is_agreed(Matter::Floor, agreed) && decode::<Floor>(&agreed.bytes).is_ok()
        }
        RootEntry::Noop => true,
    }
}

fn is_agreed(matter: Matter, agreed: &Agreed) -> bool {
    let configuration = Configuration::of(&genesis());
    let crypto = Signer(admin_key());
    let court = ConsentCourt {
        cluster: cluster(),
        configuration: &configuration,
        executed: Sequence(9),
        ends: 0,
        convicted: BTreeSet::new(),
        crypto: &crypto,
    };
    let good = court.judge(matter, agreed).is_ok();
    // Counted by hand, to check the judge.
    let consents = |(by, stance, signature): &&(ReplicaId, Stance, Signature)| {
        let hash = consent_hash(cluster(), matter, agreed.ground, Hash::of(&agreed.bytes), *stance, *by);
        by.0 < N && sign(&vote_key(*by, Incarnation(0)), &hash) == *signature
    };
    let mut ids: Vec<ReplicaId> = agreed.consents.iter().filter(consents).map(|(by, ..)| *by).collect();
    ids.sort_unstable();
    ids.dedup();
    let says = |stances: &[Stance]| {
        let says = |(_, stance, _): &&(ReplicaId, Stance, Signature)| stances.contains(stance);
        agreed.consents.iter().filter(says).count()
    };
    let enough = match matter {
        Matter::Floor => says(&[Stance::Agrees]) == agreed.consents.len(),
        Matter::End => {
            says(&[Stance::Agrees, Stance::Beyond]) > 1 && says(&[Stance::Agrees, Stance::Below]) > 1
        }
    };
    assert!(!good || enough, "agreed to by liars alone");
    let here = agreed.ground == Ground { configuration: ConfigurationId(1), ends: 0 };
    assert!(!good || (here && ids.len() >= genesis().policy.quorum.q()), "agreed to without a quorum");
    good
}

fn switch_is_good(switch: &Switch) -> bool {
    let before = fold();
    let mut after = before.clone();
    if let Some(close) = &switch.close {
        let closed = with_bench(|bench| after.close(bench, close.clone()));
        let Ok(closed) = closed else {
            assert!(after == before, "a Close that does not count moved the fold");
            return false;
        };
        if let CloseProof::Reports(reports) = &close.proof {
            assert!(count(reports) >= genesis().policy.quorum.q(), "a Close counts without its reporters");
            let best = reports.iter().map(|report| (report.said.last.term, report.said.last.index)).max();
            assert!(
                best == Some((close.tail.term, close.tail.index)),
                "a Close is not the best that was reported"
            );
        }
        let base = before.log();
        assert!(
            after.log().position == Position(base.position.0 + close.tail.index.0)
                && after.segment().is_none(),
            "a Close ends the log elsewhere"
        );
        assert!(close.tail.index >= Index(4), "what was anchored is gone");
        assert!(
            closed.deferred.len() == 1 && after.deferred().is_empty(),
            "what was deferred is handed out once"
        );
    }
    if let Some(open) = &switch.open {
        let epoch = after.epoch();
        match after.open(Sequence(9), Hash::ZERO, open.clone()) {
            Ok(segment) => assert!(segment.epoch.0 == epoch.0 + 1, "epochs are opened one by one"),
            Err(_) => return false,
        }
    }
    true
}

/// Everything signed in the entry, by whoever it says it is from.
fn seal(bytes: &mut Vec<u8>) -> bool {
    let Ok(entry) = decode::<RootEntry>(bytes) else { return false };
    let mut sealer = Sealer::of(bytes);
    let mut payload = Proposal { time: LogTime(1), entries: vec![entry] }.to_payload();
    if !sealer.payload(&mut payload) {
        return false;
    }
    let Ok(Some(proposal)) = Proposal::from_payload(&payload) else { return false };
    *bytes = encode(&proposal.entries[0]);
    true
}

fn place(term: u64, index: u64) -> Place {
    Place { index: Index(index), term: Term(term), chain: Hash::of(&[term as u8, index as u8]) }
}

fn signed<T: Statement>(said: T) -> Signed<T> {
    let speaker = said.speaker();
    Signed::new(said, cluster(), &Signer(vote_key(speaker.id, speaker.incarnation)))
}

fn report(id: u8, last: Place) -> Signed<Sealed> {
    signed(Sealed { epoch: EPOCH, speaker: speaker(id), last })
}

fn anchor(index: u64) -> Anchor {
    let Place { index, term, chain } = place(1, index);
    let held = Held { epoch: EPOCH, index, term, chain, state: Hash::of(b"state") };
    let vote = |id: u8| signed(AnchorVote { held, speaker: speaker(id), clock_ms: 1_000 + u64::from(id) });
    Anchor { held, votes: (0..3).map(vote).collect() }
}

fn order<O: OrderBody>(order: O) -> SignedOrder<O> {
    SignedOrder::new(order, cluster(), admin_key(), &Signer(admin_key()))
}

fn agreed(matter: Matter, bytes: Vec<u8>) -> Box<Agreed> {
    let (bytes, ground) = (Bytes::from(bytes), Ground { configuration: ConfigurationId(1), ends: 0 });
    let consent = |id: u8| {
        let (by, key) = (ReplicaId(id), Signer(vote_key(ReplicaId(id), Incarnation(0))));
        let stance = match (matter, id) {
            (Matter::End, 0) => Stance::Beyond,
            (Matter::End, 1) => Stance::Below,
            _ => Stance::Agrees,
        };
        (by, stance, consent(cluster(), matter, ground, Hash::of(&bytes), stance, by, &key))
    };
    let consents = (0..3).map(consent).collect();
    Box::new(Agreed { bytes, ground, consents })
}

/// One entry of every kind, some in several shapes.
#[must_use]
pub fn entries() -> Vec<RootEntry> {
    let frames = vec![
        open_frame(0, 7, crate::keys::START_MS),
        commands_frame(0, 9, vec![Bytes::from_static(&[3]), Bytes::from_static(&[2])]),
    ];
    let reports = vec![report(0, place(1, 9)), report(2, place(2, 12)), report(3, place(1, 30))];
    let close = Close { epoch: EPOCH, tail: place(2, 12), anchor: 3, proof: CloseProof::Reports(reports) };
    let marker = Close { epoch: EPOCH, tail: place(1, 5), anchor: 0, proof: CloseProof::Marker };
    let switch =
        |close: Option<Close>, open: Option<Open>| RootEntry::Switch(Box::new(Switch { close, open }));
    let mode = ModeOrder { number: 1, mode: NetworkMode::Datacenter, first_leader: Some(ReplicaId(2)) };
    let policy = PolicyOrder { number: 1, trust: Trust::Crash, raft: true, default_ack: Ack::Anchored };
    let sync = crate::sync_world::world();
    vec![
        RootEntry::Batch(frames),
        RootEntry::Batch(Vec::new()),
        switch(Some(close.clone()), Some(open())),
        switch(Some(marker), None),
        switch(Some(close), None),
        switch(None, Some(Open { first_leader: None, ..open() })),
        RootEntry::Decide(Box::new(Decide { sealed: report(1, place(1, 3)) })),
        RootEntry::Mode(order(mode)),
        RootEntry::Anchor(Box::new(anchor(8))),
        RootEntry::Policy(order(policy)),
        RootEntry::Member(member_order()),
        RootEntry::Exclude(order(ExcludeOrder { id: ReplicaId(3), incarnation: Incarnation(0) })),
        RootEntry::Evidence(agreed(Matter::End, encode(&End { cut: sync.cut, proof: None }))),
        RootEntry::Evidence(agreed(
            Matter::End,
            encode(&End { cut: sync.cut, proof: Some(Box::new(sync.proof)) }),
        )),
        RootEntry::Floor(agreed(Matter::Floor, encode(&sync.floor))),
        RootEntry::Noop,
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    entries().iter().map(encode).collect()
}

/// Every number as large as it can be, under good signatures.
fn bombs() -> Vec<Vec<u8>> {
    let mut bombs: Vec<Vec<u8>> =
        seeds().iter().flat_map(|seed| crate::mutate::sweep(seed, &[4, 8])).collect();
    for bomb in &mut bombs {
        seal(bomb);
    }
    bombs
}
