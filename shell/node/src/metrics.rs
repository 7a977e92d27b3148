//! What this node counts, and how it tells Prometheus.
//!
//! The core loop adds to atomics; a scrape reads them together with the core's own status, the links' figures and the
//! process' use of the machine. Names follow the ecosystem's conventions; `docs/operating/metrics.md` explains them.
//! Nothing here decides anything.

mod convergent;
mod hints;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwcp_base::{Micros, NetworkMode, Trust};
use dwcp_replica::{ProtocolName, Status};
use dwcp_transport::{Class, Reason, TransportStats};

use crate::exposition::{Exposition, Family, seconds};
use crate::genesis_file::trust_word;
use crate::hinting::HintReport;
use crate::inbox::Depth;
use crate::process::ProcessFigures;

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by bucket. `per_unit` observed units make one base unit (1,000,000 microseconds a second).
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    per_unit: f64,
    /// One more than there are bounds.
    counts: Vec<Counter>,
    sum: Counter,
}

impl Histogram {
    fn new(bounds: &'static [u64], per_unit: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| Counter::default()).collect();
        Self { bounds, per_unit, counts, sum: Counter::default() }
    }

    pub(crate) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].add(1);
        self.sum.add(value);
    }

    /// Each bucket's upper bound (`None`: none) and count, and the sum of all.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn read(&self) -> (Vec<(Option<f64>, u64)>, f64) {
        let bounds = self.bounds.iter().map(|&bound| Some(bound as f64 / self.per_unit)).chain([None]);
        let buckets = bounds.zip(&self.counts).map(|(bound, count)| (bound, count.get())).collect();
        (buckets, self.sum.get() as f64 / self.per_unit)
    }
}

const MICROS: f64 = 1e6;
const LATENCY_US: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
const SYNC_US: &[u64] =
    &[50, 100, 150, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];
const COUNTS: &[u64] = &[0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 16_384];

/// Reasons are `&'static str`s of the core, so their number is bounded by its source.
type ByReason = Mutex<Vec<(&'static str, u64)>>;

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) wal_records: Counter,
    pub(crate) wal_record_bytes: Counter,
    pub(crate) wal_bytes_used: Counter,
    pub(crate) wal_bytes_on_disk: Counter,
    pub(crate) sync_us: Histogram,
    pub(crate) burst_inputs: Histogram,
    pub(crate) batch_commands: Histogram,
    pub(crate) consensus_us: Histogram,
    pub(crate) loops: Counter,
    pub(crate) proposals_executed: Counter,
    pub(crate) commands_executed: Counter,
    pub(crate) entries_executed: Counter,
    pub(crate) segments_opened: Counter,
    pub(crate) segments_closed_planned: Counter,
    pub(crate) segments_closed_forced: Counter,
    pub(crate) entries_cut: Counter,
    pub(crate) entries_rolled_back: Counter,
    pub(crate) suspicions: Counter,
    pub(crate) anchors: Counter,
    pub(crate) leader_changes: Counter,
    pub(crate) last_executed_unix_ms: Counter,
    pub(crate) view_changes_started: Counter,
    pub(crate) views_entered: Counter,
    pub(crate) null_slots: Counter,
    pub(crate) stable_checkpoints: Counter,
    pub(crate) transfers_started: Counter,
    pub(crate) transfers_finished: Counter,
    pub(crate) donors_dropped: Counter,
    pub(crate) origins_frozen: Counter,
    pub(crate) holdups_named: Counter,
    pub(crate) divergences: Counter,
    pub(crate) members_replaced: Counter,
    pub(crate) retries_answered: Counter,
    pub(crate) snapshots_saved: Counter,
    pub(crate) snapshots_failed: Counter,
    pub(crate) chunk_reads_refused: Counter,
    pub(crate) clients_cut_off: Counter,
    pub(crate) requests_busy: Counter,
    pub(crate) replies: Counter,
    pub(crate) refused: ByReason,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter = Counter::default;
        Self {
            wal_records: counter(),
            wal_record_bytes: counter(),
            wal_bytes_used: counter(),
            wal_bytes_on_disk: counter(),
            sync_us: Histogram::new(SYNC_US, MICROS),
            burst_inputs: Histogram::new(COUNTS, 1.0),
            batch_commands: Histogram::new(COUNTS, 1.0),
            consensus_us: Histogram::new(LATENCY_US, MICROS),
            loops: counter(),
            proposals_executed: counter(),
            commands_executed: counter(),
            entries_executed: counter(),
            segments_opened: counter(),
            segments_closed_planned: counter(),
            segments_closed_forced: counter(),
            entries_cut: counter(),
            entries_rolled_back: counter(),
            suspicions: counter(),
            anchors: counter(),
            leader_changes: counter(),
            last_executed_unix_ms: counter(),
            view_changes_started: counter(),
            views_entered: counter(),
            null_slots: counter(),
            stable_checkpoints: counter(),
            transfers_started: counter(),
            transfers_finished: counter(),
            donors_dropped: counter(),
            origins_frozen: counter(),
            holdups_named: counter(),
            divergences: counter(),
            members_replaced: counter(),
            retries_answered: counter(),
            snapshots_saved: counter(),
            snapshots_failed: counter(),
            chunk_reads_refused: counter(),
            clients_cut_off: counter(),
            requests_busy: counter(),
            replies: counter(),
            refused: Mutex::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn count_refusal(&self, reason: &'static str) {
        let mut refused = self.refused.lock().expect("no panic while reasons are counted");
        match refused.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => refused.push((reason, 1)),
        }
    }
}

