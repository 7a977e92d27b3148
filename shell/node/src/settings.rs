//! The settings of one node: one TOML file, read once into final types.
//!
//! What may be set stands in one table (`settings/table.rs`), which drives the parser, `dwcp server --help-settings` and
//! `docs/operating/settings.md` alike. Every refusal names the line and what to do about it. Nothing is taken from the
//! environment, and nothing is opened here: paths are resolved against the folder of the settings file, no more.

mod bounds;
mod reader;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dwcp_base::{Genesis, Micros, ReplicaId, Trust};
use dwcp_replica::sync::SyncLimits;
use dwcp_replica::sync::values::{Resolvers, Strategy};
use dwcp_replica::{SegmentSettings, Settings, SyncSetup};

pub use self::bounds::{ClientBounds, HttpBounds};
pub(crate) use self::reader::line_of;
pub use self::table::{Allowed, Preset, SETTINGS, Setting, settings_markdown, settings_table};

/// Which network lies between the nodes; here it only picks defaults. Which mode the cluster runs in stands in the genesis
/// until the operator orders another, and who may lie is policy.
pub use dwcp_base::NetworkMode as Mode;

/// How much the journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Timers and bounds of consensus. The rest of the core's settings follow from these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consensus {
    pub view_timeout_ms: u64,
    pub standing_interval_ms: u64,
    pub tick_interval_ms: u64,
    pub pipeline_depth: u64,
    pub batch_bytes_max: usize,
    pub pending_bytes_max: usize,
    pub history_bytes_max: usize,
    pub batch_frames_max: usize,
    pub snapshot_log_bytes: u64,
    pub censorship_factor: u64,
    /// 0: as the view timeout has it.
    pub resend_interval_ms: u64,
    /// 0: as the view timeout has it.
    pub relay_after_ms: u64,
}

/// Timers and bounds of Raft segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub election_timeout_ms: u64,
    pub heartbeat_interval_ms: u64,
    pub fast_path_timeout_ms: u64,
    pub anchor_interval_ms: u64,
    pub limits: dwcp_replica::raft::Limits,
    pub apply_bytes: usize,
}

/// Bounds of what waits inside the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    pub peer_bytes_max: usize,
    pub peer_frames_max: usize,
    pub client_bytes_max: usize,
    pub clients_bytes_max: usize,
    pub clients_max: usize,
    pub replies_bytes_max: usize,
    pub send_bytes_max: usize,
    pub burst_inputs_max: usize,
}

/// Everything one node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub replica: ReplicaId,
    pub mode: Mode,
    pub genesis_file: PathBuf,
    pub data_dir: PathBuf,
    pub vote_key_file: PathBuf,
    pub tls_key_file: PathBuf,
    pub peer_listen: SocketAddr,
    /// Where peers are reached from here, for those that the genesis' address does not lead to.
    pub peer_via: BTreeMap<u8, String>,
    /// Where the others reach this node, when that is not plain from `peer_listen` and the genesis.
    pub peer_advertise: Option<String>,
    /// Addresses at which some replica may be found.
    pub seeds: Vec<String>,
    pub client_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub log_level: LogLevel,
    pub consensus: Consensus,
    pub segment: Segment,
    pub segment_bytes: u64,
    pub queues: Queues,
    pub sync: SyncConfig,
    pub links: dwcp_transport::Limits,
    pub clients: ClientBounds,
    pub http: HttpBounds,
    origin: Origin,
}

/// Convergent state.
#[derive(Clone, Debug)]
pub struct SyncConfig {
    pub exchange_interval_ms: u64,
    pub ack_patience_ms: u64,
    pub audit_interval_ms: u64,
    pub limits: SyncLimits,
    pub ordered: Vec<Bytes>,
    pub convergent: Vec<Bytes>,
    pub merge: Vec<Bytes>,
    pub http: SyncHttp,
}

/// What of convergent state is served over plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncHttp {
    Off,
    Read,
    Write,
}

