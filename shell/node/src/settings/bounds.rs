//! Bounds and times that the node only passes on: those of a Raft segment, of state sync, of the links to its peers, of
//! its client port and of its HTTP port.
//!
//! Ranges stand in the table; here is what each name becomes, and what two of them must be to each other. Who keeps to
//! them is `dwcp_replica`, `dwcp_transport`, `dwcp_api` and `http.rs`.

use std::time::Duration;

use dwcp_base::limits::MESSAGE_BYTES_MAX;
use dwcp_replica::raft;
use dwcp_replica::sync::SyncLimits;
use dwcp_transport::{Limits, QueueLimits};

use super::reader::Reader;
use super::{Fault, NodeConfig, SettingsError};

/// What clients may make this node hold, but for how many there may be (`Queues::clients_max`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientBounds {
    pub streams_max: u32,
    pub questions_max: usize,
    pub attaches_max: usize,
    pub handshake_timeout: Duration,
    pub slow_reader_timeout: Duration,
    pub call_timeout: Duration,
    pub busy_patience: Duration,
    pub stop_patience: Duration,
}

/// What is served over plain HTTP at once, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpBounds {
    /// Further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// A connection may stay this long, busy or not, so that idle ones cannot keep probes out.
    pub connection_lifetime: Duration,
    /// Below `connections_max`, for a watch outlives the others.
    pub watches_max: usize,
}

impl ClientBounds {
    pub(super) fn read(reader: &mut Reader) -> Result<Self, SettingsError> {
        let streams = reader.number("clients.streams_max")?;
        Ok(Self {
            streams_max: u32::try_from(streams).expect("the range fits 32 bits"),
            questions_max: reader.size("clients.questions_max")?,
            attaches_max: reader.size("clients.attaches_max")?,
            handshake_timeout: duration(reader, "clients.handshake_timeout_ms")?,
            slow_reader_timeout: duration(reader, "clients.slow_reader_timeout_ms")?,
            call_timeout: duration(reader, "clients.call_timeout_ms")?,
            busy_patience: duration(reader, "clients.busy_patience_ms")?,
            stop_patience: duration(reader, "clients.stop_patience_ms")?,
        })
    }
}

impl HttpBounds {
    pub(super) fn read(reader: &mut Reader) -> Result<Self, SettingsError> {
        Ok(Self {
            connections_max: reader.size("http.connections_max")?,
            connection_lifetime: duration(reader, "http.connection_lifetime_ms")?,
            watches_max: reader.size("http.watches_max")?,
        })
    }
}

pub(super) fn of_segment(reader: &mut Reader) -> Result<raft::Limits, SettingsError> {
    Ok(raft::Limits {
        log_entries_max: reader.number("segment.log_entries_max")?,
        log_bytes_max: reader.number("segment.log_bytes_max")?,
        uncommitted_bytes_max: reader.number("segment.uncommitted_bytes_max")?,
        append_entries_max: reader.number("segment.append_entries_max")?,
        append_bytes_max: reader.number("segment.append_bytes_max")?,
        inflight_entries_max: reader.number("segment.inflight_entries_max")?,
        inflight_bytes_max: reader.number("segment.inflight_bytes_max")?,
        reads_max: reader.size("segment.reads_max")?,
    })
}

pub(super) fn of_sync(reader: &mut Reader) -> Result<SyncLimits, SettingsError> {
    Ok(SyncLimits {
        fanout: reader.size("sync.fanout")?,
        exchange_peers: reader.size("sync.exchange_peers")?,
        answer_bytes_max: reader.size("sync.answer_bytes_max")?,
        budget_bytes_max: reader.size("sync.budget_bytes_max")?,
        log_bytes_max: reader.size("sync.log_bytes_max")?,
        waiting_frames_max: reader.size("sync.waiting_frames_max")?,
        waiting_bytes_max: reader.size("sync.waiting_bytes_max")?,
        waiting_total_bytes_max: reader.size("sync.waiting_total_bytes_max")?,
        apply_frames_max: reader.size("sync.apply_frames_max")?,
        apply_bytes_max: reader.size("sync.apply_bytes_max")?,
    })
}

