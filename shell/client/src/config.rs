//! Whom the client talks to, as whom, and how patiently. Parsed once into final types; what cannot be is refused here.
//!
//! A member whose disk was replaced has new keys. The client learns them from its configuration only: whoever could
//! tell it of new keys over the wire could also make it believe wrong ones. `config_file` reads the file form.

use dwcp_base::crypto::Ed25519;
use dwcp_base::limits::{FRAME_COMMANDS_MAX, SESSION_WINDOW};
use dwcp_base::quorum::REPLICAS_MAX;
use dwcp_base::{Ack, ClusterId, Genesis, Incarnation, PublicKey, ReplicaId, Trust};
use dwcp_state::frame::{PRINCIPAL_NAME_BYTES_MAX, SESSION_TTL_MAX_MS, SESSION_TTL_MIN_MS};
use std::fmt;
use std::time::Duration;

/// One member as clients reach and verify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub id: ReplicaId,
    /// `host:port` of its client listener.
    pub address: String,
    /// The key its TLS certificate must show. `None` speaks plain text, which is for loopback addresses only.
    pub tls_key: Option<PublicKey>,
    /// Verifies its replies.
    pub vote_key: PublicKey,
    pub incarnation: Incarnation,
}

/// As whom the client speaks: a name of the cluster's key registry and the secret half of its key.
#[derive(Clone)]
pub struct PrincipalConfig {
    pub name: String,
    /// The Ed25519 seed.
    pub seed: [u8; 32],
}

impl PrincipalConfig {
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        Ed25519::new(self.seed, &[]).public_key()
    }
}

impl fmt::Debug for PrincipalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrincipalConfig({}, key {:?})", self.name, self.public_key())
    }
}

/// How long and how much. Everything has a default that suits both a LAN and the internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A call that has no believed answer after this long ends. Default 10 s; 1 ms to 1 h.
    pub call_timeout: Duration,
    /// A frame without believed answer after this long goes to all nodes; doubles with every retry, up to eight
    /// times. Default 1 s (a view change takes about that long); 1 ms to 1 min.
    pub retry_after: Duration,
    /// One attempt to reach a node. Default 3 s; 1 ms to 1 min.
    pub connect_timeout: Duration,
    /// First pause before a node is dialled again; doubles up to sixteen times, with jitter. Default 100 ms; 1 ms
    /// to 1 min.
    pub reconnect_after: Duration,
    /// Idle time after which the cluster forgets a session. Default 10 min; 2 min to 24 h.
    pub session_ttl: Duration,
    /// Commands in one frame. Default and most 256.
    pub frame_max: usize,
    /// Frames of one session without answer; further commands gather into larger frames meanwhile. Default 8; 1 to
    /// 1024.
    pub frames_in_flight_max: usize,
    /// Commands of one session that may wait for room in its window; beyond it calls are refused as not applied.
    /// Default 16,384; at least 256.
    pub waiting_max: usize,
    /// When commands are acknowledged that do not say themselves. Default: as the cluster's policy says.
    pub ack: Option<Ack>,
    /// Nodes that answer each session, at least f + 1. Default 2f + 1, so that f silent ones cost no time.
    pub attach: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(10),
            retry_after: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(3),
            reconnect_after: Duration::from_millis(100),
            session_ttl: Duration::from_secs(600),
            frame_max: FRAME_COMMANDS_MAX,
            frames_in_flight_max: 8,
            waiting_max: 16_384,
            ack: None,
            attach: None,
        }
    }
}

