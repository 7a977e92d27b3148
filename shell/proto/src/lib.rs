//! The generated types of `dwcp/v3/dwcp.proto`, and the few numbers both ends must share.
//!
//! In a crate of its own so that a client does not compile the server. It knows nothing of what the bytes mean:
//! frames and executed replies are opaque here. Start with [`v3::ClientMessage`].

/// Package `dwcp.v3`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod v3 {
    tonic::include_proto!("dwcp.v3");
}

/// Bytes of one message from a client: one frame of the largest size (2 MiB) with room for what rides along.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of one request to `StateSync`: a write of the largest size (255 KiB as a frame) and what surrounds it. An empty
/// operation is two bytes here and a hundred in memory, and what is read is read before anybody is asked who he is.
pub const SYNC_REQUEST_BYTES_MAX: usize = 512 * 1024;

/// Bytes of one message from a node. The results of one frame's reads travel together and may be large.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A sender that has this many payload bytes in a message starts the next.
pub const MESSAGE_BYTES_SOFT: usize = 1024 * 1024;

/// Items of all lists in one message together.
pub const MESSAGE_ITEMS_MAX: usize = 4096;

impl v3::ClientMessage {
    /// Items of all lists together.
    #[must_use]
    pub fn items(&self) -> usize {
        self.attaches.len() + self.frames.len() + self.queries.len() + self.orders.len() + self.statuses.len()
    }
}

impl v3::ServerMessage {
    /// Items of all lists together.
    #[must_use]
    pub fn items(&self) -> usize {
        self.executed.len()
            + self.refused.len()
            + self.malformed.len()
            + self.queries.len()
            + self.orders.len()
            + self.statuses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::v3::{ClientMessage, PeerStatus, QueryRequest, StatusReply};
    use bytes::Bytes;
    use prost::Message;

    #[test]
    fn frames_are_slices_of_the_received_buffer() {
        let message =
            ClientMessage { frames: vec![Bytes::from(vec![7u8; 4096])], ..ClientMessage::default() };
        let wire = Bytes::from(message.encode_to_vec());
        let read = ClientMessage::decode(wire.clone()).expect("own bytes");
        assert_eq!(read, message);
        let frame = &read.frames[0];
        assert!(wire.as_ptr_range().contains(&frame.as_ptr()), "the frame was copied");
    }

    #[test]
    fn a_peer_never_heard_of_differs_from_one_heard_of_just_now() {
        let peer = |silent_ms| PeerStatus { silent_ms, ..PeerStatus::default() };
        let status = StatusReply { peers: vec![peer(None), peer(Some(0))], ..StatusReply::default() };
        let read = StatusReply::decode(&status.encode_to_vec()[..]).expect("own bytes");
        assert_eq!(read.peers[0].silent_ms, None);
        assert_eq!(read.peers[1].silent_ms, Some(0));
    }

    #[test]
    fn cut_and_random_bytes_are_refused_without_panic() {
        let message = ClientMessage {
            queries: vec![QueryRequest {
                id: 1,
                query: Bytes::from_static(&[1; 16]),
                ..QueryRequest::default()
            }],
            ..ClientMessage::default()
        };
        let wire = message.encode_to_vec();
        assert!((1..wire.len()).any(|cut| ClientMessage::decode(&wire[..cut]).is_err()));
        for seed in 0..=255u8 {
            let noise: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(seed).wrapping_add(seed >> 3)).collect();
            let _ = ClientMessage::decode(&noise[..]);
        }
    }
}
