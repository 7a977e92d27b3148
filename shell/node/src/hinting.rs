//! Hints in a node: what links and the core tell them, the one task that steps them, and where what they say goes.
//!
//! The core's thread has no part in it, but to say when the log has another member: hints are a beat of 200 ms beside it.
//! What a message says and who is believed is decided in `dwcp-hints`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use dwcp_base::{Member, Micros, ReplicaId};
use dwcp_hints::{Drops, Effect, Hint, Hints, Input, Known, check_address};
use dwcp_transport::{Class, LinkEnd, PeerId, Sent, Transport};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::settings::NodeConfig;

/// The wire version since which a peer knows what a hint is.
pub(crate) const HINTS_SINCE: u16 = 2;
/// Messages of one peer that wait; further ones are dropped.
const WAITING_MAX: usize = 32;
/// A member that cannot be reached for so long is looked for at the seeds, at first this often.
const SEEK_AFTER: Duration = Duration::from_secs(1);
/// And at most this seldom.
const SEEK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How hints stand, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct HintReport {
    /// One for each other member, in the order of their ids.
    pub hints: Vec<Hint>,
    /// Messages, records and parts of messages that were not taken.
    pub drops: Drops,
    /// Messages dropped because too many of the same peer waited.
    pub overflows: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_out: u64,
    /// What this node tells the others of itself.
    pub own_address: String,
    /// When this was asked, by the clock of `Hint::since`.
    pub now: Micros,
    /// Where the link to each peer leads, or last led.
    pub dialled: BTreeMap<u8, String>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By replica number; at most [`WAITING_MAX`] each.
    frames: Vec<VecDeque<Bytes>>,
    /// How the link to a peer ended up since it was last looked at. Bounded by the members.
    links: BTreeMap<u8, bool>,
    members: Option<Vec<Known>>,
}

/// What waits for the task. Bounds stand at its fields.
#[derive(Debug)]
pub(crate) struct HintBox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    overflows: AtomicU64,
    report: Mutex<HintReport>,
}

impl HintBox {
    pub(crate) fn new(replicas: usize) -> Self {
        let waiting = Waiting { frames: vec![VecDeque::new(); replicas], ..Waiting::default() };
        Self {
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            overflows: AtomicU64::new(0),
            report: Mutex::new(HintReport::default()),
        }
    }