/// All but what may wait for a link, which `queues.send_bytes_max` says.
pub(super) fn of_links(reader: &mut Reader) -> Result<Limits, SettingsError> {
    Ok(Limits {
        // Equal on all replicas, for it decides what a message may be.
        frame_bytes_max: MESSAGE_BYTES_MAX,
        queue: QueueLimits { patience_bytes: reader.size("links.patience_bytes")?, ..QueueLimits::default() },
        handshakes_max: reader.size("links.handshakes_max")?,
        handshake_timeout: duration(reader, "links.handshake_timeout_ms")?,
        connect_timeout: duration(reader, "links.connect_timeout_ms")?,
        reconnect_pause_min: duration(reader, "links.reconnect_pause_min_ms")?,
        reconnect_pause_max: duration(reader, "links.reconnect_pause_max_ms")?,
        ping_interval: duration(reader, "links.ping_interval_ms")?,
        silence_max: duration(reader, "links.silence_max_ms")?,
        write_bytes_max: reader.size("links.write_bytes_max")?,
    })
}

fn duration(reader: &mut Reader, key: &'static str) -> Result<Duration, SettingsError> {
    reader.number(key).map(Duration::from_millis)
}

/// Bytes of hints that wait for one peer.
const HINTS_QUEUED_MAX: usize = 16 * 1024;

impl NodeConfig {
    /// Of what may wait for one peer each class may be a half, but for hints, of which some messages are enough.
    pub(crate) fn link_limits(&self) -> Limits {
        let total_bytes_max = self.queues.send_bytes_max;
        let half = total_bytes_max / 2;
        let class_bytes_max = [half, half, half, half, HINTS_QUEUED_MAX.min(half)];
        let queue = QueueLimits { class_bytes_max, total_bytes_max, ..self.links.queue.clone() };
        Limits { queue, ..self.links.clone() }
    }

