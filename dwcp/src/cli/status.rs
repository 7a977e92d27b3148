//! `dwcp status`: what every node says of itself, side by side. Unreachable nodes have a row too.
//!
//! Each node is asked alone and taken at its word; `lag` is measured against the furthest of all that answered.

use std::time::Duration;

use clap::Args;
use dwcp_client::{HintsStatus, Status};
use dwcp_node::genesis_file::{ack_word, trust_word};
use dwcp_replica::PeerStatus;
use serde_json::{Value, json};

use super::cluster::{ClusterArgs, Link, runtime};
use super::local::interrupted;
use super::output::{
    Failure, GREEN, Kind, Outcome, RED, YELLOW, align_numbers, milliseconds, paint_words, print_bytes,
    print_json, print_line, table, thousands,
};
use super::{mode, policy, sync};

/// Show every node: which protocol orders commands and who leads it, how far it is, what waits
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp status
  dwcp status --watch               (redraws every second until Ctrl-C)
  dwcp --json status | jq '.nodes[] | select(.reachable | not)'

Columns: `protocol` what extends the log now (`pbft`, or `raft` with its epoch), `leader` who orders commands by it, `view`
of PBFT and its `primary` (in brackets while a view change is under way), `executed` the last sequence of the root log this node has run, `stable` its last certified checkpoint, `pending` client frames that wait to be ordered,
`lag` sequences behind the furthest node, `position` in the virtual log, `anchored` how far of it PBFT vouches for,
`incarnation` how often its disk was replaced. Below: mode, policy, failovers and the last switch of protocols, as the furthest
node sees them. Once convergent keys are in use, a second table shows for every node and peer: frames and seconds by which the peer
is behind, the last exchange, bytes of state sync received and sent, conflicts counted and keys held by the node.
The last table has hints: how each peer seems to each node (alive, suspect, down, or unknown before it was heard), since when, where the
link to it leads, and where it says that it is. Nothing rests on them but which address is dialled.
Exit code 0 when a quorum of nodes is ready, 1 when fewer are, 4 when no node answers.")]
pub struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Redraw until interrupted
    #[arg(long)]
    watch: bool,

    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, requires = "watch")]
    interval: f64,
}

pub fn run(args: &StatusArgs, json: bool) -> Outcome {
    if !(0.1..=3600.0).contains(&args.interval) {
        return Err(Failure::usage("--interval must lie within 0.1 and 3600 seconds"));
    }
    let config = args.cluster.config()?;
    runtime()?.block_on(async {
        let link = Link::connect(config)?;
        if !args.watch {
            let (nodes, hints) = look(&link).await;
            print(&nodes, &hints, json)?;
            return judge(&nodes);
        }
        let mut lines = 0;
        loop {
            let (nodes, hints) = look(&link).await;
            if json {
                print(&nodes, &hints, true)?;
            } else {
                let text = text(&nodes) + &hint_table(&hints);
                // Up to where the last picture began, and clear from there.
                let home = if lines > 0 { format!("\x1b[{lines}A\x1b[J") } else { String::new() };
                lines = text.lines().count();
                print_bytes(format!("{home}{text}").as_bytes())?;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64(args.interval)) => {}
                () = interrupted() => return Ok(()),
            }
        }
    })
}

type Row = (u8, Result<Status, String>);

/// What each node that answered holds of the others.
type Hints = Vec<(u8, HintsStatus)>;

async fn look(link: &Link) -> (Vec<Row>, Hints) {
    let reports = link.reports().await;
    reports.into_iter().map(|(id, status, hints)| ((id, status), (id, hints))).unzip()
}

fn print(nodes: &[Row], hints: &Hints, json: bool) -> Outcome {
    if !json {
        return print_line((text(nodes) + &hint_table(hints)).trim_end());
    }
    let mut object = object(nodes);
    for (node, (_, hints)) in object["nodes"].as_array_mut().into_iter().flatten().zip(hints) {
        if node["reachable"] == true {
            node["hints"] = hint_object(hints);
        }
    }
    print_json(&object)
}

fn hint_object(hints: &HintsStatus) -> Value {
    let peers = hints.peers.iter().map(|hint| {
        json!({
            "node": hint.id.0, "standing": hint.standing, "since_ms": hint.since_ms,
            "dialled": hint.dialled, "address": hint.address,
        })
    });
    let drops: serde_json::Map<_, _> =
        hints.drops.iter().map(|(reason, count)| (reason.clone(), json!(count))).collect();
    json!({ "peers": peers.collect::<Vec<_>>(), "dropped": drops })
}

