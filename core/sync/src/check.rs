//! What must always hold, checked by whoever drives sync in a test after every step.

use crate::proof::contradict;
use crate::state::Sync;

impl Sync {
    /// Checks the invariants.
    ///
    /// # Panics
    /// When one does not hold, saying which.
    pub fn check(&self) {
        if self.mutants.any() {
            return; // The judges must notice by themselves.
        }
        let mut total_waiting = 0;
        for (origin, chain) in &self.chains {
            assert!(self.keys.contains_key(origin), "chains belong to members");
            let mut before = chain.base;
            let mut ticket = dwcp_base::Ticket::ZERO;
            for kept in &chain.kept {
                let header = &kept.signed.header;
                let (last, hash, hlc) = before.map_or((0, dwcp_base::Hash::ZERO, None), |(signed, hash)| {
                    (signed.header.last, hash, Some(signed.header.hlc))
                });
                assert!(
                    header.first == last + 1 && header.prev == hash,
                    "a chain has no gaps: {origin}:{}",
                    header.first
                );
                assert!(hlc.is_none_or(|hlc| hlc < header.hlc), "clocks go forward along a chain");
                assert!(kept.ticket > ticket, "records come in the order of the chain");
                ticket = kept.ticket;
                before = Some((kept.signed, kept.hash));
            }
            assert!(ticket <= self.out.last_ticket(), "tickets were given");
            let bytes: usize = chain.kept.iter().map(|kept| kept.bytes.len()).sum();
            assert_eq!(bytes, chain.kept_bytes, "kept bytes are counted");
            let waiting: usize = chain.waiting.values().map(|frame| frame.bytes().len()).sum();
            assert_eq!(waiting, chain.waiting_bytes, "waiting bytes are counted");
            assert!(waiting <= self.limits.waiting_bytes_max, "an origin waits within its share");
            assert!(
                chain.waiting.len() <= self.limits.waiting_frames_max,
                "an origin waits within its share"
            );
            total_waiting += waiting;
            let first = chain.waiting.first_key_value().map(|(first, _)| *first);
            assert!(first.is_none_or(|first| first > chain.last() + 1), "what waits comes after a gap");
            let headers = chain.waiting.values().map(crate::frame::Frame::header);
            let next = headers.clone().skip(1);
            assert!(headers.zip(next).all(|(a, b)| !contradict(a, b)), "what waits fits together");
            let held_back =
                chain.kept.iter().filter(|kept| chain.settled.is_some_and(|last| kept.last() > last));
            let bytes: usize = held_back.map(|kept| kept.bytes.len()).sum();
            assert_eq!(bytes, chain.held_back_bytes, "what is held back is counted");
            assert!(
                !chain.is_frozen() || chain.settled.is_some_and(|last| chain.handed <= last),
                "nothing of a frozen origin goes beyond where it was frozen"
            );
            assert!(chain.base_last() <= chain.handed, "what is dropped was handed to the store");
            assert!(chain.handed <= chain.last(), "what is handed over is in line");
            let under_way = chain.kept.iter().filter(|kept| {
                kept.last() <= chain.handed
                    && !self.applied.contains_range(*origin, kept.first(), kept.last())
            });
            assert!(
                under_way.count() <= self.limits.apply_frames_max,
                "the store is handed what it can hold"
            );
        }
        assert!(total_waiting <= self.limits.waiting_total_bytes_max, "all wait within the bound");
        assert!(self.log_bytes() <= self.limits.log_bytes_max, "the log is bounded");
        assert!(self.durable <= self.out.last_ticket(), "only what was written is durable");
        assert!(
            self.floors.raised() <= self.floors.newest(),
            "the store knows no floor that was not committed"
        );
        assert!(self.peers.keys().all(|id| *id != self.me.id), "nobody is its own peer");
    }
}
