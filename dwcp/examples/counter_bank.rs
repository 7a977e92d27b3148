//! A cluster of your own: four nodes in this process, a state machine that is not the key-value store, and a client. One
//! node is stopped on the way.
//!
//! `cargo run --release -p dwcp --example counter_bank -- hybrid`, or `internet`. In hybrid mode Raft orders the commands
//! and PBFT takes over when the node stops; an answer is labelled by what vouches for it, and one that must hold though a
//! member lies is asked for as such. In internet mode every answer is one that two nodes have signed alike.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use bytes::Bytes;
use dwcp::client::{CallOptions, Client, ClientConfig, ClientError, Command, Receipt, ReplicaId};
use dwcp::init::{ClusterOptions, Ports, TrialOptions, trial_cluster};
use dwcp::settings::Mode;
use dwcp::state::QueryError;
use dwcp::{Ack, Context, Label, MachineRefusal, NodeConfig, Server, Small, SmallMachine, Stop};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Balances by name. Commands and answers are text: `deposit ann 10`, `transfer ann bob 4`, `balance ann`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterBank {
    // Ordered, so that equal banks are equal bytes on every node. At most `ACCOUNTS_MAX`.
    balances: BTreeMap<String, u64>,
}

const ACCOUNTS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 64;

const MALFORMED: u16 = 1;
const REFUSED: u16 = 2;

fn refused(why: &str) -> MachineRefusal {
    MachineRefusal::new(REFUSED, why)
}

impl CounterBank {
    fn balance(&self, name: &str) -> u64 {
        self.balances.get(name).copied().unwrap_or(0)
    }

    /// Whatever can refuse stands before whatever changes: a refused command leaves no trace.
    fn carry_out(&mut self, command: &str) -> Result<u64, MachineRefusal> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let amount = |word: &str| word.parse::<u64>().map_err(|_| refused("an amount is a whole number"));
        match words[..] {
            ["deposit", to, word] => self.set(to, self.balance(to).checked_add(amount(word)?)),
            ["transfer", from, to, word] if from != to => {
                let amount = amount(word)?;
                let left = self.balance(from).checked_sub(amount);
                let left = left.ok_or_else(|| refused("the balance is too small: deposit first"))?;
                self.set(to, self.balance(to).checked_add(amount))?;
                self.set(from, Some(left))
            }
            ["balance", of] => Ok(self.balance(of)),
            _ => Err(MachineRefusal::new(
                MALFORMED,
                "write deposit TO AMOUNT, transfer FROM TO AMOUNT or balance OF",
            )),
        }
    }

    fn set(&mut self, name: &str, balance: Option<u64>) -> Result<u64, MachineRefusal> {
        let balance = balance.ok_or_else(|| refused("the balance would overflow: move less"))?;
        let is_full = self.balances.len() >= ACCOUNTS_MAX && !self.balances.contains_key(name);
        if is_full || name.len() > NAME_BYTES_MAX {
            return Err(refused("the bank is full, or the name is too long: use an account that exists"));
        }
        self.balances.insert(name.into(), balance);
        Ok(balance)
    }
}

impl SmallMachine for CounterBank {
    const NAME: &'static str = "counter bank (example)";

    fn apply(&mut self, _: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        let text = std::str::from_utf8(command).map_err(|_| MachineRefusal::new(MALFORMED, "not text"))?;
        self.carry_out(text).map(|balance| Bytes::from(balance.to_string()))
    }

    fn read_only(&self, command: &[u8]) -> bool {
        command.starts_with(b"balance ")
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        if !self.read_only(query) {
            return Err(QueryError::NotReadOnly);
        }
        let text = std::str::from_utf8(query).map_err(|_| QueryError::Malformed)?;
        self.clone().carry_out(text).map(|balance| balance.to_string().into()).map_err(QueryError::Refused)
    }

    fn save(&self) -> Vec<u8> {
        self.balances.iter().map(|(name, balance)| format!("{name} {balance}\n")).collect::<String>().into()
    }

    fn load(&self, bytes: &[u8]) -> Option<Self> {
        let line = |line: &str| {
            let (name, balance) = line.split_once(' ')?;
            Some((name.to_string(), balance.parse().ok()?))
        };
        let balances = std::str::from_utf8(bytes).ok()?.lines().map(line).collect::<Option<_>>()?;
        Some(Self { balances })
    }
}

