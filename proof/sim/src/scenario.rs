//! Scenarios: small scripts that are played against a simulated cluster without chance faults; what happens is
//! recorded next to them and compared by a test, so that a change of behaviour shows as a change of a text.
//!
//! One command per line; `#` begins a comment. `cluster` comes first and sets dials. Each command is echoed, followed
//! by what the replicas report until it is done.

use crate::dials::Profile;
use crate::node::Down;
use crate::world::{Event, World};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use check::{Answer, Interval, Operation, Outcome};
use dwcp_base::{Mutants, ReplicaId, decode};
use dwcp_pbft::{Message, Vote};
use dwcp_replica::PeerMessage;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// How long a command may take before the scenario says so and goes on.
const PATIENCE_US: u64 = 60_000_000;

/// Messages that are lost on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    kind: String,
    sequence: Option<u64>,
    from: Option<u8>,
    to: Vec<u8>,
}

impl Loss {
    /// Is this message to be lost?
    #[must_use]
    pub fn matches(&self, from: ReplicaId, to: ReplicaId, bytes: &Bytes) -> bool {
        if self.from.is_some_and(|own| own != from.0) || !(self.to.is_empty() || self.to.contains(&to.0)) {
            return false;
        }
        let Ok(PeerMessage::Pbft(message)) = decode::<PeerMessage>(bytes) else { return self.kind == "any" };
        let (kind, sequences) = match &message {
            Message::PrePrepare { proposal, .. } => ("preprepare", vec![proposal.statement.claim.sequence.0]),
            Message::Vote(signed) => {
                let kind = match signed.statement.claim.vote {
                    Vote::PrePrepare => "preprepare",
                    Vote::Prepare => "prepare",
                    Vote::Commit => "commit",
                    Vote::Checkpoint => "checkpoint",
                };
                (kind, vec![signed.statement.claim.sequence.0])
            }
            Message::Payload { sequence, .. } => ("payload", vec![sequence.0]),
            Message::Decided(slots) => {
                ("decided", slots.iter().map(|slot| slot.certificate.claim.sequence.0).collect())
            }
            Message::ViewChange(_) => ("viewchange", vec![]),
            Message::NewView(_) => ("newview", vec![]),
            _ => ("other", vec![]),
        };
        (self.kind == "any" || self.kind == kind)
            && self.sequence.is_none_or(|sequence| sequences.contains(&sequence))
    }
}

/// What playing a scenario came to.
#[derive(Debug)]
pub struct Played {
    pub name: String,
    pub good: bool,
    pub verdict: String,
}

/// Where the scenarios stand.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// Plays one scenario, or all; compares with the recorded output, or records it.
///
/// # Errors
/// A script that cannot be read, and files that cannot be written.
pub fn play_named(name: &str, bless: bool) -> anyhow::Result<Vec<Played>> {
    crate::runner::quiet_panics();
    let mut scripts: Vec<PathBuf> = fs::read_dir(folder())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    let mut outcomes = Vec::new();
    for script in scripts {
        let stem = script.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name != "all" && name != stem {
            continue;
        }
        let text = fs::read_to_string(&script)?;
        let output = play(&text).with_context(|| format!("in {}", script.display()))?;
        let record = script.with_extension("out");
        let recorded = fs::read_to_string(&record).unwrap_or_default();
        let (good, verdict) = if bless {
            fs::write(&record, &output)?;
            (true, "recorded".to_string())
        } else if output == recorded {
            (true, "as recorded".to_string())
        } else {
            (false, difference(&recorded, &output))
        };
        outcomes.push(Played { name: stem, good, verdict });
    }
    Ok(outcomes)
}

fn difference(recorded: &str, output: &str) -> String {
    let (mut left, mut right) = (recorded.lines(), output.lines());
    for number in 1.. {
        let (old, new) = (left.next(), right.next());
        if old != new {
            let show = |line: Option<&str>| line.unwrap_or("(end)").to_string();
            return format!(
                "differs at line {number}\n  recorded: {}\n  now:      {}\n  `sim scenario NAME --bless` records it anew",
                show(old),
                show(new)
            );
        }
        if old.is_none() {
            break;
        }
    }
    "as recorded".to_string()
}

