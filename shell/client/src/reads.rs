//! Linearizable reads that cost no entry: whom each is put to, and when this road is given up.
//!
//! While a Raft segment is open its leader answers them, once a majority has confirmed that it leads. That is one node's
//! word, proved by the link alone, so this road is for clients whose configuration says that members only crash and who do
//! not want their answers anchored. Everybody else, and everybody whose read finds no leader in a few steps, has it
//! ordered as a command: `None` says so, and never that the read failed. Nothing here knows sessions.

use crate::nodes::Nodes;
use crate::receipt::{Believed, Receipt};
use bytes::Bytes;
use dwcp_base::quorum::REPLICAS_MAX;
use dwcp_base::{Ack, Position, ReplicaId, View};
use dwcp_proto::v3::{self, Advice, Consistency, QueryReply, QueryRequest, query_reply};
use dwcp_replica::Label;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Nodes asked for one read before it is ordered: a wrong guess, the leader, and one change of leaders.
const TRIES_MAX: u32 = 4;
/// Reads that one node is asked at once; what comes beyond waits for its turn. Below the questions that a node's default lets
/// a stream have open.
pub(crate) const ASKED_MAX: usize = 200;
/// Reads under way in all; what comes beyond is ordered.
const READS_MAX: usize = 8192;
/// How long nobody is asked after it was in vain, so that where the root orders, reads do not all pay for the question:
/// at first, and at most. Doubles each time.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a leader read; `None`: order it.
pub(crate) type ReadAnswer = Option<Believed<Bytes>>;

#[derive(Debug)]
struct Read {
    query: Bytes,
    ack: Option<Ack>,
    /// Given up then.
    until: Instant,
    tries: u32,
    place: Place,
    answer: oneshot::Sender<ReadAnswer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Until any node is up.
    Nowhere,
    /// In the queue.
    Queued,
    /// Named as the leader, and not reached yet.
    Before(usize),
    At(usize),
}

/// The reads under way: at most `READS_MAX`, of which each node is asked `ASKED_MAX`.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Whether the configuration lets one node be believed.
    allowed: bool,
    list: BTreeMap<u64, Read>,
    next: u64,
    /// By node.
    asked: [usize; REPLICAS_MAX as usize],
    /// What there was no room for, and perhaps some that were given up since.
    queue: VecDeque<u64>,
    rests_until: Option<Instant>,
    rest: Duration,
    /// Answered without an entry, ever.
    pub answered: u64,
    /// Given up, ever.
    pub given_up: u64,
}

impl Reads {
    pub fn new(allowed: bool) -> Self {
        Self {
            allowed,
            list: BTreeMap::new(),
            next: 1,
            asked: [0; REPLICAS_MAX as usize],
            queue: VecDeque::new(),
            rests_until: None,
            rest: Duration::ZERO,
            answered: 0,
            given_up: 0,
        }
    }

    /// Someone wants to read this, and to know by `until` whether it must be ordered.
    pub fn ask(
        &mut self,
        now: Instant,
        nodes: &mut Nodes,
        (query, ack): (Bytes, Option<Ack>),
        until: Instant,
        answer: oneshot::Sender<ReadAnswer>,
    ) {
        let rests = self.rests_until.is_some_and(|until| now < until);
        let full = self.list.len() >= READS_MAX;
        if !self.allowed || rests || full || ack == Some(Ack::Anchored) {
            self.given_up += 1;
            let _ = answer.send(None);
            return;
        }
        let id = self.next;
        self.next += 1;
        self.list.insert(id, Read { query, ack, until, tries: 0, place: Place::Nowhere, answer });
        self.put(nodes, id, None);
    }