/// Everything a client must know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub cluster: ClusterId,
    /// Whether replicas may lie at all. Where they only crash, a reply labelled so is believed from a single one.
    pub trust: Trust,
    /// Replicas that may lie; under `Trust::Crash`, what certificates of the root log withstand.
    pub f: u8,
    pub nodes: Vec<NodeConfig>,
    pub principal: PrincipalConfig,
    pub settings: Settings,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("no nodes are configured: list at least f + 1")]
    NoNodes,
    #[error("{nodes} nodes are too few to believe anything with f = {f}: list at least {}, better all", f + 1)]
    TooFewNodes { nodes: usize, f: u8 },
    #[error("node {0} is listed twice: remove one")]
    NodeTwice(ReplicaId),
    #[error("node id {0} is out of range: a cluster has replicas 0 to 30")]
    NodeId(ReplicaId),
    #[error("nodes {0} and {1} have the same vote key: one of them would be believed twice")]
    SameVoteKey(ReplicaId, ReplicaId),
    #[error("node {id} has no tls_key but {address} is not a loopback address: set its tls_key")]
    PlainTextAbroad { id: ReplicaId, address: String },
    #[error("\"{address}\" of node {id} is no address: write HOST:PORT")]
    Address { id: ReplicaId, address: String },
    #[error("a principal's name has 1 to 64 bytes, this one {bytes}")]
    PrincipalName { bytes: usize },
    #[error("{name} = {value} is out of range: use {range}")]
    OutOfRange { name: &'static str, value: String, range: &'static str },
}

impl ClientConfig {
    /// A client of the cluster that this genesis begins, with default settings.
    #[must_use]
    pub fn of_genesis(genesis: &Genesis, principal: PrincipalConfig) -> Self {
        let nodes = genesis.members.iter().map(|member| NodeConfig {
            id: member.id,
            address: member.client_address.clone(),
            tls_key: Some(member.tls_key),
            vote_key: member.vote_key,
            incarnation: member.incarnation,
        });
        Self {
            cluster: genesis.cluster(),
            trust: genesis.policy.trust,
            f: genesis.policy.quorum.f(),
            nodes: nodes.collect(),
            principal,
            settings: Settings::default(),
        }
    }

    /// Voices that must agree before one is believed: f + 1, of which one is honest.
    #[must_use]
    pub fn weak(&self) -> usize {
        usize::from(self.f) + 1
    }

    /// Whether one node's word is worth anything.
    pub(crate) fn nobody_lies(&self) -> bool {
        self.trust == Trust::Crash || self.f == 0
    }

    /// Nodes that answer each session.
    #[must_use]
    pub(crate) fn attach(&self) -> usize {
        let wanted = self.settings.attach.unwrap_or(2 * usize::from(self.f) + 1);
        wanted.clamp(self.weak(), self.nodes.len())
    }

    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.nodes.is_empty() {
            return Err(ConfigError::NoNodes);
        }
        if self.nodes.len() < self.weak() {
            return Err(ConfigError::TooFewNodes { nodes: self.nodes.len(), f: self.f });
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if node.id.0 >= REPLICAS_MAX {
                return Err(ConfigError::NodeId(node.id));
            }
            for other in &self.nodes[..index] {
                if other.id == node.id {
                    return Err(ConfigError::NodeTwice(node.id));
                }
                if other.vote_key == node.vote_key {
                    return Err(ConfigError::SameVoteKey(other.id, node.id));
                }
            }
            let Some(host) = host_of(&node.address) else {
                return Err(ConfigError::Address { id: node.id, address: node.address.clone() });
            };
            if node.tls_key.is_none() && !is_loopback(host) {
                return Err(ConfigError::PlainTextAbroad { id: node.id, address: node.address.clone() });
            }
        }
        let bytes = self.principal.name.len();
        if !(1..=PRINCIPAL_NAME_BYTES_MAX).contains(&bytes) {
            return Err(ConfigError::PrincipalName { bytes });
        }
        self.settings.check(self.weak())
    }
}

