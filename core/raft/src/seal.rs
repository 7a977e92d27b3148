//! The end of a replica's part in the segment: sealing (the virtual log's, not Raft's: an election that nobody can win any
//! more), and the two ways in which the beginning of its log moves: discarding and installing.

use crate::node::{InstallError, Sealed};
use crate::record::Record;
use crate::state::{Owed, Raft, Role};
use dwcp_base::{Mutant, Now};
use dwcp_log::place::{Index, Place};

impl Raft {
    /// Sealed, and therefore dumb and deaf.
    pub(crate) fn is_silent(&self) -> bool {
        self.sealed.is_some() && !self.mutants.on(Mutant::RaftIgnoresSeal)
    }

    /// From here on this replica votes, acknowledges, leads and reads nothing in this epoch.
    pub(crate) fn seal_log(&mut self) -> Sealed {
        if let Some(point) = self.sealed {
            return Sealed { point, ticket: self.sealed_ticket };
        }
        self.write_entries();
        self.fail_reads();
        let point = self.log.last();
        self.sealed = Some(point);
        self.sealed_ticket = self.out.persist(Record::Sealed(point).to_bytes(self.epoch), false);
        if self.is_silent() {
            self.role = Role::Follower;
            self.leader = None;
            self.owed = Owed::default();
        }
        self.tell();
        Sealed { point, ticket: self.sealed_ticket }
    }

    /// Drops what is committed, durable and covered by the caller's snapshots. The Marker stays: it says that the log has
    /// ended, which a restart must know.
    pub(crate) fn discard_through(&mut self, through: Index) -> Place {
        let mut through = through.min(self.commit).min(self.durable);
        if let Some(marker) = self.log.marker() {
            through = through.min(marker.before());
        }
        if through > self.log.border().index {
            self.log.discard(through);
            self.write_border(false);
        }
        self.log.border()
    }

    pub(crate) fn install_at(&mut self, now: Now, place: Place) -> Result<(), InstallError> {
        if self.sealed.is_some() {
            return Err(InstallError::Sealed);
        }
        // A leader that lies can have had another log called committed here; what the caller names is certain.
        let parts = self.log.place(place.index).is_some_and(|own| own.chain != place.chain);
        if place.index <= self.commit && !parts {
            return Err(InstallError::NotAhead { commit: self.commit });
        }
        if self.log.place(place.index) == Some(place) {
            // The log agrees and only did not know that so much is committed.
            self.commit_to(place.index);
            self.told_commit = place.index;
            self.discard_through(place.index);
        } else {
            if matches!(self.role, Role::Leader(_)) {
                // What is committed stands in every later leader's log: this one is none.
                self.step_down(now, self.hard.term, None);
            }
            if place.term > self.hard.term {
                self.step_down(now, place.term, None);
            }
            self.log.reset(place);
            self.unwritten = None;
            self.syncing.clear();
            self.durable = place.index;
            self.verified = Index::ZERO;
            self.commit = place.index;
            self.told_commit = place.index;
            self.told_marker = false;
            self.pinned = self.pinned.min(place.index);
            self.write_border(true);
        }
        if self.leader.is_some_and(|leader| leader != self.me) {
            // Committed, hence in the leader's log as well.
            self.verified = self.verified.max(place.index);
            self.owed.accepted = true;
        }
        Ok(())
    }
}
