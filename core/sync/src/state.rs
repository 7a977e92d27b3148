//! One replica's sync, and how it comes back from its records.
//!
//! `chains`, with the floors beside them, is what must survive a crash; it is rebuilt from records. The rest may be
//! forgotten: peers say again where they stand, and frames that waited are asked for again.

use crate::accuse::Claim;
use crate::chain::Chain;
use crate::config::{Limits, Setup, Timing};
use crate::exchange::Questions;
use crate::floor::Floors;
use crate::frame::{FrameError, Received};
use crate::message::ShortHash;
use crate::output::{Action, Need, Output, Reason};
use crate::proof::{Cut, Proof};
use crate::record::{Base, FloorStep, Record};
use crate::repair::Repair;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use dwcp_base::{
    Chance, ClusterId, CodecError, Crypto, Hash, Micros, Mutant, Mutants, Now, PublicKey, SettingsError,
    Ticket,
};
use dwcp_crdt::{Origin, OriginId, VersionVector};

/// What a member said last of what it has.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) origin: Origin,
    /// Durable there and part of its state; of its own origin, all it had written.
    pub(crate) vector: VersionVector,
}

/// What a peer said of one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerHead {
    pub(crate) base: u64,
    pub(crate) last: u64,
    pub(crate) hash: ShortHash,
}

/// How things stand with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Exchanges that it asked for or answered.
    pub exchanges: u64,
    /// When the last one was.
    pub last_exchange: Option<Micros>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Dots that are acknowledged here and not there.
    pub lag_dots: u64,
    /// Frames kept here that hold some of those.
    pub lag_frames: u64,
    /// For how long it has lacked something that is acknowledged here.
    pub lag: Micros,
    /// The newest floor it knows.
    pub floor: u64,
}

/// One peer. Bounded by the number of origins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) heads: BTreeMap<Origin, PeerHead>,
    pub(crate) ack: Option<Ack>,
    pub(crate) questions: Questions,
    /// What may still be answered until `budget_until`.
    pub(crate) budget_bytes: usize,
    pub(crate) budget_until: Micros,
    pub(crate) audits_left: u32,
    pub(crate) copies_left: u32,
    pub(crate) audits_until: Micros,
    /// What was acknowledged here at a moment; it is in time if it acknowledges this before its patience ends.
    pub(crate) mark: Option<(VersionVector, Micros)>,
    pub(crate) is_named: bool,
    /// What it said it had written, while that is not here.
    pub(crate) claim: Option<Claim>,
    pub(crate) figures: Figures,
}

/// Where the store stands that the records are replayed onto.
#[derive(Clone, Copy, Debug)]
pub struct Restored<'a> {
    /// What it had applied when its snapshot was saved.
    pub applied: &'a VersionVector,
    /// The newest floor it knew then.
    pub floor: u64,
}

/// Why records were not accepted. The disk lost what it had promised: the node returns as its next incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    Settings(SettingsError),
    Record {
        place: usize,
        error: CodecError,
    },
    Frame {
        place: usize,
        error: FrameError,
    },
    /// The store holds more of this origin than the records tell of.
    LogBehindStore {
        origin: Origin,
        log: u64,
        store: u64,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::Record { place, error } => write!(f, "record {place} of the sync log: {error}"),
            Self::Frame { place, error } => write!(f, "frame in record {place} of the sync log: {error}"),
            Self::LogBehindStore { origin, log, store } => write!(
                f,
                "the log ends at {origin}:{log}, the store's snapshot at {origin}:{store}: the disk lost what it had promised; return as a new incarnation"
            ),
        }
    }
}

impl core::error::Error for OpenError {}

