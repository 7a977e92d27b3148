//! Every setting there is: name, unit, default, range and reason. The one place where they are listed.
//!
//! It knows no file and no value; `reader.rs` judges values by it.

use std::fmt::Write;

use dwcp_base::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};

use super::Mode;

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Dotted: `consensus.view_timeout_ms` is `view_timeout_ms` under `[consensus]`.
    pub key: &'static str,
    /// Empty for what has none.
    pub unit: &'static str,
    pub preset: Preset,
    pub allowed: Allowed,
    pub what: &'static str,
}

/// What holds when the file is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    Required,
    Number(u64),
    ByMode { internet: u64, datacenter: u64, hybrid: u64 },
    Word(&'static str),
}

impl Preset {
    pub fn number(self, mode: Mode) -> Option<u64> {
        match (self, mode) {
            (Self::Number(value), _)
            | (Self::ByMode { internet: value, .. }, Mode::Internet)
            | (Self::ByMode { datacenter: value, .. }, Mode::Datacenter)
            | (Self::ByMode { hybrid: value, .. }, Mode::Hybrid) => Some(value),
            _ => None,
        }
    }

    /// As it would stand in a settings file.
    pub(crate) fn toml(self, mode: Mode) -> Option<String> {
        match self {
            Self::Word(word) => Some(format!("\"{word}\"")),
            other => other.number(mode).map(|value| value.to_string()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    Number {
        min: u64,
        max: u64,
    },
    /// 0 as well, which means something else.
    ZeroOr {
        min: u64,
        max: u64,
    },
    Words(&'static [&'static str]),
    Path,
    /// `IP:PORT`.
    Address,
    /// Prefixes of keys, separated by spaces.
    Prefixes,
    /// `N=HOST:PORT`, separated by spaces.
    Peers,
    /// `HOST:PORT`.
    Host,
    /// `HOST:PORT`, separated by spaces.
    Hosts,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const WEEK_MS: u64 = 7 * 24 * 3_600_000;

const fn required(key: &'static str, allowed: Allowed, what: &'static str) -> Setting {
    Setting { key, unit: "", preset: Preset::Required, allowed, what }
}

const fn number(
    key: &'static str,
    unit: &'static str,
    preset: Preset,
    (min, max): (u64, u64),
    what: &'static str,
) -> Setting {
    Setting { key, unit, preset, allowed: Allowed::Number { min, max }, what }
}

const fn prefixes(key: &'static str, what: &'static str) -> Setting {
    Setting { key, unit: "", preset: Preset::Word(""), allowed: Allowed::Prefixes, what }
}

/// In the order in which they are documented.
pub const SETTINGS: &[Setting] = &[
    required("replica", Allowed::Number { min: 0, max: 30 }, "this node's number in the genesis"),
    Setting {
        key: "mode",
        unit: "",
        preset: Preset::Word("internet"),
        allowed: Allowed::Words(&["internet", "datacenter", "hybrid"]),
        what: "which network lies between the nodes (internet: 50 to 500 ms; datacenter: below 10 ms; hybrid: changes by \
               the hour); picks the defaults below. What the cluster does is ordered for all nodes by `dwcp mode set`, and \
               begins with the genesis' mode",
    },
    required(
        "genesis_file",
        Allowed::Path,
        "the cluster's genesis.toml, the same bytes of meaning on every node",
    ),
    required(
        "data_dir",
        Allowed::Path,
        "where log, snapshots and manifest live; made by `dwcp init`, never by the server",
    ),
    required("vote_key_file", Allowed::Path, "the secret key that signs votes; readable by its owner alone"),
    required(
        "tls_key_file",
        Allowed::Path,
        "the secret key of this node's links, PEM; readable by its owner alone",
    ),
    required("peer_listen", Allowed::Address, "where the other replicas connect"),
    Setting {
        key: "peer_via",
        unit: "",
        preset: Preset::Word(""),
        allowed: Allowed::Peers,
        what: "where peers are reached from here when that is not the address the genesis names: behind NAT, or through a \
               proxy. Keys are checked all the same",
    },
    Setting {
        key: "peer_advertise",
        unit: "",
        preset: Preset::Word(""),
        allowed: Allowed::Host,
        what: "where the other replicas reach this node, told to them as a hint; by default peer_listen, or the address \
               the genesis names while that fits it. For a node that moved to behind NAT or a proxy",
    },
    Setting {
        key: "seeds",
        unit: "",
        preset: Preset::Word(""),
        allowed: Allowed::Hosts,
        what: "addresses (16 at most) at which some replica may be found while others cannot be reached; whoever proves a \
               member's key there is dialled, and tells where the others are",
    },
    required("client_listen", Allowed::Address, "where clients connect (gRPC over TLS)"),
    required("http_listen", Allowed::Address, "where /metrics, /livez and /readyz are served, unencrypted"),
    Setting {
        key: "log_level",
        unit: "",
        preset: Preset::Word("warn"),
        allowed: Allowed::Words(&["error", "warn", "info", "debug", "trace"]),
        what: "how much is logged; start and stop are always said",
    },
    number(
        "consensus.view_timeout_ms",
        "ms",
        Preset::ByMode { internet: 4_000, datacenter: 500, hybrid: 2_000 },
        (20, 60_000),
        "how long a replica waits, while something is pending and nothing executes, before it gives up on the primary; \
         doubles while that does not help; well above the slowest round trip between members",
    ),
    number(
        "consensus.standing_interval_ms",
        "ms",
        Preset::ByMode { internet: 1_000, datacenter: 250, hybrid: 500 },
        (10, 60_000),
        "how often an otherwise silent replica says where it stands, which is how lost messages are found",
    ),
    number(
        "consensus.tick_interval_ms",
        "ms",
        Preset::Number(1_000),
        (100, 2_000),
        "how often an otherwise idle primary orders the passage of time while a lease or session waits to expire",
    ),
    number(
        "consensus.pipeline_depth",
        "proposals",
        Preset::ByMode { internet: 16, datacenter: 4, hybrid: 16 },
        (1, 64),
        "proposals under way at once; more hide the latency of long links, fewer make larger batches",
    ),
    number(
        "consensus.batch_bytes_max",
        "bytes",
        Preset::Number(MIB),
        (64 * KIB, 3 * MIB),
        "client frames in one proposal; a single larger frame travels alone",
    ),
    number(
        "consensus.pending_bytes_max",
        "bytes",
        Preset::Number(64 * MIB),
        (4 * MIB, 16 * GIB),
        "client frames that wait for execution, half of them this node's own clients', half what other nodes pass on; further ones are refused as not applied",
    ),
    number(
        "consensus.history_bytes_max",
        "bytes",
        Preset::Number(96 * MIB),
        (64 * MIB, 16 * GIB),
        "decided proposals kept in memory for replicas that lag; one that lags further fetches the whole state; up to four \
         times this is kept while no snapshot gets written",
    ),
    number(
        "segment.election_timeout_ms",
        "ms",
        Preset::ByMode { internet: 3_000, datacenter: 200, hybrid: 1_000 },
        (10, 60_000),
        "in a Raft segment: a follower that hears no leader for this long, or up to twice this by chance, asks to be \
         elected; at least three heartbeats, and well above the slowest round trip between members",
    ),
    number(
        "segment.heartbeat_interval_ms",
        "ms",
        Preset::ByMode { internet: 500, datacenter: 40, hybrid: 200 },
        (1, 20_000),
        "in a Raft segment: how often a leader is heard that has nothing else to say",
    ),
    Setting {
        key: "segment.fast_path_timeout_ms",
        unit: "ms",
        preset: Preset::Number(0),
        allowed: Allowed::ZeroOr { min: 50, max: 60_000 },
        what: "hybrid mode: commands that wait this long while nothing commits make this node vote for leaving the segment; \
               grows to 20 measured commits where those are slow. 0: 20 measured commits, at least 100 ms (500 before the first), \
               doubled by each failure of late. In datacenter mode it is at least three election timeouts",
    },
    number(
        "segment.anchor_interval_ms",
        "ms",
        Preset::ByMode { internet: 1_000, datacenter: 100, hybrid: 250 },
        (10, 10_000),
        "in a Raft segment: how often, while anything changes, its entries are anchored in the root log; an anchored \
         acknowledgement waits about so long, more often costs signatures",
    ),
    number(
        "storage.segment_bytes",
        "bytes",
        Preset::Number(64 * MIB),
        (64 * KIB, GIB),
        "size of one log file, a multiple of 4096; smaller ones free space sooner, larger ones rotate less often",
    ),
    number(
        "queues.peer_bytes_max",
        "bytes",
        Preset::Number(32 * MIB),
        (MESSAGE_BYTES_MAX as u64, 4 * GIB),
        "received from one peer and not yet handled; at the bound its link is not read",
    ),
    number(
        "queues.peer_frames_max",
        "frames",
        Preset::Number(16_384),
        (16, 1_048_576),
        "as queues.peer_bytes_max, counted in frames",
    ),
    number(
        "queues.client_bytes_max",
        "bytes",
        Preset::Number(8 * MIB),
        (FRAME_BYTES_MAX as u64, GIB),
        "received from one client connection and not yet handled; at the bound it is told to wait",
    ),
    number(
        "queues.clients_bytes_max",
        "bytes",
        Preset::Number(64 * MIB),
        (FRAME_BYTES_MAX as u64, 16 * GIB),
        "as queues.client_bytes_max, for all clients together",
    ),
    number(
        "queues.clients_max",
        "connections",
        Preset::Number(4_096),
        (1, 65_536),
        "client connections at once, and streams of them; further ones are turned away",
    ),
    number(
        "queues.replies_bytes_max",
        "bytes",
        Preset::Number(16 * MIB),
        (4 * MIB, GIB),
        "replies that wait for one client; a client that reads slower than that is cut off",
    ),
    number(
        "queues.send_bytes_max",
        "bytes",
        Preset::Number(32 * MIB),
        (16 * MIB, 16 * GIB),
        "messages that wait for one peer's link; at the bound bulk data is dropped first and votes last",
    ),
    number(
        "queues.burst_inputs_max",
        "inputs",
        Preset::Number(4_096),
        (1, 65_536),
        "inputs handled between two syncs of the log; more make larger groups, fewer a shorter wait",
    ),
    number(
        "sync.exchange_interval_ms",
        "ms",
        Preset::Number(2_000),
        (50, 60_000),
        "how often convergent state is compared with a peer; what a lost push delays is delayed by about this much",
    ),
    number(
        "sync.fanout",
        "peers",
        Preset::Number(8),
        (1, 64),
        "peers that a new frame of convergent state is pushed to at once; with more peers than that the receivers pass it \
         on. More spread a change sooner, fewer cost the writer less bandwidth",
    ),
    number(
        "sync.ack_patience_ms",
        "ms",
        Preset::Number(60_000),
        (1_000, WEEK_MS),
        "how long a member may leave convergent frames unacknowledged that this node has, before it is named as withholding; \
         what only some members claim is waited for as long; above the longest absence that is nobody's fault",
    ),
    number(
        "sync.audit_interval_ms",
        "ms",
        Preset::Number(300_000),
        (1_000, WEEK_MS),
        "how often a peer with the same changes is asked whether its keys are the same too; an audit reads the whole store, \
         and what differs stays unnoticed for about this long",
    ),
    number(
        "sync.log_bytes_max",
        "bytes",
        Preset::Number(256 * MIB),
        (MIB, 1024 * GIB),
        "frames of convergent state kept for peers, in memory; at the bound writes are refused until they are acknowledged",
    ),
    prefixes(
        "sync.ordered_prefixes",
        "keys that change only through the log: convergent writes to them are refused. The same on every node",
    ),
    prefixes(
        "sync.convergent_prefixes",
        "keys that any node may change at any time: ordered writes and comparisons of them are refused. The same on every node",
    ),
    prefixes(
        "sync.merge_prefixes",
        "keys whose concurrent JSON objects are joined field by field; elsewhere the last writer wins. The same on every node",
    ),
    Setting {
        key: "sync.http",
        unit: "",
        preset: Preset::Word("off"),
        allowed: Allowed::Words(&["off", "read", "write"]),
        what: "whether http_listen also serves convergent keys as JSON, to anybody who reaches it; write only on a loopback \
               address",
    },
];

impl Setting {
    /// The default in words.
    pub fn preset_text(&self) -> String {
        match self.preset {
            Preset::Required => "none, must be set".into(),
            Preset::Number(value) => value.to_string(),
            Preset::ByMode { internet, datacenter, hybrid } => {
                format!("{internet} (internet), {datacenter} (datacenter), {hybrid} (hybrid)")
            }
            Preset::Word(word) => format!("\"{word}\""),
        }
    }

    /// The range in words.
    pub fn allowed_text(&self) -> String {
        match self.allowed {
            Allowed::Number { min, max } => format!("{min}..={max}"),
            Allowed::ZeroOr { min, max } => format!("0 or {min}..={max}"),
            Allowed::Words(words) => {
                words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
            }
            Allowed::Path => "path; relative to the settings file".into(),
            Allowed::Address => "IP:PORT".into(),
            Allowed::Peers => "N=HOST:PORT for peers by number, separated by spaces".into(),
            Allowed::Host => "HOST:PORT".into(),
            Allowed::Hosts => "up to 16 HOST:PORT, separated by spaces".into(),
            Allowed::Prefixes => "up to 64 prefixes of keys, separated by spaces".into(),
        }
    }
}

/// All settings for a terminal.
pub fn settings_table() -> String {
    let mut text = String::from("Settings of a node (TOML; a dot means a [section]):\n");
    for setting in SETTINGS {
        let unit = if setting.unit.is_empty() { String::new() } else { format!(", in {}", setting.unit) };
        let _ = write!(
            text,
            "\n{}\n    {}\n    default {}{unit}; allowed {}\n",
            setting.key,
            setting.what,
            setting.preset_text(),
            setting.allowed_text()
        );
    }
    text
}

/// All settings as the page of the operator's manual.
pub fn settings_markdown() -> String {
    let mut text = String::from(
        "# Settings of a node\n\n\
         `dwcp server --config FILE` reads one TOML file; `dwcp init` writes one per node. A dot means a section:\n\
         `consensus.view_timeout_ms` is `view_timeout_ms` under `[consensus]`. An unknown key, a value of the wrong type or\n\
         outside its range is refused with its line and what to write instead; nothing is silently corrected. The same list is\n\
         printed by `dwcp server --help-settings`. What all nodes must agree on (members, mode, trust, f, Raft, default\n\
         acknowledgement, calm, checkpoint interval, window, quota) is no setting: it stands in the genesis, and `dwcp mode set`\n\
         and `dwcp policy set` change what may change.\n\n\
         This page is generated from `shell/node/src/settings/table.rs`; a test compares the two.\n\n\
         | setting | unit | default | allowed | what |\n|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let unit = if setting.unit.is_empty() { "-" } else { setting.unit };
        let _ = writeln!(
            text,
            "| `{}` | {unit} | {} | {} | {} |",
            setting.key,
            setting.preset_text(),
            setting.allowed_text(),
            setting.what
        );
    }
    text
}
