//! One sequence of the root log between proposal and stable checkpoint.

use crate::certificate::Votes;
use crate::message::{Certificate, PreparedCertificate, Signed};
use alloc::collections::BTreeMap;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Sequence, Ticket, View};
use dwcp_log::entry::payload_digest;

/// Digests remembered per slot in the Q set. A slot sees one digest per view that fails; the oldest views go first.
pub(crate) const DIGESTS_MAX: usize = 8;

/// What this replica knows of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The pre-prepare accepted in the current view.
    pub(crate) accepted: Option<Signed>,
    pub(crate) accepted_at: Micros,
    /// Votes of the current view, ours included.
    pub(crate) prepares: Votes,
    pub(crate) commits: Votes,
    pub(crate) commit_sent: bool,
    /// P: the prepared certificate of the highest view.
    pub(crate) prepared: Option<PreparedCertificate>,
    /// Q: each digest accepted here and the last view it was accepted in.
    pub(crate) pre_prepared: BTreeMap<Hash, View>,
    /// Of digests that the Q-set names, of the accepted one and of the decided one: at most `DIGESTS_MAX` and two.
    pub(crate) payloads: BTreeMap<Hash, Bytes>,
    pub(crate) decided: Option<Certificate>,
    /// The first record that speaks of this slot; the log is kept from there.
    pub(crate) first_ticket: Option<Ticket>,
}

impl Slot {
    pub(crate) fn digest(&self) -> Option<Hash> {
        self.accepted.map(|signed| signed.statement.claim.digest)
    }

    pub(crate) fn holds(&self, digest: &Hash) -> bool {
        self.payloads.contains_key(digest)
    }

    /// Takes back a payload that a record says has this digest. The disk may hold another thing under a sound checksum: what
    /// does not hash to it is left out, and asked of peers like any that never came.
    pub(crate) fn recall(&mut self, digest: Hash, payload: Bytes) {
        if payload_digest(&payload) == digest {
            self.payloads.insert(digest, payload);
        }
    }

    /// The accepted assignment whose payload is here and that the Q-set does not name yet.
    pub(crate) fn unnoted(&self) -> Option<Signed> {
        self.accepted.filter(|accepted| {
            let claim = accepted.statement.claim;
            self.holds(&claim.digest) && self.pre_prepared.get(&claim.digest) != Some(&claim.view)
        })
    }

    /// Prepared in this view.
    pub(crate) fn prepared_in(&self, view: View) -> bool {
        self.prepared.as_ref().is_some_and(|certificate| certificate.view() == view)
    }

    /// Forgets what belongs to a view that ended; keeps what later views must know.
    pub(crate) fn leave_view(&mut self) {
        self.accepted = None;
        self.prepares.clear();
        self.commits.clear();
        self.commit_sent = false;
    }

    /// Adds to the Q set. At the bound the digest of the oldest view goes, never a prepared or decided one.
    pub(crate) fn note_pre_prepared(&mut self, digest: Hash, view: View) {
        self.pre_prepared.insert(digest, view);
        while self.pre_prepared.len() > DIGESTS_MAX {
            let keep = [
                self.prepared.as_ref().map(PreparedCertificate::digest),
                self.decided.as_ref().map(|certificate| certificate.claim.digest),
                Some(digest),
            ];
            let oldest = self
                .pre_prepared
                .iter()
                .filter(|(candidate, _)| !keep.contains(&Some(**candidate)))
                .min_by_key(|(_, view)| **view)
                .map(|(candidate, _)| *candidate);
            let Some(oldest) = oldest else { break };
            self.pre_prepared.remove(&oldest);
            self.payloads.remove(&oldest);
        }
    }

    pub(crate) fn note_ticket(&mut self, ticket: Ticket) {
        self.first_ticket.get_or_insert(ticket);
    }
}

/// From where the log must be kept for slots that no snapshot covers: the first record about any of those up to each
/// checkpoint, which is where snapshots are. One number for an interval of the log on disk: while no snapshot gets written
/// both grow, and the disk is full first.
#[derive(Clone, Debug)]
pub struct KeptTickets {
    interval: u64,
    by_checkpoint: BTreeMap<Sequence, Ticket>,
}

impl KeptTickets {
    #[must_use]
    pub fn new(interval: u64) -> Self {
        Self { interval, by_checkpoint: BTreeMap::new() }
    }

    /// A record of this slot was written.
    pub fn keep(&mut self, sequence: Sequence, ticket: Ticket) {
        let checkpoint = sequence.0.div_ceil(self.interval).saturating_mul(self.interval);
        let kept = self.by_checkpoint.entry(Sequence(checkpoint)).or_insert(ticket);
        *kept = ticket.min(*kept);
    }

    /// A durable snapshot says what the slots up to here did.
    pub fn covered(&mut self, snapshot: Sequence) {
        self.by_checkpoint = self.by_checkpoint.split_off(&snapshot.next());
    }

    /// The first record that is still needed.
    #[must_use]
    pub fn first(&self) -> Option<Ticket> {
        self.by_checkpoint.values().min().copied()
    }
}
