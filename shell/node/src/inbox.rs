//! What waits for the core loop: frames of peers, requests of clients, outcomes of the disk's threads.
//!
//! Every source has its own bound, so one that floods holds back itself alone: a peer's link is no longer read, a
//! client is told to wait. Sources are emptied in turns. It knows nothing of what frames and requests say; the core
//! loop (`core_loop.rs`) is its only reader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dwcp_base::{Incarnation, ReplicaId};
use dwcp_replica::{ClientId, ClientRequest, Input};

use crate::client::{Busy, ReplySender};
use crate::node::StatusAnswer;
use crate::settings::Queues;

/// Charged on top of the bytes, so that a flood of empty frames is bounded too.
const ITEM_OVERHEAD_BYTES: usize = 128;

/// What one burst may hold besides its number of inputs; a single larger item still passes.
const BURST_BYTES_MAX: usize = 16 << 20;

/// Questions of health checks and scrapes that may wait at once.
const STATUS_WAITING_MAX: usize = 64;

/// One thing for the core loop to do.
#[derive(Debug)]
pub(crate) enum Item {
    Step(Input),
    ClientOpened { client: ClientId, replies: ReplySender },
    Status(StatusAnswer),
    Stop,
}

#[derive(Debug)]
struct Frame {
    incarnation: Incarnation,
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct PeerLane {
    frames: VecDeque<Frame>,
    bytes: usize,
    link_up: bool,
    /// The last link broke, before it came up again if `link_up` is set too.
    link_down: bool,
}

#[derive(Debug)]
enum ClientItem {
    Opened(ReplySender),
    Request(ClientRequest),
    Gone,
}

#[derive(Debug, Default)]
struct State {
    /// At most one item for each job handed to the disk's threads, and they are bounded.
    disk: VecDeque<Input>,
    /// At most `STATUS_WAITING_MAX`.
    status: VecDeque<StatusAnswer>,
    /// By replica number; bounds in `Queues`.
    peers: Vec<PeerLane>,
    /// In order of arrival; bounds in `Queues`, plus two items for each open client.
    clients: VecDeque<(ClientId, ClientItem)>,
    clients_bytes: usize,
    /// What each open client has waiting. At most `clients_max`.
    client_bytes: BTreeMap<ClientId, usize>,
    stop: bool,
    /// The reader sleeps and wants to be woken.
    asleep: bool,
    /// The reader is gone: nothing is taken any more.
    closed: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        !self.stop
            && self.disk.is_empty()
            && self.status.is_empty()
            && self.clients.is_empty()
            && self.peers.iter().all(|lane| lane.frames.is_empty() && !lane.link_up && !lane.link_down)
    }
}

/// Bytes and items that wait, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    pub(crate) peer_bytes: usize,
    pub(crate) peer_frames: usize,
    pub(crate) client_bytes: usize,
    pub(crate) client_requests: usize,
    pub(crate) clients: usize,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    bounds: Queues,
    state: Mutex<State>,
    arrived: Condvar,
    /// A peer's link was turned away and waits for room.
    peer_waits: AtomicBool,
}

fn request_bytes(request: &ClientRequest) -> usize {
    ITEM_OVERHEAD_BYTES
        + match request {
            ClientRequest::Frame { bytes, .. }
            | ClientRequest::Order { bytes, .. }
            | ClientRequest::Query { bytes, .. }
            | ClientRequest::Read { bytes, .. } => bytes.len(),
            ClientRequest::Sync { request, .. } => request.bytes(),
            ClientRequest::Attach { .. } | ClientRequest::Status { .. } => 0,
        }
}

impl Inbox {
    pub(crate) fn new(bounds: Queues, replicas: usize) -> Self {
        let state = State { peers: (0..replicas).map(|_| PeerLane::default()).collect(), ..State::default() };
        Self { bounds, state: Mutex::new(state), arrived: Condvar::new(), peer_waits: AtomicBool::new(false) }
    }

    /// False: no room; the caller is to stop reading from this peer until `take` says that there is room again.
    pub(crate) fn push_peer(&self, from: ReplicaId, incarnation: Incarnation, bytes: Bytes) -> bool {
        let mut state = self.lock();
        if state.closed {
            return true;
        }
        // The transport knows its peers by the same genesis; a frame of anyone else has nowhere to go.
        let Some(lane) = state.peers.get_mut(usize::from(from.0)) else { return true };
        let charge = bytes.len() + ITEM_OVERHEAD_BYTES;
        let full = lane.frames.len() >= self.bounds.peer_frames_max
            || (lane.bytes + charge > self.bounds.peer_bytes_max && !lane.frames.is_empty());
        if full {
            self.peer_waits.store(true, Ordering::Release);
            return false;
        }
        lane.bytes += charge;
        lane.frames.push_back(Frame { incarnation, bytes });
        self.wake(state);
        true
    }