    /// Puts a read to this node, or to whoever is presumed to lead.
    fn put(&mut self, nodes: &mut Nodes, id: u64, leader: Option<usize>) {
        let Some(node) = leader.or_else(|| nodes.first_up(id)) else {
            // Nobody has been reached yet, or nobody is there: then the command that it becomes waits for that.
            return if nodes.any_dialling() { self.place(id, Place::Nowhere) } else { self.give_up(id) };
        };
        let Some(read) = self.list.get_mut(&id) else { return };
        let known = nodes.get(node);
        if read.tries >= TRIES_MAX || !(known.up || known.dialling) {
            return self.give_up(id);
        }
        if !known.up {
            return self.place(id, Place::Before(node));
        }
        if self.asked[node] >= ASKED_MAX {
            self.queue.push_back(id);
            return self.place(id, Place::Queued);
        }
        read.tries += 1;
        let ack = match read.ack {
            None => v3::Ack::Policy,
            Some(Ack::Majority) => v3::Ack::Majority,
            Some(Ack::Anchored) => v3::Ack::Anchored,
        };
        let consistency = Consistency::Linearizable.into();
        let request = QueryRequest { id, query: read.query.clone(), consistency, ack: ack.into() };
        self.place(id, Place::At(node));
        if !nodes.ask(node, request) {
            self.give_up(id);
        }
    }

    /// Those that waited for it have their turn.
    fn put_queued(&mut self, nodes: &mut Nodes) {
        while let Some(id) = self.queue.front().copied() {
            let waits = self.list.get(&id).is_some_and(|read| read.place == Place::Queued);
            if waits && nodes.first_up(id).is_none_or(|node| self.asked[node] >= ASKED_MAX) {
                return;
            }
            self.queue.pop_front();
            if waits {
                self.put(nodes, id, None);
            }
        }
    }

    fn place(&mut self, id: u64, place: Place) {
        let Some(read) = self.list.get_mut(&id) else { return };
        let before = std::mem::replace(&mut read.place, place);
        self.count(before, place);
    }

    fn count(&mut self, before: Place, now: Place) {
        if let Place::At(node) = before {
            self.asked[node] -= 1;
        }
        if let Place::At(node) = now {
            self.asked[node] += 1;
        }
    }

    fn remove(&mut self, id: u64) -> Option<Read> {
        let read = self.list.remove(&id)?;
        self.count(read.place, Place::Nowhere);
        Some(read)
    }

    fn give_up(&mut self, id: u64) {
        if let Some(read) = self.remove(id) {
            self.given_up += 1;
            let _ = read.answer.send(None);
        }
    }

    /// Nobody is asked for a while. Reads under way go on.
    fn rest(&mut self, now: Instant) {
        if self.rests_until.is_none_or(|until| until <= now) {
            self.rest = (self.rest * 2).clamp(REST.0, REST.1);
            self.rests_until = Some(now + self.rest);
        }
    }

    pub fn came_up(&mut self, nodes: &mut Nodes, node: usize) {
        for id in self.placed(|place| [Place::Nowhere, Place::Before(node)].contains(&place)) {
            self.put(nodes, id, Some(node));
        }
        self.put_queued(nodes);
    }

    /// What was put to it is put to another: a read that was answered twice has harmed nobody.
    pub fn went_down(&mut self, nodes: &mut Nodes, node: usize) {
        for id in self.placed(|place| place == Place::Before(node)) {
            self.give_up(id);
        }
        let asked = self.placed(|place| [Place::At(node), Place::Nowhere].contains(&place));
        asked.iter().for_each(|id| self.place(*id, Place::Nowhere));
        asked.into_iter().for_each(|id| self.put(nodes, id, None));
        self.put_queued(nodes);
    }

    fn placed(&self, wanted: impl Fn(Place) -> bool) -> Vec<u64> {
        self.list.iter().filter(|(_, read)| wanted(read.place)).map(|(id, _)| *id).collect()
    }

    /// A node's word.
    pub fn heard(&mut self, now: Instant, nodes: &mut Nodes, node: usize, reply: QueryReply) {
        self.take(now, nodes, node, reply);
        self.put_queued(nodes);
    }