/// State sync of one replica. See the crate.
#[derive(Debug)]
pub struct Sync {
    pub(crate) cluster: ClusterId,
    pub(crate) me: Origin,
    pub(crate) faults: usize,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) crypto: Arc<dyn Crypto>,
    pub(crate) mutants: Mutants,
    pub(crate) chance: Chance,
    pub(crate) keys: BTreeMap<Origin, PublicKey>,
    /// One per key.
    pub(crate) chains: BTreeMap<Origin, Chain>,
    pub(crate) floors: Floors,
    /// What the store holds, as it was told; and what its last saved snapshot holds.
    pub(crate) applied: VersionVector,
    pub(crate) saved: VersionVector,
    /// The nodes with an origin that is not cut, but this one.
    pub(crate) peers: BTreeMap<OriginId, Peer>,
    /// Peers still to be asked before any is asked again.
    pub(crate) rota: Vec<OriginId>,
    pub(crate) round: u64,
    pub(crate) next_exchange: Micros,
    pub(crate) next_audit: Micros,
    /// Keys that differ somewhere, while members are asked for theirs.
    pub(crate) repair: Option<Repair>,
    /// When to ask for what frames that came early wait for, if it has not come by itself.
    pub(crate) gap_due: Option<Micros>,
    pub(crate) durable: Ticket,
    /// The newest base, while it is not durable, and from where records are needed once it is.
    pub(crate) base_under_way: Option<(Ticket, Ticket)>,
    pub(crate) needed_from: Ticket,
    /// Snapshots that are needed, each with the peers that have one.
    pub(crate) needs: BTreeMap<Need, Vec<OriginId>>,
    /// Have to end by order. At most as many as there are origins.
    pub(crate) excluded: BTreeSet<Origin>,
    /// Signed frames that cannot be read. At most as many as there are origins.
    pub(crate) bad_bundles: BTreeSet<Origin>,
    pub(crate) out: Output,
}