impl Settings {
    fn check(&self, weak: usize) -> Result<(), ConfigError> {
        let minute = Duration::from_secs(60);
        let shortest = Duration::from_millis(1);
        let hour = Duration::from_secs(3600);
        let ttl = Duration::from_millis(SESSION_TTL_MIN_MS)..=Duration::from_millis(SESSION_TTL_MAX_MS);
        in_range("call_timeout", self.call_timeout, shortest..=hour, "1 ms to 1 h")?;
        in_range("retry_after", self.retry_after, shortest..=minute, "1 ms to 1 min")?;
        in_range("connect_timeout", self.connect_timeout, shortest..=minute, "1 ms to 1 min")?;
        in_range("reconnect_after", self.reconnect_after, shortest..=minute, "1 ms to 1 min")?;
        in_range("session_ttl", self.session_ttl, ttl, "2 min to 24 h")?;
        in_range("frame_max", self.frame_max, 1..=FRAME_COMMANDS_MAX, "1 to 256")?;
        let window = usize::try_from(SESSION_WINDOW).expect("the window is small");
        in_range("frames_in_flight_max", self.frames_in_flight_max, 1..=window, "1 to 1024")?;
        in_range("waiting_max", self.waiting_max, FRAME_COMMANDS_MAX..=1 << 24, "256 to 16777216")?;
        in_range("attach", self.attach.unwrap_or(weak), weak..=usize::from(REPLICAS_MAX), "f + 1 to 31")
    }
}

fn in_range<T: PartialOrd + fmt::Debug>(
    name: &'static str,
    value: T,
    range: std::ops::RangeInclusive<T>,
    words: &'static str,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange { name, value: format!("{value:?}"), range: words })
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn config(n: u8, f: u8) -> ClientConfig {
        let node = |id: u8| NodeConfig {
            id: ReplicaId(id),
            address: format!("127.0.0.1:{}", 7000 + u16::from(id)),
            tls_key: Some(PublicKey([100 + id; 32])),
            vote_key: PublicKey([id; 32]),
            incarnation: Incarnation(0),
        };
        ClientConfig {
            cluster: ClusterId([1; 32]),
            trust: Trust::Byzantine,
            f,
            nodes: (0..n).map(node).collect(),
            principal: PrincipalConfig { name: "ann".into(), seed: [7; 32] },
            settings: Settings::default(),
        }
    }

    #[test]
    fn a_sound_configuration_passes_and_attaches_to_enough() {
        for (n, f, attach) in [(1, 0, 1), (3, 0, 1), (4, 1, 3), (7, 2, 5), (2, 1, 2)] {
            let config = config(n, f);
            assert_eq!(config.check(), Ok(()));
            assert_eq!(config.attach(), attach, "n={n} f={f}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_remedy() {
        let refusal = |change: fn(&mut ClientConfig)| {
            let mut config = config(4, 1);
            change(&mut config);
            config.check().expect_err("cannot work").to_string()
        };
        assert_eq!(refusal(|c| c.nodes.clear()), "no nodes are configured: list at least f + 1");
        assert!(refusal(|c| c.nodes.truncate(1)).contains("list at least 2, better all"));
        assert_eq!(refusal(|c| c.nodes[1].id = ReplicaId(0)), "node 0 is listed twice: remove one");
        assert!(refusal(|c| c.nodes[3].vote_key = PublicKey([0; 32])).contains("would be believed twice"));
        assert!(refusal(|c| c.nodes[0].address = "7000".into()).ends_with("write HOST:PORT"));
        let plain = refusal(|c| {
            c.nodes[2].tls_key = None;
            c.nodes[2].address = "node2.example.org:7000".into();
        });
        assert!(plain.ends_with("is not a loopback address: set its tls_key"), "{plain}");
        assert!(refusal(|c| c.principal.name.clear()).contains("1 to 64 bytes"));
        assert_eq!(
            refusal(|c| c.settings.session_ttl = Duration::from_secs(1)),
            "session_ttl = 1s is out of range: use 2 min to 24 h"
        );
        assert!(refusal(|c| c.settings.frame_max = 257).contains("1 to 256"));
        assert!(refusal(|c| c.settings.attach = Some(1)).contains("attach = 1"));
    }

    #[test]
    fn plain_text_is_for_loopback_only_in_all_its_spellings() {
        for address in ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"] {
            let mut config = config(4, 1);
            config.nodes[0].tls_key = None;
            config.nodes[0].address = address.into();
            assert_eq!(config.check(), Ok(()), "{address}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let seed = [0xab; 32];
        let text = format!("{:?}", PrincipalConfig { name: "ann".into(), seed });
        assert!(!text.contains("abab") && !text.contains("171"), "{text}");
    }
}
