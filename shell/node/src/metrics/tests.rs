//! The exposition is judged by the rules of `promtool check metrics`, and by promtool itself where it is installed.

use std::collections::BTreeMap;

use dwcp_base::{Hash, Incarnation, Position, PublicKey, ReplicaId, Sequence, View};
use dwcp_replica::{Event, PeerStatus};
use dwcp_transport::{PeerId, PeerStats};

use super::*;

fn status() -> Status {
    let peer = |id, silent_ms| PeerStatus {
        id: ReplicaId(id),
        view: View(3),
        executed: Sequence(9),
        stable: Sequence(8),
        silent_ms,
    };
    Status {
        replica: ReplicaId(3),
        incarnation: Incarnation(0),
        n: 4,
        f: 1,
        view: View(3),
        view_active: true,
        primary: ReplicaId(3),
        executed: Sequence(900),
        stable: Sequence(768),
        highest_seen: Sequence(901),
        position: Position(5),
        chain: Hash::ZERO,
        state_digest_sequence: Sequence(896),
        state_digest: Hash::ZERO,
        pending_frames: 17,
        pending_bytes: 1700,
        executed_commands: 64_000,
        log_time_ms: 1_700_000_000_500,
        voter: true,
        transferring: false,
        not_ready: vec![],
        counters: vec![("forgeries".into(), 2), ("odd \"name\"".into(), 1)],
        peers: vec![peer(0, 1500), peer(1, u64::MAX)],
        vote_key: PublicKey::default(),
        mode: dwcp_base::NetworkMode::Hybrid,
        trust: dwcp_base::Trust::Crash,
        raft: true,
        default_ack: dwcp_base::Ack::Majority,
        next_order: 1,
        epoch: dwcp_base::Epoch(6),
        protocol: ProtocolName::Raft,
        orderer: Some(ReplicaId(0)),
        segment: Some(dwcp_replica::SegmentStatus {
            term: dwcp_base::Term(2),
            leader: Some(ReplicaId(0)),
            last: dwcp_base::Index(14),
            committed: dwcp_base::Index(13),
            applied: dwcp_base::Index(12),
            anchored: dwcp_base::Index(11),
            anchored_position: Position(4),
            sealed: false,
            suspecting: true,
        }),
        failovers: 7,
        last_switch: Some(dwcp_replica::SwitchStatus {
            epoch: dwcp_base::Epoch(6),
            to: ProtocolName::Raft,
            planned: true,
            sequence: Sequence(899),
            gap_us: 31_000,
            at_unix_ms: 0,
            cause: "asked".into(),
        }),
        no_segment: String::new(),
        sync: Some(dwcp_replica::SyncStatus {
            sync_count: 3,
            conflict_count: 2,
            refused: vec![("forged".into(), 1)],
            peers: vec![dwcp_replica::sync::SyncPeerStatus {
                id: ReplicaId(1),
                lag_frames: 4,
                lag_ms: 1_500,
                last_exchange_ms: 250,
                exchanges: 9,
                bytes_in: 10,
                bytes_out: 11,
                withholds: true,
                fault: "does not acknowledge".into(),
            }],
            ..dwcp_replica::SyncStatus::default()
        }),
    }
}

fn links() -> TransportStats {
    let peer = PeerStats {
        id: PeerId(1),
        addr: "127.0.0.1:1".into(),
        dialled: Some("127.0.0.1:9".into()),
        up: true,
        incoming_up: false,
        peer_incarnation: Some(0),
        rtt_p50_us: Some(250),
        rtt_p95_us: None,
        delivery_rate_bytes_per_s: None,
        bytes_in: 1,
        bytes_out: 2,
        frames_in: 3,
        frames_out: 4,
        queue_bytes: 5,
        dropped: [0, 1, 2, 3, 4],
        reconnects: 6,
        sink_waits: 7,
        ends: vec![(Reason::Silent, 2)],
    };
    TransportStats { peers: vec![peer], strangers: vec![(Reason::NotTls, 9)], pending_handshakes: 0 }
}

fn text(metrics: &Metrics) -> String {
    let (status, links) = (status(), links());
    let hint = dwcp_hints::Hint {
        replica: ReplicaId(1),
        standing: dwcp_hints::Standing::Suspect,
        since: Micros::from_millis(500),
        address: Some("127.0.0.1:9".into()),
        seed: None,
        version: 3,
    };
    let hints = HintReport { hints: vec![hint], overflows: 2, ..HintReport::default() };
    let scrape = Scrape {
        metrics,
        status: Some(&status),
        links: Some(&links),
        hints: &hints,
        now: Micros::from_millis(2_000),
        depth: Depth::default(),
        process: ProcessFigures::read(),
        uptime: Duration::from_millis(1500),
    };
    scrape.text()
}

