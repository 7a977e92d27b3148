//! Sign-once: an honest identity never signs two different digests for one slot, restarts or not; and identities keep to their lives.
//!
//! A slot is (kind, epoch, view, sequence) of one (replica, incarnation): a new incarnation is a new identity, bound by nothing the
//! old one signed, and for that reason it may vote only once the cluster has admitted it. Also judged: incarnations never
//! run backwards, and after a VIEW-CHANGE for view v nothing is pre-prepared, prepared or committed in a view below v (Castro &
//! Liskov 1999, section 4.4: the replica stops accepting messages of the older view).

use crate::history::{ReplicaEvent, ReplicaJournal, Vote, VoteKind};
use crate::text::short;
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeMap, HashMap};

/// Kind, epoch, view, sequence.
type Slot = (VoteKind, u64, u64, u64);

pub fn judge(replicas: &[ReplicaJournal]) -> Findings {
    let mut findings = Findings::default();
    let honest = || replicas.iter().filter(|journal| journal.honest);
    honest().for_each(|journal| judge_identity(journal, &mut findings));
    judge_boots(honest(), &mut findings);
    findings
}

fn judge_identity(journal: &ReplicaJournal, findings: &mut Findings) {
    let mut slots: HashMap<Slot, (u64, [u8; 32])> = HashMap::new();
    let mut left_below: BTreeMap<u64, u64> = BTreeMap::new();
    let mut admitted = journal.founding;
    for stamped in &journal.events {
        match &stamped.event {
            ReplicaEvent::Admitted => admitted = true,
            ReplicaEvent::Voted(vote) => {
                if !admitted {
                    let reason = format!("{} voted before the cluster admitted it", journal.name());
                    findings.push(Judge::SignOnce, reason, vec![line(stamped.at_us, vote)]);
                }
                let slot = (vote.kind, vote.epoch, vote.view, vote.sequence);
                let (at_us, digest) = *slots.entry(slot).or_insert((stamped.at_us, vote.digest));
                if digest != vote.digest {
                    let reason = format!("{} signed two digests for one slot", journal.name());
                    let first = Vote { digest, ..vote.clone() };
                    findings.push(
                        Judge::SignOnce,
                        reason,
                        vec![line(at_us, &first), line(stamped.at_us, vote)],
                    );
                }
                judge_view(journal, stamped.at_us, vote, &mut left_below, findings);
            }
            ReplicaEvent::Boot
            | ReplicaEvent::Restored { .. }
            | ReplicaEvent::Installs { .. }
            | ReplicaEvent::Executed(_)
            | ReplicaEvent::Checkpoint { .. }
            | ReplicaEvent::Holds { .. }
            | ReplicaEvent::Opened { .. }
            | ReplicaEvent::Knows { .. }
            | ReplicaEvent::Covered { .. }
            | ReplicaEvent::Decided { .. }
            | ReplicaEvent::Changes { .. }
            | ReplicaEvent::SegmentExecuted { .. }
            | ReplicaEvent::DeferredExecuted { .. }
            | ReplicaEvent::Anchored { .. }
            | ReplicaEvent::Sealing { .. }
            | ReplicaEvent::Sealed { .. }
            | ReplicaEvent::Spoke { .. }
            | ReplicaEvent::Complained { .. }
            | ReplicaEvent::Closed(_)
            | ReplicaEvent::Leased(_)
            | ReplicaEvent::HoldsLeases { .. }
            | ReplicaEvent::Stands { .. } => {}
        }
    }
}

fn judge_view(
    journal: &ReplicaJournal,
    at_us: u64,
    vote: &Vote,
    left_below: &mut BTreeMap<u64, u64>,
    findings: &mut Findings,
) {
    let floor = left_below.entry(vote.epoch).or_insert(0);
    match vote.kind {
        VoteKind::ViewChange => *floor = vote.view.max(*floor),
        VoteKind::PrePrepare | VoteKind::Prepare | VoteKind::Commit if vote.view < *floor => {
            let reason =
                format!("{} voted in view {} after it left for view {floor}", journal.name(), vote.view);
            findings.push(Judge::SignOnce, reason, vec![line(at_us, vote)]);
        }
        _ => {}
    }
}

