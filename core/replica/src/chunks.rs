//! Which chunk of a snapshot is asked of which donor, and for how long. What a chunk holds, and whether it is the right one,
//! is not known here: see `transfer`.
//!
//! How long a chunk is nobody can prove beforehand: what `q` replicas signed covers what a chunk holds, not its bytes. So a
//! donor may send for ever, slowly or fast. Slowly: once a chunk has had its time, a donor that has nothing else to do is
//! asked for it instead. Fast: each donor may fill only so much, and a chunk that is longer is first asked of all the
//! others; only one chunk at a time may be long. A donor that is left like this is asked for nothing for a while, but
//! not for ever: it may just be slow.

use crate::wire::CHUNK_PART_BYTES;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Now, ReplicaId};

/// Chunks asked of one donor at once; fewer where they turn out to be large.
pub(crate) const PER_DONOR: usize = 4;
/// Bytes of one chunk; a donor that sends more lies.
const CHUNK_BYTES_MAX: usize = 1 << 30;
/// Bytes of unfinished chunks of one donor, or as many as the largest chunk that was verified has, if that is more. One
/// chunk at a time may be longer.
const DONOR_BYTES_MAX: usize = 64 << 20;

/// In units of `resend_interval`: how long a part is waited for, and when it is asked for once more meanwhile.
const PART_WITHIN: u64 = 10;
const PART_AGAIN: u64 = 5;
/// After which time a chunk may be asked of somebody else, twice as long each time it came to that; and how often that
/// doubles.
const CHUNK_WITHIN: u64 = 60;
const DOUBLINGS_MAX: u32 = 6;
/// How long a donor that was late is asked for nothing.
const REST: u64 = 20;
/// Nothing came of this snapshot for so long: another that can be had is better.
const QUIET: u64 = 30;
/// No chunk became whole for so long, twice as long each time it came to that: a newer snapshot is better. So it is after
/// that time in any case while all donors may be liars, who may give true chunks at a rate that leads nowhere.
const STALLED: u64 = 120;
const STALLS_MAX: u32 = 12;

/// A chunk on its way.
#[derive(Debug)]
struct InFlight {
    donor: ReplicaId,
    received: Vec<u8>,
    part_by: Micros,
    /// When the next part is asked for once more; `NEVER` once it was.
    again_at: Micros,
    /// From then on somebody else may be asked.
    chunk_by: Micros,
}

/// Who could not give a chunk in time.
#[derive(Debug, Default)]
struct Late {
    with: BTreeSet<ReplicaId>,
    /// How often it was taken from a donor that was still sending.
    times: u32,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Chunks asked of it at once.
    width: usize,
    rests_until: Micros,
}

/// What becomes of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Unasked,
    /// Go on from here.
    More {
        offset: u64,
    },
    Whole(Vec<u8>),
    /// It is more than this donor may fill: the others are asked first.
    PutAside,
    /// Longer than any chunk is.
    Endless,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Chunks {
    resend: Micros,
    /// Of the snapshot's chunks, which are 65,536 at most.
    missing: BTreeSet<u32>,
    /// At most the members.
    donors: BTreeMap<ReplicaId, Standing>,
    /// At most `PER_DONOR` of each donor.
    in_flight: BTreeMap<u32, InFlight>,
    /// Of missing chunks.
    late: BTreeMap<u32, Late>,
    /// Donors that were left since somebody looked: as often as there were chunks in flight.
    left: Vec<ReplicaId>,
    /// Bytes of the largest chunk that was verified.
    largest: usize,
    begun: Micros,
    /// When a part came last, and when a chunk was verified last.
    heard: Micros,
    taken: Micros,
}

impl Chunks {
    pub(crate) fn new(now: Now, count: u32, resend: Micros) -> Self {
        Self {
            resend,
            missing: (0..count).collect(),
            donors: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            late: BTreeMap::new(),
            left: Vec::new(),
            largest: 0,
            begun: now.mono,
            heard: now.mono,
            taken: now.mono,
        }
    }

    pub(crate) fn is_missing(&self, index: u32) -> bool {
        self.missing.contains(&index)
    }

    pub(crate) fn missing(&self) -> usize {
        self.missing.len()
    }

    pub(crate) fn has_donors(&self) -> bool {
        !self.donors.is_empty()
    }