/// How members seem to each other, and where their links lead. Nothing from nodes that know no hints.
fn hint_table(hints: &Hints) -> String {
    if hints.iter().all(|(_, hints)| hints.peers.is_empty()) {
        return String::new();
    }
    let mut rows = table(&["node", "peer", "seems", "since s", "link", "says it is at"]);
    align_numbers(&mut rows, [3]);
    let mut drops = Vec::new();
    for (id, hints) in hints {
        for hint in &hints.peers {
            rows.add_row([
                id.to_string(),
                hint.id.to_string(),
                hint.standing.clone(),
                format!("{:.1}", hint.since_ms as f64 / 1e3),
                hint.dialled.clone().unwrap_or_else(|| "-".into()),
                hint.address.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        if !hints.drops.is_empty() {
            let words: Vec<String> =
                hints.drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            drops.push(format!("node {id} did not take of hints: {}\n", words.join(", ")));
        }
    }
    let rows = paint_words(&rows.to_string(), &[("suspect", YELLOW), ("down", RED), ("alive", GREEN)]);
    format!("membership hints\n{rows}\n{}", drops.concat())
}

/// Is there a quorum that can work?
fn judge(nodes: &[Row]) -> Outcome {
    let answered: Vec<&Status> = nodes.iter().filter_map(|(_, status)| status.as_ref().ok()).collect();
    let Some(one) = answered.first() else {
        return Err(Failure::new(
            Kind::Unreachable,
            "no node answers: are they started (`dwcp server --config ...`), and is the client file theirs?",
        ));
    };
    let quorum = (one.n + one.f) / 2 + 1;
    let ready = answered.iter().filter(|status| status.not_ready.is_empty()).count();
    if ready < quorum as usize {
        let consequence = if answered.len() > usize::from(one.n) / 2 && one.segment.is_some() {
            "Raft goes on, but nothing is anchored and no order is executed until more are"
        } else {
            "commands wait until more are"
        };
        return Err(Failure::refused(format!(
            "{ready} of {} nodes are ready, {quorum} are needed: {consequence}",
            nodes.len()
        )));
    }
    Ok(())
}

fn text(nodes: &[Row]) -> String {
    let furthest = furthest(nodes);
    let mut rows = table(&[
        "node",
        "state",
        "protocol",
        "leader",
        "view",
        "primary",
        "executed",
        "stable",
        "pending",
        "lag",
        "position",
        "anchored",
        "commands",
        "incarnation",
    ]);
    align_numbers(&mut rows, [3, 4, 6, 7, 8, 9, 10, 11, 12, 13]);
    let mut remarks = Vec::new();
    for (id, status) in nodes {
        match status {
            Ok(status) => {
                let remark = format!("no segment serves: {}", status.no_segment);
                if !status.no_segment.is_empty() && !remarks.contains(&remark) {
                    remarks.push(remark);
                }
                if !status.not_ready.is_empty() {
                    remarks.push(format!("node {id}: {}", status.not_ready.join("; ")));
                }
                let view =
                    if status.view_active { status.view.to_string() } else { format!("({})", status.view) };
                let itself = if status.primary.0 == *id { " (itself)" } else { "" };
                let primary = format!("{}{itself}", status.primary);
                rows.add_row([
                    id.to_string(),
                    state(status),
                    protocol(status),
                    status.orderer.map_or("-".into(), |orderer| orderer.to_string()),
                    view,
                    primary,
                    thousands(status.executed.0),
                    thousands(status.stable.0),
                    thousands(status.pending_frames.into()),
                    thousands(furthest.saturating_sub(status.executed.0)),
                    thousands(status.position.0),
                    thousands(anchored(status)),
                    thousands(status.executed_commands),
                    status.incarnation.to_string(),
                ]);
            }
            Err(reason) => {
                remarks.push(format!("node {id}: {reason}"));
                rows.add_row([id.to_string(), "unreachable".into()]);
            }
        }
    }
    let mut text = format!("{}\n", paint_words(&rows.to_string(), &STATES));
    for remark in remarks {
        text.push_str(&format!("{remark}\n"));
    }
    text.push_str(&convergent(nodes));
    let answered = nodes.iter().filter_map(|(_, status)| status.as_ref().ok());
    if let Some(status) = answered.max_by_key(|status| (status.executed.0, status.position.0)) {
        text.push_str(&format!("mode {}; {}\n", mode::phrase(status), policy::phrase(status)));
        text.push_str(&format!("{} failovers; {}\n", status.failovers, last_switch(status)));
    }
    text
}

/// State sync: for every node how far each of its peers is behind it. Nothing while nobody has written.
fn convergent(nodes: &[Row]) -> String {
    let answered = nodes.iter().filter_map(|(_, status)| status.as_ref().ok());
    let used = |sync: &&dwcp_client::SyncStatus| sync.keys > 0 || !sync.not_open.is_empty();
    let syncing: Vec<_> = answered.filter_map(|s| Some((s.replica, s.sync.as_ref().filter(used)?))).collect();
    if syncing.is_empty() {
        return String::new();
    }
    let mut rows = table(&[
        "node",
        "peer",
        "lag frames",
        "lag s",
        "last exchange s",
        "received",
        "sent",
        "conflicts",
        "keys",
    ]);
    align_numbers(&mut rows, [2, 3, 4, 5, 6, 7, 8]);
    let mut troubles = Vec::new();
    for (id, sync) in syncing {
        let trouble = sync::troubles(sync);
        if !trouble.is_empty() {
            troubles.push(format!("node {id} says{}\n", trouble.trim_start_matches(';')));
        }
        for peer in &sync.peers {
            rows.add_row([
                id.to_string(),
                peer.id.to_string(),
                thousands(peer.lag_frames),
                format!("{:.1}", peer.lag_ms as f64 / 1e3),
                sync::exchange_age(peer.last_exchange_ms),
                thousands(peer.bytes_in),
                thousands(peer.bytes_out),
                thousands(sync.conflict_count),
                thousands(sync.keys),
            ]);
        }
    }
    let troubles = troubles.concat();
    format!("state sync\n{rows}\n{troubles}")
}

/// What extends the log at this node.
fn protocol(status: &Status) -> String {
    match &status.segment {
        Some(segment) if segment.sealed => format!("({} {})", status.protocol.word(), status.epoch),
        Some(_) => format!("{} {}", status.protocol.word(), status.epoch),
        None => status.protocol.word().into(),
    }
}

/// The position up to which a certificate of the root covers the log.
fn anchored(status: &Status) -> u64 {
    status.segment.as_ref().map_or(status.position.0, |segment| segment.anchored_position.0)
}

/// When, why, and what it cost.
fn last_switch(status: &Status) -> String {
    let Some(last) = &status.last_switch else { return "no switch of protocols since it started".into() };
    let now_ms = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis());
    let ago_s = now_ms.saturating_sub(last.at_unix_ms.into()) / 1000;
    let gap = match last.gap_us {
        0 => "nothing executed since".to_string(),
        us => format!("a gap of {} ms", milliseconds(us as f64 / 1000.0)),
    };
    format!(
        "last switch {ago_s} s ago: to {} (epoch {}), {}: {}; {gap}",
        last.to.word(),
        last.epoch,
        if last.planned { "planned" } else { "forced" },
        last.cause
    )
}

/// Longer ones first: `not ready` holds `ready`.
const STATES: [(&str, &str); 5] = [
    ("unreachable", RED),
    ("fetching state", YELLOW),
    ("not ready", YELLOW),
    ("learner", YELLOW),
    ("ready", GREEN),
];

fn state(status: &Status) -> String {
    match status {
        status if status.transferring => "fetching state",
        status if !status.voter => "learner",
        status if !status.not_ready.is_empty() => "not ready",
        _ => "ready",
    }
    .into()
}

fn furthest(nodes: &[Row]) -> u64 {
    nodes
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
        .map(|status| status.executed.0)
        .max()
        .unwrap_or(0)
}

fn segment(status: &Status) -> Option<Value> {
    let segment = status.segment.as_ref()?;
    Some(json!({
        "term": segment.term.0, "leader": segment.leader.map(|leader| leader.0),
        "last": segment.last.0, "committed": segment.committed.0, "applied": segment.applied.0,
        "anchored": segment.anchored.0, "anchored_position": segment.anchored_position.0,
        "sealed": segment.sealed, "suspecting": segment.suspecting,
    }))
}

fn switch(status: &Status) -> Option<Value> {
    let last = status.last_switch.as_ref()?;
    Some(json!({
        "epoch": last.epoch.0, "to": last.to.word(), "planned": last.planned, "sequence": last.sequence.0,
        "gap_us": last.gap_us, "at_unix_ms": last.at_unix_ms, "cause": last.cause,
    }))
}

fn peer(peer: &PeerStatus) -> Value {
    json!({
        "node": peer.id.0, "view": peer.view.0, "executed": peer.executed.0, "stable": peer.stable.0,
        "silent_ms": peer.silent_ms,
    })
}

fn object(nodes: &[Row]) -> Value {
    let furthest = furthest(nodes);
    let node = |(id, status): &Row| match status {
        Err(reason) => json!({ "node": id, "reachable": false, "reason": reason }),
        Ok(status) => json!({
            "node": id,
            "reachable": true,
            "ready": status.not_ready.is_empty(),
            "not_ready": status.not_ready,
            "incarnation": status.incarnation.0,
            "view": status.view.0,
            "view_active": status.view_active,
            "primary": status.primary.0,
            "executed": status.executed.0,
            "stable": status.stable.0,
            "position": status.position.0,
            "lag": furthest.saturating_sub(status.executed.0),
            "pending_frames": status.pending_frames,
            "pending_bytes": status.pending_bytes,
            "executed_commands": status.executed_commands,
            "voter": status.voter,
            "transferring": status.transferring,
            "digest_sequence": status.state_digest_sequence.0,
            "digest": hex::encode(status.state_digest.0),
            "log_time_ms": status.log_time_ms,
            "mode": status.mode.word(),
            "n": status.n,
            "f": status.f,
            "trust": trust_word(status.trust),
            "raft": status.raft,
            "default_ack": ack_word(status.default_ack),
            "next_order": status.next_order,
            "epoch": status.epoch.0,
            "protocol": status.protocol.word(),
            "orderer": status.orderer.map(|orderer| orderer.0),
            "anchored_position": anchored(status),
            "segment": segment(status),
            "failovers": status.failovers,
            "last_switch": switch(status),
            "no_segment": status.no_segment,
            "sync": status.sync.as_ref().map(sync::object),
            "peers": status.peers.iter().map(peer).collect::<Vec<_>>(),
        }),
    };
    json!({ "nodes": nodes.iter().map(node).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(replica: u8, executed: u64) -> Status {
        Status {
            executed: dwcp_base::Sequence(executed),
            ..crate::cli::cluster::blank_status(dwcp_base::ReplicaId(replica))
        }
    }

    fn rows(ready: usize) -> Vec<Row> {
        (0..4u8)
            .map(|id| {
                let up = usize::from(id) < ready;
                (id, if up { Ok(status(id, 100 + u64::from(id))) } else { Err("refused".into()) })
            })
            .collect()
    }

    #[test]
    fn hints_are_told_of_each_peer_and_counted_by_reason() {
        let hint = dwcp_client::HintStatus {
            id: dwcp_base::ReplicaId(2),
            standing: "suspect".into(),
            since_ms: 1_500,
            dialled: Some("10.0.0.2:7000".into()),
            address: None,
        };
        let hints = HintsStatus { peers: vec![hint], drops: vec![("stale".into(), 3)] };
        let text = hint_table(&vec![(0, hints.clone()), (1, HintsStatus::default())]);
        for word in ["suspect", "1.5", "10.0.0.2:7000", "node 0 did not take of hints: 3 stale"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let object = hint_object(&hints);
        assert_eq!(object["peers"][0]["since_ms"], 1_500);
        assert_eq!((&object["dropped"]["stale"], &object["peers"][0]["address"]), (&json!(3), &Value::Null));
        assert_eq!(hint_table(&vec![(0, HintsStatus::default())]), "", "an older node tells none");
    }

    #[test]
    fn every_node_has_a_row_and_lag_counts_from_the_furthest() {
        let object = object(&rows(3));
        assert_eq!(object["nodes"].as_array().unwrap().len(), 4);
        assert_eq!(object["nodes"][0]["lag"], 2);
        assert_eq!(object["nodes"][3]["reachable"], false);
        let text = text(&rows(3));
        assert!(text.contains("unreachable") && text.contains("node 3: refused"), "{text}");
    }

    #[test]
    fn why_no_segment_serves_is_said_once() {
        let mut rows = rows(3);
        assert!(!text(&rows).contains("no segment serves"));
        for (_, status) in &mut rows {
            let Ok(status) = status else { continue };
            status.no_segment = "the calm is not over".into();
        }
        assert_eq!(text(&rows).matches("no segment serves: the calm is not over").count(), 1);
    }

    #[test]
    fn the_exit_code_tells_whether_a_quorum_can_work() {
        assert!(judge(&rows(4)).is_ok());
        assert!(judge(&rows(3)).is_ok());
        let waits = judge(&rows(2)).unwrap_err();
        assert_eq!((waits.kind, waits.message.contains("commands wait")), (Kind::Refused, true), "{waits:?}");
        // Five members, of which three are there: a majority, and no quorum of the root log.
        let mut three = rows(3);
        for (_, status) in &mut three {
            let Ok(status) = status else { continue };
            (status.n, status.not_ready) = (5, vec!["hears 3 of the 4".into()]);
            status.segment = Some(dwcp_replica::SegmentStatus {
                term: dwcp_base::Term(1),
                leader: None,
                last: dwcp_base::Index(1),
                committed: dwcp_base::Index(1),
                applied: dwcp_base::Index(1),
                anchored: dwcp_base::Index(0),
                anchored_position: dwcp_base::Position(0),
                sealed: false,
                suspecting: false,
            });
        }
        assert!(judge(&three).unwrap_err().message.contains("Raft goes on"));
        assert_eq!(judge(&rows(0)).unwrap_err().kind, Kind::Unreachable);
    }
}
