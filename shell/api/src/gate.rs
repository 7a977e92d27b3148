//! Who may hear what over one stream: sessions whose key the client proved to hold, on this very stream. What sessions are
//! and what frames say is not known here.

use dwcp_base::crypto::Ed25519;
use dwcp_base::{ClusterId, PublicKey, ReplicaId, Signature};
use dwcp_proto::v3::Attach;
use dwcp_state::{CHALLENGE_BYTES, SessionAttach, SessionId};
use std::collections::HashSet;

/// What a client is told whose frame belongs to a session that it has not attached.
pub(crate) const NOT_ATTACHED: &str =
    "its session is not attached to this stream: not applied; prove the session's key (attach) first";

/// Drawn anew for every stream, so that a proof given on one is worthless on another.
pub(crate) type Challenge = [u8; CHALLENGE_BYTES];

/// The rules of one stream and what they have let in.
#[derive(Debug)]
pub(crate) struct Gate {
    cluster: ClusterId,
    replica: ReplicaId,
    challenge: Challenge,
    verifier: Ed25519,
    /// At most `attaches_max` (see [`crate::Limits`]).
    attached: HashSet<SessionId>,
    attaches_max: usize,
}

/// What became of an attach.
#[derive(Debug)]
pub(crate) enum Attached {
    /// From now on the session is heard here.
    Now(SessionId),
    Already,
    /// With what to do.
    Refused(String),
    /// As many sessions as a stream may have. A client that begins a new stream attaches what it still uses.
    Full,
}

impl Gate {
    pub fn new(
        (cluster, replica): (ClusterId, ReplicaId),
        challenge: Challenge,
        attaches_max: usize,
    ) -> Self {
        // It only verifies: the seed fills a place.
        let verifier = Ed25519::new([0; 32], &[]);
        Self { cluster, replica, challenge, verifier, attached: HashSet::new(), attaches_max }
    }

    pub fn attach(&mut self, attach: &Attach) -> Attached {
        let (key, signature) = (attach.session_key[..].try_into(), attach.signature[..].try_into());
        let (Ok(session_key), Ok(signature)) = (key.map(PublicKey), signature.map(Signature)) else {
            return Attached::Refused("an attach has a key of 32 bytes and a signature of 64".into());
        };
        let proof = SessionAttach { session_key, signature };
        let session = proof.session();
        if self.attached.contains(&session) {
            return Attached::Already;
        }
        if self.attached.len() >= self.attaches_max {
            return Attached::Full;
        }
        if !proof.verify(&self.verifier, self.cluster, self.replica, &self.challenge) {
            return Attached::Refused(format!(
                "the attach of {session:?} proves nothing here: it must answer this stream's challenge, for this cluster and this \
                 node's number; use the client file of this cluster"
            ));
        }
        self.attached.insert(session);
        Attached::Now(session)
    }

    /// Whether a frame belongs to a session whose results may go here. False for what is no frame.
    pub fn admits(&self, frame: &[u8]) -> bool {
        SessionId::claimed_by(frame).is_some_and(|session| self.attached.contains(&session))
    }
}
