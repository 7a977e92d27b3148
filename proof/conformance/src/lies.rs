//! Nodes that are wrong on purpose: any implementation with one lie on top. They are the controls of the judges: a suite
//! that lets one of them pass judges nothing. They know nothing of what they wrap.

use crate::rule::Rule;
use crate::subject::{Claim, Excuse, Scene, Subject};
use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Hash, Micros, Mutants, Now, ReplicaId, Ticket};
use dwcp_raft::message::Payload;
use dwcp_raft::{
    Action, Entry, Index, InstallError, OpenError, Place, ProposeError, RaftMaker, RaftNode, ReadError,
    SealPoint, Sealed, SegmentSetup, Term, TransferError,
};

macro_rules! lies {
    ($($(#[$doc:meta])* $name:ident => [$($rule:ident),+],)*) => {
        /// One way to be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Lie { $($(#[$doc])* $name,)* }

        impl Lie {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The rules under which it may be caught.
            #[must_use]
            pub fn caught_as(self) -> &'static [Rule] {
                match self { $(Self::$name => &[$(Rule::$rule),+],)* }
            }
        }
    };
}

lies! {
    /// Tells the truth: the suite must not catch it.
    None => [Progress],
    /// The last record is not read at a restart.
    ForgetsItsLastRecord => [PromisesAreDurable, CommitSurvivesCrashes, VotesOnce, OneLeaderPerTerm, RestartKeepsPromises, SealIsTrue, LeaderIsComplete],
    /// Messages leave at once, whatever they wait for.
    SpeaksBeforeSync => [PromisesAreDurable, CommitSurvivesCrashes],
    /// Everything is reported durable as soon as it is written.
    CallsAllDurable => [PromisesAreDurable, CommitSurvivesCrashes],
    /// `durable()` names the end of the log.
    OverstatesDurable => [PromisesAreDurable],
    /// Reports entries as committed as soon as it holds them.
    CommitsAtOnce => [CommitSurvivesCrashes, CommittedNeverChanges, LogsMatch, LeaderIsComplete],
    /// Says that it leads whenever it knows no leader.
    CallsItselfLeader => [FaceIsConsistent, OneLeaderPerTerm],
    /// Answers reads at once from what it knows.
    ReadsFromALease => [ReadsAreLinearizable, ReadsAreConfirmed],
    /// Takes reads and never answers them.
    SwallowsReads => [ReadsAreAnswered],
    /// Answers each read twice.
    AnswersTwice => [ReadsAreAnswered],
    /// The chain it tells is not the log's.
    TellsAnotherChain => [LogsMatch, FaceIsConsistent, CommittedNeverChanges],
    /// Refuses a proposal after having taken it.
    RefusesAndTakes => [FaceIsConsistent, CommittedWasProposed],
    /// Puts a proposal into the log twice.
    ProposesTwice => [FaceIsConsistent, CommittedWasProposed],
    /// Seals one entry below its end.
    SealsTooLow => [SealIsTrue],
    /// Says that it is sealed and goes on.
    SealsInWordsOnly => [SealIsSilent, SealIsTrue],
    /// The seal is not written down.
    ForgetsItsSeal => [SealIsTrue, SealIsSilent, RestartKeepsPromises],
    /// Takes proposals after a Marker and loses them.
    ProposesAfterMarker => [MarkerEnds, FaceIsConsistent],
    /// Does not tell that the Marker is committed.
    KeepsTheMarkerQuiet => [MarkerEnds],
    /// Says yes to a transfer and does nothing.
    KeepsLeadership => [TransferMoves],
    /// Takes everything for its queue.
    ForgetsItsBounds => [QueuesAreBounded, FaceIsConsistent],
    /// Panics at what it cannot read.
    PanicsAtNoise => [NonsenseIsHarmless],
    /// Drops what it cannot use without a word.
    DropsInSilence => [NonsenseIsHarmless],
    /// Opens another epoch's records.
    MixesEpochs => [ForeignRecordsAreRefused],
    /// Takes no snapshot.
    InstallsNothing => [SnapshotsCatchUp, Progress],
    /// Says nothing of followers that need one.
    HidesWhoIsBehind => [Progress, SnapshotsCatchUp],
    /// Discards what it was not asked to.
    DiscardsInWordsOnly => [FaceIsConsistent],
    /// Gives one entry where there are many, and too many where few were asked for.
    GivesTheWrongEntries => [FaceIsConsistent, CommittedNeverChanges, LogsMatch],
    /// Numbers its records as it likes.
    CountsTicketsWrong => [FaceIsConsistent],
    /// Never wakes: no elections, no heartbeats.
    Sleeps => [Progress, TransferMoves],
}

/// A subject with one lie on top.
#[derive(Clone, Copy)]
pub struct Liar<'a> {
    pub inner: &'a dyn Subject,
    pub lie: Lie,
}

