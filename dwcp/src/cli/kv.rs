//! `dwcp kv`: the key-value store from the command line, in etcdctl's words.
//!
//! Each invocation is one command of one session, believed as the client file says. What commands
//! and answers mean is the store's; how a transaction is written is `txn_text` of the library, how answers look `kv/show.rs`.

mod lease;
mod show;

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use dwcp_client::CallOptions;
use dwcp_state::kv::{DeleteRange, KvCommand, Put, Range, SortBy, SortOrder, prefix_end};
use serde_json::json;

use self::show::Shape;
use super::cluster::{Answer, ClusterArgs, Link, runtime};
use super::init::AckWord;
use super::output::{Failure, Outcome, print_bytes, print_json, say};

const EXAMPLES: &str = "\
Examples:
  export DWCP_CLUSTER=trial/client.toml    (written by `dwcp init`)
  dwcp kv put a 1
  dwcp kv get a
  dwcp kv -v get a                         (also: label, position, view, revision, latency)
  dwcp kv get --prefix conf/ --limit 10
  dwcp kv del a
  echo hello | dwcp kv put greeting        (the value comes from standard input)
  dwcp kv -v put --ack anchored a 2        (waits until f + 1 nodes have signed it, whatever protocol orders it)

Exit codes: 0 done, 1 refused (not applied), 2 wrong usage, 3 outcome unknown (may have been applied: read before
writing again), 4 no node answered in time (not applied).";

/// Read and write keys, run transactions, hold leases
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct KvArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Also say, on standard error: whom the answer trusts (label: byzantine as f + 1 nodes signed it, crash as one node
    /// said it, stale as one node's own copy), its position in the log and the view; the store's revision; how long it took
    #[arg(short, long, global = true)]
    verbose: bool,

    /// When to answer: majority (once committed) or anchored (once a PBFT certificate covers it, in a Raft segment at the
    /// next Anchor) [default: as the cluster's policy says]
    #[arg(long, value_enum, value_name = "ACK", global = true)]
    ack: Option<AckWord>,

    #[command(subcommand)]
    command: KvSubcommand,
}

