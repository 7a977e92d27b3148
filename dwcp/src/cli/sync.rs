//! `dwcp sync`: convergent keys from the command line. One node is asked and answers for itself; what it wrote spreads from
//! there. How values are typed and shown is here, what they mean is the core's.

mod edit;

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use dwcp_base::ReplicaId;
use dwcp_client::values::{Op, Plain, View, Write};
use dwcp_client::{Client, NodeError, Road, SyncClient, SyncError, SyncStatus, SyncWritten};
use dwcp_node::sync_json;
use serde_json::{Value, json};

use self::edit::Inside;
use super::cluster::{ClusterArgs, Link, runtime};
use super::local::interrupted;
use super::output::{Failure, Kind, Outcome, align_numbers, print_json, print_line, say, table, thousands};

const EXAMPLES: &str = "\
Examples:
  export DWCP_CLUSTER=trial/client.toml    (written by `dwcp init`)
  dwcp sync set user/7 '{\"name\": \"Ada\"}' limit 3    (one frame: all of it or none)
  dwcp sync get user/7
  dwcp sync incr likes 2
  dwcp sync add tags blue && dwcp sync remove tags red
  dwcp sync insert queue first second && dwcp sync erase queue 0
  dwcp sync set --field name member/8 Bob        (one field of a map; others edit the rest)
  dwcp sync watch user/
  dwcp sync conflicts && dwcp sync settle user/7
  dwcp sync peers

Convergent keys may be changed on any node at any time. In datacenter mode a change is told when the log has it; in internet
mode when it is durable on the node that was asked (--wait K: on K nodes); in hybrid mode the log comes first, and gossip
when it does not answer. They are no `dwcp kv` keys: nothing can be compared and set here.

Exit codes: 0 done, 1 refused (not written), 2 wrong usage, 3 written, but not acknowledged in time, 4 no node answered.";

/// Change and watch convergent keys: any node, with or without the others
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SyncArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// The node to ask [default: the first that answers]
    #[arg(long, value_name = "NODE", global = true)]
    node: Option<u8>,

    /// Where a change goes by gossip: on how many nodes it must be durable before it is told
    #[arg(long, value_name = "COUNT", global = true, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=31))]
    wait: u8,

    #[command(subcommand)]
    command: SyncCommand,
}

