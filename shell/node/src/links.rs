//! Between the links and the inbox: names the incarnation a frame comes from, tells the core when a link came up, and when
//! the last of a peer broke: the system closes the connections of a process that dies, so its death is known at once.
//!
//! A link's far end proved the one key that is pinned for it, and each incarnation of a member has its own key; so the
//! incarnation is that of the pinned key. Frames are bytes here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dwcp_base::{Incarnation, Member, ReplicaId};
use dwcp_transport::{Class, Delivery, LinkEnd, LinkUp, PeerId, Sink};

use crate::hinting::{HINTS_SINCE, HintBox};
use crate::inbox::Inbox;

/// The incarnation whose key is pinned for each peer, and where it is reached from here when not where the members say.
/// Bounded by the members.
#[derive(Debug)]
pub(crate) struct Incarnations {
    of: Vec<AtomicU32>,
    via: BTreeMap<u8, String>,
}

impl Incarnations {
    pub(crate) fn new(members: &[Member], via: BTreeMap<u8, String>) -> Self {
        Self { of: members.iter().map(|member| AtomicU32::new(member.incarnation.0)).collect(), via }
    }

    /// Where this peer is reached, whose address is said to be this.
    pub(crate) fn address(&self, id: ReplicaId, said: &str) -> String {
        self.via.get(&id.0).map_or(said, String::as_str).to_string()
    }

    /// To be called once the links rest on the new key.
    pub(crate) fn set(&self, id: ReplicaId, incarnation: Incarnation) {
        if let Some(slot) = self.of.get(usize::from(id.0)) {
            slot.store(incarnation.0, Ordering::Release);
        }
    }

    fn get(&self, id: PeerId) -> Option<Incarnation> {
        Some(Incarnation(self.of.get(usize::from(id.0))?.load(Ordering::Acquire)))
    }
}

#[derive(Debug)]
pub(crate) struct Links {
    inbox: Arc<Inbox>,
    hints: Arc<HintBox>,
    incarnations: Arc<Incarnations>,
    /// What leads to each peer and from it. Bounded by the members.
    ways: Mutex<Vec<Ways>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    outgoing: bool,
    incoming: bool,
}

impl Links {
    pub(crate) fn new(inbox: Arc<Inbox>, hints: Arc<HintBox>, incarnations: Arc<Incarnations>) -> Self {
        let ways = Mutex::new(vec![Ways::default(); incarnations.of.len()]);
        Self { inbox, hints, incarnations, ways }
    }

    fn change(&self, peer: PeerId, change: impl FnOnce(&mut Ways)) {
        // Held until the core is told, so that it is told in the order in which it happened.
        let mut ways = self.ways.lock().expect("no panic while the ways are held");
        let Some(ways) = ways.get_mut(usize::from(peer.0)) else { return };
        let before = *ways;
        change(ways);
        if ways.outgoing && !before.outgoing {
            self.inbox.push_link_up(ReplicaId(peer.0));
        }
        let lost = before.outgoing || before.incoming;
        if lost && !ways.outgoing && !ways.incoming {
            self.inbox.push_link_down(ReplicaId(peer.0));
        }
    }
}

impl Sink for Links {
    fn frame(&self, from: PeerId, class: Class, frame: Bytes) -> Delivery {
        if class == Class::Hint {
            // Dropped rather than kept waiting, and never in the core's way.
            self.hints.push_frame(from, frame);
            return Delivery::Taken;
        }
        let Some(incarnation) = self.incarnations.get(from) else { return Delivery::Taken };
        if self.inbox.push_peer(ReplicaId(from.0), incarnation, frame) {
            Delivery::Taken
        } else {
            Delivery::Busy
        }
    }

    // The transport has written its line about either already.
    fn link_up(&self, peer: PeerId, link: LinkUp) {
        // An older program would cut a link on which hints come.
        if link.wire_version >= HINTS_SINCE {
            self.hints.push_link(peer, true);
        }
        self.change(peer, |ways| ways.outgoing = true);
    }

    fn link_down(&self, peer: PeerId, _end: &LinkEnd) {
        self.hints.push_link(peer, false);
        self.change(peer, |ways| ways.outgoing = false);
    }

    fn incoming(&self, peer: PeerId, up: bool) {
        self.change(peer, |ways| ways.incoming = up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Item;
    use dwcp_replica::Input;
    use dwcp_transport::Reason;
    use std::time::Duration;

    #[test]
    fn a_peer_is_gone_once_neither_way_is_left() {
        let inbox = Arc::new(Inbox::new(crate::settings::tests_queues(), 4));
        let incarnations =
            Arc::new(Incarnations { of: (0..4).map(|_| AtomicU32::new(0)).collect(), via: BTreeMap::new() });
        let links = Links::new(inbox.clone(), Arc::new(HintBox::new(4)), incarnations);
        let (peer, end) =
            (PeerId(2), LinkEnd { reason: Reason::Closed, told_by_peer: false, detail: "gone".into() });
        let up = LinkUp { rtt_us: 1, peer_incarnation: 0, wire_version: 1 };
        let heard = || {
            let mut burst = Vec::new();
            inbox.take(Duration::ZERO, &mut burst);
            let word = |item: Item| match item {
                Item::Step(Input::LinkUp { peer: ReplicaId(2) }) => "up",
                Item::Step(Input::LinkDown { peer: ReplicaId(2) }) => "down",
                other => panic!("{other:?}"),
            };
            burst.into_iter().map(word).collect::<Vec<_>>()
        };
        links.incoming(peer, true);
        assert!(heard().is_empty(), "nothing can be sent to it yet");
        links.link_up(peer, up);
        assert_eq!(heard(), ["up"]);
        links.link_down(peer, &end);
        assert!(heard().is_empty(), "it still speaks");
        links.link_up(peer, up);
        links.incoming(peer, false);
        assert_eq!(heard(), ["up"], "it can still be reached");
        links.link_down(peer, &end);
        assert_eq!(heard(), ["down"]);
        links.incoming(PeerId(200), true);
    }
}