fn worked() -> Metrics {
    let metrics = Metrics::default();
    metrics.count_refusal("bad signature");
    metrics.count_refusal("bad signature");
    metrics.count_refusal("old view");
    for micros in [50, 51, 2_000_000] {
        metrics.sync_us.observe(micros);
    }
    metrics.batch_commands.observe(64);
    metrics
}

#[test]
fn the_eight_pbft_figures_and_the_rest_are_told() {
    let text = text(&worked());
    for line in [
        "dwcp_pbft_view 3",
        "dwcp_pbft_checkpoint_seq 896",
        "dwcp_pbft_stable_checkpoint 768",
        "dwcp_pbft_executed_requests_total 64000",
        "dwcp_pbft_pending_requests 17",
        "dwcp_pbft_byzantine_tolerance 1",
        "dwcp_pbft_replicas 4",
        "dwcp_pbft_is_primary 1",
        "dwcp_mode{mode=\"internet\"} 0",
        "dwcp_mode{mode=\"hybrid\"} 1",
        "dwcp_trust{trust=\"crash\"} 1",
        "dwcp_protocol{protocol=\"raft\"} 1",
        "dwcp_epoch 6",
        "dwcp_failovers_total 7",
        "dwcp_orders_commands 0",
        "dwcp_position 5",
        "dwcp_anchored_position 4",
        "dwcp_switch_gap_seconds 0.031",
        "dwcp_segment_term 2",
        "dwcp_segment_committed_index 13",
        "dwcp_segment_applied_index 12",
        "dwcp_segment_anchored_index 11",
        "dwcp_segment_suspected 1",
        "dwcp_refused_total{reason=\"bad signature\"} 2",
        "dwcp_wal_fsync_duration_seconds_bucket{le=\"0.00005\"} 1",
        "dwcp_wal_fsync_duration_seconds_bucket{le=\"0.0001\"} 2",
        "dwcp_wal_fsync_duration_seconds_bucket{le=\"1\"} 2",
        "dwcp_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 3",
        "dwcp_wal_fsync_duration_seconds_count 3",
        "dwcp_wal_fsync_duration_seconds_sum 2.000101",
        "dwcp_batch_commands_bucket{le=\"32\"} 0",
        "dwcp_batch_commands_bucket{le=\"64\"} 1",
        "dwcp_link_rtt_seconds{peer=\"1\",q=\"0.5\"} 0.00025",
        "dwcp_link_dropped_frames_total{peer=\"1\",class=\"bulk\"} 3",
        "dwcp_link_dropped_frames_total{peer=\"1\",class=\"hint\"} 4",
        "dwcp_link_address_info{peer=\"1\",address=\"127.0.0.1:9\"} 1",
        "dwcp_link_ends_total{peer=\"unknown\",reason=\"not_tls\"} 9",
        "dwcp_hint_standing{peer=\"1\",standing=\"suspect\"} 1",
        "dwcp_hint_standing{peer=\"1\",standing=\"alive\"} 0",
        "dwcp_hint_since_seconds{peer=\"1\"} 1.5",
        "dwcp_hint_dropped_total{reason=\"overflow\"} 2",
        "dwcp_hint_dropped_total{reason=\"bad_signature\"} 0",
        "dwcp_peer_silent_seconds{peer=\"0\"} 1.5",
        "dwcp_core_events_total{event=\"odd \\\"name\\\"\"} 1",
        "dwcp_uptime_seconds 1.5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing from\n{text}");
    }
    assert!(!text.contains("dwcp_peer_silent_seconds{peer=\"1\"}"), "never heard is no number");
}

#[test]
fn what_happens_to_segments_is_counted() {
    let metrics = Metrics::default();
    let (epoch, sequence) = (dwcp_base::Epoch(6), Sequence(9));
    let (index, position, term) = (dwcp_base::Index(12), Position(5), dwcp_base::Term(2));
    let closed = |forced| Event::SegmentClosed {
        epoch,
        sequence,
        tail: index,
        position,
        forced,
        marker: !forced,
        cut: 3,
        rolled_back: u64::from(forced),
        deferred: 0,
    };
    let chain = Hash::ZERO;
    for event in [
        Event::SegmentOpened { epoch, sequence, base: position, first_leader: None, member: true },
        Event::LeaderChanged { epoch, term, leader: None },
        Event::LeaderChanged { epoch, term, leader: Some(ReplicaId(1)) },
        Event::SegmentExecuted { epoch, index, position, chain, commands: vec![] },
        Event::Anchored { epoch, sequence, index, position },
        Event::Suspected { epoch, reason: "nothing commits" },
        closed(true),
        closed(false),
    ] {
        crate::events::tell(&event, &metrics, 1);
    }
    let text = text(&metrics);
    for line in [
        "dwcp_consensus_total{protocol=\"raft\"} 1",
        "dwcp_segments_opened_total 1",
        "dwcp_segments_closed_total{cause=\"planned\"} 1",
        "dwcp_segments_closed_total{cause=\"forced\"} 1",
        "dwcp_segment_entries_cut_total 6",
        "dwcp_segment_entries_rolled_back_total 1",
        "dwcp_anchors_total 1",
        "dwcp_suspicions_total 1",
        "dwcp_leader_changes_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing from\n{text}");
    }
}