    pub(crate) fn push_link_up(&self, peer: ReplicaId) {
        let mut state = self.lock();
        if let Some(lane) = state.peers.get_mut(usize::from(peer.0)) {
            lane.link_up = true;
            self.wake(state);
        }
    }

    pub(crate) fn push_link_down(&self, peer: ReplicaId) {
        let mut state = self.lock();
        if let Some(lane) = state.peers.get_mut(usize::from(peer.0)) {
            // Whatever came up has gone again.
            (lane.link_up, lane.link_down) = (false, true);
            self.wake(state);
        }
    }

    pub(crate) fn push_disk(&self, outcome: Input) {
        let mut state = self.lock();
        state.disk.push_back(outcome);
        self.wake(state);
    }

    pub(crate) fn push_status(&self, answer: StatusAnswer) -> Result<(), Busy> {
        let mut state = self.lock();
        if state.closed || state.status.len() >= STATUS_WAITING_MAX {
            return Err(Busy);
        }
        state.status.push_back(answer);
        self.wake(state);
        Ok(())
    }

    pub(crate) fn open_client(&self, client: ClientId, replies: ReplySender) -> Result<(), Busy> {
        let mut state = self.lock();
        if state.closed || state.client_bytes.len() >= self.bounds.clients_max {
            return Err(Busy);
        }
        state.client_bytes.insert(client, 0);
        state.clients.push_back((client, ClientItem::Opened(replies)));
        self.wake(state);
        Ok(())
    }

    pub(crate) fn push_client(&self, client: ClientId, request: ClientRequest) -> Result<(), Busy> {
        let charge = request_bytes(&request);
        let mut state = self.lock();
        let State { closed, client_bytes, clients_bytes, .. } = &mut *state;
        let waiting = client_bytes.get_mut(&client).filter(|_| !*closed).ok_or(Busy)?;
        if *waiting + charge > self.bounds.client_bytes_max + ITEM_OVERHEAD_BYTES
            || *clients_bytes + charge > self.bounds.clients_bytes_max + ITEM_OVERHEAD_BYTES
        {
            return Err(Busy);
        }
        *waiting += charge;
        *clients_bytes += charge;
        state.clients.push_back((client, ClientItem::Request(request)));
        self.wake(state);
        Ok(())
    }

    pub(crate) fn close_client(&self, client: ClientId) {
        let mut state = self.lock();
        if !state.closed && state.client_bytes.contains_key(&client) {
            state.clients.push_back((client, ClientItem::Gone));
            self.wake(state);
        }
    }

    pub(crate) fn push_stop(&self) {
        let mut state = self.lock();
        state.stop = true;
        self.wake(state);
    }

    /// Takes what waits, sleeping up to `patience` when nothing does. `burst` is empty after a sleep without arrivals.
    /// True when a link that was turned away should try again.
    pub(crate) fn take(&self, patience: Duration, burst: &mut Vec<Item>) -> bool {
        let mut state = self.lock();
        if state.is_empty() && !patience.is_zero() {
            state.asleep = true;
            // A wake-up without cause ends the sleep early; the loop merely looks again.
            state = self.arrived.wait_timeout(state, patience).expect("no panic while the inbox is held").0;
            state.asleep = false;
        }
        self.fill(&mut state, burst);
        drop(state);
        self.peer_waits.swap(false, Ordering::AcqRel)
    }