/// Everything a scrape sees at once.
pub(crate) struct Scrape<'a> {
    pub(crate) metrics: &'a Metrics,
    /// `None`: the core did not answer in time.
    pub(crate) status: Option<&'a Status>,
    pub(crate) links: Option<&'a TransportStats>,
    pub(crate) hints: &'a HintReport,
    pub(crate) now: Micros,
    pub(crate) depth: Depth,
    pub(crate) process: ProcessFigures,
    pub(crate) uptime: Duration,
}

impl Scrape<'_> {
    pub(crate) fn text(&self) -> String {
        let mut out = Exposition::default();
        out.gauges("dwcp_build_info", "The program's version; always 1.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        out.gauge("dwcp_core_up", "1 when the core answered this scrape.", u8::from(self.status.is_some()));
        self.write_pbft(&mut out);
        self.write_steering(&mut out);
        self.write_consensus(&mut out);
        self.write_storage(&mut out);
        if let Some(sync) = self.status.and_then(|status| status.sync.as_ref()) {
            convergent::write(sync, &mut out);
        }
        self.write_queues(&mut out);
        self.write_links(&mut out);
        hints::write(self.hints, self.now, &mut out);
        self.write_process(&mut out);
        out.finish()
    }

    fn write_pbft(&self, out: &mut Exposition) {
        let Some(status) = self.status else { return };
        out.gauge("dwcp_pbft_view", "The view this replica works in or asks for.", status.view);
        out.gauge(
            "dwcp_pbft_checkpoint_seq",
            "The newest sequence this replica computed a state digest for.",
            status.state_digest_sequence,
        );
        out.gauge(
            "dwcp_pbft_stable_checkpoint",
            "The newest certified checkpoint's sequence.",
            status.stable,
        );
        out.counter(
            "dwcp_pbft_executed_requests_total",
            "Commands of clients this replica executed.",
            status.executed_commands,
        );
        out.gauge(
            "dwcp_pbft_pending_requests",
            "Client frames that wait to be ordered.",
            status.pending_frames,
        );
        out.gauge(
            "dwcp_pbft_pending_bytes",
            "Bytes of client frames that wait to be ordered.",
            status.pending_bytes,
        );
        out.gauge("dwcp_pbft_byzantine_tolerance", "Members that may lie without harm (f).", status.f);
        out.gauge("dwcp_pbft_replicas", "Members of the cluster: replica_count, n.", status.n);
        out.gauge(
            "dwcp_pbft_is_primary",
            "1 when this replica is the primary of its view.",
            u8::from(status.primary == status.replica),
        );
        out.gauge(
            "dwcp_pbft_view_active",
            "0 while a view change is under way.",
            u8::from(status.view_active),
        );
        out.gauge("dwcp_pbft_executed_seq", "The newest sequence this replica executed.", status.executed);
        out.gauge(
            "dwcp_pbft_highest_seen_seq",
            "The newest sequence anyone showed evidence of.",
            status.highest_seen,
        );
        out.gauge("dwcp_pbft_voter", "1 when this incarnation's votes count.", u8::from(status.voter));
        out.gauge(
            "dwcp_pbft_transferring",
            "1 while the state is fetched from others.",
            u8::from(status.transferring),
        );
        out.gauge("dwcp_ready", "1 when this node can serve.", u8::from(status.not_ready.is_empty()));
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        out.gauge(
            "dwcp_log_time_seconds",
            "The log's own clock, Unix time.",
            status.log_time_ms as f64 / 1e3,
        );
        let mut silence = out.gauges("dwcp_peer_silent_seconds", "Since anything was heard of a peer.");
        for peer in status.peers.iter().filter(|peer| peer.silent_ms != u64::MAX) {
            #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
            silence.sample(&[("peer", &peer.id.to_string())], peer.silent_ms as f64 / 1e3);
        }
        let mut events = out.counters("dwcp_core_events_total", "What the core counted, by name.");
        for (name, count) in &status.counters {
            events.sample(&[("event", name)], count);
        }
    }

    /// Mode, protocol and the open segment.
    fn write_steering(&self, out: &mut Exposition) {
        let Some(status) = self.status else { return };
        let mut modes = out.gauges("dwcp_mode", "1 for the network mode that was ordered last.");
        for mode in [NetworkMode::Internet, NetworkMode::Datacenter, NetworkMode::Hybrid] {
            modes.sample(&[("mode", mode.word())], u8::from(mode == status.mode));
        }
        let mut trusts = out.gauges("dwcp_trust", "1 for the policy's trust.");
        for trust in [Trust::Crash, Trust::Byzantine] {
            trusts.sample(&[("trust", trust_word(trust))], u8::from(trust == status.trust));
        }
        let mut protocols = out.gauges("dwcp_protocol", "1 for what extends the log now.");
        for protocol in [ProtocolName::Pbft, ProtocolName::Raft] {
            protocols.sample(&[("protocol", protocol.word())], u8::from(protocol == status.protocol));
        }
        out.gauge("dwcp_epoch", "The last segment that was opened; 0 before the first.", status.epoch);
        out.counter(
            "dwcp_failovers_total",
            "Segments that ended though nobody had ordered it, since the genesis: failover_count.",
            status.failovers,
        );
        out.gauge(
            "dwcp_orders_commands",
            "1 when this replica orders commands: it leads the segment, or the root log without one.",
            u8::from(status.orderer == Some(status.replica)),
        );
        out.gauge("dwcp_position", "The newest place of the virtual log executed here.", status.position);
        let anchored = status.segment.as_ref().map_or(status.position, |segment| segment.anchored_position);
        out.gauge("dwcp_anchored_position", "How far certificates of the root log cover it.", anchored);
        if let Some(switch) = &status.last_switch {
            out.gauge(
                "dwcp_switch_gap_seconds",
                "The longest pause between executions around the last switch of protocols; 0 while nothing ran since.",
                seconds(Duration::from_micros(switch.gap_us)),
            );
        }
        let Some(segment) = &status.segment else { return };
        out.gauge("dwcp_segment_term", "Raft's term in the open segment.", segment.term);
        out.gauge("dwcp_segment_last_index", "The last entry of its log here.", segment.last);
        out.gauge("dwcp_segment_committed_index", "The last entry known to be committed.", segment.committed);
        out.gauge("dwcp_segment_applied_index", "The last entry executed here.", segment.applied);
        out.gauge("dwcp_segment_anchored_index", "The last entry that is anchored.", segment.anchored);
        out.gauge(
            "dwcp_segment_sealed",
            "1 when this replica takes no further part in it.",
            u8::from(segment.sealed),
        );
        out.gauge(
            "dwcp_segment_suspected",
            "1 while this replica complains of it.",
            u8::from(segment.suspecting),
        );
    }

    fn write_consensus(&self, out: &mut Exposition) {
        let m = self.metrics;
        let mut decisions = out.counters(
            "dwcp_consensus_total",
            "Proposals of the root log (pbft) and entries of segments (raft) executed since start.",
        );
        decisions.sample(&[("protocol", "pbft")], m.proposals_executed.get());
        decisions.sample(&[("protocol", "raft")], m.entries_executed.get());
        let mut closed =
            out.counters("dwcp_segments_closed_total", "Segments closed since start, as ordered or not.");
        closed.sample(&[("cause", "planned")], m.segments_closed_planned.get());
        closed.sample(&[("cause", "forced")], m.segments_closed_forced.get());
        let counters = [
            ("dwcp_commands_executed_total", "Commands executed since start.", &m.commands_executed),
            ("dwcp_segments_opened_total", "Segments opened since start.", &m.segments_opened),
            ("dwcp_anchors_total", "Anchors executed since start.", &m.anchors),
            ("dwcp_suspicions_total", "Complaints of this replica about a segment.", &m.suspicions),
            ("dwcp_leader_changes_total", "Leaders of segments this replica learnt of.", &m.leader_changes),
            (
                "dwcp_segment_entries_cut_total",
                "Own entries past a segment's end that were dropped, never executed.",
                &m.entries_cut,
            ),
            (
                "dwcp_segment_entries_rolled_back_total",
                "Executed entries that were not part of the log: a member lied.",
                &m.entries_rolled_back,
            ),
            ("dwcp_pbft_views_entered_total", "Views entered after the first.", &m.views_entered),
            ("dwcp_view_changes_started_total", "Views this replica gave up on.", &m.view_changes_started),
            ("dwcp_null_slots_total", "Slots a new view filled with nothing.", &m.null_slots),
            ("dwcp_stable_checkpoints_total", "Checkpoints certified since start.", &m.stable_checkpoints),
            ("dwcp_state_transfers_started_total", "State transfers begun.", &m.transfers_started),
            ("dwcp_state_transfers_finished_total", "State transfers completed.", &m.transfers_finished),
            (
                "dwcp_donors_dropped_total",
                "Donors caught sending what no certificate covers.",
                &m.donors_dropped,
            ),
            (
                "dwcp_sync_origins_frozen_total",
                "Origins of convergent state caught contradicting themselves.",
                &m.origins_frozen,
            ),
            (
                "dwcp_sync_holdups_named_total",
                "Times that a member was named for keeping state sync from collecting.",
                &m.holdups_named,
            ),
            ("dwcp_divergences_total", "Own digests that differed from the certified one.", &m.divergences),
            ("dwcp_members_replaced_total", "New incarnations of members put in force.", &m.members_replaced),
            ("dwcp_retries_answered_total", "Retries answered without running again.", &m.retries_answered),
        ];
        for (name, help, counter) in counters {
            out.counter(name, help, counter.get());
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        out.gauge(
            "dwcp_consensus_last_timestamp_seconds",
            "When a proposal or entry was last executed, Unix time; 0 before the first.",
            m.last_executed_unix_ms.get() as f64 / 1e3,
        );
        out.histogram(
            "dwcp_consensus_duration_seconds",
            "From a client frame's arrival here to its result, sampled one frame at a time.",
            &m.consensus_us,
        );
        out.histogram("dwcp_batch_commands", "Commands in an executed proposal or entry.", &m.batch_commands);
        let refused = m.refused.lock().expect("no panic while reasons are counted");
        let mut family =
            out.counters("dwcp_refused_total", "Inputs of peers and clients refused, by reason.");
        for (reason, count) in refused.iter() {
            family.sample(&[("reason", reason)], count);
        }
    }

    fn write_storage(&self, out: &mut Exposition) {
        let m = self.metrics;
        out.counter("dwcp_wal_records_total", "Records appended to the log.", m.wal_records.get());
        out.counter("dwcp_wal_record_bytes_total", "Bytes of those records.", m.wal_record_bytes.get());
        out.gauge(
            "dwcp_wal_used_bytes",
            "Bytes of the log between its start and end.",
            m.wal_bytes_used.get(),
        );
        out.gauge(
            "dwcp_wal_disk_bytes",
            "Bytes of all log files, spares included.",
            m.wal_bytes_on_disk.get(),
        );
        out.histogram(
            "dwcp_wal_fsync_duration_seconds",
            "Time to make a group of records durable.",
            &m.sync_us,
        );
        out.counter("dwcp_snapshots_saved_total", "Snapshots made durable.", m.snapshots_saved.get());
        out.counter(
            "dwcp_snapshots_failed_total",
            "Snapshots that could not be saved.",
            m.snapshots_failed.get(),
        );
        out.counter(
            "dwcp_chunk_reads_refused_total",
            "Chunks that could not be read for a peer.",
            m.chunk_reads_refused.get(),
        );
    }

    fn write_queues(&self, out: &mut Exposition) {
        let m = self.metrics;
        let depth = self.depth;
        out.gauge("dwcp_inbox_peer_bytes", "Received from peers and not yet handled.", depth.peer_bytes);
        out.gauge("dwcp_inbox_peer_frames", "Frames of peers not yet handled.", depth.peer_frames);
        out.gauge(
            "dwcp_inbox_client_bytes",
            "Received from clients and not yet handled.",
            depth.client_bytes,
        );
        out.gauge(
            "dwcp_inbox_client_requests",
            "Requests of clients not yet handled.",
            depth.client_requests,
        );
        out.gauge("dwcp_clients", "Client connections the core knows.", depth.clients);
        out.histogram("dwcp_burst_inputs", "Inputs handled between two syncs of the log.", &m.burst_inputs);
        out.counter("dwcp_core_loops_total", "Rounds of the core loop.", m.loops.get());
        out.counter("dwcp_replies_total", "Replies handed to clients.", m.replies.get());
        out.counter(
            "dwcp_clients_cut_off_total",
            "Clients cut off because they did not read.",
            m.clients_cut_off.get(),
        );
        out.counter(
            "dwcp_requests_busy_total",
            "Requests turned away because too much waited.",
            m.requests_busy.get(),
        );
    }

    fn write_links(&self, out: &mut Exposition) {
        let Some(links) = self.links else { return };
        let ids: Vec<String> = links.peers.iter().map(|peer| peer.id.to_string()).collect();
        let peers = || links.peers.iter().zip(&ids);
        let mut family = out.gauges("dwcp_link_up", "1 when frames can be sent to the peer.");
        for (peer, id) in peers() {
            family.sample(&[("peer", id)], u8::from(peer.up));
        }
        let mut family = out.gauges("dwcp_link_address_info", "Where the link leads, or last led; always 1.");
        for (peer, id) in peers() {
            if let Some(address) = &peer.dialled {
                family.sample(&[("peer", id), ("address", address)], 1);
            }
        }
        let mut family = out.gauges("dwcp_link_incoming_up", "1 when frames can arrive from the peer.");
        for (peer, id) in peers() {
            family.sample(&[("peer", id)], u8::from(peer.incoming_up));
        }
        let mut family = out.gauges("dwcp_link_rtt_seconds", "Round trip of the last ten seconds.");
        for (peer, id) in peers() {
            for (quantile, rtt) in [("0.5", peer.rtt_p50_us), ("0.95", peer.rtt_p95_us)] {
                if let Some(rtt) = rtt {
                    family.sample(&[("peer", id), ("q", quantile)], seconds(Duration::from_micros(rtt)));
                }
            }
        }
        let mut family = out.gauges("dwcp_link_queue_bytes", "Waiting to be sent to the peer.");
        for (peer, id) in peers() {
            family.sample(&[("peer", id)], peer.queue_bytes);
        }
        type Figure = fn(&dwcp_transport::PeerStats) -> u64;
        let counters: [(&'static str, &str, Figure); 6] = [
            ("dwcp_link_received_bytes_total", "Bytes received from the peer.", |peer| peer.bytes_in),
            ("dwcp_link_sent_bytes_total", "Bytes sent to the peer.", |peer| peer.bytes_out),
            ("dwcp_link_received_frames_total", "Frames received from the peer.", |peer| peer.frames_in),
            ("dwcp_link_sent_frames_total", "Frames handed to the peer's socket.", |peer| peer.frames_out),
            ("dwcp_link_reconnects_total", "Times the link came up again.", |peer| peer.reconnects),
            ("dwcp_link_waits_total", "Frames that waited because the core was busy.", |peer| {
                peer.sink_waits
            }),
        ];
        for (name, help, figure) in counters {
            let mut family = out.counters(name, help);
            for (peer, id) in peers() {
                family.sample(&[("peer", id)], figure(peer));
            }
        }
        let mut family =
            out.counters("dwcp_link_dropped_frames_total", "Frames dropped at the peer's queue.");
        for (peer, id) in peers() {
            for (class, count) in Class::ALL.into_iter().zip(peer.dropped) {
                family.sample(&[("peer", id), ("class", class.label())], count);
            }
        }
        let mut family = out.counters("dwcp_link_ends_total", "Refusals and ends of links, by reason.");
        for (peer, id) in peers() {
            write_reasons(&mut family, id, &peer.ends);
        }
        write_reasons(&mut family, "unknown", &links.strangers);
    }

    fn write_process(&self, out: &mut Exposition) {
        out.gauge("dwcp_uptime_seconds", "Since this node was started.", seconds(self.uptime));
        let p = &self.process;
        if let Some(cpu) = p.cpu_seconds {
            out.counter("process_cpu_seconds_total", "User and system CPU time.", cpu);
        }
        if let Some(bytes) = p.resident_bytes {
            out.gauge("process_resident_memory_bytes", "Resident memory.", bytes);
        }
        if let Some(count) = p.open_files {
            out.gauge("process_open_fds", "Open file descriptors.", count);
        }
        if let Some(count) = p.threads {
            out.gauge("process_threads", "Threads.", count);
        }
    }
}

fn write_reasons(family: &mut Family<'_>, peer: &str, ends: &[(Reason, u64)]) {
    for (reason, count) in ends {
        family.sample(&[("peer", peer), ("reason", reason.label())], count);
    }
}

#[cfg(test)]
mod tests;