    /// A peer has this very snapshot.
    pub(crate) fn add_donor(&mut self, donor: ReplicaId) {
        let fresh = Standing { width: PER_DONOR, rests_until: Micros::ZERO };
        self.donors.entry(donor).or_insert(fresh);
    }

    /// It has it no more, or lies.
    pub(crate) fn forget_donor(&mut self, donor: ReplicaId) {
        self.donors.remove(&donor);
        self.in_flight.retain(|_, flight| flight.donor != donor);
    }

    /// The chunk is here and verified.
    pub(crate) fn taken(&mut self, now: Now, index: u32, bytes: usize) {
        self.missing.remove(&index);
        self.late.remove(&index);
        self.largest = self.largest.max(bytes);
        self.taken = now.mono;
    }

    /// Whether nothing at all comes any more.
    pub(crate) fn is_quiet(&self, now: Now) -> bool {
        now.mono.since(self.heard) >= self.resend.times(QUIET)
    }

    /// Whether what comes leads to nothing, after `before` snapshots of which the same was said, if `faults` may lie.
    pub(crate) fn is_stalled(&self, now: Now, before: u32, faults: usize) -> bool {
        let since = if self.donors.len() > faults { self.taken } else { self.begun };
        now.mono.since(since) >= self.resend.times(STALLED << before.min(STALLS_MAX))
    }

    pub(crate) fn next_look(&self) -> Micros {
        let due = self.in_flight.values().map(|flight| flight.part_by.min(flight.again_at));
        due.min().unwrap_or(Micros::NEVER)
    }

    /// Parts that have not come: each is asked for once more, as (donor, chunk, offset), then its donor is left.
    pub(crate) fn on_time(&mut self, now: Now) -> Vec<(ReplicaId, u32, u64)> {
        let silent = |flight: &&InFlight| now.mono >= flight.part_by;
        let silent: Vec<u32> =
            self.in_flight.iter().filter(|(_, flight)| silent(flight)).map(|(index, _)| *index).collect();
        for index in silent {
            self.leave(now, index);
        }
        let mut again = Vec::new();
        for (index, flight) in &mut self.in_flight {
            if now.mono >= flight.again_at {
                flight.again_at = Micros::NEVER;
                again.push((flight.donor, *index, flight.received.len() as u64));
            }
        }
        again
    }

    /// Ends the fetching of a chunk from a donor that is late with it.
    fn leave(&mut self, now: Now, index: u32) {
        let Some(flight) = self.in_flight.remove(&index) else { return };
        self.late.entry(index).or_default().with.insert(flight.donor);
        self.left.push(flight.donor);
        if let Some(standing) = self.donors.get_mut(&flight.donor) {
            standing.rests_until = now.mono.plus(self.resend.times(REST));
        }
    }

    /// Who was left since this was called last.
    pub(crate) fn take_left(&mut self) -> Vec<ReplicaId> {
        core::mem::take(&mut self.left)
    }

    fn flights_of(&self, donor: ReplicaId) -> impl Iterator<Item = (&u32, &InFlight)> {
        self.in_flight.iter().filter(move |(_, flight)| flight.donor == donor)
    }

    /// Donors that do not rest, and whether each has room for a question.
    fn active(&self, now: Now) -> impl Iterator<Item = (ReplicaId, bool)> {
        let active = self.donors.iter().filter(move |(_, standing)| standing.rests_until <= now.mono);
        active.map(|(donor, standing)| (*donor, self.flights_of(*donor).count() < standing.width))
    }

    fn was_late(&self, donor: ReplicaId, index: u32) -> bool {
        self.late.get(&index).is_some_and(|late| late.with.contains(&donor))
    }

    /// Not a second time, while there is somebody else with room for it.
    fn may_ask(&self, now: Now, donor: ReplicaId, index: u32) -> bool {
        !self.was_late(donor, index)
            || self.active(now).all(|(other, has_room)| !has_room || self.was_late(other, index))
    }

    /// What each donor is to be asked for now, from its beginning on.
    pub(crate) fn ask(&mut self, now: Now) -> Vec<(ReplicaId, u32)> {
        if self.active(now).next().is_none() {
            // Better a slow one than none.
            self.donors.values_mut().for_each(|standing| standing.rests_until = Micros::ZERO);
        }
        let mut asks = Vec::new();
        while let Some((donor, index)) = self.next_question(now) {
            let doublings = self.late.get(&index).map_or(0, |late| late.times.min(DOUBLINGS_MAX));
            self.in_flight.insert(
                index,
                InFlight {
                    donor,
                    received: Vec::new(),
                    part_by: now.mono.plus(self.resend.times(PART_WITHIN)),
                    again_at: now.mono.plus(self.resend.times(PART_AGAIN)),
                    chunk_by: now.mono.plus(self.resend.times(CHUNK_WITHIN << doublings)),
                },
            );
            asks.push((donor, index));
        }
        asks
    }