/// Plays a script and returns what happened.
///
/// # Errors
/// A line that is no command.
pub fn play(script: &str) -> anyhow::Result<String> {
    let mut stage: Option<Stage> = None;
    let mut output = String::new();
    for (number, line) in script.lines().enumerate() {
        let command = line.split('#').next().unwrap_or_default().trim();
        if command.is_empty() {
            continue;
        }
        writeln!(output, "> {command}")?;
        let words: Vec<&str> = command.split_whitespace().collect();
        let at = || format!("line {}: {command}", number + 1);
        if words[0] == "cluster" {
            ensure!(stage.is_none(), "{}: there is a cluster already", at());
            stage = Some(Stage::new(&words[1..]).with_context(at)?);
        } else {
            let stage = stage.as_mut().with_context(|| format!("{}: `cluster` comes first", at()))?;
            stage.act(&words).with_context(at)?;
        }
        if let Some(stage) = stage.as_mut() {
            stage.flush(&mut output)?;
        }
    }
    if let Some(stage) = stage {
        stage.close(&mut output)?;
    }
    Ok(output)
}

struct Stage {
    world: World,
    /// Places in the journal of what was sent without waiting.
    open: Vec<usize>,
    said: Vec<String>,
}

fn list(text: &str) -> anyhow::Result<Vec<u8>> {
    text.split(',').map(|one| one.parse().with_context(|| format!("{one} is no replica"))).collect()
}

impl Stage {
    fn new(settings: &[&str]) -> anyhow::Result<Self> {
        let mut dials = Profile::named("calm").expect("a profile").draw(1, 3_600);
        for (name, value) in [
            ("n", 4),
            ("f", 1),
            ("clients", 1),
            ("ed25519", 0),
            ("delay_us", 1_000),
            ("jitter_us", 0),
            ("skew_ms", 0),
            ("sync_us", 100),
            ("view_timeout_ms", 1_000),
            ("checkpoint_interval", 4),
            ("window_checkpoints", 2),
            ("pipeline_depth", 4),
            ("retry_ms", 5_000),
            ("leases_pm", 0),
            ("snapshot_log_bytes", 65_536),
            ("pipelined_sync", 0),
        ] {
            let known = dials.set(name, value);
            ensure!(known, "{name} is no dial");
        }
        for setting in settings {
            let (name, value) = setting.split_once('=').context("settings are written name=value")?;
            let known = dials.set(name, value.parse()?);
            ensure!(known, "{name} is no dial");
            if name == "n" {
                dials.f = (dials.n - 1) / 3;
            }
        }
        dials.settle();
        let mut world = World::new(1, &dials, Mutants::default(), false);
        world.clients[0].manual = true;
        world.spotlight = Some(Vec::new());
        let mut stage = Self { world, open: Vec::new(), said: Vec::new() };
        stage.until(|world| world.clients[0].is_open());
        Ok(stage)
    }

    /// Lets events happen until the condition holds; false when patience ended.
    fn until(&mut self, done: impl Fn(&World) -> bool) -> bool {
        let end = self.world.now_us + PATIENCE_US;
        while !done(&self.world) {
            if self.world.now_us > end || !self.world.advance() {
                return false;
            }
        }
        true
    }

    fn wait(&mut self, us: u64) {
        let end = self.world.now_us + us;
        while self.world.next_at_us().is_some_and(|at| at <= end) {
            self.world.advance();
        }
        self.world.now_us = end;
    }

    fn node(&self, word: Option<&&str>) -> anyhow::Result<usize> {
        let node: usize = word.context("which replica?")?.parse()?;
        ensure!(node < self.world.nodes.len(), "there is no replica {node}");
        Ok(node)
    }

