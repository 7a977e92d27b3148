//! Figures of membership hints.

use std::time::Duration;

use dwcp_base::Micros;

use crate::exposition::{Exposition, seconds};
use crate::hinting::HintReport;

pub(super) fn write(report: &HintReport, now: Micros, out: &mut Exposition) {
    let ids: Vec<String> = report.hints.iter().map(|hint| hint.replica.0.to_string()).collect();
    let hints = || report.hints.iter().zip(&ids);
    let mut family =
        out.gauges("dwcp_hint_standing", "1 for how the peer seems to be; a hint, nothing rests on it.");
    for (hint, id) in hints() {
        for standing in dwcp_hints::Standing::ALL {
            let is = u8::from(hint.standing == standing);
            family.sample(&[("peer", id), ("standing", standing.word())], is);
        }
    }
    let mut family = out.gauges("dwcp_hint_since_seconds", "For how long it has seemed so.");
    for (hint, id) in hints() {
        family.sample(&[("peer", id)], seconds(Duration::from_micros(now.since(hint.since).0)));
    }
    let counters = [
        ("dwcp_hint_received_messages_total", "Messages of hints looked at.", report.messages_in),
        ("dwcp_hint_sent_messages_total", "Messages of hints handed to links.", report.messages_out),
        ("dwcp_hint_sent_bytes_total", "Their bytes.", report.bytes_out),
    ];
    for (name, help, count) in counters {
        out.counter(name, help, count);
    }
    let mut family = out
        .counters("dwcp_hint_dropped_total", "Messages, records and claims of hints not taken, by reason.");
    for (reason, count) in report.drops.iter() {
        family.sample(&[("reason", reason.label())], count);
    }
    family.sample(&[("reason", "overflow")], report.overflows);
}
