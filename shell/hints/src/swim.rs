//! SWIM by the crate foca, made deterministic: its calls into the world become values, its timers a queue that the driver's
//! clock empties. Who may be spoken of is decided before (`gossip.rs`); records are not known here.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;
use core::num::{NonZeroU8, NonZeroUsize};
use core::time::Duration;

use dwcp_base::{Chance, Micros, ReplicaId};
use foca::{Config, Foca, Member, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State, Timer};

use crate::hints::Standing;
use crate::wire::{self, Codec, Head, Identity, PACKET_BYTES_MAX, Packet, Update, Word};

/// Timers that may wait: one of each periodic kind, and a suspicion for each member.
pub(crate) const TIMERS_MAX: usize = 40;

/// The beats of hints. All replicas of a cluster may differ in them; the defaults suit round trips up to a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One member is asked this often, and must answer, directly or through others, before the next.
    pub probe_period: Micros,
    /// After this time without an answer three others are asked to ask it.
    pub probe_patience: Micros,
    /// How long a suspect may take to contradict.
    pub suspicion: Micros,
    /// News are passed on to three members this often, while there are any; nothing leaves in between.
    pub beat: Micros,
    /// One member is asked for all it knows this often.
    pub announce: Micros,
    /// Members that are down, suspects, and everybody while nobody is alive, are called this often.
    pub call: Micros,
    /// Records that a peer was sent are sent again after this time: a message may have been dropped.
    pub resend: Micros,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe_period: Micros::from_millis(1_000),
            probe_patience: Micros::from_millis(400),
            suspicion: Micros::from_millis(5_000),
            beat: Micros::from_millis(200),
            announce: Micros::from_millis(30_000),
            call: Micros::from_millis(5_000),
            resend: Micros::from_millis(60_000),
        }
    }
}

fn duration(micros: Micros) -> Duration {
    Duration::from_micros(micros.0)
}

fn count(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a number above zero")
}

fn config(timing: &Timing, members: usize) -> Config {
    // Some four times the logarithm of the members reaches all of them with a margin (SWIM, section 5).
    let log2 = usize::BITS - members.leading_zeros();
    let transmissions = u8::try_from(4 * log2).unwrap_or(u8::MAX).max(5);
    let periodic =
        |every: Micros, members| PeriodicParams { frequency: duration(every), num_members: count(members) };
    Config {
        probe_period: duration(timing.probe_period),
        probe_rtt: duration(timing.probe_patience),
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(transmissions).expect("at least five"),
        suspect_to_down_after: duration(timing.suspicion),
        // A member comes back under a new version; there are never more entries than members.
        remove_down_after: None,
        max_packet_size: count(PACKET_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: Some(periodic(timing.announce, 1)),
        periodic_announce_to_down_members: Some(periodic(timing.call, 3)),
        periodic_gossip: Some(periodic(timing.beat, 3)),
    }
}

/// Seeded chance under the interface that foca wants.
struct Dice(Chance);

impl rand_core::TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.0.next_u64() >> 32).expect("32 bits"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.0.next_u64().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
        Ok(())
    }
}

/// Timers by the moment they are due, then by the order in which they were set. Bound: [`TIMERS_MAX`].
#[derive(Debug, Default)]
struct Timers {
    due: BTreeMap<(Micros, u64), Timer<Identity>>,
    set: u64,
}

impl Timers {
    /// Of a periodic kind the newest alone counts: foca forgets the others itself, by a token. A suspicion keeps its first
    /// moment; were it put off each time the suspect is asked again, it would never end.
    fn set(&mut self, at: Micros, timer: Timer<Identity>) {
        if self.due.values().any(|known| *known == timer && is_suspicion(known).is_some()) {
            return;
        }
        self.due.retain(|_, known| kind(known) != kind(&timer));
        self.due.insert((at, self.set), timer);
        self.set += 1;
    }

    fn next(&self) -> Micros {
        self.due.keys().next().map_or(Micros::NEVER, |(at, _)| *at)
    }

    fn take_due(&mut self, now: Micros) -> Option<Timer<Identity>> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}

fn is_suspicion(timer: &Timer<Identity>) -> Option<ReplicaId> {
    match timer {
        Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.replica),
        _ => None,
    }
}

fn kind(timer: &Timer<Identity>) -> (u8, Option<ReplicaId>) {
    let number = match timer {
        Timer::ProbeRandomMember(_) => 0,
        Timer::SendIndirectProbe { .. } => 1,
        Timer::ChangeSuspectToDown { .. } => 2,
        Timer::PeriodicAnnounce(_) => 3,
        Timer::PeriodicAnnounceDown(_) => 4,
        Timer::PeriodicGossip(_) => 5,
        Timer::RemoveDown(_) => 6,
    };
    (number, is_suspicion(timer))
}

/// Takes down what foca wants.
struct Notes<'a> {
    now: Micros,
    timers: &'a mut Timers,
    packets: &'a mut Vec<(ReplicaId, Vec<u8>)>,
    defunct: &'a mut bool,
}

