//! What a single liar says to one replica, and what the replica makes of it. Messages are crafted with the members' real
//! keys; nothing else of a cluster is here. The judged runs of whole clusters are the simulator's.

use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    ConfigurationId, Genesis, Hash, Incarnation, Member, Micros, Mutants, Now, Policy, Quorum, ReplicaId,
    Sequence, SigningKind, Ticket, Trust, View, encode,
};
use dwcp_log::entry::payload_digest;
use dwcp_pbft::slot::KeptTickets;
use dwcp_pbft::{
    Action, Application, Certificate, Claim, Decided, Introduction, Message, NewView, Output, Pbft,
    PbftSetup, Record, Signed, SignedBody, SlotHeld, Standing, Statement, Timing, ViewChange, Vote, Voucher,
};
use std::sync::Arc;
struct App;

impl Application for App {
    fn check(&mut self, _: Now, _: &Bytes) -> Result<(), &'static str> {
        Ok(())
    }
}

fn signer(id: u8) -> Ed25519 {
    Ed25519::new([id + 1; 32], &[])
}

fn genesis() -> Arc<Genesis> {
    let members = (0..4)
        .map(|id| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: signer(id).public_key(),
            tls_key: signer(id + 50).public_key(),
            peer_address: "a:1".into(),
            client_address: "a:2".into(),
            votes_after: Sequence::ZERO,
        })
        .collect();
    let g = Genesis {
        version: 1,
        name: "t".into(),
        created_unix_ms: 1,
        policy: Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap()),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members,
        principals: vec![Principal { name: "a".into(), key: signer(100).public_key(), role: Role::Admin }],
        checkpoint_interval: 8,
        window: 16,
        quota_bytes: 1 << 30,
    };
    g.check().unwrap();
    Arc::new(g)
}

fn replica(me: u8) -> Pbft {
    Pbft::new(&PbftSetup {
        genesis: genesis(),
        me: ReplicaId(me),
        incarnation: Incarnation(0),
        timing: Timing::lan(),
        history_bytes_max: 1 << 20,
        pipeline_depth: 4,
        crypto: Arc::new(signer(me)),
        mutants: Mutants::default(),
    })
}

fn refused(out: &mut Output) -> bool {
    out.take().iter().any(|action| matches!(action, Action::Refused { .. }))
}

fn now() -> Now {
    Now { mono: Micros(1_000_000), wall_ms: 5 }
}

fn vote(sender: u8, vote: Vote, digest: Hash) -> Signed {
    let claim =
        Claim { vote, configuration: ConfigurationId(1), view: View(0), sequence: Sequence(1), digest };
    Signed::new(
        Statement { claim, sender: ReplicaId(sender), incarnation: Incarnation(0) },
        genesis().cluster(),
        &signer(sender),
    )
}

#[test]
fn a_decision_of_ours_does_not_vouch_for_another_digest() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    let a = payload_digest(b"A");
    for s in [0, 1, 3] {
        r.on_message(now(), ReplicaId(s), Message::Vote(vote(s, Vote::Commit, a)), &mut App, &mut out);
    }
    out.take();
    let claim = Claim {
        vote: Vote::Commit,
        configuration: ConfigurationId(9),
        view: View(7),
        sequence: Sequence(1),
        digest: payload_digest(b"B"),
    };
    let decided =
        Decided { certificate: Certificate { claim, vouchers: vec![] }, payload: Bytes::from_static(b"B") };
    r.on_message(now(), ReplicaId(0), Message::Decided(vec![decided]), &mut App, &mut out);
    let ran: Vec<_> = out.take().into_iter().filter(|a| matches!(a, Action::Deliver(..))).collect();
    assert!(ran.is_empty(), "{ran:?}");
}