impl Sync {
    /// Sync as its records leave it: none for a new disk. Hands out an `Apply` for each frame that the restored store lacks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        setup: &Setup,
        restored: Restored<'_>,
        records: &[Bytes],
        now: Now,
    ) -> Result<Self, OpenError> {
        setup.check().map_err(OpenError::Settings)?;
        let read = |(place, bytes): (usize, &Bytes)| {
            Record::read(bytes).map_err(|error| OpenError::Record { place, error })
        };
        let records = records.iter().enumerate().map(read).collect::<Result<Vec<Record>, _>>()?;
        let mut sync = Self::new(setup, restored, records.len(), now);
        if let Some(place) = records.iter().rposition(|record| matches!(record, Record::Base(_))) {
            let Record::Base(base) = &records[place] else { unreachable!("found as one") };
            sync.adopt(base);
        }
        for (place, record) in records.into_iter().enumerate() {
            sync.replay(place, record)?;
        }
        for chain in sync.chains.values_mut().filter(|chain| !chain.is_frozen() && chain.cut.is_none()) {
            // The disk was cut between the two records.
            chain.settled = None;
            chain.held_back_bytes = 0;
        }
        if sync.mutants.on(Mutant::SyncDotsReused) {
            let mine = sync.chains.entry(setup.me).or_default();
            mine.kept.pop_back();
        }
        for (origin, chain) in &sync.chains {
            // A snapshot taken from a peer may hold later changes of others behind a gap; of our own nothing is beyond the log.
            let applied = restored.applied;
            let store = if *origin == setup.me { applied.last(*origin) } else { applied.prefix(*origin) };
            let log = chain.last();
            // What a decision left out is in nobody's log; a snapshot makes that good.
            if log < store && chain.cut.is_none() && !sync.mutants.any() {
                return Err(OpenError::LogBehindStore { origin: *origin, log, store });
            }
        }
        for cut in sync.chains.values().filter_map(|chain| chain.cut) {
            sync.out.push(Action::EndOrigin { origin: cut.origin, last: cut.last });
        }
        sync.refresh_peers();
        sync.hand_over_all();
        sync.raise_floors();
        sync.find_needs();
        Ok(sync)
    }

    fn new(setup: &Setup, restored: Restored<'_>, records: usize, now: Now) -> Self {
        let mut chance = Chance::new(setup.seed).fork("sync");
        let first = chance.below(setup.timing.exchange_interval.0);
        let first_audit = chance.below(setup.timing.audit_interval.0);
        Self {
            cluster: setup.cluster,
            me: setup.me,
            faults: setup.faults,
            timing: setup.timing,
            limits: setup.limits,
            crypto: Arc::clone(&setup.crypto),
            mutants: setup.mutants,
            chance,
            keys: setup.members.clone(),
            chains: setup.members.keys().map(|origin| (*origin, Chain::default())).collect(),
            floors: Floors::at(restored.floor),
            applied: restored.applied.clone(),
            saved: restored.applied.clone(),
            peers: BTreeMap::new(),
            rota: Vec::new(),
            round: 0,
            next_exchange: now.mono.plus(Micros(first)),
            next_audit: now.mono.plus(Micros(first_audit)),
            repair: None,
            gap_due: None,
            durable: Ticket(records as u64),
            base_under_way: None,
            needed_from: Ticket::ZERO,
            needs: BTreeMap::new(),
            excluded: BTreeSet::new(),
            bad_bundles: BTreeSet::new(),
            out: Output::after_replay(records),
        }
    }

    /// Takes a record back. Our own disk is believed: it was checked before it was written, and the log has checksums.
    fn replay(&mut self, place: usize, record: Record) -> Result<(), OpenError> {
        match record {
            Record::Frame(bytes) => {
                let frame = Received::read(bytes)
                    .and_then(Received::open)
                    .map_err(|error| OpenError::Frame { place, error })?;
                // Frames below the base, or of a branch that was given up, follow nothing.
                if let Some(chain) = self.chains.get_mut(&frame.header().origin)
                    && chain.continues(frame.header())
                    && !chain.is_cut_off(frame.header(), frame.hash())
                {
                    chain.link(frame, Ticket(place as u64 + 1));
                }
            }
            Record::Proof(proof) => self.note_proof(&proof),
            Record::Cut(cut) => self.note_cut(&cut),
            Record::Floor(floor) => self.floors.note(FloorStep::One(floor)),
            Record::Floors(floors) => self.floors.note(FloorStep::Through(floors)),
            Record::Halt(origin) => self.note_halt(origin),
            Record::Settled(origin, last) => self.note_settled(origin, last),
            Record::Base(_) => {}
        }
        Ok(())
    }

    /// Puts the chains and decisions where a base says.
    pub(crate) fn adopt(&mut self, base: &Base) {
        let heads: BTreeMap<Origin, _> =
            base.heads.iter().map(|signed| (signed.header.origin, (*signed, signed.header.hash()))).collect();
        for (origin, chain) in &mut self.chains {
            chain.rebase(heads.get(origin).copied());
        }
        base.proofs.iter().for_each(|proof| self.note_proof(proof));
        base.halted.iter().for_each(|origin| self.note_halt(*origin));
        base.settled.iter().for_each(|(origin, last)| self.note_settled(*origin, *last));
        base.cuts.iter().for_each(|cut| self.note_cut(cut));
        for origin in &base.off_branch {
            self.chains.entry(*origin).and_modify(|chain| chain.off_branch = true);
        }
        self.floors.adopt(base);
    }

    pub(crate) fn note_proof(&mut self, proof: &Proof) {
        if let Some(chain) = self.chains.get_mut(&proof.origin()) {
            chain.proof = chain.proof.or(Some(*proof));
            chain.forget_waiting();
        }
    }

    pub(crate) fn note_settled(&mut self, origin: Origin, last: u64) {
        if let Some(chain) = self.chains.get_mut(&origin) {
            chain.settle(last);
        }
    }

    pub(crate) fn note_halt(&mut self, origin: Origin) {
        if let Some(chain) = self.chains.get_mut(&origin) {
            chain.is_halted = true;
            chain.forget_waiting();
        }
    }

    pub(crate) fn note_cut(&mut self, cut: &Cut) {
        if let Some(chain) = self.chains.get_mut(&cut.origin) {
            chain.cut = chain.cut.or(Some(*cut));
            chain.forget_waiting();
            chain.drop_beyond_cut();
        }
    }

    /// Replaces the list of origins, with their keys. Chains of origins that are no longer listed are forgotten: the
    /// caller lists one until everybody has all of it.
    ///
    /// # Errors
    /// See [`Setup::check`]; nothing changed then.
    pub fn set_members(&mut self, members: BTreeMap<Origin, PublicKey>) -> Result<(), SettingsError> {
        if !members.contains_key(&self.me) {
            return Err(SettingsError::Genesis("a replica must be among the members it syncs with"));
        }
        if members.len() > dwcp_crdt::limits::ORIGINS_MAX {
            return Err(SettingsError::Genesis("more than 4096 origins, past incarnations included"));
        }
        self.chains.retain(|origin, _| members.contains_key(origin));
        for origin in members.keys() {
            self.chains.entry(*origin).or_default();
        }
        self.bad_bundles.retain(|origin| members.contains_key(origin));
        self.keys = members;
        self.refresh_peers();
        Ok(())
    }

    /// Who takes part: of each node the newest incarnation that is not cut.
    pub(crate) fn active(&self) -> BTreeMap<OriginId, Origin> {
        let active = self.chains.iter().filter(|(_, chain)| chain.cut.is_none());
        // Ascending, so the newest incarnation of a node comes last.
        active.map(|(origin, _)| (origin.id, *origin)).collect()
    }

    pub(crate) fn refresh_peers(&mut self) {
        let active = self.active();
        let me = self.me.id;
        self.peers.retain(|id, _| active.contains_key(id));
        for id in active.keys().filter(|id| **id != me) {
            self.peers.entry(*id).or_default();
        }
        let peers = &self.peers;
        self.rota.retain(|id| peers.contains_key(id));
    }

    /// Tells what the store has applied, after the caller carried out `Apply`s or wrote.
    pub fn on_applied(&mut self, applied: &VersionVector) {
        self.applied.clone_from(applied);
        self.hand_over_all();
        self.raise_floors();
    }

    /// Records up to this ticket are on disk.
    pub fn on_durable(&mut self, ticket: Ticket) {
        self.durable = self.durable.max(ticket.min(self.out.last_ticket()));
        if let Some((base, needed_from)) = self.base_under_way
            && base <= self.durable
        {
            self.needed_from = needed_from;
            self.base_under_way = None;
        }
    }

    /// Records before this one may be dropped from the log.
    #[must_use]
    pub fn needed_from(&self) -> Ticket {
        self.needed_from
    }

    /// Takes what is to be done, in order.
    pub fn take(&mut self) -> Vec<Action> {
        self.out.take()
    }

    // --- reading ---

    #[must_use]
    pub fn me(&self) -> Origin {
        self.me
    }

    /// How often something was dropped for this reason.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.out.count(reason)
    }

    /// Each peer and how things stand with it.
    pub fn peers(&self) -> impl Iterator<Item = (OriginId, Figures)> {
        self.peers.iter().map(|(id, peer)| (*id, peer.figures))
    }

    /// The proof that this origin contradicted itself.
    #[must_use]
    pub fn proof(&self, origin: Origin) -> Option<&Proof> {
        self.chains.get(&origin)?.proof.as_ref()
    }

    /// Does nothing more of this origin count until its end is decided?
    #[must_use]
    pub fn is_frozen(&self, origin: Origin) -> bool {
        self.chains.get(&origin).is_some_and(Chain::is_frozen)
    }

    /// Where this replica's store stands with an origin: all it has of it, or may get before the end is decided. Nothing while
    /// some of that, or that the origin is frozen, could still be lost: an end must lie where somebody honest stays, who can
    /// give the others what is before it. And nothing while an end decided before is not reached here: two ends with nobody
    /// who is on the right branch of both leave everybody in need of a snapshot that nobody can give.
    #[must_use]
    pub fn standing(&self, origin: Origin) -> Option<Cut> {
        let chain = self.chains.get(&origin)?;
        if !self.needs.is_empty()
            || self.chains.values().any(|chain| chain.cut.is_some() && !chain.has_ended())
        {
            return None;
        }
        let settled = self.settled(origin)?;
        let stays = chain.durable_last(self.durable) >= settled.last && chain.frozen_ticket <= self.durable;
        stays.then_some(settled)
    }

    /// The last frame of an origin that the store has or is bound to get, as things are: what follows it here is kept for
    /// everybody's sake, until it is decided where the origin ends.
    #[must_use]
    pub fn settled(&self, origin: Origin) -> Option<Cut> {
        let chain = self.chains.get(&origin)?;
        let last = chain.settled_last();
        let hash = chain.ending_at(last).map_or(Hash::ZERO, |(_, hash)| hash);
        Some(Cut { origin, last, hash })
    }

    /// The last frame of an origin that is in line here, durable or not, and whether it is to count or not.
    #[must_use]
    pub fn head(&self, origin: Origin) -> Option<Cut> {
        let chain = self.chains.get(&origin)?;
        Some(Cut { origin, last: chain.last(), hash: chain.hash() })
    }

    /// Up to which counter of an origin its frames are here durably, whether the store has applied them or not: after a store was
    /// taken from a peer it may have to come to them once more.
    #[must_use]
    pub fn durable_last(&self, origin: Origin) -> u64 {
        self.chains.get(&origin).map_or(0, |chain| chain.durable_last(self.durable))
    }

    /// Own frames after this counter that are kept, each with its first and last counter and the ticket of its record.
    pub fn own_after(&self, last: u64) -> impl Iterator<Item = (u64, u64, Ticket, &Bytes)> {
        let mine = self.chains.get(&self.me);
        let kept = mine.into_iter().flat_map(move |mine| mine.kept.range(mine.place(last + 1)..));
        kept.map(|kept| (kept.first(), kept.last(), kept.ticket, &kept.bytes))
    }

    /// Frames kept for peers, each with the ticket of its record: for whoever moves records within a log.
    pub fn kept(&self) -> impl Iterator<Item = (Ticket, &Bytes)> {
        self.chains.values().flat_map(|chain| &chain.kept).map(|kept| (kept.ticket, &kept.bytes))
    }

    /// Tickets of frames that were dropped since the newest base was written: a restart begins there and needs them.
    pub fn dropped(&self) -> impl Iterator<Item = Ticket> {
        self.chains.values().flat_map(|chain| chain.dropped.iter().flatten().copied())
    }

    /// The caller has let go of whatever the newest base, which is durable, stands for. What is dropped from now on stays
    /// on the disk until the next.
    pub fn base_is_in_use(&mut self) {
        self.chains.values_mut().for_each(|chain| chain.dropped = None);
    }

    /// The newest ticket that was said to be durable.
    #[must_use]
    pub fn durable(&self) -> Ticket {
        self.durable
    }

    /// How many peers have said that an own change is durable there and part of their state.
    #[must_use]
    pub fn acked_by(&self, last: u64) -> usize {
        let has = |peer: &&Peer| peer.ack.as_ref().is_some_and(|ack| ack.vector.prefix(self.me) >= last);
        self.peers.values().filter(has).count()
    }

    /// Bytes of frames kept for peers.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.chains.values().map(|chain| chain.kept_bytes).sum()
    }

    /// Frames kept for peers, and frames that wait for one before them.
    #[must_use]
    pub fn frames_count(&self) -> (usize, usize) {
        let chains = self.chains.values();
        chains.fold((0, 0), |(kept, waiting), chain| (kept + chain.kept.len(), waiting + chain.waiting.len()))
    }

    /// Snapshots that are needed, by reason.
    pub fn needs(&self) -> impl Iterator<Item = Need> {
        self.needs.keys().copied()
    }
}