    fn take(&mut self, now: Instant, nodes: &mut Nodes, node: usize, reply: QueryReply) {
        let (label, advice) = (reply.label(), reply.advice());
        let QueryReply { id, outcome, position, view, leader, .. } = reply;
        // Late ones, of reads that were given up or put to another.
        if self.list.get(&id).is_none_or(|read| read.place != Place::At(node)) {
            return;
        }
        match outcome {
            Some(query_reply::Outcome::Result(bytes)) if label == v3::ReadLabel::Crash => {
                let read = self.remove(id).expect("seen above");
                (self.rests_until, self.rest) = (None, Duration::ZERO);
                self.answered += 1;
                nodes.saw_orderer(nodes.get(node).id);
                let receipt = Receipt { label: Label::Crash, position: Position(position), view: View(view) };
                let _ = read.answer.send(Some(Believed { reply: bytes, receipt }));
            }
            Some(query_reply::Outcome::Error(_)) if advice == Advice::Leader => {
                let leader = leader.and_then(|id| u8::try_from(id).ok()).map(ReplicaId);
                let Some(index) = leader.and_then(|leader| nodes.index_of(leader)) else {
                    return self.give_up(id);
                };
                nodes.saw_orderer(nodes.get(index).id);
                self.put(nodes, id, Some(index));
            }
            // It has no leader to name, or no room; or the question itself is refused, which the log will say for all to hear.
            Some(query_reply::Outcome::Error(_))
                if [Advice::Elsewhere, Advice::Nowhere].contains(&advice) =>
            {
                self.give_up(id);
            }
            // The root orders; or the node does not know what was asked, and its answer lacks the label.
            _ => {
                self.rest(now);
                self.give_up(id);
            }
        }
    }

    /// Gives up what took too long.
    pub fn on_wake(&mut self, now: Instant, nodes: &mut Nodes) {
        let late: Vec<u64> =
            self.list.iter().filter(|(_, read)| read.until <= now).map(|(id, _)| *id).collect();
        if !late.is_empty() {
            self.rest(now);
        }
        late.into_iter().for_each(|id| self.give_up(id));
        self.put_queued(nodes);
    }

