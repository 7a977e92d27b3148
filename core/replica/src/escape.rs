//! Frames that the root takes past a segment's leader, because all replicas have known of them for long and it has not
//! ordered them. Each client has its share, so that nobody who sends much keeps out somebody who is left out.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros};
use dwcp_log::fold::DEFERRED_FRAMES_PER_CLIENT_MAX;
use dwcp_state::SessionId;

/// So many at once, once an anchor interval.
const FRAMES_MAX: usize = 64;
/// Of these one session's at most, as long as it takes turns with others.
const FRAMES_OF_SESSION_MAX: usize = 8;
/// Frames that are taken past one segment's leader at most.
const TAKEN_MAX: usize = 65_536;

/// For the root's primary, and forgotten with the epoch.
#[derive(Default)]
pub(crate) struct Escapes {
    /// Before this nothing is looked at again.
    pub next: Micros,
    /// At most `DEFERRED_FRAMES_PER_CLIENT_MAX` of a session, which is what the fold takes, and `TAKEN_MAX` in all.
    taken: BTreeMap<SessionId, BTreeSet<Hash>>,
    count: usize,
}

impl Escapes {
    /// Takes what has its turn of the frames that wait, oldest first; each frame once.
    pub(crate) fn take<'a>(
        &mut self,
        waiting: impl Iterator<Item = (SessionId, &'a Hash, &'a Bytes)>,
    ) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut of_session: BTreeMap<SessionId, usize> = BTreeMap::new();
        for (session, hash, frame) in waiting {
            if frames.len() >= FRAMES_MAX || self.count >= TAKEN_MAX {
                break;
            }
            let now = of_session.entry(session).or_default();
            let before = self.taken.entry(session).or_default();
            if *now < FRAMES_OF_SESSION_MAX
                && before.len() < DEFERRED_FRAMES_PER_CLIENT_MAX
                && before.insert(*hash)
            {
                *now += 1;
                self.count += 1;
                frames.push(frame.clone());
            }
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// So many frames of each of these sessions, all of the first before those of the next.
    fn waiting(sessions: &[(u8, u32)]) -> Vec<(SessionId, Hash, Bytes)> {
        let of = |(session, count): &(u8, u32)| {
            let session = *session;
            (0..*count).map(move |number| {
                let frame = Bytes::from([&[session][..], &number.to_le_bytes()].concat());
                (SessionId([session; 16]), Hash::of(&frame), frame)
            })
        };
        sessions.iter().flat_map(of).collect()
    }

    fn taken(escapes: &mut Escapes, waiting: &[(SessionId, Hash, Bytes)]) -> Vec<(u8, usize)> {
        let frames = escapes.take(waiting.iter().map(|(session, hash, frame)| (*session, hash, frame)));
        let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
        frames.iter().for_each(|frame| *counts.entry(frame[0]).or_default() += 1);
        counts.into_iter().collect()
    }

    #[test]
    fn a_client_that_sends_much_leaves_room_for_one_that_is_left_out() {
        let waiting = waiting(&[(1, 1_000), (2, 1)]);
        let mut escapes = Escapes::default();
        assert_eq!(taken(&mut escapes, &waiting), vec![(1, 8), (2, 1)]);
        for _ in 1..DEFERRED_FRAMES_PER_CLIENT_MAX / FRAMES_OF_SESSION_MAX {
            assert_eq!(taken(&mut escapes, &waiting), vec![(1, 8)], "each frame once");
        }
        assert_eq!(taken(&mut escapes, &waiting), vec![], "no more than the fold would take");
    }

    #[test]
    fn a_turn_and_a_segment_have_their_bounds() {
        let sessions: Vec<(u8, u32)> = (0..=255).map(|session| (session, 8)).collect();
        let waiting = waiting(&sessions);
        let mut escapes = Escapes::default();
        let first = taken(&mut escapes, &waiting);
        assert_eq!(first, (0..8).map(|session| (session, 8)).collect::<Vec<_>>(), "64 at once, oldest first");
        assert_eq!(taken(&mut escapes, &waiting)[0], (8, 8), "then the next");
        escapes.count = TAKEN_MAX - 3;
        assert_eq!(taken(&mut escapes, &waiting), vec![(16, 3)]);
        assert_eq!(taken(&mut escapes, &waiting), vec![]);
    }
}
