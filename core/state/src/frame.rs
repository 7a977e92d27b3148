//! What a client signs. A frame carries the very key it is signed with, so whether its signature is good is a pure
//! function of its bytes; whether the session or principal exists is judged later, against the ordered prefix.
//!
//! Decoding checks everything that the bytes alone can tell: canonical form, sizes, counts, sequence numbers, and that
//! all commands fit the window above the frame's own low-water mark. Nothing here knows the session table.

use alloc::string::String;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::codec::decode_canonical;
use dwcp_base::limits::{COMMAND_BYTES_MAX, FRAME_BYTES_MAX, FRAME_COMMANDS_MAX, SESSION_WINDOW};
use dwcp_base::{
    ClusterId, CodecError, Crypto, Hash, Hasher, PublicKey, Signature, SigningKind, encode, signing_hash,
};

/// Shortest life of an idle session. Longer than any open stays valid, so a replayed open meets the live session.
pub const SESSION_TTL_MIN_MS: u64 = 120_000;
/// Longest life of an idle session.
pub const SESSION_TTL_MAX_MS: u64 = 24 * 3_600_000;
/// What a `ttl_ms` of zero asks for.
pub const SESSION_TTL_DEFAULT_MS: u64 = 3_600_000;
/// How far beyond log time an open may be valid.
pub const OPEN_VALID_MAX_MS: u64 = 60_000;
/// Bytes of a principal's name.
pub const PRINCIPAL_NAME_BYTES_MAX: usize = 64;

/// A session's name: a hash of its key. One fresh key, one session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The lowest of all.
    pub const MIN: Self = Self([0; 16]);

    /// The session that this key names.
    #[must_use]
    pub fn of(session_key: &PublicKey) -> Self {
        let mut hasher = Hasher::new("dwcp v3 session");
        hasher.update(&session_key.0);
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finish().0[..16]);
        Self(id)
    }
}

impl SessionId {
    /// The session that the bytes of a [`ClientFrame`] claim to belong to, read without looking at anything else. Of
    /// bytes that [`ClientFrame::decode`] takes, it is the session that it finds in them.
    #[must_use]
    pub fn claimed_by(frame: &[u8]) -> Option<Self> {
        let (kind, rest) = frame.split_first()?;
        let (_body_bytes, body) = rest.split_first_chunk::<4>()?;
        let rest = match kind {
            // An open begins with the principal's name.
            0 => {
                let (name_bytes, rest) = body.split_first_chunk::<4>()?;
                rest.get(usize::try_from(u32::from_le_bytes(*name_bytes)).ok()?..)?
            }
            1 => body,
            _ => return None,
        };
        let (key, _) = rest.split_first_chunk::<32>()?;
        Some(Self::of(&PublicKey(*key)))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session:")?;
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Asks for a session. Signed by the principal's key.
///
/// A client signs one open per key and resends those bytes; once they are past their validity it takes a fresh key.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SessionOpen {
    /// 1 to 64 bytes.
    pub principal: String,
    /// Signs the session's frames from now on.
    pub session_key: PublicKey,
    /// Idle time on the expiry clock after which the session ends; 0 asks for the default of one hour.
    pub ttl_ms: u64,
    /// Log time after which these bytes open nothing.
    pub valid_until_ms: u64,
}

/// Numbered commands. Signed by the session key.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SessionFrame {
    pub session_key: PublicKey,
    /// The client has every result below this sequence and will not ask again.
    pub low_water: u64,
    /// The sequence of the first command; the others follow without gaps.
    pub first: u64,
    /// 1 to 256 encoded [`crate::Command`]s.
    pub commands: Vec<Bytes>,
}

/// The envelope as it travels and as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ClientFrame {
    /// `body` is an encoded [`SessionOpen`].
    Open { body: Bytes, principal_key: PublicKey, signature: Signature },
    /// `body` is an encoded [`SessionFrame`].
    Commands { body: Bytes, signature: Signature },
}

impl ClientFrame {
    /// Signs an open with the principal's key.
    #[must_use]
    pub fn open(
        principal_crypto: &dyn Crypto,
        principal_key: PublicKey,
        cluster: ClusterId,
        open: &SessionOpen,
    ) -> Self {
        let body = Bytes::from(encode(open));
        let signature = principal_crypto.sign(&signing_hash(SigningKind::SessionOpen, cluster, &body));
        Self::Open { body, principal_key, signature }
    }