    fn next_question(&mut self, now: Now) -> Option<(ReplicaId, u32)> {
        let free: Vec<ReplicaId> =
            self.active(now).filter(|(_, has_room)| *has_room).map(|(donor, _)| donor).collect();
        for donor in &free {
            let unasked = self.missing.iter().filter(|index| !self.in_flight.contains_key(index));
            let next = unasked.copied().find(|index| self.may_ask(now, *donor, *index));
            if let Some(index) = next {
                return Some((*donor, index));
            }
        }
        // Nothing is left but what somebody else is late with.
        for donor in free {
            let overdue = self
                .in_flight
                .iter()
                .filter(|(_, flight)| flight.donor != donor && now.mono >= flight.chunk_by);
            let next = overdue.map(|(index, _)| *index).find(|index| self.may_ask(now, donor, *index));
            if let Some(index) = next {
                self.leave(now, index);
                self.late.entry(index).or_default().times += 1;
                return Some((donor, index));
            }
        }
        None
    }

    pub(crate) fn on_part(
        &mut self,
        now: Now,
        from: ReplicaId,
        index: u32,
        offset: u64,
        bytes: &Bytes,
    ) -> Part {
        let Some(flight) = self.in_flight.get(&index) else { return Part::Unasked };
        if flight.donor != from || flight.received.len() as u64 != offset {
            return Part::Unasked;
        }
        self.heard = now.mono;
        let whole = flight.received.len() + bytes.len();
        if bytes.len() > CHUNK_PART_BYTES as usize || whole > CHUNK_BYTES_MAX {
            return Part::Endless;
        }
        let is_last = bytes.len() < CHUNK_PART_BYTES as usize;
        if !is_last && !self.make_room(now, from, index, bytes.len()) {
            self.leave(now, index);
            return Part::PutAside;
        }
        let Some(flight) = self.in_flight.get_mut(&index) else { return Part::Unasked };
        flight.received.extend_from_slice(bytes);
        if is_last {
            let flight = self.in_flight.remove(&index);
            return Part::Whole(flight.map(|flight| flight.received).unwrap_or_default());
        }
        flight.part_by = now.mono.plus(self.resend.times(PART_WITHIN));
        flight.again_at = now.mono.plus(self.resend.times(PART_AGAIN));
        Part::More { offset: flight.received.len() as u64 }
    }

    /// Bytes that one donor's unfinished chunks may have.
    fn share(&self) -> usize {
        DONOR_BYTES_MAX.max(self.largest)
    }

    /// Whether a donor may fill so much more with this chunk. Its other ones give way.
    fn make_room(&mut self, now: Now, donor: ReplicaId, index: u32, more: usize) -> bool {
        let share = self.share();
        let had = self.in_flight.get(&index).map_or(0, |flight| flight.received.len());
        loop {
            let filled: usize = self.flights_of(donor).map(|(_, flight)| flight.received.len()).sum();
            if filled + more <= share {
                return true;
            }
            let other =
                self.flights_of(donor).map(|(other, _)| *other).filter(|other| *other != index).last();
            let Some(other) = other else { break };
            self.in_flight.remove(&other);
            if let Some(standing) = self.donors.get_mut(&donor) {
                standing.width = (standing.width - 1).max(1);
            }
        }
        if had > share {
            return true;
        }
        let mut others = self.active(now).filter(|(other, _)| *other != donor);
        let is_hope = others.any(|(other, _)| !self.was_late(other, index));
        let is_long = |flight: &InFlight| flight.received.len() > share;
        !is_hope && !self.in_flight.values().any(is_long)
    }