    pub fn earliest(&self) -> Option<Instant> {
        self.list.values().map(|read| read.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use dwcp_base::{ClusterId, Incarnation, PublicKey};
    use dwcp_state::CHALLENGE_BYTES;

    const PATIENCE: Duration = Duration::from_secs(1);

    struct Desk {
        reads: Reads,
        nodes: Nodes,
        now: Instant,
    }

    impl Desk {
        /// A client of three nodes, none of them reached yet.
        fn new() -> Self {
            let configured: Vec<NodeConfig> = (0..3)
                .map(|id| NodeConfig {
                    id: ReplicaId(id),
                    address: String::new(),
                    tls_key: None,
                    vote_key: PublicKey([id; 32]),
                    incarnation: Incarnation(0),
                })
                .collect();
            let nodes = Nodes::new(ClusterId([1; 32]), &configured, 0, true, 1);
            Self { reads: Reads::new(true), nodes, now: Instant::now() }
        }

        fn up(&mut self, nodes: &[usize]) {
            for node in nodes {
                self.nodes.came_up(*node, [0; CHALLENGE_BYTES]);
                self.reads.came_up(&mut self.nodes, *node);
            }
        }

        fn down(&mut self, node: usize) {
            self.nodes.went_down(node, "gone".into());
            self.reads.went_down(&mut self.nodes, node);
        }

        fn led_by(mut self, leader: u8) -> Self {
            self.up(&[0, 1, 2]);
            self.nodes.saw_orderer(ReplicaId(leader));
            self.asked();
            self
        }

        fn ask(&mut self, ack: Option<Ack>) -> oneshot::Receiver<ReadAnswer> {
            let (answer, answered) = oneshot::channel();
            let query = (Bytes::from_static(b"q"), ack);
            self.reads.ask(self.now, &mut self.nodes, query, self.now + PATIENCE, answer);
            answered
        }

        /// What was asked of whom since.
        fn asked(&mut self) -> Vec<(usize, QueryRequest)> {
            let mut asked = Vec::new();
            for node in 0..3 {
                while let Some(message) = self.nodes.sent(node) {
                    asked.extend(message.queries.into_iter().map(|query| (node, query)));
                }
            }
            asked
        }

        /// The one question that was asked since, and whom.
        fn question(&mut self) -> (usize, u64) {
            let asked = self.asked();
            assert_eq!(asked.len(), 1, "{asked:?}");
            assert_eq!(asked[0].1.consistency(), Consistency::Linearizable);
            (asked[0].0, asked[0].1.id)
        }

        fn hear(&mut self, node: usize, reply: QueryReply) {
            self.reads.heard(self.now, &mut self.nodes, node, reply);
        }
    }

    fn result(id: u64, label: v3::ReadLabel) -> QueryReply {
        let outcome = Some(query_reply::Outcome::Result(Bytes::from_static(b"r")));
        QueryReply { id, outcome, label: label.into(), position: 9, view: 4, ..QueryReply::default() }
    }

    fn refusal(id: u64, advice: Advice, leader: Option<u32>) -> QueryReply {
        let outcome = Some(query_reply::Outcome::Error("no".into()));
        QueryReply { id, outcome, advice: advice.into(), leader, ..QueryReply::default() }
    }

    #[test]
    fn a_read_goes_where_it_is_sent_and_the_next_one_there_at_once() {
        let mut desk = Desk::new().led_by(0);
        let mut answered = desk.ask(None);
        let (node, id) = desk.question();
        assert_eq!(node, 0);
        desk.hear(0, refusal(id, Advice::Leader, Some(2)));
        assert_eq!(desk.question(), (2, id));
        desk.hear(2, result(id, v3::ReadLabel::Crash));
        let believed = answered.try_recv().expect("answered").expect("by the leader");
        let receipt = Receipt { label: Label::Crash, position: Position(9), view: View(4) };
        assert_eq!((&believed.reply[..], believed.receipt), (&b"r"[..], receipt));
        desk.ask(Some(Ack::Majority));
        assert_eq!(desk.question().0, 2);
        assert_eq!((desk.reads.answered, desk.reads.given_up), (1, 0));
    }

    #[test]
    fn where_members_may_lie_and_for_an_anchored_answer_nobody_is_asked() {
        let mut desk = Desk::new().led_by(0);
        assert_eq!(desk.ask(Some(Ack::Anchored)).try_recv(), Ok(None));
        desk.reads.allowed = false;
        assert_eq!(desk.ask(None).try_recv(), Ok(None));
        assert!(desk.asked().is_empty());
    }

    #[test]
    fn an_answer_without_the_label_that_was_asked_for_is_not_believed() {
        for label in [v3::ReadLabel::Unspecified, v3::ReadLabel::Stale] {
            let mut desk = Desk::new().led_by(0);
            let mut answered = desk.ask(None);
            let (node, id) = desk.question();
            desk.hear(node, result(id, label));
            assert_eq!(answered.try_recv(), Ok(None), "{label:?}");
        }
    }

    #[test]
    fn a_refusal_that_names_nobody_has_the_read_ordered_and_where_the_root_orders_few_are_asked() {
        let mut desk = Desk::new().led_by(0);
        for advice in [Advice::Elsewhere, Advice::Nowhere] {
            let mut answered = desk.ask(None);
            let (node, id) = desk.question();
            desk.hear(node, refusal(id, advice, None));
            assert_eq!(answered.try_recv(), Ok(None), "{advice:?}");
        }
        let mut rest = REST.0;
        for _ in 0..10 {
            let mut answered = desk.ask(None);
            let (node, id) = desk.question();
            desk.hear(node, refusal(id, Advice::Order, None));
            assert_eq!(answered.try_recv(), Ok(None));
            desk.now += rest - Duration::from_millis(1);
            assert_eq!(desk.ask(None).try_recv(), Ok(None), "it does not ask again so soon");
            assert!(desk.asked().is_empty());
            desk.now += Duration::from_millis(1);
            rest = (rest * 2).min(REST.1);
        }
        // A segment opened: all is as before.
        let _answered = desk.ask(None);
        let (node, id) = desk.question();
        desk.hear(node, result(id, v3::ReadLabel::Crash));
        let _answered = desk.ask(None);
        assert_eq!(desk.asked().len(), 1);
    }

    #[test]
    fn nodes_that_send_a_read_round_in_a_circle_and_an_unknown_leader_end_it() {
        let mut desk = Desk::new().led_by(0);
        let mut answered = desk.ask(None);
        for step in 0..TRIES_MAX {
            let (node, id) = desk.question();
            assert_eq!(answered.try_recv(), Err(oneshot::error::TryRecvError::Empty), "step {step}");
            desk.hear(node, refusal(id, Advice::Leader, Some(1 - u32::try_from(node).unwrap())));
        }
        assert_eq!(answered.try_recv(), Ok(None));
        for leader in [None, Some(9), Some(999)] {
            let mut answered = desk.ask(None);
            let (node, id) = desk.question();
            desk.hear(node, refusal(id, Advice::Leader, leader));
            assert_eq!(answered.try_recv(), Ok(None));
        }
        assert!(desk.asked().is_empty() && desk.reads.list.is_empty());
    }

    #[test]
    fn a_lost_connection_sends_the_read_elsewhere_at_once() {
        let mut desk = Desk::new().led_by(1);
        let mut answered = desk.ask(None);
        let (_, id) = desk.question();
        desk.down(1);
        let (node, again) = desk.question();
        assert!(node != 1 && again == id);
        // It names the one that is gone: nobody waits for that.
        desk.hear(node, refusal(id, Advice::Leader, Some(1)));
        assert_eq!(answered.try_recv(), Ok(None));
    }

    #[test]
    fn what_is_asked_before_anybody_is_reached_waits_and_so_does_what_a_leader_not_reached_is_to_answer() {
        let mut desk = Desk::new();
        let mut answered = desk.ask(None);
        assert!(desk.asked().is_empty());
        desk.up(&[1]);
        let (node, id) = desk.question();
        assert_eq!(node, 1);
        desk.hear(1, refusal(id, Advice::Leader, Some(2)));
        assert!(desk.asked().is_empty());
        desk.up(&[0]);
        assert!(desk.asked().is_empty(), "it waits for node 2");
        desk.up(&[2]);
        assert_eq!(desk.question(), (2, id));
        desk.hear(2, result(id, v3::ReadLabel::Crash));
        assert!(answered.try_recv().expect("answered").is_some());

        let mut desk = Desk::new();
        desk.up(&[1]);
        let mut answered = desk.ask(None);
        let (_, id) = desk.question();
        desk.hear(1, refusal(id, Advice::Leader, Some(2)));
        desk.down(2);
        assert_eq!(answered.try_recv(), Ok(None), "it cannot be reached");

        let mut desk = Desk::new();
        let mut answered = desk.ask(None);
        [0, 1].into_iter().for_each(|node| desk.down(node));
        assert_eq!(answered.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        desk.down(2);
        assert_eq!(answered.try_recv(), Ok(None), "nobody is there");
    }

    #[test]
    fn who_is_silent_for_too_long_or_not_the_one_that_was_asked_is_not_heard() {
        let mut desk = Desk::new().led_by(0);
        let mut answered = desk.ask(None);
        let (node, id) = desk.question();
        desk.hear(node + 1, result(id, v3::ReadLabel::Crash));
        desk.hear(node, result(id + 7, v3::ReadLabel::Crash));
        assert_eq!(answered.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(desk.reads.earliest(), Some(desk.now + PATIENCE));
        desk.now += PATIENCE;
        desk.reads.on_wake(desk.now, &mut desk.nodes);
        assert_eq!(answered.try_recv(), Ok(None));
        desk.hear(node, result(id, v3::ReadLabel::Crash));
        assert_eq!((desk.reads.answered, desk.reads.given_up), (0, 1));
        assert_eq!(desk.reads.earliest(), None);
    }

    #[test]
    fn one_node_is_asked_so_much_at_once_and_what_comes_beyond_waits_for_its_turn() {
        let mut desk = Desk::new().led_by(0);
        let mut answered: Vec<_> = (0..ASKED_MAX + 2).map(|_| desk.ask(None)).collect();
        let asked = desk.asked();
        assert_eq!(asked.len(), ASKED_MAX);
        let (node, first) = (asked[0].0, asked[0].1.id);
        desk.hear(node, result(first, v3::ReadLabel::Crash));
        let (_, id) = desk.question();
        assert_eq!(id, first + ASKED_MAX as u64, "the next in turn, and one only");
        // The node goes: all that it owes and what waited are put to the others.
        desk.down(node);
        let asked = desk.asked();
        assert!(
            asked.len() == ASKED_MAX + 1 && asked.iter().all(|(other, _)| *other != node),
            "{}",
            asked.len()
        );
        for (other, query) in asked {
            desk.hear(other, result(query.id, v3::ReadLabel::Crash));
        }
        assert!(answered.iter_mut().all(|one| one.try_recv().is_ok_and(|answer| answer.is_some())));
        assert!(desk.reads.list.is_empty() && desk.reads.asked.iter().all(|count| *count == 0));
    }

    #[test]
    fn more_reads_than_may_be_under_way_are_ordered() {
        let mut desk = Desk::new();
        let _waiting: Vec<_> = (0..READS_MAX).map(|_| desk.ask(None)).collect();
        assert_eq!(desk.ask(None).try_recv(), Ok(None));
    }
}