/// A disk may hold another payload than was decided, under a checksum that holds.
#[test]
fn a_payload_read_back_is_executed_only_under_its_own_digest() {
    for (payload, runs) in [(&b"A"[..], 1), (b"B", 0)] {
        let mut r = replica(2);
        let mut out = Output::new(Ticket(3));
        let claim = vote(0, Vote::Commit, payload_digest(b"A")).statement.claim;
        let certificate = Certificate { claim, vouchers: vec![] };
        r.replay(Ticket(1), Record::Decided(Decided { certificate, payload: Bytes::from_static(payload) }));
        r.replayed(now(), &mut out);
        let ran = out.take().into_iter().filter(|a| matches!(a, Action::Deliver(..))).count();
        assert_eq!(ran, runs);
    }
}

/// A slot of so many bytes, and the commits that prove it.
fn decided(sequence: u64, bytes: usize) -> Decided {
    let payload = Bytes::from(vec![sequence as u8; bytes]);
    let mut claim = vote(0, Vote::Commit, payload_digest(&payload)).statement.claim;
    claim.sequence = Sequence(sequence);
    let voucher = |sender: u8| {
        let (id, incarnation) = (ReplicaId(sender), Incarnation(0));
        let statement = Statement { claim, sender: id, incarnation };
        let signature = Signed::new(statement, genesis().cluster(), &signer(sender)).signature;
        Voucher { sender: id, incarnation, signature }
    };
    let certificate = Certificate { claim, vouchers: [0, 1, 3].map(voucher).to_vec() };
    Decided { certificate, payload }
}

/// Section 4.3: what a checkpoint covers is not needed any more. Here what a snapshot of it covers, and on disk.
#[test]
fn the_log_is_kept_from_the_first_record_of_what_no_snapshot_covers() {
    let mut kept = KeptTickets::new(4);
    // Slots are accepted in any order, and one has several records.
    for (sequence, ticket) in [(2, 7), (1, 8), (4, 9), (6, 10), (5, 12), (3, 14), (8, 15), (9, 16)] {
        kept.keep(Sequence(sequence), Ticket(ticket));
    }
    let mut after = |snapshot| {
        kept.covered(Sequence(snapshot));
        kept.first().map(|ticket| ticket.0)
    };
    assert_eq!(after(0), Some(7));
    assert_eq!(after(4), Some(10), "of slots 5 to 9, though slot 3's last record came later");
    assert_eq!((after(8), after(12)), (Some(16), None));
}

/// Whoever has fetched a snapshot goes on from there. If newer ones are written meanwhile and the slots behind it let go of,
/// it has to fetch another one, and so on.
#[test]
fn what_follows_a_snapshot_that_is_being_fetched_is_kept() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    let mut decide = |r: &mut Pbft, sequences: std::ops::RangeInclusive<u64>| {
        for sequence in sequences {
            let slot = Message::Decided(vec![decided(sequence, 256 << 10)]);
            r.on_message(now(), ReplicaId(0), slot, &mut App, &mut out);
        }
        out.take();
        r.on_link_up(ReplicaId(1), &mut out);
        let from = |action: Action| match action {
            Action::Send { message: Message::Standing(standing), .. } => Some(standing.decided_from.0),
            _ => None,
        };
        out.take().into_iter().find_map(from).expect("it says where it stands")
    };
    // One MiB holds three of them.
    let nothing = Output::new(Ticket(1));
    assert_eq!(decide(&mut r, 1..=2), 1);
    r.on_snapshot(Sequence(2), &nothing);
    r.note_fetched(Some(Sequence(2)));
    assert_eq!(decide(&mut r, 3..=8), 3, "all behind the newest snapshot, and that is 2");
    r.on_snapshot(Sequence(8), &nothing);
    assert_eq!(decide(&mut r, 9..=9), 3, "8 is the newest, and 2 is being fetched");
    assert_eq!(decide(&mut r, 10..=10), 4, "no more than two MiB for its sake");
    r.note_fetched(None);
    assert_eq!(decide(&mut r, 11..=11), 9, "nobody fetches any more");
}