    /// Asserts what must hold whatever donors do.
    pub(crate) fn check(&self) {
        let share = self.share();
        let mut long = 0;
        for donor in self.donors.keys() {
            let filled: usize = self.flights_of(*donor).map(|(_, flight)| flight.received.len()).sum();
            long += usize::from(filled > share);
            assert!(
                filled <= share || self.flights_of(*donor).count() == 1,
                "only a chunk alone may be long"
            );
        }
        assert!(long <= 1, "one chunk at a time may be long");
        for (index, flight) in &self.in_flight {
            assert!(self.missing.contains(index), "what is asked for is missing");
            assert!(self.donors.contains_key(&flight.donor), "only donors are asked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const RESEND: Micros = Micros::from_millis(50);
    const LONG: usize = 100 << 20;

    fn at(ms: u64) -> Now {
        Now { mono: Micros::from_millis(ms), wall_ms: ms }
    }

    /// Fetches one chunk of `LONG` bytes until it is whole, a question every millisecond answered by each donor. Those
    /// below `liars` send without end.
    fn fetch_long(donors: u8, liars: u8) -> (u64, usize) {
        let part = Bytes::from(vec![7; CHUNK_PART_BYTES as usize]);
        let mut chunks = Chunks::new(at(0), 1, RESEND);
        (0..donors).for_each(|id| chunks.add_donor(ReplicaId(id)));
        let mut questions = Vec::new();
        let mut parts = 0;
        for ms in 0..60_000 {
            let now = at(ms);
            let again = chunks.on_time(now);
            questions.extend(again);
            questions.extend(chunks.ask(now).into_iter().map(|(donor, index)| (donor, index, 0)));
            for (donor, index, offset) in core::mem::take(&mut questions) {
                parts += 1;
                let from = usize::try_from(offset).unwrap().min(LONG);
                let left = if donor.0 < liars { usize::MAX } else { LONG - from };
                let bytes = part.slice(..left.min(part.len()));
                match chunks.on_part(now, donor, index, offset, &bytes) {
                    Part::More { offset } => questions.push((donor, index, offset)),
                    Part::Whole(whole) => {
                        assert_eq!(whole.len(), LONG);
                        return (ms, parts);
                    }
                    Part::Endless => chunks.forget_donor(donor),
                    Part::Unasked | Part::PutAside => {}
                }
                chunks.check();
            }
        }
        panic!("it never came");
    }

    #[test]
    fn a_chunk_longer_than_a_share_comes_when_nobody_has_it_shorter() {
        for donors in 1..=4 {
            let (_, parts) = fetch_long(donors, 0);
            let needed = LONG / CHUNK_PART_BYTES as usize;
            let tries = usize::from(donors - 1) * DONOR_BYTES_MAX / CHUNK_PART_BYTES as usize;
            assert!(parts <= needed + tries + 10, "{donors} donors, {parts} parts");
        }
    }

    #[test]
    fn a_liar_without_end_does_not_keep_a_long_chunk_from_coming() {
        for donors in 2..=4 {
            let (ms, _) = fetch_long(donors, 1);
            assert!(ms < 20_000, "{donors} donors, {ms} ms");
        }
    }

    #[test]
    fn a_chunk_that_had_its_time_goes_to_whoever_has_nothing_else_to_do() {
        let (slow, quick) = (ReplicaId(0), ReplicaId(1));
        let mut chunks = Chunks::new(at(0), 5, RESEND);
        chunks.add_donor(slow);
        chunks.add_donor(quick);
        let asked = chunks.ask(at(0));
        assert_eq!(asked.iter().filter(|(donor, _)| *donor == slow).count(), 4);
        let part = Bytes::from(vec![0; CHUNK_PART_BYTES as usize]);
        let feed = |chunks: &mut Chunks, ms: u64| {
            let offsets: Vec<_> = chunks
                .flights_of(slow)
                .map(|(index, flight)| (*index, flight.received.len() as u64))
                .collect();
            for (index, offset) in offsets {
                chunks.on_part(at(ms), slow, index, offset, &part);
            }
        };
        assert_eq!(chunks.on_part(at(1), quick, 4, 0, &Bytes::new()), Part::Whole(vec![]));
        chunks.taken(at(1), 4, 0);
        for ms in (400..3_000).step_by(400) {
            feed(&mut chunks, ms);
            assert_eq!(chunks.on_time(at(ms)), []);
            assert_eq!(chunks.ask(at(ms)), [], "it still has its time");
        }
        let taken = chunks.ask(at(3_000));
        assert_eq!(taken, [0, 1, 2, 3].map(|index| (quick, index)));
        // The slow one rests, but not for ever; and what it was late with it gets again only when nobody else is there.
        chunks.forget_donor(quick);
        assert_eq!(chunks.ask(at(3_100)), [0, 1, 2, 3].map(|index| (slow, index)));
    }
}
