//! Between the links and the inbox: names the incarnation a frame comes from, tells the core when one came up.
//!
//! A link's far end proved the one key that is pinned for it, and each incarnation of a member has its own key; so the
//! incarnation is that of the pinned key. Frames are bytes here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use dwcp_base::{Incarnation, Member, ReplicaId};
use dwcp_transport::{Class, Delivery, LinkEnd, LinkUp, PeerId, Sink};

use crate::inbox::Inbox;

/// The incarnation whose key is pinned for each peer. Bounded by the members.
#[derive(Debug)]
pub(crate) struct Incarnations(Vec<AtomicU32>);

impl Incarnations {
    pub(crate) fn new(members: &[Member]) -> Self {
        Self(members.iter().map(|member| AtomicU32::new(member.incarnation.0)).collect())
    }

    /// To be called once the links rest on the new key.
    pub(crate) fn set(&self, id: ReplicaId, incarnation: Incarnation) {
        if let Some(slot) = self.0.get(usize::from(id.0)) {
            slot.store(incarnation.0, Ordering::Release);
        }
    }

    fn get(&self, id: PeerId) -> Option<Incarnation> {
        Some(Incarnation(self.0.get(usize::from(id.0))?.load(Ordering::Acquire)))
    }
}

#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) incarnations: Arc<Incarnations>,
}

impl Sink for Links {
    fn frame(&self, from: PeerId, _class: Class, frame: Bytes) -> Delivery {
        let Some(incarnation) = self.incarnations.get(from) else { return Delivery::Taken };
        if self.inbox.push_peer(ReplicaId(from.0), incarnation, frame) {
            Delivery::Taken
        } else {
            Delivery::Busy
        }
    }

    // The transport has written its line about either already.
    fn link_up(&self, peer: PeerId, _link: LinkUp) {
        self.inbox.push_link_up(ReplicaId(peer.0));
    }

    fn link_down(&self, _peer: PeerId, _end: &LinkEnd) {}
}
