//! Stories told to a live replica: what its peers and clients say, damaged and sealed again, until its handlers have
//! seen every field lie. And a log whose last records are damaged under good checksums.

use crate::Seal::Sums;
use crate::seal::Sealer;
use crate::story::{self, Step};
use crate::world::{member_order, world};
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::{ConfigurationId, Incarnation, ReplicaId, Sequence, Signature, View, decode, encode};
use dwcp_log::entry::payload_digest;
use dwcp_log::{OperatorOrder, Proposal};
use dwcp_pbft::message::{Message, NewView, SignedBody, SlotHeld, Standing};
use dwcp_replica::{Input, Outbox, PeerMessage};

pub static HEIR: Target = story_target("replica_heir", play_heir, heir_stories).bombs(swept_messages);
pub static BACKUP: Target = story_target("replica_backup", play_backup, backup_stories);
pub static SLEEPER: Target = story_target("replica_sleeper", play_sleeper, sleeper_stories);
pub static LOG: Target =
    Target::new("replica_log", run_log, logs, Sums(seal_log)).live(50, LIVES, &["record"]);

const LIVES: &str = "each brings a whole replica with its history to life";
/// Who reads a story's steps and what is in them.
const HEARD: &[&str] = &[
    "peer_message",
    "view_change",
    "new_view",
    "proposal",
    "root_entry",
    "operator_order",
    "client_frame",
    "snapshot_meta",
    "sync_message",
    "sync_frame",
];

/// Each number of the short messages, as large as it can be, under a good signature where there is one.
fn swept_messages() -> Vec<Vec<u8>> {
    let short = super::messages::peer_messages().into_iter().filter(|bytes| bytes.len() < 150);
    let mut bombs = Vec::new();
    for bytes in short.chain([stuck_standing(19)]) {
        for bytes in crate::mutate::sweep(&bytes, &[8]) {
            let mut told = story::write(&[Step::Peer { from: 0, bytes }, Step::Wake]);
            if story::seal(&mut told) {
                bombs.push(told);
            }
        }
    }
    bombs
}

const fn story_target(name: &'static str, run: fn(&[u8]) -> Verdict, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    let target = Target::new(name, run, seeds, Sums(story::seal)).live(50, LIVES, HEARD);
    Target { damage: story::damage, ..target }
}

/// Accepted when nothing of it was refused.
fn play_heir(bytes: &[u8]) -> Verdict {
    Verdict::of(story::play(&world().heir, bytes).is_empty())
}

fn play_backup(bytes: &[u8]) -> Verdict {
    Verdict::of(story::play(&world().backup, bytes).is_empty())
}

fn play_sleeper(bytes: &[u8]) -> Verdict {
    Verdict::of(story::play(&world().sleeper, bytes).is_empty())
}

fn is_standing(step: &Step) -> bool {
    // PBFT messages are kind 1, standings kind 6 of them.
    matches!(step, Step::Peer { bytes, .. } if bytes.starts_with(&[1, 6]))
}

/// Beginnings of what was said, of several lengths, and each kind of message by itself.
fn stories(told: &[&[Step]]) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for steps in told {
        // Standings come all the time and crowd out the rest.
        let mut standings = 0;
        let steps: Vec<Step> = steps
            .iter()
            .filter(|step| {
                standings += usize::from(is_standing(step));
                !is_standing(step) || standings % 8 == 1
            })
            .cloned()
            .collect();
        for len in [12, 40, 120] {
            let len = len.min(steps.len());
            seeds.push(story::write(&steps[..len]));
        }
    }
    for (index, bytes) in super::messages::peer_messages().into_iter().enumerate() {
        let from = u8::try_from(index % 4).expect("a replica");
        seeds.push(story::write(&[Step::Peer { from, bytes }]));
    }
    for executed in [19, u64::MAX] {
        seeds.push(story::write(&[Step::Peer { from: 0, bytes: stuck_standing(executed) }]));
    }
    for view in [1, 2, 3, 7, u64::MAX] {
        let from = u8::try_from(view % 4).expect("a replica");
        let mut told = story::write(&[Step::Peer { from, bytes: bogus_new_view(view) }, Step::Wake]);
        story::seal(&mut told);
        seeds.push(told);
    }
    seeds.push(story::write(&[
        Step::Order(encode(&OperatorOrder::Member(member_order()))),
        Step::Wake,
        Step::Status,
    ]));
    let ask = encode(&PeerMessage::Pbft(Message::FetchDecided { from: Sequence(1) }));
    let up =
        [Step::LinkUp(0), Step::LinkUp(2), Step::LinkUp(3), Step::Wake, Step::Peer { from: 0, bytes: ask }];
    seeds.push(story::write(&up));
    seeds
}

/// A NEW-VIEW of that view's primary that names nobody who left.
fn bogus_new_view(view: u64) -> Vec<u8> {
    let sender = ReplicaId(u8::try_from(view % 4).expect("a replica"));
    let body = NewView {
        view: View(view),
        configuration: ConfigurationId(1),
        sender,
        incarnation: Incarnation(0),
        view_changes: Vec::new(),
        pre_prepares: Vec::new(),
    };
    let signed = SignedBody { body: Bytes::from(encode(&body)), signature: Signature([0; 64]) };
    encode(&PeerMessage::Pbft(Message::NewView(signed)))
}

/// A peer that does not get on.
fn stuck_standing(executed: u64) -> Vec<u8> {
    let standing = Standing {
        view: View(0),
        active: true,
        stable: Sequence(8),
        executed: Sequence(executed),
        decided_from: Sequence(1),
        snapshot: Sequence(0),
        stuck: vec![
            SlotHeld { pre_prepare: false, prepared: false },
            SlotHeld { pre_prepare: true, prepared: true },
        ],
        answer: true,
    };
    encode(&PeerMessage::Pbft(Message::Standing(standing)))
}

