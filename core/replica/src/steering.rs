//! Which protocol may extend the virtual log, as a function of what was ordered: the operator's mode and policy, the calm
//! that follows a failure, and whether the open segment is to end. Part of the replicated control state; everything here
//! is the same at every replica that executed the same root sequence. Nothing measured enters.

use crate::control::Control;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::configuration::check_mode;
use dwcp_base::{
    Configuration, Genesis, Incarnation, LogTime, NetworkMode, Policy, PublicKey, ReplicaId, Sequence, Trust,
};
use dwcp_log::close::CloseProof;
use dwcp_log::seal::Speaker;
use dwcp_log::{Close, ModeOrder, Open, PolicyOrder};

/// The calm doubles at most so often.
const DOUBLINGS_MAX: u32 = 10;
/// So many failures in a row are no accident.
const FAILURES_OFTEN: u32 = 3;
/// A segment that lived so many calms long is a new beginning: its failure counts as the first.
const HEALTHY_CALMS: u64 = 4;

/// Why the open segment is to end, though nobody complained of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Ending {
    /// The operator ordered a mode.
    Mode = 1,
    /// The operator ordered a policy.
    Policy = 2,
    /// A member was replaced: its old incarnation is part of the segment.
    Member = 3,
    /// A replaced member votes again and is not part of the segment.
    Readmission = 4,
    /// A member is sealed though the others go on: it takes part again only in another segment.
    Sealed = 5,
    /// State sync goes on without a member, whose last changes may be part of the segment.
    Excluded = 6,
}

impl Ending {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mode => "the operator ordered a mode",
            Self::Policy => "the operator ordered a policy",
            Self::Member => "a member was replaced",
            Self::Readmission => "a replaced member votes again",
            Self::Sealed => "a member is sealed alone",
            Self::Excluded => "a member was excluded from state sync",
        }
    }
}

/// What was ordered about protocols.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Steering {
    /// The largest time of a root proposal so far: what decisions go by while the virtual log's own time is the segment's.
    pub time: LogTime,
    pub mode: NetworkMode,
    pub policy: Policy,
    /// The number of the last mode or policy order.
    pub last_order: u64,
    /// Whom the last mode order wants as the next segment's first leader.
    pub first_leader: Option<ReplicaId>,
    /// Set while a segment is open that is to end.
    pub ending: Option<Ending>,
    /// No segment opens before.
    pub calm_until: LogTime,
    /// Failures in a row.
    pub failures: u32,
    /// When the open segment, or the last one, opened.
    pub opened: LogTime,
    /// Closes that nobody had ordered.
    pub failovers: u64,
    /// While a segment is open the registry moves with it, and replicas at one root sequence have applied different amounts
    /// of it: orders are then judged by the admins at its base.
    pub admins: Vec<PublicKey>,
    /// Who may speak about the open segment, with which keys: the configuration at its Open.
    pub voters: Option<Configuration>,
    /// How often each member had a segment ended by its word alone that it is sealed. One incarnation of each; a new one
    /// begins anew.
    pub sealed_alone: BTreeMap<ReplicaId, (Incarnation, u32)>,
}