#[derive(Debug, Subcommand)]
enum KvSubcommand {
    /// Set a key
    #[command(after_help = "\
Examples:
  dwcp kv put a 1
  dwcp kv put --prev a 2            (prints what was there before)
  dwcp kv put --lease 7 a 3         (the key goes when lease 7 does)
  dwcp kv put photo < photo.jpg     (any bytes, up to 1.5 MiB)")]
    Put(PutArgs),
    /// Read keys; prints each key and its value on lines of their own, nothing for a key that does not exist
    #[command(after_help = "\
Examples:
  dwcp kv get a
  dwcp kv get --value-only a
  dwcp kv get --prefix conf/ --keys-only
  dwcp kv get a b                   (the range from a up to but without b)
  dwcp kv get --rev 5 a             (as it was at revision 5)
  dwcp kv get --consistency stale --node 2 a
                                    (node 2's own copy, now: fast, may be old, and node 2 is taken at its word)")]
    Get(GetArgs),
    /// Delete keys; prints how many
    #[command(after_help = "\
Examples:
  dwcp kv del a
  dwcp kv del --prev a              (prints what was deleted)
  dwcp kv del --prefix tmp/")]
    Del(DelArgs),
    /// Compare, then do one thing or the other, in one revision; reads the transaction from FILE or standard input
    #[command(after_help = "\
A transaction is three paragraphs separated by an empty line - comparisons, what runs when all of them hold, what runs
when one does not:
  dwcp kv txn <<END
  version(\"lock\") = 0

  put lock me
  get lock

  get lock
  END

Comparisons: value|version|create|mod|lease(\"KEY\") and one of = != > <. Operations: put KEY VALUE, get KEY [--prefix],
del KEY [--prefix]. Words with spaces stand in double quotes (escapes \\\" \\\\ \\n \\r \\t \\xNN). A paragraph may be empty.

Or one JSON object:
  {\"compare\": [{\"key\": \"lock\", \"target\": \"version\", \"op\": \"=\", \"value\": 0}],
   \"then\": [{\"put\": {\"key\": \"lock\", \"value\": \"me\"}}, {\"get\": {\"key\": \"lock\"}}],
   \"else\": [{\"delete\": {\"key\": \"x\", \"prefix\": true}}, {\"txn\": {...}}]}

Prints SUCCESS or FAILURE (which branch ran; either way exit code 0), then each operation's answer.")]
    Txn {
        /// The transaction; standard input when absent
        file: Option<PathBuf>,
    },
    /// Grant, keep and revoke leases; keys put with a lease go when it does
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Forget what was superseded at or before a revision; reading there becomes an error
    #[command(after_help = "Example:\n  dwcp kv compact 1000")]
    Compact {
        /// A revision up to the present one
        revision: u64,
    },
    /// Show the bytes held, the quota and whether its alarm is up
    #[command(after_help = "\
Examples:
  dwcp kv alarm
  dwcp kv del --prefix old/ && dwcp kv compact 9000 && dwcp kv alarm --disarm    (admins only)")]
    Alarm {
        /// Let writes through again; make room first, or it goes up with the next write
        #[arg(long)]
        disarm: bool,
    },
}

#[derive(Debug, Args)]
struct PutArgs {
    /// Any bytes but none at all
    key: OsString,
    /// Standard input when absent
    value: Option<OsString>,
    /// The lease (a number, see `dwcp kv lease`) the key hangs on
    #[arg(long, value_name = "ID", default_value_t = 0, hide_default_value = true)]
    lease: i64,
    /// Print the key as it was before
    #[arg(long)]
    prev: bool,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The key, or where the range or prefix begins
    key: OsString,
    /// The end of a range, itself not in it
    #[arg(conflicts_with = "prefix")]
    range_end: Option<OsString>,
    /// Every key that begins with KEY; all keys when KEY is ''
    #[arg(long)]
    prefix: bool,
    /// Every key from KEY on
    #[arg(long, conflicts_with_all = ["prefix", "range_end"])]
    from_key: bool,
    /// At most this many keys; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    limit: u64,
    /// As it was at this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    rev: u64,
    /// Print keys without their values
    #[arg(long, conflicts_with = "value_only")]
    keys_only: bool,
    /// Print values without their keys
    #[arg(long)]
    value_only: bool,
    /// Print only how many keys there are
    #[arg(long)]
    count_only: bool,
    /// What decides the order
    #[arg(long, value_enum, default_value = "key")]
    sort_by: SortWord,
    /// From the greatest down
    #[arg(long)]
    descending: bool,
    /// linearizable: sees everything acknowledged before; asked of the leader while a Raft segment is open and the client file
    /// says trust = "crash", else ordered as a command. stale: one node's own copy
    #[arg(long, value_enum, default_value = "linearizable")]
    consistency: Consistency,
    /// With --consistency stale: whose copy [default: the first node that answers]
    #[arg(long, value_name = "NODE")]
    node: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Consistency {
    Linearizable,
    Stale,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortWord {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Debug, Args)]
struct DelArgs {
    /// The key, or where the range or prefix begins
    key: OsString,
    /// The end of a range, itself not in it
    #[arg(conflicts_with = "prefix")]
    range_end: Option<OsString>,
    /// Every key that begins with KEY
    #[arg(long)]
    prefix: bool,
    /// Print what was deleted
    #[arg(long)]
    prev: bool,
}

pub fn run(args: &KvArgs, json: bool) -> Outcome {
    if let KvSubcommand::Get(GetArgs { consistency: Consistency::Stale, .. }) = &args.command
        && args.ack.is_some()
    {
        return Err(Failure::usage("a stale read is one node's own word: leave --ack out"));
    }
    // What cannot be read is refused before anybody is called.
    let (command, shape) = command(args)?;
    let config = args.cluster.config()?;
    runtime()?.block_on(async {
        let link = Link::connect(config)?;
        if let KvSubcommand::Lease(lease::LeaseCommand::Keepalive { id, once: false }) = &args.command {
            return lease::keep_alive(&link, *id, args.verbose, json).await;
        }
        let answer = match &args.command {
            KvSubcommand::Get(get) if get.consistency == Consistency::Stale => {
                link.stale(get.node, &command).await?
            }
            _ => {
                let ack = args.ack.map(Into::into);
                link.run_with(&command, CallOptions { ack, ..CallOptions::default() }).await?
            }
        };
        print_answer(&answer, shape, args.verbose, json)
    })
}

/// The answer on standard output; what is known about it, if wanted, beside it.
fn print_answer(answer: &Answer, shape: Shape, verbose: bool, json: bool) -> Outcome {
    if json {
        let mut object = show::json(&answer.reply.body);
        object["revision"] = json!(answer.reply.revision);
        object["label"] = json!(answer.told.label());
        if let Some((position, view)) = answer.told.read_at() {
            object["position"] = json!(position.0);
            object["view"] = json!(view.0);
        }
        object["latency_ms"] = json!(answer.latency.as_secs_f64() * 1000.0);
        return print_json(&object);
    }
    print_bytes(&show::text(&answer.reply.body, shape))?;
    if verbose {
        say(format!(
            "# {}, revision {}, {:.2} ms",
            answer.told,
            answer.reply.revision,
            answer.latency.as_secs_f64() * 1000.0
        ));
    }
    Ok(())
}

fn command(args: &KvArgs) -> Outcome<(KvCommand, Shape)> {
    let verbose = Shape { verbose: args.verbose, ..Shape::default() };
    Ok(match &args.command {
        KvSubcommand::Put(put) => {
            let value = match &put.value {
                Some(value) => value.clone().into_vec(),
                None => read_input(None)?,
            };
            let put = Put { lease: put.lease, prev_kv: put.prev, ..Put::new(bytes(&put.key), value) };
            (KvCommand::Put(put), verbose)
        }
        KvSubcommand::Get(get) => {
            if get.node.is_some() && get.consistency == Consistency::Linearizable {
                return Err(Failure::usage("--node reads one node's own copy: add --consistency stale"));
            }
            let shape = Shape {
                keys_only: get.keys_only,
                values_only: get.value_only,
                verbose: args.verbose || get.count_only,
            };
            (KvCommand::Range(range(get)), shape)
        }
        KvSubcommand::Del(del) => {
            let key = bytes(&del.key);
            let range_end = match &del.range_end {
                Some(end) => bytes(end),
                None if del.prefix => prefix_end(&key),
                None => Bytes::new(),
            };
            (
                KvCommand::DeleteRange(DeleteRange {
                    key: from_zero(key, &range_end),
                    range_end,
                    prev_kv: del.prev,
                }),
                verbose,
            )
        }
        KvSubcommand::Txn { file } => {
            let input = read_input(file.as_ref())?;
            let text = String::from_utf8(input).map_err(|_| {
                Failure::usage("malformed transaction: it is not UTF-8; write bytes as \\xNN")
            })?;
            let txn = dwcp::txn_text::parse(&text)
                .map_err(|error| Failure::usage(format!("{error}; `dwcp kv txn --help` shows both forms")))?;
            (KvCommand::Txn(txn), verbose)
        }
        KvSubcommand::Lease(lease) => (lease.command(), verbose),
        KvSubcommand::Compact { revision } => (KvCommand::Compact { revision: *revision }, verbose),
        KvSubcommand::Alarm { disarm: true } => (KvCommand::AlarmDisarm, verbose),
        KvSubcommand::Alarm { disarm: false } => (KvCommand::AlarmList, verbose),
    })
}

fn range(get: &GetArgs) -> Range {
    let key = bytes(&get.key);
    let range_end = match &get.range_end {
        Some(end) => bytes(end),
        None if get.prefix => prefix_end(&key),
        None if get.from_key => Bytes::from_static(&[0]),
        None => Bytes::new(),
    };
    Range {
        key: from_zero(key, &range_end),
        range_end,
        limit: get.limit,
        revision: get.rev,
        sort_order: if get.descending { SortOrder::Descend } else { SortOrder::Ascend },
        sort_by: match get.sort_by {
            SortWord::Key => SortBy::Key,
            SortWord::Version => SortBy::Version,
            SortWord::Create => SortBy::Create,
            SortWord::Mod => SortBy::Mod,
            SortWord::Value => SortBy::Value,
        },
        keys_only: get.keys_only,
        count_only: get.count_only,
        ..Range::default()
    }
}

/// A range may begin before the first possible key, which is a single zero byte; a key may not be empty.
fn from_zero(key: Bytes, range_end: &Bytes) -> Bytes {
    if key.is_empty() && !range_end.is_empty() { Bytes::from_static(&[0]) } else { key }
}

fn bytes(word: &OsString) -> Bytes {
    Bytes::from(word.clone().into_vec())
}

/// More than any command may hold; the store says what exactly is too long.
const INPUT_BYTES_MAX: u64 = 16 << 20;

fn read_input(file: Option<&PathBuf>) -> Outcome<Vec<u8>> {
    let mut input = Vec::new();
    let read = match file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(INPUT_BYTES_MAX).read_to_end(&mut input))
            .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display()))),
        None => std::io::stdin()
            .lock()
            .take(INPUT_BYTES_MAX)
            .read_to_end(&mut input)
            .map_err(|error| Failure::usage(format!("cannot read standard input: {error}"))),
    };
    read.map(|_| input)
}
