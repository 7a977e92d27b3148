//! The first words on a link: who dials, whom it wants, which cluster, which wire versions. Pure bytes and judgement.
//!
//! The dialler sends a hello, the acceptor answers with a welcome or a refusal, and only then frames may follow. Both
//! are length-prefixed and may grow at the end: a reader ignores what follows the fields it knows, so a hello can
//! still be read when the versions it announces do not meet. Sockets and keys are not known here.

use crate::reason::{LinkEnd, Reason};

/// Opens every hello and answer, so that a wrong port is told from a wrong version.
const MAGIC: [u8; 8] = *b"DWCPLINK";
const HELLO_BYTES: usize = 8 + 2 + 2 + 32 + 1 + 1 + 4;
const ANSWER_BYTES: usize = 8 + 1 + 2 + 2 + 2 + 1 + 4;
/// Upper bound of a hello or answer, today's and tomorrow's.
pub(crate) const HELLO_BYTES_MAX: usize = 1024;

/// No replica has this number: a hello to it asks who answers.
pub(crate) const NOBODY: u8 = u8::MAX;

/// The wire versions a program speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    pub min: u16,
    pub max: u16,
}

impl VersionRange {
    pub fn only(version: u16) -> Self {
        Self { min: version, max: version }
    }

    /// The highest version both speak.
    fn meet(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: VersionRange,
    pub(crate) cluster: [u8; 32],
    pub(crate) from: u8,
    pub(crate) to: u8,
    pub(crate) incarnation: u32,
}

/// What the acceptor replies. `refused` is `None` for a welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) refused: Option<Reason>,
    /// The version to speak; 0 in a refusal.
    pub(crate) version: u16,
    pub(crate) versions: VersionRange,
    pub(crate) from: u8,
    pub(crate) incarnation: u32,
}

fn not_link_protocol(detail: &str) -> LinkEnd {
    LinkEnd::new(Reason::NotLinkProtocol, detail)
}

/// Takes fixed-size fields from the front; the caller has checked the length.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) =
            self.0.split_first_chunk::<N>().expect("length was checked before reading fields");
        self.0 = rest;
        *field
    }
}

fn check_opening(bytes: &[u8], length_min: usize) -> Result<Fields<'_>, LinkEnd> {
    let Some(rest) = bytes.strip_prefix(&MAGIC[..]) else {
        return Err(not_link_protocol("what the peer said first is not a hello"));
    };
    if bytes.len() < length_min {
        return Err(not_link_protocol("the peer's hello is too short"));
    }
    Ok(Fields(rest))
}

fn prefixed(body: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a hello is far below 64 KiB");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(body);
    bytes
}

impl Hello {
    /// The bytes to send, length prefix included.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        body.extend(self.versions.min.to_be_bytes());
        body.extend(self.versions.max.to_be_bytes());
        body.extend(self.cluster);
        body.push(self.from);
        body.push(self.to);
        body.extend(self.incarnation.to_be_bytes());
        debug_assert_eq!(body.len(), HELLO_BYTES);
        prefixed(body)
    }

    /// Reads what followed the length prefix.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LinkEnd> {
        let mut fields = check_opening(bytes, HELLO_BYTES)?;
        let versions =
            VersionRange { min: u16::from_be_bytes(fields.take()), max: u16::from_be_bytes(fields.take()) };
        let cluster = fields.take();
        let [from] = fields.take();
        let [to] = fields.take();
        Ok(Self { versions, cluster, from, to, incarnation: u32::from_be_bytes(fields.take()) })
    }

    /// The acceptor's verdict on everything but the key. Yields the version to speak.
    pub(crate) fn judge(&self, mine: &Local) -> Result<u16, LinkEnd> {
        if self.cluster != mine.cluster {
            let detail = format!("replica {} belongs to another cluster than this one", self.from);
            return Err(LinkEnd::new(Reason::WrongCluster, detail));
        }
        if self.to != mine.me {
            let detail = format!("replica {} wanted replica {}, this is {}", self.from, self.to, mine.me);
            return Err(LinkEnd::new(Reason::WrongReplica, detail));
        }
        self.versions.meet(mine.versions).ok_or_else(|| {
            let (theirs, ours) = (self.versions, mine.versions);
            let detail = format!(
                "replica {} speaks wire versions {}..={}, this one {}..={}",
                self.from, theirs.min, theirs.max, ours.min, ours.max
            );
            LinkEnd::new(Reason::VersionMismatch, detail)
        })
    }
}

/// What this process says of itself in every hello and answer.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) cluster: [u8; 32],
    pub(crate) me: u8,
    pub(crate) incarnation: u32,
    pub(crate) versions: VersionRange,
}

impl Local {
    pub(crate) fn hello(&self, to: u8) -> Hello {
        Hello {
            versions: self.versions,
            cluster: self.cluster,
            from: self.me,
            to,
            incarnation: self.incarnation,
        }
    }

    pub(crate) fn answer(&self, verdict: Result<u16, Reason>) -> Answer {
        Answer {
            refused: verdict.err(),
            version: verdict.unwrap_or(0),
            versions: self.versions,
            from: self.me,
            incarnation: self.incarnation,
        }
    }
}