#[test]
fn every_figure_of_state_sync_is_told_with_its_own_value() {
    let peer = |id: u8, last_exchange_ms| dwcp_replica::sync::SyncPeerStatus {
        id: ReplicaId(id),
        lag_frames: 31,
        lag_ms: 1_500,
        last_exchange_ms,
        exchanges: 9,
        bytes_in: 33,
        bytes_out: 34,
        withholds: id == 1,
        fault: String::new(),
    };
    let sync = dwcp_replica::SyncStatus {
        sync_count: 1,
        last_sync_unix_ms: 2_500,
        avg_sync_latency_us: 3_000,
        conflict_count: 4,
        conflicts_open: 5,
        not_open: String::new(),
        keys: 6,
        tombstones: 7,
        frames_written: 8,
        frames_applied: 9,
        frames_ordered: 10,
        fallbacks: 11,
        writes_refused: 12,
        exchanges: 13,
        frames_kept: 14,
        frames_kept_bytes: 15,
        frames_waiting: 16,
        ordering: 17,
        floor: 18,
        keys_damaged: 19,
        keys_repaired: 28,
        bundles_refused: 20,
        frozen_origins: 21,
        frozen: vec![],
        resolutions_impure: 22,
        needs_snapshot: false,
        snapshots_installed: 23,
        snapshots_refused: 24,
        donors_stalled: 25,
        floors_missed: 29,
        refused: vec![("forged".into(), 26), ("clock ahead".into(), 27)],
        peers: vec![peer(1, 250), peer(2, u64::MAX)],
    };
    let mut out = Exposition::default();
    convergent::write(&sync, &mut out);
    let text = out.finish();
    let expected = [
        "dwcp_sync_total 1",
        "dwcp_sync_last_time_seconds 2.5",
        "dwcp_sync_avg_latency_seconds 0.003",
        "dwcp_sync_conflicts_total 4",
        "dwcp_sync_conflicts_open 5",
        "dwcp_sync_open 1",
        "dwcp_sync_keys 6",
        "dwcp_sync_tombstones 7",
        "dwcp_sync_frames_written_total 8",
        "dwcp_sync_frames_applied_total 9",
        "dwcp_sync_frames_ordered_total 10",
        "dwcp_sync_fallbacks_total 11",
        "dwcp_sync_writes_refused_total 12",
        "dwcp_sync_exchanges_total 13",
        "dwcp_sync_kept_frames 14",
        "dwcp_sync_kept_bytes 15",
        "dwcp_sync_waiting_frames 16",
        "dwcp_sync_ordering_frames 17",
        "dwcp_sync_floor 18",
        "dwcp_sync_damaged_keys_total 19",
        "dwcp_sync_repaired_keys_total 28",
        "dwcp_sync_bundles_refused_total 20",
        "dwcp_sync_frozen_origins 21",
        "dwcp_sync_resolutions_impure_total 22",
        "dwcp_sync_snapshots_installed_total 23",
        "dwcp_sync_snapshots_refused_total 24",
        "dwcp_sync_donors_stalled_total 25",
        "dwcp_sync_floors_missed_total 29",
        "dwcp_sync_refused_total{reason=\"forged\"} 26",
        "dwcp_sync_refused_total{reason=\"clock ahead\"} 27",
        "dwcp_sync_peer_lag_frames{peer=\"1\"} 31",
        "dwcp_sync_peer_lag_frames{peer=\"2\"} 31",
        "dwcp_sync_peer_withholds{peer=\"1\"} 1",
        "dwcp_sync_peer_withholds{peer=\"2\"} 0",
        "dwcp_sync_peer_lag_seconds{peer=\"1\"} 1.5",
        "dwcp_sync_peer_lag_seconds{peer=\"2\"} 1.5",
        // With peer 2 there never was one, which is no number.
        "dwcp_sync_peer_exchange_age_seconds{peer=\"1\"} 0.25",
        "dwcp_sync_peer_received_bytes_total{peer=\"1\"} 33",
        "dwcp_sync_peer_received_bytes_total{peer=\"2\"} 33",
        "dwcp_sync_peer_sent_bytes_total{peer=\"1\"} 34",
        "dwcp_sync_peer_sent_bytes_total{peer=\"2\"} 34",
    ];
    let told: std::collections::BTreeSet<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(told, expected.into());

    let not_open =
        dwcp_replica::SyncStatus { not_open: "not yet".into(), ..dwcp_replica::SyncStatus::default() };
    let mut out = Exposition::default();
    convergent::write(&not_open, &mut out);
    assert!(out.finish().lines().any(|line| line == "dwcp_sync_open 0"));
}