    /// What bounds must be to each other.
    pub(super) fn check_bounds(&self) -> Result<(), SettingsError> {
        let (consensus, sync, links) = (&self.consensus, &self.sync.limits, &self.links);
        let ms = |time: Duration| u64::try_from(time.as_millis()).expect("ranges end at hours");
        let at_least = [
            (
                ("consensus.history_bytes_max", consensus.history_bytes_max as u64),
                ("2 * consensus.snapshot_log_bytes", 2 * consensus.snapshot_log_bytes),
            ),
            (
                ("sync.waiting_total_bytes_max", sync.waiting_total_bytes_max as u64),
                ("sync.waiting_bytes_max", sync.waiting_bytes_max as u64),
            ),
            (
                ("links.silence_max_ms", ms(links.silence_max)),
                ("2 * links.ping_interval_ms", 2 * ms(links.ping_interval)),
            ),
            (
                ("links.reconnect_pause_max_ms", ms(links.reconnect_pause_max)),
                ("links.reconnect_pause_min_ms", ms(links.reconnect_pause_min)),
            ),
            (
                ("http.connections_max", self.http.connections_max as u64),
                ("http.watches_max + 1", self.http.watches_max as u64 + 1),
            ),
        ];
        for ((key, value), (other, other_value)) in at_least {
            if value < other_value {
                return Err(self.refuse(key, Fault::Below { key, value, other, other_value }));
            }
        }
        let patience = ("consensus.view_timeout_ms", consensus.view_timeout_ms);
        let at_most = [
            (("consensus.resend_interval_ms", consensus.resend_interval_ms), patience),
            (("consensus.relay_after_ms", consensus.relay_after_ms), patience),
        ];
        for ((key, value), (other, other_value)) in at_most {
            if value > other_value {
                return Err(self.refuse(key, Fault::Above { key, value, other, other_value }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::table::{Allowed, SETTINGS};
    use super::super::tests::good;
    use super::*;

    fn of(section: &str, lines: &str) -> NodeConfig {
        let text = format!("{}[{section}]\n{lines}", good());
        NodeConfig::parse(Path::new("c.toml"), &text).unwrap_or_else(|error| panic!("{lines}: {error}"))
    }

    fn classes(half: usize) -> [usize; 5] {
        [half, half, half, half, HINTS_QUEUED_MAX]
    }

    #[test]
    fn a_silent_file_keeps_what_each_part_has_by_itself() {
        let silent = of("links", "");
        assert_eq!(silent.segment.limits, raft::Limits::default());
        assert_eq!(silent.sync.limits, SyncLimits::default());
        let of_send = QueueLimits { class_bytes_max: classes(16 << 20), ..QueueLimits::default() };
        let own = Limits { queue: of_send, ..Limits::default() };
        assert_eq!(format!("{:?}", silent.link_limits()), format!("{own:?}"));
    }

    #[test]
    fn each_line_reaches_its_part() {
        let lines = "log_entries_max = 17\nlog_bytes_max = 4194305\nuncommitted_bytes_max = 4194306\n\
                     append_entries_max = 18\nappend_bytes_max = 1025\ninflight_entries_max = 19\n\
                     inflight_bytes_max = 1026\nreads_max = 20\napply_bytes = 21\n";
        let segment = of("segment", lines).segment;
        let expected = raft::Limits {
            log_entries_max: 17,
            log_bytes_max: 4_194_305,
            uncommitted_bytes_max: 4_194_306,
            append_entries_max: 18,
            append_bytes_max: 1_025,
            inflight_entries_max: 19,
            inflight_bytes_max: 1_026,
            reads_max: 20,
        };
        assert_eq!((segment.limits, segment.to_settings().apply_bytes), (expected, 21));
        assert_eq!(segment.to_settings().limits, expected);

        let lines = "fanout = 2\nexchange_peers = 3\nanswer_bytes_max = 262145\nbudget_bytes_max = 262146\n\
                     log_bytes_max = 1048577\nwaiting_frames_max = 4\nwaiting_bytes_max = 262147\n\
                     waiting_total_bytes_max = 262148\napply_frames_max = 5\napply_bytes_max = 262149\n";
        let expected = SyncLimits {
            fanout: 2,
            exchange_peers: 3,
            answer_bytes_max: 262_145,
            budget_bytes_max: 262_146,
            log_bytes_max: 1_048_577,
            waiting_frames_max: 4,
            waiting_bytes_max: 262_147,
            waiting_total_bytes_max: 262_148,
            apply_frames_max: 5,
            apply_bytes_max: 262_149,
        };
        assert_eq!(of("sync", lines).sync.limits, expected);

        let lines = "patience_bytes = 32769\nwrite_bytes_max = 1025\nhandshakes_max = 1\nhandshake_timeout_ms = 2\n\
                     connect_timeout_ms = 3\nreconnect_pause_min_ms = 4\nreconnect_pause_max_ms = 5\n\
                     ping_interval_ms = 6\nsilence_max_ms = 12\n[queues]\nsend_bytes_max = 16777216\n";
        let ms = Duration::from_millis;
        let expected = Limits {
            frame_bytes_max: MESSAGE_BYTES_MAX,
            queue: QueueLimits {
                class_bytes_max: classes(8 << 20),
                total_bytes_max: 16 << 20,
                patience_bytes: 32_769,
            },
            handshakes_max: 1,
            handshake_timeout: ms(2),
            connect_timeout: ms(3),
            reconnect_pause_min: ms(4),
            reconnect_pause_max: ms(5),
            ping_interval: ms(6),
            silence_max: ms(12),
            write_bytes_max: 1_025,
        };
        assert_eq!(format!("{:?}", of("links", lines).link_limits()), format!("{expected:?}"));

        let lines = "connections_max = 9\nwatches_max = 8\nconnection_lifetime_ms = 20001\n";
        let expected = HttpBounds { connections_max: 9, watches_max: 8, connection_lifetime: ms(20_001) };
        assert_eq!(of("http", lines).http, expected);

        let lines = "batch_frames_max = 3\nsnapshot_log_bytes = 65537\ncensorship_factor = 4\nresend_interval_ms = 6\n\
                     relay_after_ms = 7\n";
        let text = good().replace("[consensus]\n", &format!("[consensus]\n{lines}"));
        let core = NodeConfig::parse(Path::new("c.toml"), &text).unwrap().to_settings();
        assert_eq!((core.batch_frames_max, core.snapshot_log_bytes), (3, 65_537));
        assert_eq!(core.timing.censorship_factor, 4);
        assert_eq!((core.timing.resend_interval.0, core.relay_after.0), (6_000, 7_000));
    }

    #[test]
    fn the_whole_range_of_a_links_bounds_passes_the_transport() {
        for setting in SETTINGS {
            let (Some(("links", name)), Allowed::Number { min, max }) =
                (setting.key.split_once('.'), setting.allowed)
            else {
                continue;
            };
            for value in [min, max] {
                let besides = match (name, value == max) {
                    ("ping_interval_ms", true) => "silence_max_ms = 3600000\n",
                    ("silence_max_ms", false) => "ping_interval_ms = 1\n",
                    ("reconnect_pause_min_ms", true) => "reconnect_pause_max_ms = 3600000\n",
                    ("reconnect_pause_max_ms", false) => "reconnect_pause_min_ms = 1\n",
                    _ => "",
                };
                let config = of("links", &format!("{name} = {value}\n{besides}"));
                assert!(config.link_limits().check().is_ok(), "{name} = {value}");
            }
        }
    }
}