/// Also all that its peers may say about convergent state.
fn heir_stories() -> Vec<Vec<u8>> {
    let mut seeds = stories(&[&world().heir_normal, &world().heir_change]);
    let sync = crate::sync_world::world();
    let by = |from: u32, message: &PeerMessage| Step::Peer {
        from: u8::try_from(from).expect("a replica"),
        bytes: encode(message),
    };
    let said: Vec<Step> = sync
        .messages
        .iter()
        .map(|(from, message)| by(*from, &PeerMessage::Sync(message.to_bytes())))
        .collect();
    let push = |frame: &dwcp_sync::Frame| {
        let message = dwcp_sync::Message::Push { hops: 0, frame: frame.bytes().clone() };
        by(frame.header().origin.id.0, &PeerMessage::Sync(message.to_bytes()))
    };
    let pushes: Vec<Step> = sync.all.iter().map(push).chain([Step::Wake, Step::Wake]).collect();
    let order = |frame: &dwcp_sync::Frame| {
        by(frame.header().origin.id.0, &PeerMessage::SyncOrder { frame: frame.bytes().clone() })
    };
    let base = Bytes::from(encode(&sync.base));
    let digest = dwcp_base::Hash::of(b"a store");
    let rest = [
        PeerMessage::SyncStand { token: 1, digest: None },
        PeerMessage::SyncStand { token: 1, digest: Some(digest) },
        PeerMessage::SyncFetch { id: 0, part: 0 },
        PeerMessage::SyncFetch { id: 1, part: 1 },
        PeerMessage::SyncOffer { id: 1, parts: 2, bytes: 90, digest, base },
        PeerMessage::SyncPart { id: 1, part: 0, bytes: Bytes::from(sync.store.snapshot_head()) },
    ];
    seeds.extend(said.chunks(8).map(story::write));
    seeds.push(story::write(&pushes));
    seeds.push(story::write(&sync.all.iter().map(order).chain([Step::Wake]).collect::<Vec<_>>()));
    seeds.push(story::write(&rest.iter().map(|message| by(0, message)).collect::<Vec<_>>()));
    seeds.extend(rest.iter().map(|message| story::write(&[by(2, message)])));
    seeds
}

/// Also what a primary that lies may propose next: every kind of entry, in that slot which the backup expects.
fn backup_stories() -> Vec<Vec<u8>> {
    let mut seeds = stories(&[&world().backup_normal, &world().backup_change]);
    let first = world().backup_normal.iter().find_map(|step| match step {
        Step::Peer { from, bytes } => match decode::<PeerMessage>(bytes) {
            Ok(PeerMessage::Pbft(Message::PrePrepare { proposal, payload })) => {
                Proposal::from_payload(&payload).ok().flatten().map(|good| (*from, proposal, good))
            }
            _ => None,
        },
        _ => None,
    });
    let (from, proposal, good) = first.expect("the primary proposed something");
    for entry in super::entries::entries() {
        let payload = Proposal { entries: vec![entry], ..good.clone() }.to_payload();
        let mut signed = proposal;
        signed.statement.claim.digest = payload_digest(&payload);
        let message = Message::PrePrepare { proposal: signed, payload };
        let bytes = encode(&PeerMessage::Pbft(message));
        let mut told = story::write(&[Step::Peer { from, bytes }, Step::Wake]);
        assert!(story::seal(&mut told), "a proposal can be signed");
        seeds.push(told);
    }
    seeds
}

fn sleeper_stories() -> Vec<Vec<u8>> {
    stories(&[&world().sleeper_wakes])
}

/// A log whose tail is these records. The checksums of the log are good; what the records say may be nonsense, and then
/// the replica must refuse to begin, or begin. What it wrote itself it may believe, so its invariants are not asked for.
fn run_log(bytes: &[u8]) -> Verdict {
    let extra: Vec<Bytes> = story::read(bytes).iter().map(|step| Bytes::from(body(step))).collect();
    let mut out = Outbox::default();
    let heir = &world().heir;
    let Ok(mut replica) = heir.revive(&extra, &mut out) else { return Verdict::Refused };
    replica.step(heir.now(), Input::Wake, &mut out);
    replica.step(heir.now(), Input::LinkUp { peer: ReplicaId(0) }, &mut out);
    let _ = replica.status(heir.now());
    Verdict::Accepted
}

fn body(step: &Step) -> Vec<u8> {
    match step {
        Step::Peer { bytes, .. }
        | Step::Frame(bytes)
        | Step::Order(bytes)
        | Step::Query(bytes)
        | Step::Attach(bytes) => bytes.clone(),
        Step::Status | Step::Wake | Step::LinkUp(_) => Vec::new(),
    }
}

fn seal_log(bytes: &mut Vec<u8>) -> bool {
    let mut sealer = Sealer::of(bytes);
    let mut steps = story::read(bytes);
    let mut good = !steps.is_empty();
    for step in &mut steps {
        let mut record = body(step);
        good &= sealer.record(&mut record);
        *step = Step::Query(record);
    }
    *bytes = story::write(&steps);
    good
}

fn logs() -> Vec<Vec<u8>> {
    let kinds = super::messages::few_of_each(world().records.iter().rev().map(|record| record.to_vec()), 2);
    let mut seeds: Vec<Vec<u8>> =
        kinds.iter().map(|record| story::write(&[Step::Query(record.clone())])).collect();
    seeds.push(story::write(&kinds.into_iter().map(Step::Query).collect::<Vec<_>>()));
    seeds
}