#[test]
fn who_contradicted_itself_and_who_holds_up_collecting_is_counted() {
    let metrics = Metrics::default();
    let origin = || Event::OriginFrozen { origin: "o3".into() };
    for event in
        [origin(), origin(), Event::MemberHoldsUp { member: "3".into(), how: "does not acknowledge" }]
    {
        crate::events::tell(&event, &metrics, 1);
    }
    let text = text(&metrics);
    for line in ["dwcp_sync_origins_frozen_total 2", "dwcp_sync_holdups_named_total 1"] {
        assert!(text.lines().any(|found| found == line), "{line} is missing from\n{text}");
    }
}

#[test]
fn a_silent_core_still_leaves_what_is_known_without_it() {
    let metrics = worked();
    let scrape = Scrape {
        metrics: &metrics,
        status: None,
        links: None,
        hints: &HintReport::default(),
        now: Micros::ZERO,
        depth: Depth::default(),
        process: ProcessFigures::default(),
        uptime: Duration::ZERO,
    };
    let text = scrape.text();
    assert!(text.contains("dwcp_core_up 0\n") && text.contains("dwcp_wal_fsync_duration_seconds_count 3\n"));
    assert!(!text.contains("dwcp_pbft_view ") && !text.contains("dwcp_mode"), "what only the core knows");
}

/// The linter's rules that can be broken here: HELP and TYPE once and first, counters in `_total` and nothing else,
/// base units, no type in a name, no reserved label, no sample twice.
#[test]
fn the_exposition_follows_the_rules_of_promtool() {
    let text = text(&worked());
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = "";
    let mut samples = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a help text");
            assert!(!words.trim().is_empty() && !kinds.contains_key(name), "{line}");
            helped = name;
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, helped, "HELP and TYPE stand together");
            kinds.insert(name, kind);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            for bad in [
                "_ms",
                "_micros",
                "_milliseconds",
                "_minutes",
                "_kilobytes",
                "_mb",
                "gauge",
                "counter",
                "histogram",
            ] {
                assert!(
                    !name.split('_').any(|part| part == bad.trim_start_matches('_')),
                    "{name} names {bad}"
                );
            }
            if kind != "histogram" {
                assert!(
                    !name.ends_with("_count") && !name.ends_with("_sum") && !name.ends_with("_bucket"),
                    "{name}"
                );
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        assert!(samples.insert(sample.to_string()), "{sample} comes twice");
        let name = sample.split('{').next().expect("a name");
        let family = if kinds.get(helped) == Some(&"histogram") {
            name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count")
        } else {
            name
        };
        assert_eq!(family, helped, "a sample stands under its family");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
    }
    assert!(kinds.len() > 50);
}

#[test]
fn promtool_finds_nothing_where_it_is_installed() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        let line =
            "SKIPPED(needs-promtool): dwcp-node metrics::tests::promtool_finds_nothing_where_it_is_installed";
        println!("{line}");
        if let Some(log) = std::env::var_os("DWCP_SKIP_LOG") {
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
            writeln!(log, "{line}").unwrap();
        }
        return;
    };
    promtool.stdin.take().unwrap().write_all(text(&worked()).as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn every_figure_is_explained_in_the_manual() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/metrics.md");
    let mut wanted = String::from(
        "# Figures of a node\n\n\
         `GET /metrics` on a node's `http_listen` answers in Prometheus' text format. Units are seconds and bytes. Figures\n\
         that come from the core (`dwcp_pbft_*` and others) are missing from a scrape that the core did not answer within two\n\
         seconds; `dwcp_core_up` is 0 then.\n\n\
         This page is generated from `shell/node/src/metrics.rs`; a test compares the two.\n\n\
         | figure | type | what |\n|---|---|---|\n",
    );
    let text = text(&worked());
    let mut help = ("", "");
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            help = line.split_once(' ').unwrap();
        } else if let Some(line) = line.strip_prefix("# TYPE ") {
            let kind = line.split_once(' ').unwrap().1;
            wanted += &format!("| `{}` | {kind} | {} |\n", help.0, help.1);
        }
    }
    if std::env::var_os("DWCP_WRITE_DOCS").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&page).unwrap_or_default() == wanted,
        "docs/operating/metrics.md is not what the code says: run \
         `DWCP_WRITE_DOCS=1 cargo test -p dwcp-node every_figure`"
    );
}
