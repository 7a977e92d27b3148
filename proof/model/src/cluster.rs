//! The model: honest replicas, one liar, and a network that delivers in any order, never, or again and again. Which of `Action` is possible in a state is decided here; what the liar can say, in `liar`.

use bytes::Bytes;
use dwcp_base::{Genesis, Hash, Mutants, View, encode};
use dwcp_log::entry::payload_digest;
use dwcp_pbft::{Message, Vote};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash as StdHash, Hasher};
use std::sync::{Arc, RwLock};

use crate::liar::Lie;
use crate::node::{Node, Sent};

/// A message under way.
#[derive(Clone)]
pub struct Letter {
    pub from: u8,
    pub to: u8,
    print: Hash,
    pub message: Arc<Message>,
}

impl Letter {
    #[must_use]
    pub fn new(from: u8, to: u8, message: Arc<Message>) -> Self {
        Self { from, to, print: Hash::of(&encode(&*message)), message }
    }

    fn place(&self) -> (u8, u8, Hash) {
        (self.to, self.from, self.print)
    }
}

impl PartialEq for Letter {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}
impl Eq for Letter {}
impl PartialOrd for Letter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Letter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}
impl StdHash for Letter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.place().hash(state);
    }
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{} -> r{}: {}", self.from, self.to, brief(&self.message))
    }
}

/// A message in a few words, for counterexamples.
#[must_use]
pub fn brief(message: &Message) -> String {
    match message {
        Message::PrePrepare { proposal, payload } => {
            let claim = proposal.statement.claim;
            format!("PRE-PREPARE {:?} {:?} {payload:?}", claim.view, claim.sequence)
        }
        Message::Vote(vote) => {
            let (claim, sender) = (vote.statement.claim, vote.statement.sender);
            let kind = match claim.vote {
                Vote::PrePrepare => "PRE-PREPARE",
                Vote::Prepare => "PREPARE",
                Vote::Commit => "COMMIT",
                Vote::Checkpoint => "CHECKPOINT",
            };
            format!("{kind} {:?} {:?} {:?} by {sender:?}", claim.view, claim.sequence, claim.digest)
        }
        Message::ViewChange(body) => format!("VIEW-CHANGE {:?}", body.hash()),
        Message::NewView(body) => format!("NEW-VIEW {:?}", body.hash()),
        Message::Standing(standing) => {
            format!("standing {:?} executed {:?}", standing.view, standing.executed)
        }
        Message::FetchViewChange { .. } => "fetch a VIEW-CHANGE".into(),
        Message::FetchPayload { sequence, .. } => format!("fetch the payload of {sequence:?}"),
        Message::Payload { sequence, payload } => format!("payload of {sequence:?}: {payload:?}"),
        Message::FetchDecided { from } => format!("fetch decided from {from:?}"),
        Message::Decided(decided) => format!("{} decided", decided.len()),
        Message::Stable(_) => "a stable checkpoint".into(),
        Message::Reminder(vote) => format!("reminder of a vote in {:?}", vote.statement.claim.view),
        Message::Introduce { .. } => "asks what it signed".into(),
        Message::Introduction(shown) => format!("shows {} votes of its receiver", shown.votes.len()),
    }
}

/// How much may happen in one history, beside deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    pub proposals: u8,
    pub timeouts: u8,
    pub restarts: u8,
    pub lies: u8,
    /// No view above this one is looked at.
    pub view_max: u64,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Deliver(Letter),
    /// The primary proposes a payload nobody else does.
    Propose(u8),
    LosePatience(u8),
    Restart(u8),
    Lie(Lie),
}

/// The whole cluster at one moment.
#[derive(Clone)]
pub struct State {
    /// In order of id; `None` where the liar sits.
    pub nodes: Vec<Option<Arc<Node>>>,
    /// Under way to honest replicas.
    pub network: BTreeSet<Letter>,
    /// What the liar has heard: everything sent to it, at once. Only kept where it may lie freely.
    pub heard: BTreeSet<Letter>,
    /// Digests that somebody proposed.
    pub proposed: BTreeSet<Hash>,
    pub left: Limits,
}

impl State {
    pub fn honest(&self) -> impl Iterator<Item = (u8, &Arc<Node>)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(id, node)| Some((u8::try_from(id).ok()?, node.as_ref()?)))
    }

    fn identity(&self) -> impl PartialEq + StdHash + '_ {
        let prints: Vec<&[u8; 16]> = self.honest().map(|(_, node)| node.print()).collect();
        (prints, &self.network, &self.heard, self.left)
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let prints = |state: &Self| state.honest().map(|(_, node)| *node.print()).collect::<Vec<_>>();
        prints(self) == prints(other)
            && self.network == other.network
            && self.heard == other.heard
            && self.left == other.left
    }
}
impl Eq for State {}
impl StdHash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, node) in self.honest() {
            let pbft = node.pbft();
            write!(
                f,
                "r{id}: {:?} delivered {:?} prepared {:?}; ",
                pbft.view(),
                node.delivered,
                node.prepared
            )?;
        }
        write!(f, "{} letters", self.network.len())
    }
}

/// A model: who lies, what the liar has put in the network at the start, and what may happen.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: &'static str,
    pub genesis: Arc<Genesis>,
    pub liar: u8,
    /// What the liar may send at any time, as often as it likes.
    pub script: Vec<Letter>,
    pub limits: Limits,
    pub mutants: Mutants,
    /// False: the normal case. Letters may then be delivered again and again, so the network is a mere consequence of
    /// where the replicas stand, and nobody restarts. True: each letter is delivered once, the liar repeats at will.
    pub view_changes: bool,
    /// What a replica does with a letter depends on nothing else: asked once, remembered. Bounded by the replicas'
    /// own states times the letters, some thousands; unused where histories are random.
    pub known: Arc<RwLock<Known>>,
}