impl core::fmt::Debug for Liar<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} that {:?}", self.inner.name(), self.lie)
    }
}

impl Subject for Liar<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn maker(&self) -> &dyn RaftMaker {
        self
    }

    fn claim(&self, message: &[u8]) -> Claim {
        self.inner.claim(message)
    }

    fn forge(&self, chance: &mut Chance, scene: &Scene) -> Option<Bytes> {
        self.inner.forge(chance, scene)
    }

    fn excuses(&self) -> &[Excuse] {
        self.inner.excuses()
    }

    fn mutants(&self) -> Mutants {
        self.inner.mutants()
    }
}

impl RaftMaker for Liar<'_> {
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError> {
        let maker = self.inner.maker();
        let me = setup.me;
        let inner = match self.lie {
            Lie::ForgetsItsLastRecord => {
                maker.open(setup, &records[..records.len().saturating_sub(1)], now)?
            }
            Lie::ForgetsItsSeal => {
                // Opens the longest beginning that is not sealed.
                let mut count = records.len();
                loop {
                    let node = maker.open(setup.clone(), &records[..count], now)?;
                    if node.sealed().is_none() || count == 0 {
                        break node;
                    }
                    count -= 1;
                }
            }
            Lie::MixesEpochs => maker.open(setup.clone(), records, now).or_else(|error| {
                let other = SegmentSetup { epoch: Epoch(setup.epoch.0 - 1), ..setup };
                maker.open(other, records, now).map_err(|_| error)
            })?,
            Lie::ForgetsItsBounds => {
                let mut setup = setup;
                setup.limits.uncommitted_bytes_max = 1 << 30;
                setup.limits.reads_max = 1 << 20;
                maker.open(setup, records, now)?
            }
            _ => maker.open(setup, records, now)?,
        };
        Ok(Box::new(LyingNode {
            inner,
            lie: self.lie,
            me,
            said: Vec::new(),
            told: Index::ZERO,
            sealed: None,
        }))
    }
}

#[derive(Debug)]
struct LyingNode {
    inner: Box<dyn RaftNode>,
    lie: Lie,
    me: ReplicaId,
    said: Vec<Action>,
    told: Index,
    sealed: Option<Sealed>,
}

impl LyingNode {
    fn lies(&self, lie: Lie) -> bool {
        self.lie == lie
    }

    fn bent(&self, place: Place) -> Place {
        if self.lies(Lie::TellsAnotherChain) && place.index.0 > 3 && self.me.0 == 1 {
            return Place { chain: Hash::of(&place.chain.0), ..place };
        }
        place
    }
}

impl RaftNode for LyingNode {
    fn propose(&mut self, now: Now, payload: &Payload) -> Result<Place, ProposeError> {
        let answer = self.inner.propose(now, payload);
        match (self.lie, &answer) {
            (Lie::RefusesAndTakes, Ok(place)) if place.index.0 % 5 == 0 => Err(ProposeError::Busy),
            (Lie::ProposesTwice, Ok(_)) if *payload != Payload::Marker => self.inner.propose(now, payload),
            (Lie::ProposesAfterMarker, Err(ProposeError::Marker)) => Ok(self.inner.last()),
            _ => answer.map(|place| self.bent(place)),
        }
    }

    fn read_index(&mut self, now: Now, token: u64) -> Result<(), ReadError> {
        match self.lie {
            Lie::ReadsFromALease if self.inner.is_leader() => {
                self.said.push(Action::ReadsReady { tokens: vec![token], index: self.inner.commit() });
                Ok(())
            }
            Lie::SwallowsReads if self.inner.is_leader() => Ok(()),
            _ => self.inner.read_index(now, token),
        }
    }

    fn transfer_leadership(&mut self, now: Now, to: ReplicaId) -> Result<(), TransferError> {
        if self.lies(Lie::KeepsLeadership) && self.inner.is_leader() && to != self.me && to.0 < 100 {
            return Ok(());
        }
        self.inner.transfer_leadership(now, to)
    }

    fn is_leader(&self) -> bool {
        self.inner.is_leader() || (self.lies(Lie::CallsItselfLeader) && self.inner.leader().is_none())
    }

    fn leader(&self) -> Option<ReplicaId> {
        let lie = self.lies(Lie::CallsItselfLeader).then_some(self.me);
        self.inner.leader().or(lie)
    }

    fn term(&self) -> Term {
        self.inner.term()
    }

    fn commit(&self) -> Index {
        match self.lie {
            Lie::CommitsAtOnce => self.inner.last().index,
            _ => self.inner.commit(),
        }
    }

    fn last(&self) -> Place {
        self.bent(self.inner.last())
    }

    fn followers(&self) -> Vec<(ReplicaId, Index)> {
        self.inner.followers()
    }

    fn border(&self) -> Place {
        self.inner.border()
    }