impl SyncConfig {
    /// The core's settings, with resolvers of the embedder's where he brings some.
    pub(crate) fn to_setup(&self, mut resolvers: Resolvers) -> SyncSetup {
        for prefix in &self.merge {
            resolvers.set(prefix.clone(), Strategy::Merge);
        }
        let mut setup = SyncSetup {
            resolvers,
            limits: self.limits,
            ordered: self.ordered.clone(),
            convergent: self.convergent.clone(),
            ..SyncSetup::default()
        };
        setup.timing.exchange_interval = Micros::from_millis(self.exchange_interval_ms);
        setup.timing.ack_patience = Micros::from_millis(self.ack_patience_ms);
        setup.timing.audit_interval = Micros::from_millis(self.audit_interval_ms);
        setup
    }
}

/// Where each setting stands, for refusals that are only found out later.
#[derive(Clone, Debug, Default)]
struct Origin {
    path: PathBuf,
    lines: BTreeMap<&'static str, usize>,
}

/// A settings file that cannot be. One line, with the place and the remedy.
#[derive(Debug)]
pub struct SettingsError {
    pub path: PathBuf,
    /// `None`: the file as a whole, or something missing from it.
    pub line: Option<usize>,
    pub fault: Fault,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot be read ({0}): name the config.toml of a node; `dwcp init` writes one")]
    Unreadable(std::io::Error),
    #[error("is not TOML ({0}): correct that line")]
    NotToml(String),
    #[error("unknown setting `{key}`: {remedy}")]
    Unknown { key: String, remedy: String },
    #[error("setting `{key}` is missing: add it ({what})")]
    Missing { key: &'static str, what: &'static str },
    #[error("`{key}` is {found}: write {expected}")]
    WrongType { key: &'static str, found: &'static str, expected: String },
    #[error("`{key}` = {value} is out of range: set it within {range}")]
    OutOfRange { key: &'static str, value: i64, range: String },
    #[error("`{key}` = \"{value}\" is not known: write one of {allowed}")]
    NotAWord { key: &'static str, value: String, allowed: String },
    #[error("`{key}` = \"{value}\" is no address: write IP:PORT, for example 127.0.0.1:7000 or [::1]:7000")]
    NotAnAddress { key: &'static str, value: String },
    #[error("`{key}` = \"{value}\" names no peers: write N=HOST:PORT for each, separated by spaces")]
    NotPeers { key: &'static str, value: String },
    #[error("`{key}` has \"{value}\", which is no address: write HOST:PORT, for example node1.example:7000")]
    NotAHost { key: &'static str, value: String },
    #[error("`{key}` has {count} addresses: leave at most {max}")]
    TooManyHosts { key: &'static str, count: usize, max: usize },
    #[error("`{key}` = {value} is also `{other}`: give each its own port")]
    AddressTwice { key: &'static str, other: &'static str, value: SocketAddr },
    #[error("`{key}` = {value} is below `{other}` = {other_value}: set it to at least that")]
    Below { key: &'static str, value: u64, other: &'static str, other_value: u64 },
    #[error("`{key}` = {value} is above `{other}` = {other_value}: set it to at most that")]
    Above { key: &'static str, value: u64, other: &'static str, other_value: u64 },
    #[error(
        "sync.http = \"write\" would let anybody who reaches {address} write: set it to \"read\", or http_listen to a loopback address"
    )]
    WriteAbroad { address: SocketAddr },
    #[error("prefixes of keys cannot be: {0}")]
    Prefixes(String),
    #[error("`{key}` = {value} must be a multiple of {of}: set it to {remedy}")]
    NotAMultiple { key: &'static str, value: u64, of: u64, remedy: u64 },
    #[error(
        "mode = \"datacenter\" does not fit the genesis, whose trust is byzantine: set mode = \"internet\" or \
         \"hybrid\", or make another cluster with `dwcp init`"
    )]
    DatacenterOfLiars,
    #[error("replica = {replica} is not a member: the genesis has replicas 0..={last}")]
    NoSuchReplica { replica: u8, last: usize },
    #[error("minimum 4 replicas required for Byzantine tolerance")]
    TooFewForByzantine,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.fault, self.line) {
            // A sentence others wait for word by word.
            (Fault::TooFewForByzantine, _) => write!(f, "{}", self.fault),
            (fault, Some(line)) => write!(f, "{}:{line}: {fault}", self.path.display()),
            (Fault::Unreadable(_), None) => write!(f, "settings file {} {}", self.path.display(), self.fault),
            (fault, None) => write!(f, "{}: {fault}", self.path.display()),
        }
    }
}

impl std::error::Error for SettingsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::Unreadable(source) => Some(source),
            _ => None,
        }
    }
}