/// A peer gives a laggard so much in an interval and then says nothing more. Waiting for it would cost seconds each time: the
/// laggard knows the share, and asks another.
#[test]
fn a_laggard_asks_another_peer_once_one_has_given_its_share() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    for peer in [0, 1] {
        let standing = Standing { executed: Sequence(1_000), ..standing() };
        r.on_message(now(), ReplicaId(peer), Message::Standing(standing), &mut App, &mut out);
    }
    let asked = |out: &mut Output| {
        let asked = |action: &Action| match action {
            Action::Send { to, message: Message::FetchDecided { from }, .. } => Some((to.0, from.0)),
            _ => None,
        };
        out.take().iter().filter_map(asked).collect::<Vec<_>>()
    };
    let mut asked_now = asked(&mut out);
    let mut peers = Vec::new();
    for sequence in 1..=20_u64 {
        assert_eq!((asked_now.len(), asked_now[0].1), (1, sequence));
        let from = ReplicaId(asked_now[0].0);
        peers.push(from.0);
        let decided = vec![decided(sequence, 1 << 20)];
        r.on_message(now(), from, Message::Decided(decided), &mut App, &mut out);
        asked_now = asked(&mut out);
        if asked_now.is_empty() {
            break;
        }
    }
    let first = peers[0];
    assert_eq!(peers, [[first; 8], [1 - first; 8]].concat(), "each gives its eight MiB");
    // An interval later they give again.
    let later = Now { mono: now().mono.plus(Timing::lan().resend_interval), ..now() };
    let standing = Standing { executed: Sequence(1_000), ..standing() };
    r.on_message(later, ReplicaId(0), Message::Standing(standing), &mut App, &mut out);
    assert_eq!(asked(&mut out).first().map(|(_, from)| *from), Some(17));
}

/// While a replica is dead, its peers' links keep what they said meanwhile, and that comes first when it is back.
/// The share is of all help together, so a laggard cannot count it. Silence would cost it seconds.
#[test]
fn a_peer_that_has_given_its_share_says_so_and_another_is_asked() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    let slot = Message::Decided(vec![decided(1, 1 << 20)]);
    r.on_message(now(), ReplicaId(0), slot, &mut App, &mut out);
    out.take();
    let mut answers = Vec::new();
    for _ in 0..10 {
        let ask = Message::FetchDecided { from: Sequence(1) };
        r.on_message(now(), ReplicaId(3), ask, &mut App, &mut out);
        answers.extend(out.take().into_iter().filter_map(|action| match action {
            Action::Send { message: Message::Decided(slots), .. } => Some(slots.len()),
            _ => None,
        }));
    }
    assert_eq!(answers, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);

    let mut r = replica(2);
    let mut asked = |peer: u8, message: Message| {
        r.on_message(now(), ReplicaId(peer), message, &mut App, &mut out);
        let asked = |action: &Action| match action {
            Action::Send { to, message: Message::FetchDecided { .. }, .. } => Some(to.0),
            _ => None,
        };
        out.take().iter().filter_map(asked).collect::<Vec<_>>()
    };
    let ahead = || Message::Standing(Standing { executed: Sequence(1_000), ..standing() });
    let first = asked(0, ahead());
    assert_eq!(first, [0]);
    assert_eq!(asked(1, ahead()), [0; 0]);
    assert_eq!(asked(3, Message::Decided(vec![])), [0; 0], "who was not asked cannot make us ask");
    assert_eq!(asked(0, Message::Decided(vec![])), [1]);
    assert_eq!(asked(1, Message::Decided(vec![])), [0; 0], "all have given: nobody is waited for");
    assert_eq!(asked(3, ahead()), [0; 0], "it has said that it gives no more, too");
}