    fn durable(&self) -> Index {
        if self.lies(Lie::OverstatesDurable) { self.inner.last().index } else { self.inner.durable() }
    }

    fn place(&self, index: Index) -> Option<Place> {
        self.inner.place(index).map(|place| self.bent(place))
    }

    fn entries(&self, from: Index, through: Index, bytes_max: usize) -> Vec<Entry> {
        let mut entries = self.inner.entries(from, through, bytes_max);
        if self.lies(Lie::GivesTheWrongEntries) && from.0 > 9 {
            entries = self.inner.entries(Index(from.0 - 1), through, bytes_max.max(1 << 20));
        }
        entries
    }

    fn step(&mut self, now: Now, from: ReplicaId, bytes: &[u8]) {
        self.inner.step(now, from, bytes);
    }

    fn tick(&mut self, now: Now) {
        if !self.lies(Lie::Sleeps) {
            self.inner.tick(now);
        }
    }

    fn next_wakeup(&self) -> Micros {
        if self.lies(Lie::Sleeps) { Micros::NEVER } else { self.inner.next_wakeup() }
    }

    fn on_link_down(&mut self, now: Now, peer: ReplicaId) {
        self.inner.on_link_down(now, peer);
    }

    fn on_durable(&mut self, now: Now, through: Ticket) {
        self.inner.on_durable(now, through);
    }

    fn settle(&mut self, now: Now) {
        self.inner.settle(now);
        if self.lies(Lie::CallsAllDurable) {
            let actions = self.inner.take();
            for action in &actions {
                if let Action::Persist { ticket, .. } = action {
                    self.inner.on_durable(now, *ticket);
                }
            }
            self.said.extend(actions);
            self.inner.settle(now);
        }
    }

    fn seal(&mut self, now: Now) -> Sealed {
        match self.lie {
            Lie::SealsTooLow => {
                let sealed = self.inner.seal(now);
                let point = self.inner.place(sealed.point.index.before()).unwrap_or(sealed.point);
                Sealed { point, ..sealed }
            }
            Lie::SealsInWordsOnly => {
                let sealed = Sealed { point: self.inner.last(), ticket: Ticket::ZERO };
                *self.sealed.get_or_insert(sealed)
            }
            _ => self.inner.seal(now),
        }
    }

    fn sealed(&self) -> Option<SealPoint> {
        self.sealed.map(|sealed| sealed.point).or_else(|| self.inner.sealed())
    }

    fn discard(&mut self, through: Index) -> Place {
        if self.lies(Lie::DiscardsInWordsOnly) {
            return self.inner.place(through.min(self.inner.commit())).unwrap_or_else(|| self.inner.border());
        }
        self.inner.discard(through)
    }

    fn needed_from(&self) -> Ticket {
        self.inner.needed_from()
    }

    fn install(&mut self, now: Now, place: Place) -> Result<(), InstallError> {
        if self.lies(Lie::InstallsNothing) {
            return Ok(());
        }
        self.inner.install(now, place)
    }

    fn learn_commit(&mut self, place: Place) {
        self.inner.learn_commit(place);
    }

    fn pin(&mut self, index: Index) -> Ticket {
        self.inner.pin(index)
    }

    fn take(&mut self) -> Vec<Action> {
        let mut actions = core::mem::take(&mut self.said);
        for action in self.inner.take() {
            match (self.lie, action) {
                (Lie::SpeaksBeforeSync, Action::Send { to, message, .. }) => {
                    actions.push(Action::Send { to, message, after: Ticket::ZERO });
                }
                (Lie::AnswersTwice, Action::ReadsReady { tokens, index }) => {
                    actions.push(Action::ReadsReady { tokens: tokens.clone(), index });
                    actions.push(Action::ReadsReady { tokens, index });
                }
                (Lie::KeepsTheMarkerQuiet, Action::MarkerCommitted { .. })
                | (Lie::DropsInSilence, Action::Refused { .. })
                | (Lie::HidesWhoIsBehind, Action::Behind { .. })
                | (Lie::CommitsAtOnce, Action::Committed { .. }) => {}
                (Lie::PanicsAtNoise, Action::Refused { reason, .. }) => panic!("cannot read this: {reason}"),
                (Lie::CallsItselfLeader, Action::LeaderChanged { term, leader }) => {
                    actions.push(Action::LeaderChanged { term, leader: leader.or(Some(self.me)) });
                }
                (Lie::CountsTicketsWrong, Action::Persist { ticket, record, prompt }) if ticket.0 == 4 => {
                    actions.push(Action::Persist { ticket: ticket.next(), record, prompt });
                }
                (_, action) => actions.push(action),
            }
        }
        if self.lies(Lie::CommitsAtOnce) && self.inner.last().index > self.told {
            self.told = self.inner.last().index;
            actions.push(Action::Committed { through: self.told });
        }
        actions
    }

    fn check(&self) {
        self.inner.check();
    }
}
