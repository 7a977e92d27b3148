//! Figures of convergent state.

use std::time::Duration;

use dwcp_replica::SyncStatus;
use dwcp_replica::sync::SyncPeerStatus;

use crate::exposition::Exposition;

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// What the core says of it.
pub(super) fn write(sync: &SyncStatus, out: &mut Exposition) {
    out.counter("dwcp_sync_total", "Convergent writes acknowledged here: sync_count.", sync.sync_count);
    out.gauge(
        "dwcp_sync_last_time_seconds",
        "When the last one was, Unix time; 0 for never: last_sync_time.",
        Duration::from_millis(sync.last_sync_unix_ms).as_secs_f64(),
    );
    out.gauge(
        "dwcp_sync_avg_latency_seconds",
        "From a write's arrival to its acknowledgement: avg_sync_latency.",
        seconds(sync.avg_sync_latency_us),
    );
    out.counter(
        "dwcp_sync_conflicts_total",
        "Real concurrent writes that this node has seen, conflict_count: alike on nodes that applied the same, but for clashes of kinds that ended unsettled.",
        sync.conflict_count,
    );
    out.gauge("dwcp_sync_conflicts_open", "Of those, the ones that nobody has settled.", sync.conflicts_open);
    out.gauge("dwcp_sync_open", "1 when this node takes part.", u8::from(sync.not_open.is_empty()));
    out.gauge("dwcp_sync_keys", "Convergent keys that exist.", sync.keys);
    out.gauge("dwcp_sync_tombstones", "Convergent keys of which only a tombstone is left.", sync.tombstones);
    out.counter("dwcp_sync_frames_written_total", "Frames made here.", sync.frames_written);
    out.counter("dwcp_sync_frames_applied_total", "Frames of others applied here.", sync.frames_applied);
    out.counter("dwcp_sync_frames_ordered_total", "Frames that came by the log.", sync.frames_ordered);
    out.counter(
        "dwcp_sync_fallbacks_total",
        "Hybrid writes that the log did not take in time.",
        sync.fallbacks,
    );
    out.counter("dwcp_sync_writes_refused_total", "Convergent writes refused.", sync.writes_refused);
    out.counter("dwcp_sync_exchanges_total", "Exchanges with peers that ended.", sync.exchanges);
    out.gauge("dwcp_sync_kept_frames", "Frames kept for peers.", sync.frames_kept);
    out.gauge("dwcp_sync_kept_bytes", "Bytes of frames kept for peers.", sync.frames_kept_bytes);
    out.gauge("dwcp_sync_waiting_frames", "Frames that wait for one before them.", sync.frames_waiting);
    out.gauge("dwcp_sync_ordering_frames", "Frames that wait to be ordered by the log.", sync.ordering);
    out.gauge("dwcp_sync_floor", "The newest collection floor.", sync.floor);
    out.gauge("dwcp_sync_frozen_origins", "Origins that contradicted themselves.", sync.frozen_origins);
    out.counter("dwcp_sync_damaged_keys_total", "Keys that an audit found to differ.", sync.keys_damaged);
    out.counter(
        "dwcp_sync_repaired_keys_total",
        "Keys that had changed by themselves and were put right from other members.",
        sync.keys_repaired,
    );
    out.counter(
        "dwcp_sync_snapshots_installed_total",
        "Snapshots of peers that took the place of the convergent store.",
        sync.snapshots_installed,
    );
    out.counter(
        "dwcp_sync_snapshots_refused_total",
        "Snapshots of peers that were not taken.",
        sync.snapshots_refused,
    );
    out.counter(
        "dwcp_sync_donors_stalled_total",
        "Donors of snapshots that gave nothing more, so that another was asked.",
        sync.donors_stalled,
    );
    out.counter(
        "dwcp_sync_floors_missed_total",
        "Collection floors that were committed in slots which this node skipped with a snapshot of the root.",
        sync.floors_missed,
    );
    out.counter(
        "dwcp_sync_bundles_refused_total",
        "Frames handed to the convergent store that it refused.",
        sync.bundles_refused,
    );
    out.counter(
        "dwcp_sync_resolutions_impure_total",
        "Sets of siblings for which a custom resolver gave two answers.",
        sync.resolutions_impure,
    );
    let mut family = out.counters("dwcp_sync_refused_total", "What came and was dropped, by reason.");
    for (reason, count) in &sync.refused {
        family.sample(&[("reason", reason)], count);
    }
    let ids: Vec<String> = sync.peers.iter().map(|peer| peer.id.to_string()).collect();
    let peers = || sync.peers.iter().zip(&ids);
    let mut family = out.gauges("dwcp_sync_peer_lag_frames", "Frames acknowledged here and not by the peer.");
    for (peer, id) in peers() {
        family.sample(&[("peer", id)], peer.lag_frames);
    }
    let mut family =
        out.gauges("dwcp_sync_peer_withholds", "1 while the peer keeps everybody from collecting.");
    for (peer, id) in peers() {
        family.sample(&[("peer", id)], u8::from(peer.withholds));
    }
    let mut family = out.gauges("dwcp_sync_peer_lag_seconds", "For how long the peer has lacked some.");
    for (peer, id) in peers() {
        family.sample(&[("peer", id)], seconds(peer.lag_ms * 1_000));
    }
    let mut family = out.gauges("dwcp_sync_peer_exchange_age_seconds", "Since the last exchange with it.");
    for (peer, id) in peers().filter(|(peer, _)| peer.last_exchange_ms != u64::MAX) {
        family.sample(&[("peer", id)], seconds(peer.last_exchange_ms * 1_000));
    }
    type Figure = fn(&SyncPeerStatus) -> u64;
    let counters: [(&'static str, &str, Figure); 2] = [
        ("dwcp_sync_peer_received_bytes_total", "Bytes of state sync from the peer.", |peer| peer.bytes_in),
        ("dwcp_sync_peer_sent_bytes_total", "Bytes of state sync to the peer.", |peer| peer.bytes_out),
    ];
    for (name, help, figure) in counters {
        let mut family = out.counters(name, help);
        for (peer, id) in peers() {
            family.sample(&[("peer", id)], figure(peer));
        }
    }
}