#[test]
fn whoever_was_asked_by_an_old_word_of_its_is_not_waited_for() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    let says = |executed, decided_from| {
        let (executed, decided_from) = (Sequence(executed), Sequence(decided_from));
        Message::Standing(Standing { executed, decided_from, ..standing() })
    };
    r.on_message(now(), ReplicaId(0), says(205, 1), &mut App, &mut out);
    let asked =
        |action: &Action| matches!(action, Action::Send { message: Message::FetchDecided { .. }, .. });
    assert_eq!(out.take().iter().filter(|action| asked(action)).count(), 1);
    // Others' words do not end the wait, nor does one by which the slots are still there.
    r.on_message(now(), ReplicaId(1), says(3_000, 900), &mut App, &mut out);
    r.on_message(now(), ReplicaId(0), says(300, 1), &mut App, &mut out);
    let seeks = |action: &Action| asked(action) || matches!(action, Action::NeedSnapshot { .. });
    assert_eq!(out.take().iter().filter(|action| seeks(action)).count(), 0);
    r.on_message(now(), ReplicaId(0), says(3_000, 900), &mut App, &mut out);
    let needs = |action: &Action| matches!(action, Action::NeedSnapshot { .. });
    assert_eq!(out.take().iter().filter(|action| needs(action)).count(), 1);
    // It is said once: a peer cannot make us ask as often as it speaks.
    r.on_message(now(), ReplicaId(0), says(3_001, 901), &mut App, &mut out);
    assert_eq!(out.take().iter().filter(|action| seeks(action)).count(), 0);
}

#[test]
fn a_standing_beyond_all_places_is_refused() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    let s = Standing {
        view: View(0),
        active: true,
        stable: Sequence(0),
        executed: Sequence(u64::MAX),
        decided_from: Sequence(u64::MAX),
        snapshot: Sequence(u64::MAX),
        stuck: vec![SlotHeld { pre_prepare: false, prepared: false }],
        answer: false,
    };
    r.on_message(now(), ReplicaId(0), Message::Standing(s), &mut App, &mut out);
    assert!(refused(&mut out));
}

fn standing() -> Standing {
    Standing {
        view: View(0),
        active: true,
        stable: Sequence(0),
        executed: Sequence(0),
        decided_from: Sequence(1),
        snapshot: Sequence(0),
        stuck: vec![],
        answer: false,
    }
}

fn broadcasts(out: &mut Output) -> usize {
    let voted = |action: &Action| matches!(action, Action::Broadcast { message: Message::Vote(_), .. });
    out.take().iter().filter(|action| voted(action)).count()
}

/// How the replica calls its life since it began.
fn boot_of(r: &mut Pbft) -> u64 {
    let mut out = Output::new(Ticket(1));
    r.on_link_up(ReplicaId(1), &mut out);
    let asks = out.take().into_iter().find_map(|action| match action {
        Action::Send { message: Message::Introduce { boot }, .. } => Some(boot),
        _ => None,
    });
    asks.expect("it wants to be told what it signed")
}

/// What a peer says that has seen these votes of the replica.
fn introduce(r: &mut Pbft, peer: u8, boot: u64, votes: Vec<Signed>, out: &mut Output) {
    let introduction = Introduction { boot, votes, view_change: None };
    r.on_message(now(), ReplicaId(peer), Message::Introduction(introduction), &mut App, out);
}

#[test]
fn a_replica_that_began_votes_once_q_minus_1_peers_have_shown_what_it_signed() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.begin(now());
    let boot = boot_of(&mut r);
    let payload = Bytes::from_static(b"A");
    let proposal = vote(0, Vote::PrePrepare, payload_digest(&payload));
    r.on_message(now(), ReplicaId(0), Message::PrePrepare { proposal, payload }, &mut App, &mut out);
    introduce(&mut r, 0, boot, vec![], &mut out);
    introduce(&mut r, 0, boot, vec![], &mut out);
    assert_eq!(broadcasts(&mut out), 0, "one peer, however often it speaks, is one");
    introduce(&mut r, 3, boot, vec![], &mut out);
    assert_eq!(broadcasts(&mut out), 1, "what waited is voted on");
}