    /// Signs commands with the session's key.
    #[must_use]
    pub fn commands(session_crypto: &dyn Crypto, cluster: ClusterId, frame: &SessionFrame) -> Self {
        let body = Bytes::from(encode(frame));
        let signature = session_crypto.sign(&signing_hash(SigningKind::SessionFrame, cluster, &body));
        Self::Commands { body, signature }
    }

    /// The bytes that [`ClientFrame::decode`] reads.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// Reads and checks everything but the signature.
    ///
    /// # Errors
    /// The first promise of a frame that the bytes break. A refused frame is definitely not applied.
    pub fn decode(bytes: impl Into<Bytes>) -> Result<CheckedFrame, FrameError> {
        let bytes: Bytes = bytes.into();
        let frame: Self = decode_canonical(&bytes, FRAME_BYTES_MAX)?;
        let content = match &frame {
            Self::Open { body, .. } => FrameContent::Open(checked_open(body)?),
            Self::Commands { body, .. } => FrameContent::Commands(checked_commands(body)?),
        };
        let session = SessionId::of(content.session_key());
        Ok(CheckedFrame { bytes, frame, content, session })
    }
}

fn checked_open(body: &[u8]) -> Result<SessionOpen, FrameError> {
    let mut open: SessionOpen = decode_canonical(body, FRAME_BYTES_MAX)?;
    if open.principal.is_empty() || open.principal.len() > PRINCIPAL_NAME_BYTES_MAX {
        return Err(FrameError::PrincipalName { bytes: open.principal.len() });
    }
    if open.ttl_ms == 0 {
        open.ttl_ms = SESSION_TTL_DEFAULT_MS;
    }
    if !(SESSION_TTL_MIN_MS..=SESSION_TTL_MAX_MS).contains(&open.ttl_ms) {
        return Err(FrameError::Ttl { ttl_ms: open.ttl_ms });
    }
    Ok(open)
}

fn checked_commands(body: &[u8]) -> Result<SessionFrame, FrameError> {
    let frame: SessionFrame = decode_canonical(body, FRAME_BYTES_MAX)?;
    if frame.commands.is_empty() || frame.commands.len() > FRAME_COMMANDS_MAX {
        return Err(FrameError::CommandCount { commands: frame.commands.len() });
    }
    if let Some(long) = frame.commands.iter().find(|command| command.len() > COMMAND_BYTES_MAX) {
        return Err(FrameError::CommandTooLong { bytes: long.len() });
    }
    if frame.low_water == 0 || frame.first < frame.low_water {
        return Err(FrameError::LowWater { low_water: frame.low_water, first: frame.first });
    }
    let end = frame.first.checked_add(frame.commands.len() as u64).ok_or(FrameError::SequenceOverflow)?;
    if end - frame.low_water > SESSION_WINDOW {
        return Err(FrameError::BeyondWindow { low_water: frame.low_water, last: end - 1 });
    }
    Ok(frame)
}

/// What a checked frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameContent {
    /// `ttl_ms` is resolved: never zero.
    Open(SessionOpen),
    Commands(SessionFrame),
}

impl FrameContent {
    fn session_key(&self) -> &PublicKey {
        match self {
            Self::Open(open) => &open.session_key,
            Self::Commands(frame) => &frame.session_key,
        }
    }
}

/// A frame whose form is right. Its signature is not yet verified: see [`CheckedFrame::signature_item`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFrame {
    bytes: Bytes,
    frame: ClientFrame,
    content: FrameContent,
    session: SessionId,
}

impl CheckedFrame {
    /// The bytes it was read from.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn frame(&self) -> &ClientFrame {
        &self.frame
    }

    #[must_use]
    pub fn content(&self) -> &FrameContent {
        &self.content
    }

    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The key its signature must verify under.
    #[must_use]
    pub fn signer(&self) -> PublicKey {
        match (&self.frame, &self.content) {
            (ClientFrame::Open { principal_key, .. }, _) => *principal_key,
            (ClientFrame::Commands { .. }, content) => *content.session_key(),
        }
    }

    /// Sequences of its commands; an open has the one sequence 0.
    #[must_use]
    pub fn sequences(&self) -> core::ops::Range<u64> {
        match &self.content {
            FrameContent::Open(_) => 0..1,
            FrameContent::Commands(frame) => {
                frame.first..frame.first.saturating_add(frame.commands.len() as u64)
            }
        }
    }

    /// What to verify: key, message, signature. The caller may batch many.
    #[must_use]
    pub fn signature_item(&self, cluster: ClusterId) -> (PublicKey, Hash, Signature) {
        match &self.frame {
            ClientFrame::Open { body, principal_key, signature } => {
                (*principal_key, signing_hash(SigningKind::SessionOpen, cluster, body), *signature)
            }
            ClientFrame::Commands { body, signature } => {
                (self.signer(), signing_hash(SigningKind::SessionFrame, cluster, body), *signature)
            }
        }
    }
}

