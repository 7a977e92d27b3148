//! Snapshots: where a donor's stands, and how a replica that cannot catch up frame by frame goes on from one.
//!
//! The store's pieces travel and are checked elsewhere (`dwcp_crdt::snapshot`); here is what belongs beside them. Each head
//! carries its origin's signature, so a donor can give less than it has, but nothing that never was.

use crate::chain::Chain;
use crate::floor::Floors;
use crate::frame::SignedHeader;
use crate::output::{Action, Need};
use crate::proof::Cut;
use crate::record::{Base, FloorStep};
use crate::state::Sync;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use dwcp_base::Hash;
use dwcp_crdt::{Origin, VersionVector};

/// Why a snapshot was not taken. Nothing changed; take another donor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// Heads are not ascending, not of members, or not signed by them.
    Heads,
    /// A proof in it proves nothing.
    Proof { origin: Origin },
    /// The store holds changes that the heads do not cover, or the other way round.
    Mismatch { origin: Origin },
    /// It is of another branch than the one that was decided, or goes beyond the end.
    Branch { origin: Origin },
    /// Its floor is older than ours, or so much newer that the ones between are not here.
    Floor { number: u64, ours: u64 },
    /// It lacks own frames that are no longer kept here.
    LacksOwn { last: u64, needed: u64 },
    /// It ends before frames of another that are no longer kept here, and that this replica has said it holds.
    Behind { origin: Origin, last: u64, ours: u64 },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heads => {
                write!(f, "the snapshot's heads are not signed by members, in order: take another donor's")
            }
            Self::Proof { origin } => {
                write!(f, "the snapshot accuses {origin} without proof: take another donor's")
            }
            Self::Mismatch { origin } => write!(f, "the snapshot's store and heads differ about {origin}"),
            Self::Branch { origin } => {
                write!(f, "the snapshot holds another end of {origin} than was decided: take another donor's")
            }
            Self::Floor { number, ours } => {
                write!(f, "the snapshot is of floor {number}, this replica's is {ours}")
            }
            Self::LacksOwn { last, needed } => {
                write!(
                    f,
                    "the snapshot ends at this replica's change {last}; it needs {needed}: take another donor's"
                )
            }
            Self::Behind { origin, last, ours } => {
                write!(
                    f,
                    "the snapshot ends at change {last} of {origin}, and this replica has no frames before {ours} to add: take \
                     another donor's"
                )
            }
        }
    }
}

impl core::error::Error for InstallError {}

impl Sync {
    /// What goes beside a snapshot of the store, taken at the same moment: `applied` and `floor` are the store's. Nothing
    /// while the store holds own changes that are not durable: whoever saw them in a snapshot would see their dots used
    /// again after a crash, and convict an honest replica. Nor while the store holds what a cut leaves out.
    #[must_use]
    pub fn base(&self, applied: &VersionVector, floor: u64) -> Option<Base> {
        let durable = self.chains.get(&self.me).map_or(0, |mine| mine.durable_last(self.durable));
        if applied.last(self.me) > durable || self.needs.contains_key(&Need::Branch) {
            return None;
        }
        let head = |(origin, chain): (&Origin, &Chain)| {
            let through = applied.prefix(*origin);
            let place = chain.kept.partition_point(|kept| kept.last() <= through);
            match place.checked_sub(1) {
                Some(place) => chain.kept.get(place).map(|kept| kept.signed),
                None => chain.base.map(|(signed, _)| signed).filter(|signed| signed.header.last <= through),
            }
        };
        Some(Base { heads: self.chains.iter().filter_map(head).collect(), ..self.decisions(floor) })
    }