#[test]
fn what_was_meant_for_an_earlier_life_introduces_nobody() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.begin(now());
    let earlier = boot_of(&mut r);
    let mut r = replica(2);
    r.begin(Now { mono: Micros(now().mono.0 + 1), ..now() });
    let boot = boot_of(&mut r);
    assert_ne!(earlier, boot);
    let payload = Bytes::from_static(b"B");
    let proposal = vote(0, Vote::PrePrepare, payload_digest(&payload));
    r.on_message(now(), ReplicaId(0), Message::PrePrepare { proposal, payload }, &mut App, &mut out);
    for peer in [0, 1, 3] {
        introduce(&mut r, peer, earlier, vec![], &mut out);
        r.on_message(now(), ReplicaId(peer), Message::Standing(standing()), &mut App, &mut out);
    }
    assert_eq!(broadcasts(&mut out), 0, "none of them has shown this life what it signed");
    // As links do that come up late: what they kept came first.
    introduce(&mut r, 0, boot, vec![], &mut out);
    let forgotten = vote(2, Vote::Prepare, payload_digest(b"A"));
    introduce(&mut r, 3, boot, vec![forgotten], &mut out);
    let actions = out.take();
    assert!(actions.iter().any(|action| matches!(action, Action::Halt { .. })));
    assert!(
        !actions.iter().any(|action| matches!(action, Action::Broadcast { message: Message::Vote(_), .. }))
    );
}

/// Votes are not all that a disk may forget: whoever left a view must not vote in it again.
#[test]
fn a_view_change_that_is_forgotten_is_shown_with_the_votes() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.begin(now());
    let boot = boot_of(&mut r);
    introduce(&mut r, 1, boot, vec![], &mut out);
    let asked = ViewChange {
        view: View(1),
        configuration: ConfigurationId(1),
        sender: ReplicaId(2),
        incarnation: Incarnation(0),
        stable: None,
        prepared: vec![],
        pre_prepared: vec![],
    };
    let signed = SignedBody::new(SigningKind::ViewChange, encode(&asked), genesis().cluster(), &signer(2));
    let introduction = Introduction { boot, votes: vec![], view_change: Some(signed) };
    r.on_message(now(), ReplicaId(3), Message::Introduction(introduction), &mut App, &mut out);
    assert!(out.take().iter().any(|action| matches!(action, Action::Halt { .. })));
}

#[test]
fn a_primary_that_began_proposes_once_q_minus_1_peers_have_shown_what_it_signed() {
    let mut r = replica(0);
    let mut out = Output::new(Ticket(1));
    r.begin(now());
    let boot = boot_of(&mut r);
    introduce(&mut r, 1, boot, vec![], &mut out);
    assert_eq!(r.room(), 0);
    introduce(&mut r, 3, boot, vec![], &mut out);
    assert!(r.room() > 0);
}

#[test]
fn a_rolled_back_disk_is_found_out_before_its_first_vote() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.begin(now());
    let boot = boot_of(&mut r);
    let payload = Bytes::from_static(b"B");
    let proposal = vote(0, Vote::PrePrepare, payload_digest(&payload));
    r.on_message(now(), ReplicaId(0), Message::PrePrepare { proposal, payload }, &mut App, &mut out);
    introduce(&mut r, 1, boot, vec![], &mut out);
    let forgotten = vote(2, Vote::Prepare, payload_digest(b"A"));
    r.on_message(now(), ReplicaId(3), Message::Reminder(forgotten), &mut App, &mut out);
    let actions = out.take();
    assert!(actions.iter().any(|action| matches!(action, Action::Halt { .. })));
    assert!(
        !actions.iter().any(|action| matches!(action, Action::Broadcast { message: Message::Vote(_), .. }))
    );
}

fn bogus(view: u64) -> Message {
    let sender = u8::try_from(view % 4).unwrap();
    let body = NewView {
        view: View(view),
        configuration: ConfigurationId(1),
        sender: ReplicaId(sender),
        incarnation: Incarnation(0),
        view_changes: vec![],
        pre_prepares: vec![],
    };
    Message::NewView(SignedBody::new(
        SigningKind::NewView,
        encode(&body),
        genesis().cluster(),
        &signer(sender),
    ))
}

#[test]
fn a_bogus_new_view_does_not_end_a_healthy_view() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.on_message(now(), ReplicaId(3), bogus(4_000_003), &mut App, &mut out);
    assert!(r.view() == View(0) && r.is_active(), "view {:?}", r.view());
}

#[test]
fn a_new_view_at_the_end_of_all_views_is_refused() {
    let mut r = replica(2);
    let mut out = Output::new(Ticket(1));
    r.on_message(now(), ReplicaId(3), bogus(u64::MAX), &mut App, &mut out);
    assert!(refused(&mut out));
}
