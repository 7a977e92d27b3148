//! The nodes as the engine sees them: up or not, what each says about the view, and what is to be sent to it next.
//!
//! What is ready together leaves in one message. Who orders is a guess, never trusted, and a wrong one costs a relay or a
//! retry: where nobody lies it is what the last answer said; elsewhere the primary of a view that at least one honest node
//! must have claimed. Nothing here touches sockets or reads clocks.

use crate::config::NodeConfig;
use crate::session::{Flight, Keys, NodeSet, Session};
use bytes::Bytes;
use dwcp_base::{Ack, ClusterId, PublicKey, ReplicaId};
use dwcp_proto::v3::{self, Attach, ClientMessage, QueryRequest, StatusRequest};
use dwcp_proto::{MESSAGE_BYTES_SOFT, MESSAGE_ITEMS_MAX};
use dwcp_state::{CHALLENGE_BYTES, SessionAttach};
use std::collections::VecDeque;

/// Bytes that may wait for one node's connection. Beyond it a frame is not handed to that node; it goes elsewhere or
/// is retried.
const OUTBOX_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Node {
    pub id: ReplicaId,
    pub vote_key: PublicKey,
    pub up: bool,
    /// The first attempt to reach it is under way.
    pub dialling: bool,
    /// Drawn by it for the present connection.
    challenge: [u8; CHALLENGE_BYTES],
    /// Why it is not up; while it is: why it takes nothing of us, or is not believed. Empty when all is well.
    pub trouble: String,
    /// The highest view it claimed to be in.
    view: Option<u64>,
    /// At most `OUTBOX_BYTES_MAX`.
    outbox: VecDeque<(ClientMessage, usize)>,
    outbox_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Nodes {
    cluster: ClusterId,
    list: Vec<Node>,
    f: usize,
    /// Nodes that should answer each session.
    attach: usize,
    /// Who orders commands, by the last answer that said so. Listened to only where nobody lies: a liar would draw all
    /// traffic to itself.
    asked: Option<ReplicaId>,
    hints: bool,
    /// Replicas of the cluster as far as known: the largest of what is configured.
    replicas: u64,
}

impl Nodes {
    pub fn new(cluster: ClusterId, configured: &[NodeConfig], f: u8, hints: bool, attach: usize) -> Self {
        let node = |node: &NodeConfig| Node {
            id: node.id,
            vote_key: node.vote_key,
            up: false,
            dialling: true,
            challenge: [0; CHALLENGE_BYTES],
            trouble: "not reached yet".into(),
            view: None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
        };
        let highest = configured.iter().map(|node| node.id.0).max().unwrap_or(0);
        Self {
            cluster,
            list: configured.iter().map(node).collect(),
            f: f.into(),
            attach,
            asked: None,
            hints,
            replicas: u64::from(highest) + 1,
        }
    }

    pub fn get(&self, node: usize) -> &Node {
        &self.list[node]
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn any_up(&self) -> bool {
        self.list.iter().any(|node| node.up)
    }

    pub fn any_dialling(&self) -> bool {
        self.list.iter().any(|node| node.dialling)
    }

    pub fn came_up(&mut self, node: usize, challenge: [u8; CHALLENGE_BYTES]) {
        let node = &mut self.list[node];
        (node.up, node.dialling) = (true, false);
        node.challenge = challenge;
        node.trouble.clear();
        node.outbox.clear();
        node.outbox_bytes = 0;
        node.push(Item::Status(StatusRequest::default()));
    }

    pub fn went_down(&mut self, node: usize, reason: String) {
        let node = &mut self.list[node];
        (node.up, node.dialling) = (false, false);
        node.trouble = reason;
        node.outbox.clear();
        node.outbox_bytes = 0;
    }

    /// Why nothing works, in one line.
    pub fn troubles(&self) -> String {
        let troubled = self.list.iter().filter(|node| !node.trouble.is_empty());
        let lines: Vec<String> = troubled.map(|node| format!("node {}: {}", node.id, node.trouble)).collect();
        if lines.is_empty() { format!("all {} nodes are connected", self.len()) } else { lines.join("; ") }
    }

    /// It is up, and of no use to us.
    pub fn complain(&mut self, node: usize, trouble: impl Into<String>) {
        self.list[node].trouble = trouble.into();
    }

    pub fn saw_view(&mut self, node: usize, view: u64) {
        let seen = &mut self.list[node].view;
        *seen = Some(seen.map_or(view, |seen| seen.max(view)));
    }

    pub fn saw_orderer(&mut self, orderer: ReplicaId) {
        if self.hints {
            self.asked = Some(orderer);
        }
    }

    /// The index of the node to turn to first.
    pub fn orderer(&self) -> Option<usize> {
        let asked = self.asked.and_then(|asked| self.list.iter().position(|node| node.id == asked));
        asked.filter(|node| self.list[*node].up).or_else(|| self.primary())
    }

    /// The index of the node that leads the highest view which f + 1 nodes claim (fewer while fewer have spoken).
    pub fn primary(&self) -> Option<usize> {
        let mut views: Vec<u64> = self.list.iter().filter_map(|node| node.view).collect();
        views.sort_unstable_by(|a, b| b.cmp(a));
        let view = views.get(self.f.min(views.len().checked_sub(1)?))?;
        let id = view % self.replicas;
        self.list.iter().position(|node| u64::from(node.id.0) == id)
    }

    /// The nodes in the order in which a session with this number should turn to them: who orders, then the others
    /// from a place of its own, so that sessions spread.
    fn preferred(&self, number: u64) -> impl Iterator<Item = usize> + use<> {
        let (orderer, count) = (self.orderer(), self.list.len());
        let start = usize::try_from(number % count as u64).expect("an index");
        let others =
            (0..count).map(move |step| (start + step) % count).filter(move |node| Some(*node) != orderer);
        orderer.into_iter().chain(others)
    }

    /// The node to put a question with this number to: who orders, if it is up.
    pub fn first_up(&self, number: u64) -> Option<usize> {
        self.preferred(number).find(|node| self.list[*node].up)
    }

    pub fn index_of(&self, id: ReplicaId) -> Option<usize> {
        self.list.iter().position(|node| node.id == id)
    }

    /// Puts a question to a node. False when too much waits for it already.
    pub fn ask(&mut self, node: usize, question: QueryRequest) -> bool {
        self.list[node].push(Item::Query(question))
    }

    /// Hands a frame to the preferred node that is up and not among `avoid`. False when there is none.
    pub fn send_one(
        &mut self,
        number: u64,
        session: &mut Attachment<'_>,
        flight: &mut Flight,
        avoid: NodeSet,
    ) -> bool {
        let target = self.preferred(number).find(|node| self.list[*node].up && !avoid.contains(*node));
        target.is_some_and(|node| self.hand_over(node, session, flight))
    }

    /// Hands a frame to as many preferred nodes as answer a session: each of them must know when the sender wants to hear.
    pub fn send_some(&mut self, number: u64, session: &mut Attachment<'_>, flight: &mut Flight) {
        for node in self.preferred(number) {
            if flight.working.len() >= self.attach {
                return;
            }
            if self.list[node].up {
                self.hand_over(node, session, flight);
            }
        }
    }

    /// Hands a frame to every node that is up.
    pub fn send_all(&mut self, session: &mut Attachment<'_>, flight: &mut Flight) {
        for node in 0..self.list.len() {
            if self.list[node].up {
                self.hand_over(node, session, flight);
            }
        }
    }

    fn hand_over(&mut self, node: usize, session: &mut Attachment<'_>, flight: &mut Flight) -> bool {
        // A node takes frames only over a stream that has proved their session's key.
        if !session.attached.contains(node) && !self.attach_one(node, session) {
            return false;
        }
        let sent = self.list[node].push(Item::Frame(flight.bytes.clone(), flight.ack));
        if sent {
            flight.sent.insert(node);
            flight.working.insert(node);
        }
        sent
    }

    fn attach_one(&mut self, node: usize, session: &mut Attachment<'_>) -> bool {
        let Node { id, challenge, .. } = self.list[node];
        let Keys { crypto, public } = session.keys;
        let proof = SessionAttach::new(crypto, *public, self.cluster, id, &challenge);
        let sent = self.list[node].push(Item::Attach(proof));
        if sent {
            session.attached.insert(node);
        }
        sent
    }

    /// Attaches the session to nodes that are up until enough answer it. A node that comes late may have executed what
    /// is in flight before it knew whom to tell, so it gets those frames too and answers them from its table.
    pub fn attach(&mut self, number: u64, session: &mut Session) {
        if session.attached.len() >= self.attach {
            return;
        }
        for node in self.preferred(number) {
            if session.attached.len() >= self.attach {
                return;
            }
            let Session { keys, flights, attached, .. } = &mut *session;
            let mut attachment = Attachment { keys, attached };
            if self.list[node].up
                && !attachment.attached.contains(node)
                && self.attach_one(node, &mut attachment)
            {
                for flight in flights.values_mut().filter(|flight| !flight.sent.is_empty()) {
                    self.hand_over(node, &mut attachment, flight);
                }
            }
        }
    }

    /// The oldest message for this node; `sent` removes it.
    pub fn outgoing(&self, node: usize) -> Option<&ClientMessage> {
        self.list[node].outbox.front().map(|(message, _)| message)
    }

    pub fn sent(&mut self, node: usize) -> Option<ClientMessage> {
        let node = &mut self.list[node];
        let (message, bytes) = node.outbox.pop_front()?;
        node.outbox_bytes -= bytes;
        Some(message)
    }
}

/// The part of a session that sending needs and changes, so that one of its flights can be borrowed beside it.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    pub keys: &'a Keys,
    pub attached: &'a mut NodeSet,
}

enum Item {
    Attach(SessionAttach),
    Frame(Bytes, Option<Ack>),
    Query(QueryRequest),
    Status(StatusRequest),
}

impl Node {
    /// Adds an item to the last message, or begins one. False when too much waits already.
    fn push(&mut self, item: Item) -> bool {
        let bytes = match &item {
            Item::Attach(_) => 112,
            Item::Status(_) => 32,
            Item::Frame(bytes, _) => bytes.len() + 16,
            Item::Query(request) => request.query.len() + 32,
        };
        if self.outbox_bytes + bytes > OUTBOX_BYTES_MAX {
            return false;
        }
        // An attach must be read before a frame of the same message, so order within it is kept by the lists' order.
        let fits = |(message, held): &&mut (ClientMessage, usize)| {
            *held + bytes <= MESSAGE_BYTES_SOFT && message.items() < MESSAGE_ITEMS_MAX
        };
        if self.outbox.back_mut().filter(fits).is_none() {
            self.outbox.push_back((ClientMessage::default(), 0));
        }
        let (message, held) = self.outbox.back_mut().expect("just pushed");
        match item {
            Item::Attach(SessionAttach { session_key, signature }) => message.attaches.push(Attach {
                session_key: Bytes::copy_from_slice(&session_key.0),
                signature: Bytes::copy_from_slice(&signature.0),
            }),
            Item::Frame(bytes, ack) => {
                if let Some(ack) = ack {
                    // Those before said nothing.
                    message.frame_acks.resize(message.frames.len(), v3::Ack::Policy.into());
                    message.frame_acks.push(match ack {
                        Ack::Majority => v3::Ack::Majority.into(),
                        Ack::Anchored => v3::Ack::Anchored.into(),
                    });
                }
                message.frames.push(bytes);
            }
            Item::Query(request) => message.queries.push(request),
            Item::Status(request) => message.statuses.push(request),
        }
        *held += bytes;
        self.outbox_bytes += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::Incarnation;
    use std::time::Instant;

    fn nodes(n: u8, f: u8) -> Nodes {
        let configured: Vec<NodeConfig> = (0..n)
            .map(|id| NodeConfig {
                id: ReplicaId(id),
                address: String::new(),
                tls_key: None,
                vote_key: PublicKey([id; 32]),
                incarnation: Incarnation(0),
            })
            .collect();
        let mut nodes = Nodes::new(ClusterId([1; 32]), &configured, f, false, 2 * usize::from(f) + 1);
        (0..configured.len()).for_each(|node| nodes.came_up(node, [2; CHALLENGE_BYTES]));
        nodes
    }

    #[test]
    fn one_liar_cannot_choose_the_primary() {
        let mut nodes = nodes(4, 1);
        assert_eq!(nodes.primary(), None);
        nodes.saw_view(1, 5);
        assert_eq!(nodes.primary(), Some(1), "the only claim there is");
        nodes.saw_view(0, 4);
        nodes.saw_view(3, u64::MAX);
        assert_eq!(nodes.primary(), Some(1), "view 5 is claimed by two, the liar's view by one");
        nodes.saw_view(2, 6);
        nodes.saw_view(0, 6);
        assert_eq!(nodes.primary(), Some(2));
    }

    #[test]
    fn who_orders_is_heard_from_one_node_only_where_nobody_lies() {
        let mut nodes = nodes(4, 1);
        nodes.saw_view(0, 0);
        nodes.saw_orderer(ReplicaId(2));
        assert_eq!(nodes.orderer(), Some(0), "one of them may lie");
        nodes.hints = true;
        nodes.saw_orderer(ReplicaId(2));
        assert_eq!(nodes.orderer(), Some(2));
        nodes.went_down(2, "gone".into());
        assert_eq!(nodes.orderer(), Some(0), "as good a guess as any");
        nodes.saw_orderer(ReplicaId(9));
        assert_eq!(nodes.orderer(), Some(0), "not in the client file");
    }

    #[test]
    fn sessions_spread_over_the_nodes_that_are_up() {
        let mut nodes = nodes(4, 1);
        nodes.went_down(2, "gone".into());
        let now = Instant::now();
        for number in 0..8 {
            let mut session = Session::new(now, [9; 32]);
            nodes.attach(number, &mut session);
            assert_eq!(session.attached.len(), 3);
            assert!(!session.attached.contains(2));
        }
        assert_eq!(nodes.troubles(), "node 2: gone");
    }

    #[test]
    fn messages_are_cut_at_the_soft_size_and_the_outbox_at_its_bound() {
        let mut nodes = nodes(1, 0);
        let frame = Bytes::from(vec![0; 400_000]);
        let mut flight = Flight::new(Instant::now(), frame, None, Vec::new(), 1);
        let session = Session::new(Instant::now(), [9; 32]);
        let mut attached = NodeSet::default();
        let mut attachment = Attachment { keys: &session.keys, attached: &mut attached };
        let mut taken = 0;
        while nodes.send_one(0, &mut attachment, &mut flight, NodeSet::default()) {
            taken += 1;
        }
        assert_eq!(taken, OUTBOX_BYTES_MAX / 400_016);
        let mut messages = 0;
        while let Some(message) = nodes.sent(0) {
            assert!(message.frames.len() <= 2);
            messages += 1;
        }
        assert_eq!(messages, taken.div_ceil(2));
        assert_eq!(nodes.list[0].outbox_bytes, 0);
    }
}