/// What an executed open answers, encoded in its `Outcome::Done`. Equal at every replica and on every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenReply {
    pub session: SessionId,
    pub ttl_ms: u64,
}

/// Why bytes are not a frame. Such bytes are never ordered, hence definitely not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    Codec(CodecError),
    CommandCount { commands: usize },
    CommandTooLong { bytes: usize },
    LowWater { low_water: u64, first: u64 },
    SequenceOverflow,
    BeyondWindow { low_water: u64, last: u64 },
    PrincipalName { bytes: usize },
    Ttl { ttl_ms: u64 },
}

impl From<CodecError> for FrameError {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codec(error) => write!(f, "not a session frame: {error}"),
            Self::CommandCount { commands } => {
                write!(f, "{commands} commands in one frame: send 1 to {FRAME_COMMANDS_MAX}")
            }
            Self::CommandTooLong { bytes } => {
                write!(f, "a command of {bytes} bytes exceeds {COMMAND_BYTES_MAX}: split it")
            }
            Self::LowWater { low_water, first } => {
                write!(
                    f,
                    "low-water mark {low_water} must be at least 1 and not above the first sequence {first}"
                )
            }
            Self::SequenceOverflow => write!(f, "sequence numbers overflow: open a new session"),
            Self::BeyondWindow { low_water, last } => write!(
                f,
                "sequence {last} is {SESSION_WINDOW} or more above low-water mark {low_water}: wait for older replies"
            ),
            Self::PrincipalName { bytes } => {
                write!(f, "a principal's name of {bytes} bytes: use 1 to {PRINCIPAL_NAME_BYTES_MAX}")
            }
            Self::Ttl { ttl_ms } => write!(
                f,
                "a session ttl of {ttl_ms} ms: use 0 (default) or {SESSION_TTL_MIN_MS} to {SESSION_TTL_MAX_MS}"
            ),
        }
    }
}