/// Answers by who (a node's print) hears what.
type Known = HashMap<([u8; 16], Letter), Heard>;

/// What a replica became and what it said; `None` when the letter changed nothing.
pub type Heard = Option<(Arc<Node>, Vec<Sent>)>;

impl Cluster {
    #[must_use]
    pub fn n(&self) -> u8 {
        self.genesis.policy.quorum.n()
    }

    #[must_use]
    pub fn begin(&self) -> State {
        let nodes = (0..self.n())
            .map(|id| {
                (id != self.liar)
                    .then(|| Arc::new(Node::new(&self.genesis, id, self.mutants, self.view_changes)))
            })
            .collect();
        let proposed = self.liars_payloads().map(payload_digest).into_iter().collect();
        State { nodes, network: BTreeSet::new(), heard: BTreeSet::new(), proposed, left: self.limits }
    }

    /// What the liar proposes, and the null request that every view may fill gaps with.
    fn liars_payloads(&self) -> [&'static [u8]; 3] {
        [b"A", b"B", b""]
    }

    pub fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let script = self.script.iter().filter(|letter| self.is_first_choice(state, letter));
        actions.extend(state.network.iter().chain(script).cloned().map(Action::Deliver));
        for (id, node) in state.honest() {
            if state.left.proposals > 0 && node.pbft().room() > 0 {
                actions.push(Action::Propose(id));
            }
            if state.left.timeouts > 0 {
                actions.push(Action::LosePatience(id));
            }
            if state.left.restarts > 0 {
                actions.push(Action::Restart(id));
            }
        }
        if state.left.lies > 0 {
            actions.extend(self.lies(state).into_iter().map(Action::Lie));
        }
    }

    /// Honest replicas other than the primary are interchangeable, and so are the liar's two payloads. Among three there
    /// are two that accept the same one first: let those be r1 and r2, and let it be A. B they are offered afterwards.
    fn is_first_choice(&self, state: &State, letter: &Letter) -> bool {
        let Message::PrePrepare { payload, .. } = &*letter.message else { return true };
        let accepted = |node: &Arc<Node>| node.accepted;
        let node = state.nodes[usize::from(letter.to)].as_ref();
        self.n() != 4 || letter.to > 2 || payload.as_ref() == b"A" || node.is_some_and(accepted)
    }

    /// What an action leads to; `None` when it changes nothing, which only happens in the normal case. (The random
    /// walk of `stateright` 0.31 cannot tell its path again when an action was ignored.)
    #[must_use]
    pub fn follow(&self, state: &State, action: Action) -> Option<State> {
        if let Action::Deliver(letter) = action {
            let place = usize::from(letter.to);
            let heard = self.hear(state.nodes[place].as_ref()?, &letter);
            if heard.is_none() && !self.view_changes {
                return None;
            }
            let mut next = state.clone();
            if self.view_changes {
                next.network.remove(&letter);
            }
            if let Some((heard, sent)) = heard {
                next.nodes[place] = Some(heard);
                self.send(&mut next, letter.to, sent);
            }
            return Some(next);
        }
        let mut next = state.clone();
        let (id, sent) = match action {
            Action::Deliver(_) => return None,
            Action::Propose(id) => {
                next.left.proposals -= 1;
                let view = next.nodes[usize::from(id)].as_ref()?.pbft().view();
                let payload = Bytes::from(format!("{view:?} #{}", next.left.proposals));
                next.proposed.insert(payload_digest(&payload));
                (id, Arc::make_mut(next.nodes[usize::from(id)].as_mut()?).propose(payload))
            }
            Action::LosePatience(id) => {
                next.left.timeouts -= 1;
                (id, Arc::make_mut(next.nodes[usize::from(id)].as_mut()?).lose_patience())
            }
            Action::Restart(id) => {
                next.left.restarts -= 1;
                (id, Arc::make_mut(next.nodes[usize::from(id)].as_mut()?).restart())
            }
            Action::Lie(lie) => {
                next.left.lies -= 1;
                let Some((to, message)) = self.say(state, &lie) else { return Some(next) };
                let node = Arc::make_mut(next.nodes[usize::from(to)].as_mut()?);
                (to, node.hear(self.liar, message))
            }
        };
        self.send(&mut next, id, sent);
        Some(next)
    }

    fn hear(&self, node: &Arc<Node>, letter: &Letter) -> Heard {
        let hear = || {
            let mut heard = Node::clone(node);
            let sent = heard.hear(letter.from, Message::clone(&letter.message));
            let changed = heard.print() != node.print() || !sent.is_empty();
            changed.then(|| (Arc::new(heard), sent))
        };
        if self.view_changes {
            return hear();
        }
        let question = (*node.print(), letter.clone());
        let known = self.known.read().expect("no thread panics while it holds this").get(&question).cloned();
        known.unwrap_or_else(|| {
            let answer = hear();
            let mut known = self.known.write().expect("no thread panics while it holds this");
            known.insert(question, answer.clone());
            answer
        })
    }

    fn send(&self, state: &mut State, from: u8, sent: Vec<Sent>) {
        for (to, message) in sent {
            let message = Arc::new(message);
            let everybody = 0..self.n();
            for to in everybody.filter(|id| *id != from && to.is_none_or(|to| to.0 == *id)) {
                let letter = Letter::new(from, to, Arc::clone(&message));
                if to != self.liar {
                    state.network.insert(letter);
                } else if self.limits.lies > 0 {
                    state.heard.insert(letter);
                }
            }
        }
    }

    #[must_use]
    pub fn inside(&self, state: &State) -> bool {
        state.honest().all(|(_, node)| node.pbft().view() <= View(self.limits.view_max))
    }
}
