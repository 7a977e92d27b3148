//! Every setting there is: name, unit, default, range and reason. The one place where they are listed.
//!
//! It knows no file and no value; `reader.rs` judges values by it.

use std::fmt::Write;

use dwcp_base::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, PROPOSAL_BYTES_MAX};

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
const HOUR_MS: u64 = 3_600_000;
const WEEK_MS: u64 = 7 * 24 * HOUR_MS;

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
        "decided proposals kept in memory for replicas that lag; one that lags further fetches the whole state; up to twice \
         this is kept while one fetches a snapshot, up to four times while no snapshot gets written",
    ),
    number(
        "consensus.batch_frames_max",
        "frames",
        Preset::Number(1_024),
        (1, 4_096),
        "as consensus.batch_bytes_max, counted in client frames",
    ),
    number(
        "consensus.snapshot_log_bytes",
        "bytes",
        Preset::Number(32 * MIB),
        (64 * KIB, GIB),
        "a snapshot is written at the first checkpoint after so many bytes of log; equal on all nodes, one \
         that lags can fetch it from several at once; at most half of consensus.history_bytes_max",
    ),
    number(
        "consensus.censorship_factor",
        "view timeouts",
        Preset::Number(5),
        (2, 100),
        "one command that waits for so many view timeouts while others execute makes this node give up on the \
         primary too",
    ),
    Setting {
        key: "consensus.resend_interval_ms",
        unit: "ms",
        preset: Preset::Number(0),
        allowed: Allowed::ZeroOr { min: 5, max: 10_000 },
        what: "after how long without progress lost messages are asked for again; at most the view timeout. 0: a \
         quarter of the view timeout, at most 1 s (50 ms in datacenter mode)",
    },
    Setting {
        key: "consensus.relay_after_ms",
        unit: "ms",
        preset: Preset::Number(0),
        allowed: Allowed::ZeroOr { min: 1, max: 60_000 },
        what: "after how long a command that has not executed is shown to all nodes, who then watch the primary; \
         shrinks to eight measured rounds where those are quick; at most the view timeout. 0: a quarter of \
         the view timeout",
    },
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
        "segment.log_entries_max",
        "entries",
        Preset::Number(1_048_576),
        (16, 1 << 24),
        "in a Raft segment: entries kept in memory that no snapshot covers yet; at the bound a leader refuses \
         commands. A follower takes up to twice its own bound from the leader, so keep it alike on all nodes",
    ),
    number(
        "segment.log_bytes_max",
        "bytes",
        Preset::Number(256 * MIB),
        (PROPOSAL_BYTES_MAX as u64, 16 * GIB),
        "as segment.log_entries_max, counted in bytes",
    ),
    number(
        "segment.uncommitted_bytes_max",
        "bytes",
        Preset::Number(64 * MIB),
        (PROPOSAL_BYTES_MAX as u64, GIB),
        "in a Raft segment: proposed by this leader and not yet committed; at the bound further commands are \
         refused as not applied",
    ),
    number(
        "segment.append_entries_max",
        "entries",
        Preset::Number(1_024),
        (1, 65_536),
        "in a Raft segment: entries in one message to a follower",
    ),
    number(
        "segment.append_bytes_max",
        "bytes",
        Preset::Number(MIB),
        (KIB, MESSAGE_BYTES_MAX as u64 / 2),
        "as segment.append_entries_max, counted in bytes; a single larger entry travels alone",
    ),
    number(
        "segment.inflight_entries_max",
        "entries",
        Preset::Number(16_384),
        (1, 1 << 20),
        "in a Raft segment: entries sent to one follower and not yet answered; more fill long links, fewer \
         spare slow ones",
    ),
    number(
        "segment.inflight_bytes_max",
        "bytes",
        Preset::Number(16 * MIB),
        (KIB, GIB),
        "as segment.inflight_entries_max, counted in bytes",
    ),
    number(
        "segment.reads_max",
        "reads",
        Preset::Number(65_536),
        (1, 1 << 20),
        "in a Raft segment: reads that wait for the leader's proof that it still leads; further ones are \
         refused as busy",
    ),
    number(
        "segment.apply_bytes",
        "bytes",
        Preset::Number(512 * KIB),
        (1, GIB),
        "in a Raft segment: committed entries executed in one turn, and one entry more; a node that catches \
         up looks at messages and timers between two turns",
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
        "messages that wait for one peer's link; at the bound hints are dropped first, then bulk data, and votes last",
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
    number(
        "sync.exchange_peers",
        "peers",
        Preset::Number(1),
        (1, 16),
        "peers asked in each round of comparisons; more find what a lost push left out sooner, fewer cost \
         less bandwidth",
    ),
    number(
        "sync.answer_bytes_max",
        "bytes",
        Preset::Number(MIB),
        (256 * KIB, 4 * MIB),
        "frames of convergent state in one message; a single larger frame travels alone",
    ),
    number(
        "sync.budget_bytes_max",
        "bytes",
        Preset::Number(32 * MIB),
        (256 * KIB, GIB),
        "frames of convergent state answered to one peer within one exchange interval; the rest comes in \
         later ones",
    ),
    number(
        "sync.waiting_frames_max",
        "frames",
        Preset::Number(256),
        (1, 4_096),
        "frames of one writer that wait for one before them; at the bound the farthest gives way and is \
         fetched again later",
    ),
    number(
        "sync.waiting_bytes_max",
        "bytes",
        Preset::Number(4 * MIB),
        (256 * KIB, GIB),
        "as sync.waiting_frames_max, counted in bytes",
    ),
    number(
        "sync.waiting_total_bytes_max",
        "bytes",
        Preset::Number(64 * MIB),
        (256 * KIB, GIB),
        "as sync.waiting_bytes_max, for all writers together; at least that",
    ),
    number(
        "sync.apply_frames_max",
        "frames",
        Preset::Number(256),
        (1, 511),
        "frames of one writer handed to the store and not yet part of its state; the next wait",
    ),
    number(
        "sync.apply_bytes_max",
        "bytes",
        Preset::Number(8 * MIB),
        (256 * KIB, 15 * MIB),
        "as sync.apply_frames_max, counted in bytes",
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
    number(
        "links.patience_bytes",
        "bytes",
        Preset::Number(256 * KIB),
        (32 * KIB, GIB),
        "a message of a lower class moves on after so many bytes of higher ones went ahead of it; more put \
         votes further ahead of bulk data, fewer let bulk data through on a full link. Each class may hold \
         half of queues.send_bytes_max",
    ),
    number(
        "links.write_bytes_max",
        "bytes",
        Preset::Number(64 * KIB),
        (KIB, 16 * MIB),
        "bytes that leave for a peer in one write; more cost less processor, fewer let a vote overtake sooner",
    ),
    number(
        "links.handshakes_max",
        "connections",
        Preset::Number(64),
        (1, 65_536),
        "connections of peers that have not yet proven who they are, a quarter kept for addresses at which a \
         peer was found; further ones are closed at once",
    ),
    number(
        "links.handshake_timeout_ms",
        "ms",
        Preset::Number(5_000),
        (1, HOUR_MS),
        "how long a connection of a peer may take to prove who it is",
    ),
    number(
        "links.connect_timeout_ms",
        "ms",
        Preset::Number(2_000),
        (1, HOUR_MS),
        "how long one attempt to reach one address of a peer may take",
    ),
    number(
        "links.reconnect_pause_min_ms",
        "ms",
        Preset::Number(20),
        (1, HOUR_MS),
        "first pause before a peer is called again; each doubles and is shortened by chance down to its half",
    ),
    number(
        "links.reconnect_pause_max_ms",
        "ms",
        Preset::Number(2_000),
        (1, HOUR_MS),
        "the longest such pause; at least the first",
    ),
    number(
        "links.ping_interval_ms",
        "ms",
        Preset::Number(1_000),
        (1, HOUR_MS / 2),
        "how often a link gives a sign of life; well below every peer's links.silence_max_ms",
    ),
    number(
        "links.silence_max_ms",
        "ms",
        Preset::Number(5_000),
        (2, HOUR_MS),
        "a link on which nothing arrived for so long is cut and made anew; at least twice the ping interval, \
         also that of the peers",
    ),
    number(
        "clients.streams_max",
        "streams",
        Preset::Number(32),
        (1, 65_536),
        "streams and calls at once on one client connection; further ones wait",
    ),
    number(
        "clients.questions_max",
        "requests",
        Preset::Number(256),
        (1, 65_536),
        "queries, orders and statuses of one stream without answer; further ones are refused",
    ),
    number(
        "clients.attaches_max",
        "sessions",
        Preset::Number(4_096),
        (1, dwcp_replica::ATTACHES_MAX as u64),
        "sessions that one stream attaches; a client that attaches one more is cut off and may begin afresh",
    ),
    number(
        "clients.handshake_timeout_ms",
        "ms",
        Preset::Number(5_000),
        (1, HOUR_MS),
        "a client's TLS handshake that takes longer is dropped",
    ),
    number(
        "clients.slow_reader_timeout_ms",
        "ms",
        Preset::Number(10_000),
        (1, HOUR_MS),
        "a client that takes nothing of what waits for it for so long is cut off",
    ),
    number(
        "clients.call_timeout_ms",
        "ms",
        Preset::Number(30_000),
        (1, HOUR_MS),
        "how long a single call of a client waits for this node",
    ),
    number(
        "clients.busy_patience_ms",
        "ms",
        Preset::Number(1_000),
        (1, HOUR_MS),
        "how long a client's frame waits for room in this node before it is refused as busy",
    ),
    number(
        "clients.stop_patience_ms",
        "ms",
        Preset::Number(2_000),
        (1, HOUR_MS),
        "how long a stopping node lets clients finish",
    ),
    number(
        "http.connections_max",
        "connections",
        Preset::Number(64),
        (2, 65_536),
        "connections to http_listen at once; further ones wait in the kernel's queue",
    ),
    number(
        "http.connection_lifetime_ms",
        "ms",
        Preset::Number(30_000),
        (20_000, HOUR_MS),
        "a connection to http_listen may stay so long, busy or not, so that idle ones cannot keep probes out; \
         watches of convergent keys may stay longer",
    ),
    number(
        "http.watches_max",
        "watches",
        Preset::Number(16),
        (1, 65_535),
        "watches of convergent keys over HTTP at once, below http.connections_max so that probes find a \
         place; further ones are refused",
    ),
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
         and `dwcp policy set` change what may change. Bounds that decide what is valid (sizes of commands, client frames,\n\
         proposals and messages, sessions and their window, depth and length of transactions) are constants of the program,\n\
         in `core/base/src/limits.rs`. In the bounds below nodes may differ; where they should be alike it says so. What a module\n\
         bounds for itself alone (buffers, parts of one answer) is a constant beside its code.\n\n\
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