    pub(crate) fn push_frame(&self, from: PeerId, bytes: Bytes) {
        let mut waiting = self.lock();
        match waiting.frames.get_mut(usize::from(from.0)) {
            Some(lane) if lane.len() < WAITING_MAX => lane.push_back(bytes),
            _ => {
                self.overflows.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    pub(crate) fn push_link(&self, peer: PeerId, up: bool) {
        self.lock().links.insert(peer.0, up);
        self.arrived.notify_one();
    }

    pub(crate) fn push_members(&self, members: &[Member]) {
        self.lock().members = Some(known(members));
        self.arrived.notify_one();
    }

    pub(crate) fn report(&self) -> HintReport {
        self.report.lock().expect("no panic while the report is held").clone()
    }

    fn take(&self) -> Vec<Input> {
        let mut waiting = self.lock();
        let members = waiting.members.take().map(Input::Members);
        let mut inputs: Vec<Input> = members.into_iter().collect();
        for (peer, up) in std::mem::take(&mut waiting.links) {
            let peer = ReplicaId(peer);
            inputs.push(if up { Input::LinkUp { peer } } else { Input::LinkDown { peer } });
        }
        for (lane, id) in waiting.frames.iter_mut().zip(0u8..) {
            inputs.extend(lane.drain(..).map(|bytes| Input::Peer { from: ReplicaId(id), bytes }));
        }
        inputs
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while the box is held")
    }
}

/// Members as hints know them.
pub(crate) fn known(members: &[Member]) -> Vec<Known> {
    let of = |member: &Member| Known { id: member.id, incarnation: member.incarnation, key: member.vote_key };
    members.iter().map(of).collect()
}

/// What this node tells the others of where it is: the setting; else the address that the log has, unless this node
/// obviously listens elsewhere; else where it listens.
pub(crate) fn own_address(config: &NodeConfig, said: &str, listens: SocketAddr) -> String {
    if let Some(address) = &config.peer_advertise {
        return address.clone();
    }
    let Some((host, port)) = said.rsplit_once(':') else { return listens.to_string() };
    let same_port = port.parse() == Ok(listens.port());
    let any = listens.ip().is_unspecified();
    // A name may lead here by a way that this host does not see; a number that is not ours does not.
    let other_ip = host.trim_matches(['[', ']']).parse() != Ok(listens.ip());
    let is_number = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    match (same_port, any) {
        (true, true) => said.into(),
        (true, false) if !(is_number && other_ip) => said.into(),
        (false, true) => format!("{host}:{}", listens.port()),
        (true | false, false) => listens.to_string(),
    }
}

/// The task's belongings.
pub(crate) struct Hinting {
    pub(crate) hints: Box<dyn Hints>,
    pub(crate) inbox: Arc<HintBox>,
    pub(crate) transport: Weak<Transport>,
    pub(crate) clock: Clock,
    /// Peers whose address a setting fixes: hints change nothing about them.
    pub(crate) fixed: BTreeSet<u8>,
    pub(crate) seeds: Vec<String>,
}

impl Hinting {
    /// Steps the hints until the links are gone. To be spawned on the links' runtime.
    pub(crate) async fn run(mut self) {
        let mut seeking = Seeking::new(std::mem::take(&mut self.seeds), self.hints.own_address());
        let mut report = HintReport { own_address: self.hints.own_address().into(), ..HintReport::default() };
        report.hints = self.hints.hints();
        self.publish(&report);
        loop {
            let patience = Duration::from_micros(self.hints.next_wakeup().since(self.clock.mono()).0);
            let mut inputs = tokio::select! {
                () = self.inbox.arrived.notified() => self.inbox.take(),
                () = tokio::time::sleep(patience) => Vec::new(),
                found = seeking.found() => found.into_iter().collect(),
            };
            if self.clock.mono() >= self.hints.next_wakeup() {
                inputs.push(Input::Tick);
            }
            // Upgraded for one round at a time: whoever owns the links ends them.
            let Some(transport) = self.transport.upgrade() else { return };
            for input in inputs {
                if !self.step(&transport, input, &mut report) {
                    return;
                }
            }
            seeking.look(&transport, &self.fixed, self.clock.mono());
            drop(transport);
            self.publish(&report);
        }
    }

    /// False once the links are stopped.
    fn step(&mut self, transport: &Transport, input: Input, report: &mut HintReport) -> bool {
        report.messages_in += u64::from(matches!(input, Input::Peer { .. }));
        let all = matches!(input, Input::Members(_));
        let mut effects = Vec::new();
        self.hints.step(self.clock.now(), input, &mut effects);
        let mut changed = all;
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => {
                    report.messages_out += 1;
                    report.bytes_out += bytes.len() as u64;
                    // What is dropped is counted by the link, and said again at a later beat.
                    if transport.send(PeerId(to.0), Class::Hint, bytes) == Sent::Stopped {
                        return false;
                    }
                }
                Effect::Changed(hint) => {
                    changed = true;
                    self.follow(transport, &hint);
                }
            }
        }
        if changed {
            report.hints = self.hints.hints();
        }
        if all {
            // Where a replaced member was is forgotten, here and by its link.
            report.hints.iter().for_each(|hint| self.follow(transport, hint));
        }
        true
    }

    fn follow(&self, transport: &Transport, hint: &Hint) {
        if !self.fixed.contains(&hint.replica.0) {
            let addresses = hint.address.iter().chain(&hint.seed).cloned().collect();
            transport.hint_addresses(PeerId(hint.replica.0), addresses);
        }
    }

    fn publish(&self, report: &HintReport) {
        let overflows = self.inbox.overflows.load(Ordering::Relaxed);
        let mut published = self.inbox.report.lock().expect("no panic while the report is held");
        *published = HintReport { drops: self.hints.drops().clone(), overflows, ..report.clone() };
    }
}

/// Asks the seeds who they are, while somebody cannot be reached.
struct Seeking {
    seeds: Vec<String>,
    /// At most one question to each seed.
    asked: JoinSet<(String, Result<PeerId, LinkEnd>)>,
    /// Since when somebody cannot be reached.
    missing_since: Option<Micros>,
    next: Micros,
    pause: Duration,
}

fn micros(duration: Duration) -> Micros {
    Micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl Seeking {
    fn new(seeds: Vec<String>, own_address: &str) -> Self {
        // Of ourselves we know.
        let seeds = seeds.into_iter().filter(|seed| seed != own_address && check_address(seed)).collect();
        Self { seeds, asked: JoinSet::new(), missing_since: None, next: Micros::ZERO, pause: SEEK_AFTER }
    }

    /// The next answer that names a member. Never resolves while nobody was asked.
    async fn found(&mut self) -> Option<Input> {
        loop {
            match self.asked.join_next().await {
                None => std::future::pending().await,
                Some(Ok((address, Ok(peer)))) => {
                    tracing::info!(peer = peer.0, %address, "seed {address} is replica {}", peer.0);
                    return Some(Input::Seed { replica: ReplicaId(peer.0), address });
                }
                Some(Ok((address, Err(end)))) => {
                    tracing::debug!(%address, "seed {address} is nobody that can be reached: {end}");
                }
                Some(Err(_)) => {}
            }
        }
    }

    fn look(&mut self, transport: &Transport, fixed: &BTreeSet<u8>, now: Micros) {
        if self.seeds.is_empty() {
            return;
        }
        let missing = transport.unreached().into_iter().any(|peer| !fixed.contains(&peer.0));
        if !missing {
            (self.missing_since, self.pause) = (None, SEEK_AFTER);
            return;
        }
        let since = *self.missing_since.get_or_insert(now);
        if now < since.plus(micros(SEEK_AFTER)) || now < self.next || !self.asked.is_empty() {
            return;
        }
        self.next = now.plus(micros(self.pause));
        self.pause = (self.pause * 2).min(SEEK_PAUSE_MAX);
        for seed in &self.seeds {
            let (asking, seed) = (transport.who_is_at(seed), seed.clone());
            self.asked.spawn(async move { (seed, asking.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_floods_drops_its_own_messages_alone_and_links_are_never_lost() {
        let inbox = HintBox::new(3);
        for _ in 0..WAITING_MAX + 5 {
            inbox.push_frame(PeerId(1), Bytes::from_static(b"x"));
        }
        inbox.push_frame(PeerId(2), Bytes::from_static(b"y"));
        inbox.push_frame(PeerId(9), Bytes::from_static(b"z"));
        assert_eq!(inbox.overflows.load(Ordering::Relaxed), 6);
        inbox.push_link(PeerId(1), true);
        inbox.push_link(PeerId(2), true);
        inbox.push_link(PeerId(2), false);
        let inputs = inbox.take();
        assert_eq!(inputs.len(), 2 + WAITING_MAX + 1);
        assert_eq!(inputs[0], Input::LinkUp { peer: ReplicaId(1) });
        assert_eq!(inputs[1], Input::LinkDown { peer: ReplicaId(2) });
        assert_eq!(inputs.last(), Some(&Input::Peer { from: ReplicaId(2), bytes: Bytes::from_static(b"y") }));
        assert!(inbox.take().is_empty());
    }

    #[test]
    fn an_address_is_told_that_leads_here() {
        let base = NodeConfig::parse("node/config.toml".as_ref(), &crate::settings::tests_text()).unwrap();
        let told = |said: &str, listens: &str| own_address(&base, said, listens.parse().unwrap());
        assert_eq!(told("node1.example:7000", "10.0.0.1:7000"), "node1.example:7000");
        assert_eq!(told("node1.example:7000", "10.0.0.1:7009"), "10.0.0.1:7009");
        assert_eq!(told("node1.example:7000", "0.0.0.0:7009"), "node1.example:7009");
        assert_eq!(told("node1.example:7000", "0.0.0.0:7000"), "node1.example:7000");
        assert_eq!(told("10.0.0.1:7000", "10.0.0.1:7000"), "10.0.0.1:7000");
        assert_eq!(told("10.0.0.1:7000", "10.0.0.2:7000"), "10.0.0.2:7000");
        assert_eq!(told("[::1]:7000", "[::1]:7000"), "[::1]:7000");
        let mut set = base.clone();
        set.peer_advertise = Some("gate.example:1".into());
        assert_eq!(own_address(&set, "a:1", "10.0.0.1:7000".parse().unwrap()), "gate.example:1");
    }
}
