//! Why a link was refused or ended: a closed list, so that both ends can say it, log it and count it alike.
//!
//! A reason travels between replicas as one byte; its numbers are part of the link protocol and are never reused.
//! Each reason carries the remedy for whoever reads the log. Nothing here knows sockets.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $label:literal, $remedy:literal;)*) => {
        /// The kinds of refusal and of link end. The discriminant is the byte on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $name = $code,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// A stable name for metric labels.
            pub fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)* }
            }

            /// What the reader of the log should do.
            pub fn remedy(self) -> &'static str {
                match self { $(Reason::$name => $remedy,)* }
            }

            pub(crate) fn from_code(code: u8) -> Option<Reason> {
                match code { $($code => Some(Reason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The bytes on the port were not TLS.
    NotTls = 1, "not_tls", "only replicas may dial this port; find out who else does";
    /// The peer cannot speak TLS 1.3.
    TlsVersion = 2, "tls_version", "the dialler must speak TLS 1.3";
    /// The key shown is not the one pinned here.
    UnknownKey = 3, "unknown_key", "compare the pin in this replica's configuration with the peer's public key";
    /// The peer turned our key away.
    KeyRefusedByPeer = 4, "key_refused_by_peer", "put this replica's public key into the peer's configuration";
    /// Any other failure of the TLS handshake.
    TlsFailed = 5, "tls_failed", "check that both ends run the same program";
    /// TLS was fine, but what followed is not a hello.
    NotLinkProtocol = 6, "not_link_protocol", "check that the address is a replica's peer port, not its client port";
    /// The peer belongs to another cluster.
    WrongCluster = 7, "wrong_cluster", "give both replicas the genesis of the same cluster";
    /// The peer dialled someone else's address.
    WrongReplica = 8, "wrong_replica", "correct the replica ids or addresses in the dialler's configuration";
    /// The key is pinned, but for another replica than the one claimed.
    WrongKeyForReplica = 9, "wrong_key_for_replica", "give each replica its own id and its own key";
    /// The claimed replica is not among the configured peers.
    UnknownReplica = 10, "unknown_replica", "add the replica to this one's peers or stop it";
    /// No wire version in common.
    VersionMismatch = 11, "version_mismatch", "upgrade the older replica one release at a time";
    /// The handshake did not end in time.
    HandshakeTimeout = 12, "handshake_timeout", "check the network between the two replicas for loss or a filter";
    /// More handshakes were pending than allowed.
    TooManyHandshakes = 13, "too_many_handshakes", "find out who floods the peer port, or raise handshakes_max";
    /// A frame was larger than this side accepts.
    Oversize = 14, "oversize", "set the same frame_bytes_max on all replicas";
    /// Bytes that are no frame.
    BadFrame = 15, "bad_frame", "check that both ends run compatible releases";
    /// Nothing arrived for too long.
    Silent = 16, "silent", "check the network and whether the peer is stopped";
    /// The other end closed the connection without a reason.
    Closed = 17, "closed", "look into the peer's log";
    /// The socket failed.
    Io = 18, "io", "check the network between the two replicas";
    /// The peer opened a newer link.
    Superseded = 19, "superseded", "nothing to do unless it repeats: then two processes use one key";
    /// Key or address of the peer were changed.
    Reconfigured = 20, "reconfigured", "nothing to do";
    /// This side, or the other, is stopping.
    Shutdown = 21, "shutdown", "nothing to do";
    /// The address did not accept a connection.
    Unreachable = 22, "unreachable", "start the peer, or correct its address";
    /// The host name has no address.
    Unresolved = 23, "unresolved", "correct the host name or the name service";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A refusal or an end with what is known about it: one line that ends in what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEnd {
    pub reason: Reason,
    /// True when the other side told us this reason, false when we found it ourselves.
    pub told_by_peer: bool,
    pub detail: String,
}

impl LinkEnd {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, told_by_peer: false, detail: detail.into() }
    }

    pub(crate) fn told(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, told_by_peer: true, detail: detail.into() }
    }

    pub(crate) fn io(error: &std::io::Error) -> Self {
        Self::new(Reason::Io, error.to_string())
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.told_by_peer { " (told by the peer)" } else { "" };
        write!(f, "{}{who}: {}: {}", self.reason, self.detail, self.reason.remedy())
    }
}

impl std::error::Error for LinkEnd {}

/// How often each reason occurred. Bound: one counter per reason.
#[derive(Debug, Default)]
pub(crate) struct ReasonCounts {
    counts: [std::sync::atomic::AtomicU64; 32],
}

impl ReasonCounts {
    /// Counts and returns the new count.
    pub(crate) fn add(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
    }

    /// The reasons that occurred, in the order of [`Reason::ALL`].
    pub(crate) fn read(&self) -> Vec<(Reason, u64)> {
        let count = |reason: Reason| self.counts[reason as usize].load(std::sync::atomic::Ordering::Relaxed);
        Reason::ALL.iter().map(|&reason| (reason, count(reason))).filter(|&(_, count)| count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_byte_label_and_counter() {
        let counts = ReasonCounts::default();
        let mut labels = std::collections::BTreeSet::new();
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
            assert!(labels.insert(reason.label()), "{reason} is used twice");
            assert_eq!(counts.add(reason), 1);
        }
        assert_eq!(counts.read().len(), Reason::ALL.len());
        assert_eq!(Reason::from_code(0), None);
    }

    #[test]
    fn an_end_is_one_line_with_its_remedy() {
        let line = LinkEnd::new(Reason::WrongCluster, "the peer serves cluster 00ff").to_string();
        assert!(!line.contains('\n'));
        assert!(line.ends_with("give both replicas the genesis of the same cluster"), "{line}");
    }
}