impl Steering {
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            time: LogTime(genesis.created_unix_ms),
            mode: genesis.mode,
            policy: genesis.policy,
            last_order: 0,
            first_leader: None,
            ending: None,
            calm_until: LogTime::default(),
            failures: 0,
            opened: LogTime::default(),
            failovers: 0,
            admins: Vec::new(),
            voters: None,
            sealed_alone: BTreeMap::new(),
        }
    }

    /// Whether a segment should be opened at this time.
    ///
    /// # Errors
    /// Why not.
    pub fn wants_segment(&self, time: LogTime) -> Result<(), &'static str> {
        if self.mode == NetworkMode::Internet {
            return Err("internet mode has none");
        }
        if self.policy.trust == Trust::Byzantine {
            return Err("trust = byzantine: hybrid runs in the root log until a segment among liars exists");
        }
        if !self.policy.raft {
            return Err("the policy does not allow Raft");
        }
        // In a datacenter an election cures most failures; who opens one segment after the other all the same orders nothing.
        let is_patient = self.mode == NetworkMode::Datacenter && !self.fails_often();
        if !is_patient && time < self.calm_until {
            return Err("a segment failed lately: the calm after it is not over");
        }
        Ok(())
    }

    /// Whether segments fail one after the other: in datacenter mode, too, the calm holds then, and the status says so.
    #[must_use]
    pub fn fails_often(&self) -> bool {
        self.failures >= FAILURES_OFTEN
    }

    /// Whether mode and policy are for segments, calm or not.
    #[must_use]
    pub fn wants_segments(&self) -> bool {
        self.mode != NetworkMode::Internet && self.policy.allows_raft()
    }

    /// The order's number is the next.
    ///
    /// # Errors
    /// Why it is not in force; nothing changed.
    fn follows(&self, number: u64) -> Result<(), &'static str> {
        if self.last_order.checked_add(1) == Some(number) {
            Ok(())
        } else {
            Err("another mode or policy order was executed first: look at the status and order again")
        }
    }

    /// # Errors
    /// Why the order would not take effect; nothing changed.
    pub fn judge_mode(&self, order: &ModeOrder) -> Result<(), &'static str> {
        self.follows(order.number)?;
        match check_mode(order.mode, &self.policy) {
            Ok(()) => Ok(()),
            Err(dwcp_base::SettingsError::TooFewForByzantine) => {
                Err("minimum 4 replicas required for Byzantine tolerance")
            }
            Err(dwcp_base::SettingsError::Genesis(reason)) => Err(reason),
            Err(_) => Err("this cluster cannot run in that mode"),
        }
    }

    /// # Errors
    /// Why the order would not take effect; nothing changed.
    pub fn judge_policy(&self, order: &PolicyOrder) -> Result<Policy, &'static str> {
        self.follows(order.number)?;
        let policy = Policy {
            trust: order.trust,
            raft: order.raft,
            default_ack: order.default_ack,
            quorum: self.policy.quorum,
        };
        if order.trust == Trust::Byzantine && policy.quorum.n() < 4 {
            return Err("minimum 4 replicas required for Byzantine tolerance");
        }
        if check_mode(self.mode, &policy).is_err() {
            return Err("datacenter mode needs trust = crash and Raft: order another mode first");
        }
        Ok(policy)
    }

    /// A mode order is in force. `open`: a segment is open.
    pub(crate) fn on_mode(&mut self, order: &ModeOrder, open: bool) {
        self.last_order = order.number;
        self.mode = order.mode;
        self.first_leader = order.first_leader;
        // The calm binds decisions, not an operator's order.
        self.calm_until = LogTime::default();
        self.failures = 0;
        if open {
            self.ending = Some(Ending::Mode);
        }
    }

    pub(crate) fn on_policy(&mut self, order: &PolicyOrder, policy: Policy, open: bool) {
        self.last_order = order.number;
        self.policy = policy;
        if open {
            self.ending = Some(Ending::Policy);
        }
    }

    /// Whether a member's word alone that it is sealed may end the open segment at this time. Each time it did so before,
    /// the segment must be twice as old: a liar says it of any segment.
    #[must_use]
    pub fn may_end_sealed(&self, speaker: Speaker, time: LogTime, calm_ms: u64) -> bool {
        let known = self.sealed_alone.get(&speaker.id).filter(|(of, _)| *of == speaker.incarnation);
        let doublings = known.map_or(0, |(_, times)| *times).min(DOUBLINGS_MAX);
        self.ending.is_none() && time.0 >= self.opened.0.saturating_add(calm_ms << doublings)
    }

    pub(crate) fn on_sealed_alone(&mut self, speaker: Speaker) {
        self.ending = Some(Ending::Sealed);
        let entry = self.sealed_alone.entry(speaker.id).or_insert((speaker.incarnation, 0));
        let times = if entry.0 == speaker.incarnation { entry.1 } else { 0 };
        *entry = (speaker.incarnation, times.saturating_add(1));
    }

    pub(crate) fn on_open(&mut self, time: LogTime, admins: Vec<PublicKey>, voters: Configuration) {
        self.opened = time;
        self.ending = None;
        self.admins = admins;
        self.voters = Some(voters);
    }

    /// Whether this Close is one that nobody had ordered.
    #[must_use]
    pub fn is_forced(&self, close: &Close) -> bool {
        matches!(close.proof, CloseProof::Reports(_)) && self.ending.is_none()
    }

    /// A Close was executed.
    pub(crate) fn on_close(&mut self, time: LogTime, forced: bool, calm_ms: u64) {
        self.ending = None;
        self.admins = Vec::new();
        self.voters = None;
        if forced {
            self.failovers += 1;
            let lived_ms = time.0.saturating_sub(self.opened.0);
            if lived_ms > calm_ms.saturating_mul(HEALTHY_CALMS) << self.failures.min(DOUBLINGS_MAX) {
                self.failures = 0;
            }
            let calm = calm_ms << self.failures.min(DOUBLINGS_MAX);
            self.failures = self.failures.saturating_add(1);
            self.calm_until = LogTime(time.0.saturating_add(calm));
        }
    }
}

impl Control {
    /// Members whose votes count from this sequence on whatever checkpoint is stable: who makes up a segment opened here.
    #[must_use]
    pub fn segment_members(&self, sequence: Sequence, window: u64) -> Vec<ReplicaId> {
        let counts =
            |after: Sequence| after == Sequence::ZERO || after.0.saturating_add(window) <= sequence.0;
        let members = self.configurations.latest().members.iter();
        members.filter(|member| counts(member.votes_after)).map(|member| member.id).collect()
    }

    /// Members of the open segment that were replaced since it opened.
    #[must_use]
    pub fn gone(&self) -> usize {
        let Some((segment, voters)) = self.fold.segment().zip(self.steering.voters.as_ref()) else {
            return 0;
        };
        let now = self.configurations.latest();
        let incarnation = |of: &Configuration, id: ReplicaId| of.member(id).map(|member| member.incarnation);
        let replaced = |id: &&ReplicaId| incarnation(voters, **id) != incarnation(now, **id);
        segment.open.members.iter().filter(replaced).count()
    }

    /// Whether this Open may take effect at this sequence and time.
    ///
    /// # Errors
    /// Why not; the entry is then a no-op.
    pub fn judge_open(
        &self,
        steering: &Steering,
        sequence: Sequence,
        window: u64,
        open: &Open,
        time: LogTime,
    ) -> Result<(), &'static str> {
        steering.wants_segment(time.max(steering.time))?;
        let members = self.segment_members(sequence, window);
        if open.members != members || members.len() < steering.policy.quorum.q() {
            return Err("a segment of other members than those that vote");
        }
        if open.first_leader.is_some_and(|leader| !members.contains(&leader)) {
            return Err("a segment led by a stranger");
        }
        Ok(())
    }

    /// Whether a segment that replaces the open one, which was forced to close, may be led first by this member. One that
    /// was first and is named again could, as the root's primary too, keep commands from ever being served.
    #[must_use]
    pub fn may_lead_after_force(&self, leader: Option<ReplicaId>) -> bool {
        let Some(open) = self.fold.segment().map(|segment| &segment.open) else { return true };
        leader.is_none() || leader != open.first_leader || open.members.len() == 1
    }
}