impl NodeConfig {
    /// Reads a node's settings file.
    ///
    /// # Errors
    /// The first thing in it that cannot be, with its line.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError {
            path: path.into(),
            line: None,
            fault: Fault::Unreadable(source),
        })?;
        Self::parse(path, &text)
    }

    /// Reads settings from text; `path` names them in refusals and anchors relative paths.
    ///
    /// # Errors
    /// As [`NodeConfig::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let mut reader = reader::Reader::new(path, text)?;
        let mode = match reader.word("mode")?.as_str() {
            "datacenter" => Mode::Datacenter,
            "hybrid" => Mode::Hybrid,
            _ => Mode::Internet,
        };
        reader.set_mode(mode);
        let config = Self {
            replica: ReplicaId(u8::try_from(reader.number("replica")?).expect("the range fits a byte")),
            mode,
            genesis_file: reader.path("genesis_file")?,
            data_dir: reader.path("data_dir")?,
            vote_key_file: reader.path("vote_key_file")?,
            tls_key_file: reader.path("tls_key_file")?,
            peer_listen: reader.address("peer_listen")?,
            peer_via: reader.peers("peer_via")?,
            peer_advertise: reader.host("peer_advertise")?,
            seeds: reader.hosts("seeds")?,
            client_listen: reader.address("client_listen")?,
            http_listen: reader.address("http_listen")?,
            log_level: match reader.word("log_level")?.as_str() {
                "error" => LogLevel::Error,
                "info" => LogLevel::Info,
                "debug" => LogLevel::Debug,
                "trace" => LogLevel::Trace,
                _ => LogLevel::Warn,
            },
            consensus: Consensus {
                view_timeout_ms: reader.number("consensus.view_timeout_ms")?,
                standing_interval_ms: reader.number("consensus.standing_interval_ms")?,
                tick_interval_ms: reader.number("consensus.tick_interval_ms")?,
                pipeline_depth: reader.number("consensus.pipeline_depth")?,
                batch_bytes_max: reader.size("consensus.batch_bytes_max")?,
                pending_bytes_max: reader.size("consensus.pending_bytes_max")?,
                history_bytes_max: reader.size("consensus.history_bytes_max")?,
                batch_frames_max: reader.size("consensus.batch_frames_max")?,
                snapshot_log_bytes: reader.number("consensus.snapshot_log_bytes")?,
                censorship_factor: reader.number("consensus.censorship_factor")?,
                resend_interval_ms: reader.number("consensus.resend_interval_ms")?,
                relay_after_ms: reader.number("consensus.relay_after_ms")?,
            },
            segment: Segment {
                election_timeout_ms: reader.number("segment.election_timeout_ms")?,
                heartbeat_interval_ms: reader.number("segment.heartbeat_interval_ms")?,
                fast_path_timeout_ms: reader.number("segment.fast_path_timeout_ms")?,
                anchor_interval_ms: reader.number("segment.anchor_interval_ms")?,
                limits: bounds::of_segment(&mut reader)?,
                apply_bytes: reader.size("segment.apply_bytes")?,
            },
            segment_bytes: reader.number("storage.segment_bytes")?,
            queues: Queues {
                peer_bytes_max: reader.size("queues.peer_bytes_max")?,
                peer_frames_max: reader.size("queues.peer_frames_max")?,
                client_bytes_max: reader.size("queues.client_bytes_max")?,
                clients_bytes_max: reader.size("queues.clients_bytes_max")?,
                clients_max: reader.size("queues.clients_max")?,
                replies_bytes_max: reader.size("queues.replies_bytes_max")?,
                send_bytes_max: reader.size("queues.send_bytes_max")?,
                burst_inputs_max: reader.size("queues.burst_inputs_max")?,
            },
            sync: SyncConfig {
                exchange_interval_ms: reader.number("sync.exchange_interval_ms")?,
                ack_patience_ms: reader.number("sync.ack_patience_ms")?,
                audit_interval_ms: reader.number("sync.audit_interval_ms")?,
                limits: bounds::of_sync(&mut reader)?,
                ordered: reader.prefixes("sync.ordered_prefixes")?,
                convergent: reader.prefixes("sync.convergent_prefixes")?,
                merge: reader.prefixes("sync.merge_prefixes")?,
                http: match reader.word("sync.http")?.as_str() {
                    "read" => SyncHttp::Read,
                    "write" => SyncHttp::Write,
                    _ => SyncHttp::Off,
                },
            },
            links: bounds::of_links(&mut reader)?,
            clients: ClientBounds::read(&mut reader)?,
            http: HttpBounds::read(&mut reader)?,
            origin: Origin::default(),
        };
        let config = Self { origin: reader.finish()?, ..config };
        config.check()?;
        Ok(config)
    }

    /// What no single setting can tell.
    fn check(&self) -> Result<(), SettingsError> {
        let listens = [
            ("peer_listen", self.peer_listen),
            ("client_listen", self.client_listen),
            ("http_listen", self.http_listen),
        ];
        for (index, (key, value)) in listens.into_iter().enumerate() {
            let twin = listens[..index].iter().find(|(_, other)| *other == value && value.port() != 0);
            if let Some((other, _)) = twin {
                return Err(self.refuse(key, Fault::AddressTwice { key, other, value }));
            }
        }
        let (each, all) = (self.queues.client_bytes_max as u64, self.queues.clients_bytes_max as u64);
        if all < each {
            let (key, other) = ("queues.clients_bytes_max", "queues.client_bytes_max");
            return Err(self.refuse(key, Fault::Below { key, value: all, other, other_value: each }));
        }
        let election = self.segment.election_timeout_ms;
        if election < 3 * self.segment.heartbeat_interval_ms {
            let (key, other) = ("segment.election_timeout_ms", "3 * segment.heartbeat_interval_ms");
            let other_value = 3 * self.segment.heartbeat_interval_ms;
            return Err(self.refuse(key, Fault::Below { key, value: election, other, other_value }));
        }
        self.check_bounds()?;
        if self.sync.http == SyncHttp::Write && !self.http_listen.ip().is_loopback() {
            return Err(self.refuse("sync.http", Fault::WriteAbroad { address: self.http_listen }));
        }
        if let Err(error) = self.sync.to_setup(Resolvers::default()).check() {
            return Err(self.refuse("sync.ordered_prefixes", Fault::Prefixes(error.to_string())));
        }
        if !self.segment_bytes.is_multiple_of(PAGE_BYTES) {
            let (key, value) = ("storage.segment_bytes", self.segment_bytes);
            let remedy = value.next_multiple_of(PAGE_BYTES);
            return Err(self.refuse(key, Fault::NotAMultiple { key, value, of: PAGE_BYTES, remedy }));
        }
        Ok(())
    }

    /// Do these settings fit this cluster?
    ///
    /// # Errors
    /// Too few members for the mode, a mode that the genesis' policy never allows, a replica that is no member.
    pub fn check_against(&self, genesis: &Genesis) -> Result<(), SettingsError> {
        let n = genesis.members.len();
        if self.mode == Mode::Internet && n < 4 {
            return Err(self.refuse("mode", Fault::TooFewForByzantine));
        }
        if self.mode == Mode::Datacenter && genesis.policy.trust == Trust::Byzantine {
            return Err(self.refuse("mode", Fault::DatacenterOfLiars));
        }
        if usize::from(self.replica.0) >= n {
            let fault = Fault::NoSuchReplica { replica: self.replica.0, last: n.saturating_sub(1) };
            return Err(self.refuse("replica", fault));
        }
        Ok(())
    }

    /// The core's settings.
    pub(crate) fn to_settings(&self) -> Settings {
        Settings { segment: self.segment.to_settings(), ..self.consensus.to_settings(self.mode) }
    }

    /// Adds addresses at which some replica may be found, as far as they are addresses and the bound allows.
    pub fn add_seeds(&mut self, addresses: &[String]) {
        for address in addresses.iter().filter(|address| dwcp_hints::check_address(address)) {
            if self.seeds.len() < reader::HOSTS_MAX && !self.seeds.contains(address) {
                self.seeds.push(address.clone());
            }
        }
    }

    /// The file these settings were read from.
    pub fn path(&self) -> &Path {
        &self.origin.path
    }

    /// A setting that has its default stands on no line: then the line of what it does not go with is named.
    fn refuse(&self, key: &str, fault: Fault) -> SettingsError {
        let beside = match &fault {
            Fault::Below { other, .. } | Fault::Above { other, .. } => *other,
            _ => "",
        };
        let mut keys = std::iter::once(key).chain(beside.split_whitespace());
        let line = keys.find_map(|key| self.origin.lines.get(key)).copied();
        SettingsError { path: self.origin.path.clone(), line, fault }
    }
}