impl Answer {
    /// The bytes to send, length prefix included.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        body.push(self.refused.map_or(0, |reason| reason as u8));
        body.extend(self.version.to_be_bytes());
        body.extend(self.versions.min.to_be_bytes());
        body.extend(self.versions.max.to_be_bytes());
        body.push(self.from);
        body.extend(self.incarnation.to_be_bytes());
        debug_assert_eq!(body.len(), ANSWER_BYTES);
        prefixed(body)
    }

    /// Reads what followed the length prefix.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LinkEnd> {
        let mut fields = check_opening(bytes, ANSWER_BYTES)?;
        let refused = match fields.take::<1>() {
            [0] => None,
            // A newer peer may have reasons we cannot name yet; it still is a refusal.
            [code] => Some(Reason::from_code(code).unwrap_or(Reason::Closed)),
        };
        Ok(Self {
            refused,
            version: u16::from_be_bytes(fields.take()),
            versions: VersionRange {
                min: u16::from_be_bytes(fields.take()),
                max: u16::from_be_bytes(fields.take()),
            },
            from: fields.take::<1>()[0],
            incarnation: u32::from_be_bytes(fields.take()),
        })
    }

    /// The dialler's verdict: a refusal becomes the end both sides log, a welcome must fit what was asked.
    pub(crate) fn judge(&self, asked: &Hello) -> Result<(), LinkEnd> {
        if let Some(reason) = self.refused {
            let detail = match reason {
                Reason::VersionMismatch => format!(
                    "replica {} speaks wire versions {}..={}, this one {}..={}",
                    asked.to, self.versions.min, self.versions.max, asked.versions.min, asked.versions.max
                ),
                Reason::WrongReplica => {
                    format!("replica {} was dialled, replica {} answered", asked.to, self.from)
                }
                _ => format!("replica {} refused this one", asked.to),
            };
            return Err(LinkEnd::told(reason, detail));
        }
        if self.from != asked.to {
            let detail = format!("replica {} was dialled, replica {} answered", asked.to, self.from);
            return Err(LinkEnd::new(Reason::WrongReplica, detail));
        }
        if !(asked.versions.min..=asked.versions.max).contains(&self.version) {
            let detail = format!("replica {} chose wire version {}", asked.to, self.version);
            return Err(LinkEnd::new(Reason::VersionMismatch, detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(me: u8) -> Local {
        Local { cluster: [7; 32], me, incarnation: 3, versions: VersionRange { min: 2, max: 4 } }
    }

    #[test]
    fn a_hello_and_an_answer_survive_their_bytes_and_later_additions() {
        let hello = local(1).hello(2);
        let mut bytes = hello.encode()[2..].to_vec();
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        bytes.extend(b"what a later release adds");
        assert_eq!(Hello::decode(&bytes), Ok(local(1).hello(2)));
        for verdict in [Ok(3), Err(Reason::WrongCluster)] {
            let answer = local(2).answer(verdict);
            assert_eq!(Answer::decode(&answer.encode()[2..]), Ok(answer));
        }
    }

    #[test]
    fn no_truncation_or_flip_of_a_hello_panics() {
        let hello = local(1).hello(2).encode()[2..].to_vec();
        let answer = local(2).answer(Ok(3)).encode()[2..].to_vec();
        for bytes in [hello, answer] {
            for cut in 0..bytes.len() {
                assert!(Hello::decode(&bytes[..cut]).is_err() || cut >= HELLO_BYTES);
                assert!(Answer::decode(&bytes[..cut]).is_err() || cut >= ANSWER_BYTES);
                let mut flipped = bytes.clone();
                flipped[cut] ^= 0xff;
                let _ = Hello::decode(&flipped);
                let _ = Answer::decode(&flipped);
            }
        }
    }

    #[test]
    fn the_highest_common_version_is_chosen_from_either_end() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).meet(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).meet(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).meet(range(2, 2)), None);
        assert_eq!(range(5, 1).meet(range(1, 5)), None);
    }

    #[test]
    fn each_mismatch_has_its_own_reason() {
        let reason = |hello: &Hello| hello.judge(&local(2)).expect_err("refused").reason;
        let good = local(1).hello(2);
        assert_eq!(good.judge(&local(2)), Ok(4));
        assert_eq!(reason(&Hello { cluster: [8; 32], ..good.clone() }), Reason::WrongCluster);
        assert_eq!(reason(&Hello { to: 3, ..good.clone() }), Reason::WrongReplica);
        assert_eq!(reason(&Hello { versions: VersionRange::only(1), ..good }), Reason::VersionMismatch);
    }

    #[test]
    fn a_welcome_must_come_from_the_dialled_replica_in_an_offered_version() {
        let hello = local(1).hello(2);
        let good = local(2).answer(Ok(3));
        assert_eq!(good.judge(&hello), Ok(()));
        let reason = |answer: Answer| answer.judge(&hello).expect_err("refused").reason;
        assert_eq!(reason(Answer { from: 9, ..good.clone() }), Reason::WrongReplica);
        assert_eq!(reason(Answer { version: 9, ..good.clone() }), Reason::VersionMismatch);
        let refused = Answer { refused: Some(Reason::UnknownReplica), ..good }.judge(&hello).expect_err("no");
        assert!(refused.told_by_peer && refused.reason == Reason::UnknownReplica);
    }
}
