//! The way from a segment's own count of records to the node's. A node has one write-ahead log for everything, whose
//! records are numbered across all rooms; a segment numbers its own from 1. Whoever carries out a segment's actions keeps
//! one of these beside it.

use alloc::collections::VecDeque;
use dwcp_base::Ticket;

/// Bounded by the records a segment still needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TicketMap {
    /// How many of the segment's first tickets are forgotten.
    forgotten: u64,
    /// The node's ticket of segment ticket `forgotten + 1 + i`; ascending.
    node: VecDeque<Ticket>,
    /// How many segment tickets are known to be durable.
    durable: u64,
}

impl TicketMap {
    /// The segment's next record has this ticket of the node's: one replayed, or one just persisted.
    pub fn note(&mut self, node: Ticket) {
        self.node.push_back(node);
    }

    /// The node's ticket of the first record that is still needed.
    #[must_use]
    pub fn first(&self) -> Option<Ticket> {
        self.node.front().copied()
    }

    /// What a send after this ticket of the segment waits for.
    #[must_use]
    pub fn to_node(&self, segment: Ticket) -> Ticket {
        let slot = segment.0.checked_sub(self.forgotten + 1).and_then(|slot| usize::try_from(slot).ok());
        slot.and_then(|slot| self.node.get(slot)).copied().unwrap_or(Ticket::ZERO)
    }

    /// The node is durable up to this ticket: what to tell the segment, if it is news to it.
    pub fn durable(&mut self, node: Ticket) -> Option<Ticket> {
        let through = self.forgotten + self.node.partition_point(|ticket| *ticket <= node) as u64;
        let news = through > self.durable;
        self.durable = self.durable.max(through);
        news.then_some(Ticket(through))
    }

    /// The segment needs no records before this one (its `needed_from`); says from where the node must keep its log for
    /// the segment, `None` if it needs nothing that exists.
    pub fn forget_before(&mut self, segment: Ticket) -> Option<Ticket> {
        // Records not yet known durable stay: `durable` still has to count them.
        let until = segment.0.min(self.durable + 1);
        while self.forgotten + 1 < until && self.node.pop_front().is_some() {
            self.forgotten += 1;
        }
        self.node.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_tickets_find_the_nodes_and_back() {
        let mut map = TicketMap::default();
        [3, 7, 8, 20].into_iter().for_each(|ticket| map.note(Ticket(ticket)));
        assert_eq!(map.to_node(Ticket(0)), Ticket(0));
        assert_eq!(map.to_node(Ticket(2)), Ticket(7));
        assert_eq!(map.durable(Ticket(2)), None);
        assert_eq!(map.durable(Ticket(7)), Some(Ticket(2)));
        assert_eq!(map.durable(Ticket(7)), None, "no news");
        assert_eq!(map.forget_before(Ticket(4)), Some(Ticket(8)), "what is not durable stays");
        assert_eq!(map.durable(Ticket(19)), Some(Ticket(3)));
        assert_eq!(map.forget_before(Ticket(4)), Some(Ticket(20)));
        assert_eq!(map.to_node(Ticket(2)), Ticket(0), "durable long ago: nothing to wait for");
        assert_eq!(map.to_node(Ticket(4)), Ticket(20));
        assert_eq!(map.durable(Ticket(99)), Some(Ticket(4)));
        assert_eq!(map.forget_before(Ticket(5)), None);
    }
}