/// A node that runs in the background until it is told to stop.
struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<Stop, dwcp::ServerError>>,
}

impl Running {
    async fn start(config_file: &Path) -> Result<Self, Box<dyn Error>> {
        let config = NodeConfig::load(config_file)?;
        let server = Server::start_with(config, |_| Small::new(CounterBank::default())).await?;
        let (stop, stopped) = oneshot::channel();
        // A dropped sender stops it as well.
        let ended = tokio::spawn(server.run(async { drop(stopped.await) }));
        Ok(Self { stop, ended })
    }

    async fn stop(self) -> Result<Stop, Box<dyn Error>> {
        let _ = self.stop.send(());
        Ok(self.ended.await??)
    }
}

/// What the bank answered, and what vouches for it.
async fn run(client: &Client, command: &str) -> Result<(u64, Receipt), Box<dyn Error>> {
    run_with(client, command, CallOptions::default()).await
}

async fn run_with(
    client: &Client,
    command: &str,
    options: CallOptions,
) -> Result<(u64, Receipt), Box<dyn Error>> {
    let encoded = Command::Machine(Bytes::from(command.to_string())).encode();
    let mut answers = client.session().execute_raw(vec![encoded], options).await;
    let believed = answers.pop().ok_or("one answer for one command")??;
    let balance = std::str::from_utf8(&believed.reply)?.parse()?;
    println!("{command}: {balance}    ({})", believed.receipt);
    Ok((balance, believed.receipt))
}

/// The whole story in a folder that does not exist yet. Returns what ann has at the end.
pub async fn story(folder: &Path, mode: Mode) -> Result<u64, Box<dyn Error>> {
    // What `dwcp init --nodes 4` does: keys, certificates, one settings file a node, a client file.
    let cluster = ClusterOptions { mode, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    let trial = trial_cluster(4, folder, &options)?;
    let mut nodes = Vec::new();
    for node in &trial.nodes {
        nodes.push(Running::start(&node.config_file).await?);
    }

    let client = Client::connect(ClientConfig::read(&trial.client_file, None)?).await?;
    run(&client, "deposit ann 10").await?;
    let (left, receipt) = run(&client, "transfer ann bob 4").await?;
    assert_eq!(left, 6);
    println!(
        "vouched for by {}",
        if receipt.label == Label::Byzantine { "two nodes" } else { "the segment" }
    );
    // Whatever the mode: this one holds though a member lies.
    let (left, receipt) = run_with(&client, "balance ann", CallOptions::ack(Ack::Anchored)).await?;
    assert_eq!((left, receipt.label), (6, Label::Byzantine));

    // A refusal is an answer, too: two nodes agree that nothing was applied.
    let command = Command::Machine(Bytes::from_static(b"transfer ann bob 40"));
    match client.session().command(command).await {
        Err(error @ ClientError::Refused(_)) => println!("transfer ann bob 40: {error}"),
        other => return Err(format!("ann has no 40: {other:?}").into()),
    }

    // Without its first node the cluster goes on.
    let ended = nodes.remove(0).stop().await?;
    println!("node 0 stopped ({ended:?})");
    run(&client, "transfer bob ann 1").await?;
    let (ann, _) = run(&client, "balance ann").await?;
    let (bob, _) = run(&client, "balance bob").await?;
    assert_eq!(ann + bob, 10, "nothing was made or lost");

    // One node's own word: fast, unsigned, possibly old.
    let query = Command::Machine(Bytes::from_static(b"balance bob"));
    let own = client.query(Some(ReplicaId(2)), &query).await?;
    println!("node 2 on its own: bob has {}", String::from_utf8_lossy(&own));

    client.close().await;
    for node in nodes {
        node.stop().await?;
    }
    Ok(ann)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mode = match std::env::args().nth(1).as_deref() {
        None | Some("hybrid") => Mode::Hybrid,
        Some("internet") => Mode::Internet,
        Some(_) => return Err("say hybrid or internet".into()),
    };
    let folder = tempfile::tempdir()?;
    story(&folder.path().join("bank"), mode).await?;
    Ok(())
}