impl Runtime<Identity> for Notes<'_> {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        if notification == Notification::Defunct {
            *self.defunct = true;
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to.replica, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        let after = Micros(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        self.timers.set(self.now.plus(after), event);
    }
}

/// One replica's part in SWIM.
pub(crate) struct Swim {
    foca: Foca<Identity, Codec, Dice, NoCustomBroadcast>,
    timers: Timers,
    /// Since the last drain.
    packets: Vec<(ReplicaId, Vec<u8>)>,
    /// Others hold this identity for dead: it needs a new one.
    defunct: bool,
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim")
            .field("identity", self.foca.identity())
            .field("timers", &self.timers)
            .field("defunct", &self.defunct)
            .finish_non_exhaustive()
    }
}

/// foca would not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Swim {
    pub(crate) fn new(identity: Identity, timing: &Timing, members: usize, chance: Chance) -> Self {
        let foca = Foca::new(identity, config(timing, members), Dice(chance), Codec);
        Self { foca, timers: Timers::default(), packets: Vec::new(), defunct: false }
    }

    fn with(
        &mut self,
        now: Micros,
        act: impl FnOnce(
            &mut Foca<Identity, Codec, Dice, NoCustomBroadcast>,
            Notes<'_>,
        ) -> Result<(), foca::Error>,
    ) -> Result<(), Refused> {
        let Self { foca, timers, packets, defunct } = self;
        act(foca, Notes { now, timers, packets, defunct }).map_err(|_| Refused)
    }

    pub(crate) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    /// Lets every timer fire that is due. How many fired in vain.
    pub(crate) fn tick(&mut self, now: Micros) -> u64 {
        let mut refused = 0;
        // A timer that fires sets others for later than now, so this ends.
        while let Some(timer) = self.timers.take_due(now) {
            refused += u64::from(self.with(now, |foca, notes| foca.handle_timer(timer, notes)).is_err());
        }
        refused
    }

    pub(crate) fn on_packet(&mut self, now: Micros, packet: &Packet) -> Result<(), Refused> {
        let bytes = packet.encode();
        self.with(now, |foca, notes| foca.handle_data(&bytes, notes))
    }

    /// Asks this member to take notice, and for all it knows.
    pub(crate) fn announce(&mut self, now: Micros, to: Identity) -> Result<(), Refused> {
        self.with(now, |foca, notes| foca.announce(to, notes))
    }

    /// Its owner has just shown this identity.
    pub(crate) fn on_shown(&mut self, now: Micros, id: Identity) -> Result<(), Refused> {
        self.with(now, |foca, notes| foca.apply_many(core::iter::once(Member::alive(id)), true, notes))
    }

    /// Goes on under another identity.
    pub(crate) fn change_identity(&mut self, now: Micros, id: Identity) -> Result<(), Refused> {
        self.defunct = false;
        self.with(now, |foca, mut notes| {
            foca.change_identity(id, &mut notes)?;
            // It starts to ask its members again only when it is told something, and nothing is enough.
            foca.apply_many(core::iter::empty(), true, notes)
        })
    }

    /// Tells every suspect to its face that it is one, so that it can contradict.
    ///
    /// Departs: in SWIM the suspicion that is passed on reaches the suspect, and everybody who hears it waits for its end. foca
    /// passes it on a number of times, and only who asked in vain waits; where all of these were lost and that one has
    /// gone, a member that answers would be suspect for ever (`nobody_alive_is_held_down_for_ever`, seed 21).
    pub(crate) fn confront(&mut self) {
        let from = self.identity();
        for member in self.foca.iter_membership_state().filter(|member| member.state() == State::Suspect) {
            let to = *member.id();
            // Round zero says nothing new of the sender.
            let head = Head { from, from_round: 0, to, word: Word::Gossip };
            let update = Update { id: to, round: member.incarnation(), state: wire::State::Suspect };
            self.packets.push((to.replica, Packet { head, updates: vec![update] }.encode()));
        }
    }

    pub(crate) fn is_defunct(&self) -> bool {
        self.defunct
    }

    pub(crate) fn drain(&mut self) -> Vec<(ReplicaId, Vec<u8>)> {
        core::mem::take(&mut self.packets)
    }

    pub(crate) fn next_wakeup(&self) -> Micros {
        self.timers.next()
    }

    /// Nobody is alive, as far as it knows.
    pub(crate) fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    pub(crate) fn standings(&self) -> impl Iterator<Item = (Identity, Standing)> {
        self.foca.iter_membership_state().map(|member| {
            let standing = match member.state() {
                State::Alive => Standing::Alive,
                State::Suspect => Standing::Suspect,
                State::Down => Standing::Down,
            };
            (*member.id(), standing)
        })
    }

    pub(crate) fn check(&self, others: usize) {
        assert!(self.timers.due.len() <= TIMERS_MAX, "{} timers wait", self.timers.due.len());
        let members = self.foca.iter_membership_state().len();
        assert!(members <= others, "{members} entries for {others} other members");
        let backlog = self.foca.updates_backlog();
        assert!(backlog <= others + 1, "{backlog} updates wait for {others} other members");
    }
}