#[derive(Debug, Subcommand)]
enum SyncCommand {
    /// Set registers; pairs of KEY and VALUE, all or none. A value is JSON if it reads as such, else a text
    #[command(after_help = "\
Examples:
  dwcp sync set limit 3
  dwcp sync set note -- --dry-run   (a text that begins with a hyphen)
  dwcp sync set user/7 '{\"name\": \"Ada\"}' user/8 null
  dwcp sync set --wait 3 limit 4    (durable on three nodes)
  dwcp sync set --multi draft a     (concurrent values are all kept and shown)
  dwcp sync set --field mail --field home member/8 b@example.org
  dwcp sync set --delete limit      (any type of value)")]
    Set {
        #[command(flatten)]
        inside: Inside,
        /// Keep concurrent values side by side instead of choosing one
        #[arg(long)]
        multi: bool,
        /// Delete these keys
        #[arg(long, conflicts_with = "multi")]
        delete: bool,
        /// KEY VALUE, or keys alone with --delete
        #[arg(required = true, value_name = "KEY VALUE", allow_negative_numbers = true)]
        pairs: Vec<String>,
    },
    /// Read a key, or with --prefix all keys below one
    #[command(after_help = "\
Examples:
  dwcp sync get user/7
  dwcp sync get --prefix user/
  dwcp sync get --field name member/8
  dwcp sync get --node 2 user/7     (what node 2 has seen)
  dwcp --json sync get user/7 | jq .value")]
    Get {
        #[command(flatten)]
        inside: Inside,
        /// All keys that begin with KEY
        #[arg(long, conflicts_with = "fields")]
        prefix: bool,
        /// The key
        key: String,
    },
    /// Add to a counter, or take away with a negative number
    #[command(after_help = "\
Examples:
  dwcp sync incr likes
  dwcp sync incr stock -5
  dwcp sync incr --grow-only visits 10")]
    Incr {
        #[command(flatten)]
        inside: Inside,
        /// A counter that never falls
        #[arg(long)]
        grow_only: bool,
        /// The key
        key: String,
        /// By how much
        #[arg(default_value_t = 1, allow_hyphen_values = true)]
        by: i64,
    },
    /// Add elements to a set; an add wins over a concurrent removal
    #[command(after_help = "\
Examples:
  dwcp sync add tags blue green
  dwcp sync add --forever seen 4711    (a set that only grows)
  dwcp sync add --once revoked k1      (removed once, an element never returns)")]
    Add {
        #[command(flatten)]
        inside: Inside,
        /// A set from which nothing is removed
        #[arg(long, conflicts_with = "once")]
        forever: bool,
        /// A set to which what was removed does not return
        #[arg(long)]
        once: bool,
        /// The key
        key: String,
        /// Elements
        #[arg(required = true, allow_negative_numbers = true)]
        elements: Vec<String>,
    },
    /// Remove elements from a set
    #[command(after_help = "\
Examples:
  dwcp sync remove tags blue
  dwcp sync remove --once revoked k1")]
    Remove {
        #[command(flatten)]
        inside: Inside,
        /// The set was made with `add --once`
        #[arg(long)]
        once: bool,
        /// The key
        key: String,
        /// Elements
        #[arg(required = true, allow_negative_numbers = true)]
        elements: Vec<String>,
    },
    /// Put values into a list, at its end or before an item; a value is JSON if it reads as such, else a text
    #[command(after_help = "\
Examples:
  dwcp sync insert queue first second
  dwcp sync insert --at 0 queue urgent    (before what is read there now)")]
    Insert {
        #[command(flatten)]
        inside: Inside,
        /// Before the item with this index, counted from 0 [default: at the end]
        #[arg(long, value_name = "INDEX")]
        at: Option<usize>,
        /// The key
        key: String,
        /// Values, behind one another
        #[arg(required = true, allow_negative_numbers = true)]
        values: Vec<String>,
    },
    /// Take an item out of a list
    #[command(after_help = "\
Examples:
  dwcp sync erase queue 0")]
    Erase {
        #[command(flatten)]
        inside: Inside,
        /// The key
        key: String,
        /// Its index, counted from 0
        index: usize,
    },
    /// End a conflict: what is shown stays, or VALUE takes its place, and the rest goes
    #[command(after_help = "\
Examples:
  dwcp sync settle user/7           (keeps what is shown; also one of several types)
  dwcp sync settle draft c          (in place of all that stand side by side)")]
    Settle {
        #[command(flatten)]
        inside: Inside,
        /// The key
        key: String,
        /// What is to stand; needed where several values are shown
        #[arg(allow_negative_numbers = true)]
        value: Option<String>,
    },
    /// Print changes below a prefix as they come, until Ctrl-C
    #[command(after_help = "\
Examples:
  dwcp sync watch
  dwcp sync watch user/
  dwcp --json sync watch user/ | jq .value")]
    Watch {
        /// Keys that begin with it; all without one
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show how many concurrent writes there were, and the newest that a node saw
    #[command(after_help = "\
Examples:
  dwcp sync conflicts
  dwcp sync conflicts --limit 5
  dwcp --json sync conflicts | jq .conflict_count")]
    Conflicts {
        /// At most so many, the newest
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show how a node stands with its peers, and whether they hold the same
    #[command(after_help = "\
Examples:
  dwcp sync peers
  dwcp sync peers --node 2
  dwcp --json sync peers | jq .converged")]
    Peers,
}

pub fn run(args: &SyncArgs, json: bool) -> Outcome {
    let config = args.cluster.config()?;
    if let Some(node) = args.node.filter(|node| config.nodes.iter().all(|known| known.id.0 != *node)) {
        return Err(Failure::usage(format!("node {node} is not in the client file")));
    }
    let within = config.settings.call_timeout;
    let asked = Asked { node: args.node.map(ReplicaId), wait: args.wait, within, json };
    runtime()?.block_on(async {
        if matches!(args.command, SyncCommand::Peers) {
            return peers(&Link::connect(config.clone())?, &Client::start(config)?, &asked).await;
        }
        let client = Client::start(config)?;
        dispatch(&args.command, &client.sync(asked.node), &asked).await
    })
}

struct Asked {
    node: Option<ReplicaId>,
    wait: u8,
    within: Duration,
    json: bool,
}

async fn dispatch(command: &SyncCommand, sync: &SyncClient, asked: &Asked) -> Outcome {
    match command {
        SyncCommand::Set { inside, multi, delete, pairs } => {
            write(sync, asked, &pairs_of(inside, pairs, *multi, *delete)?).await
        }
        SyncCommand::Get { prefix: true, key, .. } => list(sync, key, asked.json).await,
        SyncCommand::Get { prefix: false, key, inside } => get(sync, inside, key, asked.json).await,
        SyncCommand::Incr { inside, grow_only, key, by } => {
            let op = match u64::try_from(*by) {
                Ok(by) if *grow_only => Op::Grow(by),
                Err(_) if *grow_only => return Err(Failure::usage("--grow-only takes no negative number")),
                _ => Op::Adjust(*by),
            };
            write(sync, asked, &[inside.write(key, op)]).await
        }
        SyncCommand::Add { inside, forever, once, key, elements } => {
            let op = match (forever, once) {
                (true, _) => Op::AddForever,
                (_, true) => Op::AddOnce,
                _ => Op::Add,
            };
            write(sync, asked, &each(inside, key, elements, op)?).await
        }
        SyncCommand::Remove { inside, once, key, elements } => {
            let op = if *once { Op::RemoveForGood } else { Op::Remove };
            write(sync, asked, &each(inside, key, elements, op)?).await
        }
        SyncCommand::Insert { inside, at, key, values } => {
            write(sync, asked, &edit::insert(sync, inside, key, *at, values).await?).await
        }
        SyncCommand::Erase { inside, key, index } => {
            write(sync, asked, &[inside.write(key, Op::Erase { index: *index })]).await
        }
        SyncCommand::Settle { inside, key, value } => {
            match edit::settle(sync, inside, key, value.as_deref()).await? {
                Some(settling) => write(sync, asked, &[settling]).await,
                None => nothing_to_settle(asked.json),
            }
        }
        SyncCommand::Watch { prefix } => watch(sync, prefix, asked.json).await,
        SyncCommand::Conflicts { limit } => conflicts(sync, *limit, asked.json).await,
        SyncCommand::Peers => unreachable!("asked elsewhere"),
    }
}

/// JSON if it reads as such, else a text.
fn value(text: &str) -> Outcome<Plain> {
    let value = match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => sync_json::read(text.as_bytes()).map_err(Failure::usage)?,
        Err(_) => Value::String(text.into()),
    };
    sync_json::to_plain(&value).map_err(Failure::usage)
}

fn pairs_of(inside: &Inside, pairs: &[String], multi: bool, delete: bool) -> Outcome<Vec<Write>> {
    if delete {
        return Ok(pairs.iter().map(|key| inside.write(key, Op::Delete)).collect());
    }
    if !pairs.len().is_multiple_of(2) {
        return Err(Failure::usage(format!(
            "{:?} has no value: give KEY VALUE pairs",
            pairs[pairs.len() - 1]
        )));
    }
    let write = |pair: &[String]| {
        let value = value(&pair[1])?;
        Ok(inside.write(&pair[0], if multi { Op::PutMulti(value) } else { Op::Put(value) }))
    };
    pairs.chunks(2).map(write).collect()
}

fn each(inside: &Inside, key: &str, elements: &[String], op: impl Fn(Plain) -> Op) -> Outcome<Vec<Write>> {
    elements.iter().map(|element| Ok(inside.write(key, op(value(element)?)))).collect()
}

async fn write(sync: &SyncClient, asked: &Asked, writes: &[Write]) -> Outcome {
    let SyncWritten { road, last, nodes, latency_us } =
        sync.write(writes, asked.wait, Some(asked.within)).await?;
    if asked.json {
        return print_json(&written(road, last, nodes, latency_us));
    }
    match road {
        Road::Nothing => print_line("OK (nothing to change)"),
        Road::Log => print_line("OK (ordered by the log)"),
        Road::Gossip if nodes > 1 => print_line(format!("OK (durable on {nodes} nodes)")),
        Road::Gossip => print_line("OK (durable here, spreading)"),
    }
}

fn written(road: Road, last: u64, nodes: u8, latency_us: u64) -> Value {
    json!({ "road": road.word(), "change": last, "nodes": nodes, "latency_us": latency_us })
}

fn nothing_to_settle(json: bool) -> Outcome {
    if json {
        return print_json(&written(Road::Nothing, 0, 1, 0));
    }
    print_line("OK (nothing to settle)")
}

async fn get(sync: &SyncClient, inside: &Inside, key: &str, json: bool) -> Outcome {
    let found = sync.get(key.to_string(), inside.path()).await?;
    let Some(view) = &found.view else {
        return if json {
            print_json(&json!({ "key": key, "value": null, "exists": false }))
        } else {
            Ok(())
        };
    };
    if json {
        return print_json(&json!({
            "key": key, "exists": true, "type": found.kinds.last(), "types": found.kinds,
            "value": sync_json::view(view), "siblings": found.siblings,
        }));
    }
    if found.kinds.len() > 1 {
        say(format!(
            "this key was created with several types at once ({}): the last is shown, `dwcp sync settle` keeps it",
            found.kinds.join(", ")
        ));
    } else if found.siblings > 1 {
        say(format!(
            "{} concurrent values stand side by side: see `dwcp sync conflicts`, end it with `dwcp sync settle`",
            found.siblings
        ));
    }
    print_line(shown(view))
}

fn shown(view: &View) -> String {
    sync_json::view(view).to_string()
}

async fn list(sync: &SyncClient, prefix: &str, json: bool) -> Outcome {
    let mut after: Option<Bytes> = None;
    let mut all = Vec::new();
    loop {
        let (items, more) = sync.list(prefix.to_string(), after, 0).await?;
        after = items.last().map(|(key, _)| key.clone());
        all.extend(items);
        if !more || after.is_none() {
            break;
        }
    }
    if json {
        let item = |(key, view): &(Bytes, View)| json!({ "key": sync_json::text(key), "value": sync_json::view(view) });
        return print_json(&json!({ "keys": all.iter().map(item).collect::<Vec<_>>() }));
    }
    all.iter().try_for_each(|(key, view)| print_line(format!("{}\t{}", sync_json::text(key), shown(view))))
}

async fn watch(sync: &SyncClient, prefix: &str, json: bool) -> Outcome {
    let mut watch = sync.watch(prefix.to_string()).await?;
    say("watching; Ctrl-C ends it");
    loop {
        let changes = tokio::select! {
            changes = watch.next() => changes?,
            () = interrupted() => return Ok(()),
        };
        for (key, view) in changes {
            let (key, value) = (sync_json::text(&key), view.as_ref().map(sync_json::view));
            if json {
                print_json(&json!({ "key": key, "exists": value.is_some(), "value": value }))?;
            } else {
                print_line(format!(
                    "{key}\t{}",
                    value.map_or("(deleted)".to_string(), |value| value.to_string())
                ))?;
            }
        }
    }
}

async fn conflicts(sync: &SyncClient, limit: u32, json: bool) -> Outcome {
    let seen = sync.conflicts(limit).await?;
    if json {
        let event = |event: &dwcp_client::SyncConflict| {
            json!({
                "key": sync_json::text(&event.key),
                "path": event.path.iter().map(|name| sync_json::text(name)).collect::<Vec<_>>(),
                "by": event.by, "siblings": event.siblings, "strategy": event.strategy, "outcome": event.outcome,
            })
        };
        return print_json(&json!({
            "conflict_count": seen.count, "open": seen.open, "newest": seen.events.iter().map(event).collect::<Vec<_>>(),
        }));
    }
    print_line(format!("{} concurrent writes, {} not settled", thousands(seen.count), thousands(seen.open)))?;
    if seen.events.is_empty() {
        return Ok(());
    }
    let mut rows = table(&["key", "by", "siblings", "strategy", "outcome"]);
    for event in &seen.events {
        // Inside a map, where in it.
        let place = std::iter::once(&event.key).chain(&event.path).map(|name| sync_json::text(name));
        rows.add_row([
            place.collect::<Vec<_>>().join(" "),
            event.by.clone(),
            event.siblings.join(" "),
            event.strategy.clone(),
            event.outcome.clone(),
        ]);
    }
    print_line(rows)
}

async fn peers(link: &Link, client: &Client, asked: &Asked) -> Outcome {
    let statuses = link.statuses().await;
    let answering = statuses.into_iter().filter(|(id, _)| asked.node.is_none_or(|node| node.0 == *id));
    let Some((id, status)) = answering.into_iter().find_map(|(id, status)| Some((id, status.ok()?))) else {
        return Err(Failure::new(Kind::Unreachable, "no node answers"));
    };
    let status =
        status.sync.ok_or_else(|| Failure::refused(format!("state sync is turned off on node {id}")))?;
    let compared = client.sync(Some(ReplicaId(id))).compare(&[], Duration::from_secs(3)).await?;
    if asked.json {
        let ids = |ids: &[ReplicaId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        return print_json(&json!({
            "node": id,
            "converged": compared.differs.is_empty() && compared.silent.is_empty(),
            "level": ids(&compared.level), "differs": ids(&compared.differs), "silent": ids(&compared.silent),
            "sync": object(&status),
        }));
    }
    let mut rows =
        table(&["peer", "holds", "lag frames", "lag s", "last exchange s", "received", "sent", "at fault"]);
    align_numbers(&mut rows, [2, 3, 4, 5, 6]);
    for peer in &status.peers {
        let holds = match peer.id {
            id if compared.level.contains(&id) => "the same",
            id if compared.differs.contains(&id) => "something else",
            _ => "(silent)",
        };
        rows.add_row([
            peer.id.to_string(),
            holds.into(),
            thousands(peer.lag_frames),
            format!("{:.1}", peer.lag_ms as f64 / 1e3),
            exchange_age(peer.last_exchange_ms),
            thousands(peer.bytes_in),
            thousands(peer.bytes_out),
            peer.fault.clone(),
        ]);
    }
    print_line(format!("node {id}: {}", phrase(&status)))?;
    print_line(rows)
}

/// Seconds since an exchange.
pub fn exchange_age(ms: u64) -> String {
    if ms == u64::MAX { "never".into() } else { format!("{:.1}", ms as f64 / 1e3) }
}

/// How state sync goes at a node, in a line.
pub fn phrase(sync: &SyncStatus) -> String {
    if !sync.not_open.is_empty() {
        return sync.not_open.clone();
    }
    format!(
        "{} keys, {} writes acknowledged in {:.1} ms on average, {} conflicts, {} frames kept for peers",
        thousands(sync.keys),
        thousands(sync.sync_count),
        sync.avg_sync_latency_us as f64 / 1e3,
        thousands(sync.conflict_count),
        thousands(sync.frames_kept),
    ) + &troubles(sync)
}

/// What somebody should look at: who keeps the others from collecting, and whose end is not decided.
pub fn troubles(sync: &SyncStatus) -> String {
    let faults = sync.peers.iter().filter(|peer| peer.withholds);
    let faults = faults.map(|peer| format!("; node {} {}", peer.id, peer.fault));
    let frozen = sync.frozen.iter().map(|origin| format!("; {origin} contradicted itself"));
    faults.chain(frozen).collect()
}

/// The same for programs.
pub fn object(sync: &SyncStatus) -> Value {
    let peer = |peer: &dwcp_client::SyncPeerStatus| {
        json!({
            "node": peer.id.0, "lag_frames": peer.lag_frames, "lag_ms": peer.lag_ms,
            "last_exchange_ms": (peer.last_exchange_ms != u64::MAX).then_some(peer.last_exchange_ms),
            "exchanges": peer.exchanges, "bytes_in": peer.bytes_in, "bytes_out": peer.bytes_out,
            "withholds": peer.withholds, "fault": (!peer.fault.is_empty()).then_some(&peer.fault),
        })
    };
    json!({
        "sync_count": sync.sync_count,
        "last_sync_unix_ms": sync.last_sync_unix_ms,
        "avg_sync_latency_us": sync.avg_sync_latency_us,
        "conflict_count": sync.conflict_count,
        "conflicts_open": sync.conflicts_open,
        "keys": sync.keys,
        "tombstones": sync.tombstones,
        "not_open": sync.not_open,
        "frames_written": sync.frames_written,
        "frames_applied": sync.frames_applied,
        "frames_ordered": sync.frames_ordered,
        "fallbacks": sync.fallbacks,
        "writes_refused": sync.writes_refused,
        "bundles_refused": sync.bundles_refused,
        "exchanges": sync.exchanges,
        "frames_waiting": sync.frames_waiting,
        "ordering": sync.ordering,
        "keys_damaged": sync.keys_damaged,
        "keys_repaired": sync.keys_repaired,
        "snapshots_installed": sync.snapshots_installed,
        "snapshots_refused": sync.snapshots_refused,
        "donors_stalled": sync.donors_stalled,
        "floors_missed": sync.floors_missed,
        "resolutions_impure": sync.resolutions_impure,
        "refused": sync.refused.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "frames_kept": sync.frames_kept,
        "frames_kept_bytes": sync.frames_kept_bytes,
        "floor": sync.floor,
        "frozen_origins": sync.frozen_origins,
        "frozen": sync.frozen,
        "needs_snapshot": sync.needs_snapshot,
        "peers": sync.peers.iter().map(peer).collect::<Vec<_>>(),
    })
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        let kind = match &error {
            SyncError::NotReached(NodeError::Refused(_)) | SyncError::Refused(_) => Kind::Refused,
            SyncError::NotReached(_) => Kind::Unreachable,
            _ => Kind::Unknown,
        };
        Self::new(kind, error)
    }
}