impl Consensus {
    /// The core's settings in this mode, but for segments.
    fn to_settings(&self, mode: Mode) -> Settings {
        let default = match mode {
            Mode::Internet | Mode::Hybrid => Settings::internet(),
            Mode::Datacenter => Settings::lan(),
        };
        let view_timeout = Micros::from_millis(self.view_timeout_ms);
        let quarter = Micros(view_timeout.0 / 4);
        let or = |ms: u64, derived: Micros| if ms == 0 { derived } else { Micros::from_millis(ms) };
        let mut settings = Settings {
            relay_after: or(self.relay_after_ms, quarter),
            tick_interval: Micros::from_millis(self.tick_interval_ms),
            pipeline_depth: self.pipeline_depth,
            batch_bytes_max: self.batch_bytes_max,
            pending_bytes_max: self.pending_bytes_max,
            history_bytes_max: self.history_bytes_max,
            batch_frames_max: self.batch_frames_max,
            snapshot_log_bytes: self.snapshot_log_bytes,
            ..default
        };
        settings.timing.view_timeout = view_timeout;
        settings.timing.standing_interval = Micros::from_millis(self.standing_interval_ms);
        settings.timing.censorship_factor = self.censorship_factor;
        // A lost message must be found, and a frame be shown to all, well before the primary is given up on.
        let resend = default.timing.resend_interval.min(quarter);
        settings.timing.resend_interval = or(self.resend_interval_ms, resend);
        settings
    }
}

impl Segment {
    fn to_settings(&self) -> SegmentSettings {
        SegmentSettings {
            timing: dwcp_replica::raft::Timing {
                election_timeout: Micros::from_millis(self.election_timeout_ms),
                heartbeat_interval: Micros::from_millis(self.heartbeat_interval_ms),
            },
            fast_path_timeout: (self.fast_path_timeout_ms > 0)
                .then(|| Micros::from_millis(self.fast_path_timeout_ms)),
            anchor_interval: Micros::from_millis(self.anchor_interval_ms),
            limits: self.limits,
            apply_bytes: self.apply_bytes,
        }
    }
}

/// The log writes whole pages.
const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
pub(crate) fn tests_text() -> String {
    tests::good()
}

#[cfg(test)]
pub(crate) fn tests_queues() -> Queues {
    tests::queues()
}

#[cfg(test)]
mod tests;