impl core::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use dwcp_base::crypto::Ed25519;

    const CLUSTER: ClusterId = ClusterId([3; 32]);

    fn frame(low_water: u64, first: u64, count: usize) -> SessionFrame {
        let key = Ed25519::new([1; 32], &[]).public_key();
        SessionFrame { session_key: key, low_water, first, commands: vec![Bytes::from_static(b"c"); count] }
    }

    fn decoded(frame: &SessionFrame) -> Result<CheckedFrame, FrameError> {
        ClientFrame::decode(ClientFrame::commands(&Ed25519::new([1; 32], &[]), CLUSTER, frame).encode())
    }

    #[test]
    fn a_signed_frame_verifies_under_the_key_it_carries_and_no_other_cluster() {
        let signer = Ed25519::new([1; 32], &[]);
        let checked = decoded(&frame(1, 1, 2)).unwrap();
        let (key, message, signature) = checked.signature_item(CLUSTER);
        assert!(signer.verify(&key, &message, &signature));
        let (_, elsewhere, _) = checked.signature_item(ClusterId([4; 32]));
        assert!(!signer.verify(&key, &elsewhere, &signature));
        assert_eq!(checked.session(), SessionId::of(&signer.public_key()));
    }

    #[test]
    fn a_claimed_session_is_the_one_that_decoding_finds() {
        let signer = Ed25519::new([1; 32], &[]);
        let commands = ClientFrame::commands(&signer, CLUSTER, &frame(1, 1, 2)).encode();
        let open = SessionOpen {
            principal: "ann".to_string(),
            session_key: PublicKey([9; 32]),
            ttl_ms: 0,
            valid_until_ms: 1,
        };
        let open = ClientFrame::open(&signer, signer.public_key(), CLUSTER, &open).encode();
        for bytes in [commands, open] {
            let found = ClientFrame::decode(bytes.clone()).unwrap().session();
            assert_eq!(SessionId::claimed_by(&bytes), Some(found));
            for cut in 0..40 {
                assert_eq!(SessionId::claimed_by(&bytes[..cut.min(36)]), None, "cut at {cut}");
            }
        }
        assert_eq!(SessionId::claimed_by(&[7; 100]), None, "no kind of frame");
        assert_eq!(
            SessionId::claimed_by(&[[0; 5].as_slice(), &[0xff; 100]].concat()),
            None,
            "a name without end"
        );
    }

    #[test]
    fn limits_hold_at_their_edges() {
        assert!(decoded(&frame(1, 1, FRAME_COMMANDS_MAX)).is_ok());
        assert_eq!(decoded(&frame(1, 1, 0)), Err(FrameError::CommandCount { commands: 0 }));
        assert_eq!(decoded(&frame(1, 1, 257)), Err(FrameError::CommandCount { commands: 257 }));
        assert_eq!(decoded(&frame(0, 1, 1)), Err(FrameError::LowWater { low_water: 0, first: 1 }));
        assert_eq!(decoded(&frame(3, 2, 1)), Err(FrameError::LowWater { low_water: 3, first: 2 }));
        assert!(decoded(&frame(1, SESSION_WINDOW, 1)).is_ok());
        assert_eq!(
            decoded(&frame(1, SESSION_WINDOW, 2)),
            Err(FrameError::BeyondWindow { low_water: 1, last: SESSION_WINDOW + 1 })
        );
        assert_eq!(decoded(&frame(u64::MAX - 1, u64::MAX, 1)), Err(FrameError::SequenceOverflow));
        let mut long = frame(1, 1, 1);
        long.commands[0] = Bytes::from(vec![0; COMMAND_BYTES_MAX + 1]);
        assert_eq!(decoded(&long), Err(FrameError::CommandTooLong { bytes: COMMAND_BYTES_MAX + 1 }));
        long.commands[0] = Bytes::from(vec![0; COMMAND_BYTES_MAX]);
        assert!(decoded(&long).is_ok());
    }

    #[test]
    fn opens_state_a_name_and_a_ttl_within_bounds() {
        let signer = Ed25519::new([1; 32], &[]);
        let open = |name: &str, ttl_ms| {
            let open = SessionOpen {
                principal: name.to_string(),
                session_key: PublicKey([9; 32]),
                ttl_ms,
                valid_until_ms: 1,
            };
            ClientFrame::decode(ClientFrame::open(&signer, signer.public_key(), CLUSTER, &open).encode())
        };
        let checked = open("ann", 0).unwrap();
        assert!(
            matches!(checked.content(), FrameContent::Open(open) if open.ttl_ms == SESSION_TTL_DEFAULT_MS)
        );
        let (key, message, signature) = checked.signature_item(CLUSTER);
        assert!(signer.verify(&key, &message, &signature));
        assert_eq!(open("", 0), Err(FrameError::PrincipalName { bytes: 0 }));
        assert_eq!(open(&"x".repeat(65), 0), Err(FrameError::PrincipalName { bytes: 65 }));
        assert_eq!(open("ann", 119_999), Err(FrameError::Ttl { ttl_ms: 119_999 }));
        assert!(open("ann", SESSION_TTL_MAX_MS).is_ok());
        assert_eq!(
            open("ann", SESSION_TTL_MAX_MS + 1),
            Err(FrameError::Ttl { ttl_ms: SESSION_TTL_MAX_MS + 1 })
        );
    }

    #[test]
    fn trailing_truncated_and_oversized_bytes_are_refused() {
        let mut bytes = decoded(&frame(1, 1, 1)).unwrap().bytes().to_vec();
        for length in 0..bytes.len() {
            assert_eq!(
                ClientFrame::decode(bytes[..length].to_vec()),
                Err(FrameError::Codec(CodecError::Malformed))
            );
        }
        bytes.push(0);
        assert_eq!(ClientFrame::decode(bytes), Err(FrameError::Codec(CodecError::Malformed)));
        assert!(matches!(
            ClientFrame::decode(vec![0; FRAME_BYTES_MAX + 1]),
            Err(FrameError::Codec(CodecError::TooLong { .. }))
        ));
    }
}