/// A boot of an older incarnation after a newer one: a disk was rolled back, or a replaced one was brought back.
fn judge_boots<'a>(replicas: impl Iterator<Item = &'a ReplicaJournal>, findings: &mut Findings) {
    let mut boots: Vec<(u32, u64, u64)> = Vec::new();
    for journal in replicas {
        let booted = journal.events.iter().filter(|stamped| stamped.event == ReplicaEvent::Boot);
        boots.extend(booted.map(|stamped| (journal.replica, stamped.at_us, journal.incarnation)));
    }
    boots.sort_unstable();
    for pair in boots.windows(2) {
        let ((replica, _, newer), (next, at_us, older)) = (pair[0], pair[1]);
        if replica == next && older < newer {
            let reason = format!("replica {replica} booted incarnation {older} after incarnation {newer}");
            findings.push(Judge::SignOnce, reason, vec![format!("at {at_us} us")]);
        }
    }
}

fn line(at_us: u64, vote: &Vote) -> String {
    let Vote { kind, epoch, view, sequence, digest } = vote;
    format!("at {at_us} us: {kind:?} epoch {epoch} view {view} sequence {sequence} digest {}", short(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn vote(kind: VoteKind, view: u64, sequence: u64, digest: u8) -> ReplicaEvent {
        ReplicaEvent::Voted(Vote { kind, epoch: 0, view, sequence, digest: [digest; 32] })
    }

    fn one(events: Vec<ReplicaEvent>) -> Findings {
        let mut journal = ReplicaJournal::new(0, 1, true, true);
        events.into_iter().zip(1..).for_each(|(event, at_us)| journal.note(at_us, event));
        judge(&[journal])
    }

    #[test]
    fn votes_repeated_after_a_restart_are_accepted() {
        let findings = judge(&sample::cluster().replicas);
        assert!(findings.is_empty(), "{findings}");
    }

    #[test]
    fn a_different_digest_after_a_restart_is_refused() {
        let again = |digest| {
            one(vec![
                ReplicaEvent::Boot,
                vote(VoteKind::Prepare, 0, 1, 1),
                ReplicaEvent::Boot,
                vote(VoteKind::Prepare, 0, 1, digest),
            ])
        };
        assert!(again(1).is_empty());
        assert!(again(2).has("signed two digests"));
    }

    #[test]
    fn other_views_sequences_and_kinds_are_other_slots() {
        let findings = one(vec![
            vote(VoteKind::Prepare, 0, 1, 1),
            vote(VoteKind::Prepare, 1, 1, 2),
            vote(VoteKind::Prepare, 1, 2, 3),
            vote(VoteKind::Commit, 1, 1, 4),
        ]);
        assert!(findings.is_empty(), "{findings}");
    }

    #[test]
    fn a_vote_in_a_view_already_left_is_refused() {
        let leave =
            |kind| one(vec![vote(VoteKind::ViewChange, 2, 0, 1), ReplicaEvent::Boot, vote(kind, 1, 5, 1)]);
        for kind in [VoteKind::PrePrepare, VoteKind::Prepare, VoteKind::Commit] {
            assert!(leave(kind).has("after it left for view 2"));
        }
        assert!(leave(VoteKind::Checkpoint).is_empty());
    }

    #[test]
    fn a_new_incarnation_is_free_of_old_votes_but_must_be_admitted_first() {
        let mut old = ReplicaJournal::new(0, 1, true, true);
        old.note(1, ReplicaEvent::Boot);
        old.note(2, vote(VoteKind::Commit, 0, 1, 1));
        let mut new = ReplicaJournal::new(0, 2, true, false);
        new.note(10, ReplicaEvent::Boot);
        let mut early = new.clone();
        early.note(11, vote(VoteKind::Commit, 0, 1, 2));
        new.note(11, ReplicaEvent::Admitted);
        new.note(12, vote(VoteKind::Commit, 0, 1, 2));
        assert!(judge(&[old.clone(), new.clone()]).is_empty());
        assert!(judge(&[old.clone(), early]).has("before the cluster admitted it"));
        old.note(20, ReplicaEvent::Boot);
        assert!(judge(&[old, new]).has("booted incarnation 1 after incarnation 2"));
    }

    #[test]
    fn a_liar_may_equivocate() {
        let mut journal = ReplicaJournal::new(3, 1, false, true);
        journal.note(1, vote(VoteKind::Prepare, 0, 1, 1));
        journal.note(2, vote(VoteKind::Prepare, 0, 1, 2));
        assert!(judge(std::slice::from_ref(&journal)).is_empty());
        journal.honest = true;
        assert!(judge(&[journal]).has("signed two digests"));
    }
}