    fn act(&mut self, words: &[&str]) -> anyhow::Result<()> {
        match words[0] {
            "put" | "get" | "delete" | "send" => self.ask(words)?,
            "answers" => {
                for place in std::mem::take(&mut self.open) {
                    self.answer(place);
                }
            }
            "crash" => {
                let node = self.node(words.get(1))?;
                self.world.crash(node, Down::DiskFull);
                self.world.nodes[node].disk.full = false;
            }
            "start" => {
                let node = self.node(words.get(1))?;
                let boot = self.world.nodes[node].boot;
                self.world.schedule(0, Event::Start { node, boot });
                self.wait(1_000);
            }
            "lose-disk" => {
                let node = self.node(words.get(1))?;
                self.world.lose_disk(node);
            }
            "isolate" => {
                let node = self.node(words.get(1))?;
                for peer in 0..self.world.nodes.len() {
                    if peer != node {
                        self.world.net.cut(node, peer);
                        self.world.net.cut(peer, node);
                    }
                }
            }
            "heal" => {
                self.world.losses.clear();
                self.world.heal();
            }
            "lose" => self.world.losses.push(loss(&words[1..])?),
            "wait" => {
                let ms: u64 = words.get(1).context("how many ms?")?.trim_end_matches("ms").parse()?;
                self.wait(ms * 1_000);
            }
            "show" => {
                for node in &self.world.nodes {
                    let text = match &node.core {
                        Some(core) => {
                            let status = core.status(node.now(self.world.now_us));
                            format!(
                                "view {}{}, executed {}, stable {}, chain {:?}",
                                status.view,
                                if status.view_active { "" } else { " (changing)" },
                                status.executed,
                                status.stable,
                                status.chain
                            )
                        }
                        None => "down".to_string(),
                    };
                    self.said.push(format!("{node:?}: {text}"));
                }
            }
            other => bail!("{other} is no command"),
        }
        Ok(())
    }

    fn ask(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let waits = words[0] != "send";
        let words = if waits { words } else { &words[1..] };
        let operation = match words {
            ["put", key, value] => match value.split_once('*') {
                // A long value: x*1000 is x a thousand times.
                Some((one, times)) => Operation::put(*key, one.repeat(times.parse()?)),
                None => Operation::put(*key, *value),
            },
            ["get", key] => Operation::get(*key),
            ["get"] => Operation::range(Interval::all()),
            ["delete", key] => Operation::delete(*key),
            _ => bail!("write put KEY VALUE, get KEY or delete KEY"),
        };
        let place = self.world.clients[0].journal.commands.len();
        self.world.send_commands(0, vec![operation]);
        self.world.schedule(1_000, Event::ClientWake { client: 0 });
        self.open.push(place);
        if waits {
            for place in std::mem::take(&mut self.open) {
                self.answer(place);
            }
        }
        Ok(())
    }

    fn answer(&mut self, place: usize) {
        let outcome = |world: &World| world.clients[0].journal.commands[place].outcome.clone();
        let answered = self.until(|world| !matches!(outcome(world), Outcome::Unknown { .. }));
        let operation = self.world.clients[0].journal.commands[place].operation.clone();
        let text = match outcome(&self.world) {
            _ if !answered => "no answer".to_string(),
            Outcome::Ok { reply, label, .. } => {
                let records = match &reply.answer {
                    Answer::Range { records, .. } => records
                        .iter()
                        .map(|r| format!(" {}={}", r.key.escape_ascii(), r.value.escape_ascii()))
                        .collect(),
                    _ => String::new(),
                };
                format!("revision {}{records} ({label:?})", reply.revision.unwrap_or(0))
            }
            other => format!("{other:?}"),
        };
        self.said.push(format!("client: {operation} -> {text}"));
    }

    fn flush(&mut self, output: &mut String) -> anyhow::Result<()> {
        if let Some(seen) = self.world.spotlight.as_mut() {
            for line in seen.drain(..) {
                writeln!(output, "  {line}")?;
            }
        }
        for line in self.said.drain(..) {
            writeln!(output, "  {line}")?;
        }
        Ok(())
    }

    /// The judges look at scenarios, too.
    fn close(mut self, output: &mut String) -> anyhow::Result<()> {
        self.world.clients[0].stop();
        let report = self.world.report();
        for found in &report.found {
            writeln!(output, "! {}: {}", found.by, found.text)?;
        }
        writeln!(
            output,
            "{} acknowledged, {} lost, {} doubled",
            report.acknowledged, report.lost, report.doubled
        )?;
        Ok(())
    }
}

fn loss(words: &[&str]) -> anyhow::Result<Loss> {
    let kind = words.first().context("lose what?")?.to_lowercase();
    let mut loss = Loss { kind, sequence: None, from: None, to: Vec::new() };
    for word in &words[1..] {
        match word.split_once('=').context("write sequence=, from= or to=")? {
            ("sequence", value) => loss.sequence = Some(value.parse()?),
            ("from", value) => loss.from = Some(value.parse()?),
            ("to", value) => loss.to = list(value)?,
            (other, _) => bail!("{other} is not sequence, from or to"),
        }
    }
    Ok(loss)
}