    /// The reader ends: what waits is dropped, what comes is refused.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        *state = State { closed: true, ..State::default() };
    }

    pub(crate) fn depth(&self) -> Depth {
        let state = self.lock();
        Depth {
            peer_bytes: state.peers.iter().map(|lane| lane.bytes).sum(),
            peer_frames: state.peers.iter().map(|lane| lane.frames.len()).sum(),
            client_bytes: state.clients_bytes,
            client_requests: state.clients.len(),
            clients: state.client_bytes.len(),
        }
    }

    fn fill(&self, state: &mut State, burst: &mut Vec<Item>) {
        if state.stop {
            burst.push(Item::Stop);
            return;
        }
        burst.extend(state.status.drain(..).map(Item::Status));
        burst.extend(state.disk.drain(..).map(Item::Step));
        for (lane, id) in state.peers.iter_mut().zip(0u8..).filter(|(lane, _)| lane.link_up) {
            if std::mem::take(&mut lane.link_down) {
                burst.push(Item::Step(Input::LinkDown { peer: ReplicaId(id) }));
            }
            lane.link_up = false;
            burst.push(Item::Step(Input::LinkUp { peer: ReplicaId(id) }));
        }
        self.fill_in_turns(state, burst);
        for (lane, id) in state.peers.iter_mut().zip(0u8..) {
            // After its last word, which may be what ends the wait for it.
            if lane.link_down && lane.frames.is_empty() {
                lane.link_down = false;
                burst.push(Item::Step(Input::LinkDown { peer: ReplicaId(id) }));
            }
        }
    }

    fn fill_in_turns(&self, state: &mut State, burst: &mut Vec<Item>) {
        let mut bytes = 0;
        // Clients together weigh as much as peers together.
        let clients_a_round = state.peers.len().max(1);
        loop {
            let before = burst.len();
            for id in 0..state.peers.len() {
                let lane = &mut state.peers[id];
                let Some(frame) = lane.frames.pop_front() else { continue };
                let charge = frame.bytes.len() + ITEM_OVERHEAD_BYTES;
                lane.bytes -= charge;
                bytes += charge;
                let from = ReplicaId(u8::try_from(id).expect("at most 31 replicas"));
                let Frame { incarnation, bytes } = frame;
                burst.push(Item::Step(Input::Peer { from, incarnation, bytes }));
            }
            for _ in 0..clients_a_round {
                let Some((client, item)) = state.clients.pop_front() else { break };
                bytes += self.take_client(state, client, item, burst);
            }
            let full = burst.len() >= self.bounds.burst_inputs_max || bytes >= BURST_BYTES_MAX;
            if full || burst.len() == before {
                return;
            }
        }
    }

    /// The bytes it was charged.
    fn take_client(
        &self,
        state: &mut State,
        client: ClientId,
        item: ClientItem,
        burst: &mut Vec<Item>,
    ) -> usize {
        match item {
            ClientItem::Opened(replies) => {
                burst.push(Item::ClientOpened { client, replies });
                0
            }
            ClientItem::Gone => {
                state.client_bytes.remove(&client);
                burst.push(Item::Step(Input::ClientGone { client }));
                0
            }
            ClientItem::Request(request) => {
                let charge = request_bytes(&request);
                state.clients_bytes -= charge;
                if let Some(waiting) = state.client_bytes.get_mut(&client) {
                    *waiting -= charge;
                }
                burst.push(Item::Step(Input::Client { client, request }));
                charge
            }
        }
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        let asleep = state.asleep;
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the inbox is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::reply_channel;

    fn inbox() -> Inbox {
        let bounds = Queues {
            peer_bytes_max: 4096,
            peer_frames_max: 4,
            client_bytes_max: 4096,
            clients_bytes_max: 8192,
            clients_max: 3,
            replies_bytes_max: 4096,
            send_bytes_max: 4096,
            burst_inputs_max: 64,
        };
        Inbox::new(bounds, 4)
    }

    fn take(inbox: &Inbox) -> (Vec<Item>, bool) {
        let mut burst = Vec::new();
        let room = inbox.take(Duration::ZERO, &mut burst);
        (burst, room)
    }

    fn frame(length: usize) -> ClientRequest {
        ClientRequest::Frame { bytes: Bytes::from(vec![0; length]), ack: None }
    }

    fn peer(inbox: &Inbox, from: u8, length: usize) -> bool {
        inbox.push_peer(ReplicaId(from), Incarnation(0), Bytes::from(vec![from; length]))
    }

    fn open(inbox: &Inbox, id: u64) -> Result<(), Busy> {
        inbox.open_client(ClientId(id), reply_channel(1 << 20).0)
    }

    #[test]
    fn a_flooding_peer_holds_back_itself_alone_and_hears_when_there_is_room() {
        let inbox = inbox();
        assert!((0..4).all(|_| peer(&inbox, 1, 10)));
        assert!(!peer(&inbox, 1, 10), "the fifth frame is over the bound in frames");
        assert!(peer(&inbox, 2, 3000));
        assert!(!peer(&inbox, 2, 3000), "the second is over the bound in bytes");
        let (burst, room) = take(&inbox);
        assert_eq!((burst.len(), room), (5, true));
        assert!(peer(&inbox, 1, 10) && peer(&inbox, 2, 3000));
        assert!(!take(&inbox).1, "nobody was turned away since");
        assert!(
            peer(&inbox, 3, 100_000),
            "an empty lane takes any one frame: its size was judged by the transport"
        );
    }

    #[test]
    fn sources_are_emptied_in_turns() {
        let inbox = inbox();
        for _ in 0..3 {
            assert!(peer(&inbox, 1, 1));
        }
        assert!(peer(&inbox, 2, 1));
        let from = |item: &Item| match item {
            Item::Step(Input::Peer { from, .. }) => from.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(take(&inbox).0.iter().map(from).collect::<Vec<_>>(), [1, 2, 1, 1]);
    }

    #[test]
    fn clients_have_a_bound_each_and_one_together() {
        let inbox = inbox();
        for id in 0..3 {
            open(&inbox, id).unwrap();
        }
        assert_eq!(open(&inbox, 3), Err(Busy), "clients_max");
        let push = |id, length| inbox.push_client(ClientId(id), frame(length));
        push(0, 4096).unwrap();
        assert_eq!(push(0, 1), Err(Busy), "the client's own bound");
        push(1, 3968).unwrap();
        assert_eq!(push(2, 1), Err(Busy), "the bound of all");
        assert_eq!(inbox.push_client(ClientId(9), frame(1)), Err(Busy), "never opened");
        let (burst, _) = take(&inbox);
        assert_eq!(burst.len(), 5);
        push(2, 1).unwrap();
        assert_eq!(
            inbox.depth(),
            Depth { client_bytes: 129, client_requests: 1, clients: 3, ..Depth::default() }
        );
    }

    #[test]
    fn a_client_that_left_frees_its_place_once() {
        let inbox = inbox();
        for id in 0..3 {
            open(&inbox, id).unwrap();
        }
        inbox.close_client(ClientId(1));
        let (burst, _) = take(&inbox);
        assert!(matches!(burst.last(), Some(Item::Step(Input::ClientGone { client: ClientId(1) }))));
        inbox.close_client(ClientId(1));
        assert!(take(&inbox).0.is_empty());
        open(&inbox, 4).unwrap();
    }

    #[test]
    fn a_burst_is_bounded_and_the_rest_comes_with_the_next() {
        let inbox = inbox();
        open(&inbox, 0).unwrap();
        for _ in 0..30 {
            inbox.push_client(ClientId(0), frame(0)).unwrap();
            inbox.push_disk(Input::Wake);
            inbox.push_disk(Input::Wake);
        }
        assert_eq!(take(&inbox).0.len(), 64);
        assert_eq!(take(&inbox).0.len(), 27);
        assert!(take(&inbox).0.is_empty());
    }

    #[test]
    fn links_that_flap_leave_one_mark() {
        let inbox = inbox();
        for _ in 0..1000 {
            inbox.push_link_up(ReplicaId(3));
        }
        inbox.push_link_up(ReplicaId(200));
        assert!(matches!(take(&inbox).0[..], [Item::Step(Input::LinkUp { peer: ReplicaId(3) })]));
        for _ in 0..1000 {
            inbox.push_link_down(ReplicaId(3));
            inbox.push_link_up(ReplicaId(3));
        }
        inbox.push_link_down(ReplicaId(200));
        let (burst, _) = take(&inbox);
        let [Item::Step(Input::LinkDown { .. }), Item::Step(Input::LinkUp { .. })] = burst[..] else {
            panic!("what ends up up was down before: {burst:?}")
        };
        inbox.push_link_up(ReplicaId(3));
        inbox.push_link_down(ReplicaId(3));
        assert!(matches!(take(&inbox).0[..], [Item::Step(Input::LinkDown { peer: ReplicaId(3) })]));
        assert!(take(&inbox).0.is_empty(), "told once");
    }

    #[test]
    fn a_peer_that_is_gone_is_heard_out_first() {
        let bounds = Queues { burst_inputs_max: 2, ..inbox().bounds };
        let inbox = Inbox::new(bounds, 4);
        for _ in 0..3 {
            assert!(peer(&inbox, 1, 10));
        }
        inbox.push_link_down(ReplicaId(1));
        let is_down = |item: &Item| matches!(item, Item::Step(Input::LinkDown { .. }));
        let bursts: Vec<Vec<bool>> = (0..2).map(|_| take(&inbox).0.iter().map(is_down).collect()).collect();
        assert_eq!(bursts, [vec![false, false], vec![false, true]]);
    }

    #[test]
    fn a_closed_inbox_holds_nothing_and_refuses_clients() {
        let inbox = inbox();
        open(&inbox, 0).unwrap();
        inbox.push_client(ClientId(0), frame(5)).unwrap();
        inbox.close();
        assert_eq!(inbox.push_client(ClientId(0), frame(5)), Err(Busy));
        assert_eq!(open(&inbox, 1), Err(Busy));
        assert!(peer(&inbox, 1, 5), "a link must not wait for a node that stopped");
        assert_eq!(inbox.depth(), Depth::default());
    }

    #[test]
    fn an_arrival_ends_the_sleep() {
        let inbox = std::sync::Arc::new(inbox());
        let writer = inbox.clone();
        let thread = std::thread::spawn(move || writer.push_stop());
        let mut burst = Vec::new();
        while burst.is_empty() {
            inbox.take(Duration::from_secs(3600), &mut burst);
        }
        assert!(matches!(burst[..], [Item::Stop]));
        thread.join().unwrap();
    }
}