    /// Goes on from a snapshot: the caller has checked the store that came with it (its digest against `f + 1` members'),
    /// saved it, and put it in place; `applied` and `floor` are its. Frames that it lacks and that are kept here, own ones
    /// first of all, are handed out again. Cuts and floors are believed from the log alone.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn install(&mut self, base: &Base, applied: &VersionVector, floor: u64) -> Result<(), InstallError> {
        let heads = self.check_base(base, applied, floor)?;
        let proofs = base.proofs.iter().filter(|proof| self.keys.contains_key(&proof.origin())).copied();
        let proofs: Vec<_> = proofs.collect();
        for (origin, chain) in &mut self.chains {
            chain.rebase(heads.get(origin).copied());
        }
        for proof in &proofs {
            self.freeze(proof, None);
        }
        self.applied.clone_from(applied);
        self.saved.clone_from(applied);
        self.restart_floors(floor);
        self.needs.clear();
        self.persist_base(floor);
        for cut in self.chains.values().filter_map(|chain| chain.cut) {
            self.out.push(Action::EndOrigin { origin: cut.origin, last: cut.last });
        }
        let origins: Vec<Origin> = self.chains.keys().copied().collect();
        for origin in origins {
            self.link_waiting(origin);
        }
        self.hand_over_all();
        self.raise_floors();
        Ok(())
    }

    fn check_base(
        &self,
        base: &Base,
        applied: &VersionVector,
        floor: u64,
    ) -> Result<BTreeMap<Origin, (SignedHeader, Hash)>, InstallError> {
        let ascending = base.heads.windows(2).all(|w| w[0].header.origin < w[1].header.origin);
        let signed = |head: &SignedHeader| {
            let key = self.keys.get(&head.header.origin);
            key.is_some_and(|key| head.verify(self.cluster, key, &*self.crypto))
        };
        if !ascending || !base.heads.iter().all(signed) {
            return Err(InstallError::Heads);
        }
        for proof in &base.proofs {
            let origin = proof.origin();
            let key = self.keys.get(&origin);
            if key.is_some_and(|key| !proof.holds(self.cluster, key, &*self.crypto)) {
                return Err(InstallError::Proof { origin });
            }
        }
        let heads: BTreeMap<Origin, (SignedHeader, Hash)> =
            base.heads.iter().map(|head| (head.header.origin, (*head, head.header.hash()))).collect();
        let last_of = |origin: Origin| heads.get(&origin).map_or(0, |(head, _)| head.header.last);
        for (origin, chain) in &self.chains {
            let (origin, last) = (*origin, last_of(*origin));
            if applied.prefix(origin) < last {
                return Err(InstallError::Mismatch { origin });
            }
            // Whoever has reached a decided end stays there: the others may have it from nobody else. An end that is not decided
            // yet binds nobody who needs a snapshot for another; two of them would keep each from it.
            let hash = heads.get(&origin).map(|(_, hash)| *hash);
            let is_end = |cut: Cut| last == cut.last && hash.is_none_or(|hash| hash == cut.hash);
            let is_at_end = chain.cut.is_some_and(is_end);
            if chain.has_ended() && chain.last() > 0 && !is_at_end && !chain.stays_at(last, hash) {
                return Err(InstallError::Branch { origin });
            }
            // Whoever takes no more of an origin has said where it stands, and an end may rest on it. Whoever needs a snapshot says
            // nothing: a disk that came back blank has to get there somehow. What was said before another end was decided, which
            // may make one necessary, counts no more; nothing is collected meanwhile, so there is hardly another reason.
            let settled = chain.settled_last();
            let moves = last > settled || (last >= chain.base_last() && !chain.stays_at(last, hash));
            if chain.is_frozen() && moves && self.needs.is_empty() {
                return Err(InstallError::Branch { origin });
            }
            // What is here is not given back, unless it is the wrong thing: others count on it, and it may be nowhere else.
            let is_wrong = chain.off_branch || chain.is_suspect;
            // Short of the end it may be of the same wrong branch. Those who take such stores from each other drop with each of
            // them frames that somebody at the end may still lack, and then neither takes the other's.
            if is_wrong && !is_at_end {
                return Err(InstallError::Branch { origin });
            }
            if last < chain.base_last() && !is_wrong {
                return Err(InstallError::Behind { origin, last, ours: chain.base_last() });
            }
            let Some(cut) = chain.cut else { continue };
            let ends_well = heads.get(&origin).is_none_or(|(_, hash)| *hash == cut.hash);
            if applied.last(origin) > cut.last || (last == cut.last && !ends_well) {
                return Err(InstallError::Branch { origin });
            }
        }
        if let Some((origin, _)) = applied.iter().find(|(origin, _)| !self.chains.contains_key(origin)) {
            return Err(InstallError::Mismatch { origin });
        }
        let ours = self.floors.raised();
        if floor < ours || !self.floors.goes_on_from(floor) {
            return Err(InstallError::Floor { number: floor, ours });
        }
        let mine = self.chains.get(&self.me).expect("a replica has a chain");
        let (last, needed) = (last_of(self.me), mine.base_last());
        let is_here = last > mine.last() || last == 0 || mine.ending_at(last).is_some();
        let is_whole = applied.last(self.me) <= mine.last().max(last);
        if last < needed || !is_here || !is_whole {
            return Err(InstallError::LacksOwn { last, needed });
        }
        Ok(heads)
    }
}

impl Floors {
    /// Are all floors after this one here?
    fn goes_on_from(&self, number: u64) -> bool {
        let mut last = number;
        for step in self.list().filter(|step| step.number() > number) {
            if matches!(step, FloorStep::Through(_)) || step.number() == last + 1 {
                last = step.number();
            }
        }
        last >= self.newest()
    }
}
