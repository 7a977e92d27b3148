//! The engine against a cluster in memory: the real replicated state, one signing key per replica, and replicas that
//! keep silent, lie, forge or refuse. Time is an argument; nothing here sleeps.

use super::*;
use crate::config::{PrincipalConfig, Settings};
use crate::receipt::Receipt;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{
    Crypto, Genesis, Incarnation, LogTime, Member, Mutants, Policy, Position, Quorum, ReplicaId, Sequence,
    Signature, Trust as Who, View, encode,
};
use dwcp_proto::v3::{self, Attach, StatusReply};
use dwcp_replica::Label;
use dwcp_replica::reply::reply_signing_hash;
use dwcp_state::kv::{Kv, KvBody, KvCommand, KvReply};
use dwcp_state::{
    Admission, CHALLENGE_BYTES, ClientFrame, CommandResult, Fate, FrameContent, SessionAttach, State,
};
use dwcp_transport::TlsIdentity;
use std::collections::HashSet;

const CREATED_MS: u64 = 1_700_000_000_000;

pub(crate) fn tls_identity(node: u8) -> TlsIdentity {
    TlsIdentity::from_seed(&[100 + node; 32]).expect("a key")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Honest,
    /// Takes everything in and says nothing.
    Silent,
    /// Answers something else, well signed. All liars tell the same lie.
    Lying,
    /// Answers the truth under a signature that does not hold.
    Forging,
    /// Answers the truth in another replica's name.
    Posing,
    /// Answers the truth, with a label, a place and a view of its own making.
    Boasting,
    /// Answers the truth under the other label.
    Relabelling,
    /// Refuses every frame as an unknown session's.
    Refusing,
}

pub(crate) struct Cluster {
    pub(crate) state: State<Kv>,
    pub(crate) genesis: Genesis,
    pub(crate) keys: Vec<Ed25519>,
    pub(crate) moods: Vec<Mood>,
    pub(crate) attached: Vec<HashSet<SessionId>>,
    /// Of each node's present connection.
    challenges: Vec<[u8; CHALLENGE_BYTES]>,
    position: u64,
    view: u64,
    pub(crate) wall_ms: u64,
    /// What the gateways saw of ordinary frames: who got it, and its bytes.
    frames: Vec<(usize, Bytes)>,
    /// Ordered but not answered.
    mute: bool,
    /// A Raft segment is open and led by this replica.
    leader: Option<usize>,
    /// Answers that wait for an Anchor, by node.
    waiting: Vec<(usize, SessionId, u64, Vec<CommandResult>)>,
}

impl Cluster {
    pub(crate) fn new(n: u8, f: u8) -> Self {
        let keys: Vec<Ed25519> = (0..n).map(|id| Ed25519::new([id + 1; 32], &[])).collect();
        let member = |(id, key): (u8, &Ed25519)| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: key.public_key(),
            tls_key: PublicKey(tls_identity(id).public_key()),
            peer_address: String::new(),
            client_address: format!("127.0.0.1:{}", 9000 + u16::from(id)),
            votes_after: Sequence(0),
        };
        let genesis = Genesis {
            version: 1,
            name: "test".into(),
            created_unix_ms: CREATED_MS,
            policy: Policy::root_only(
                if f > 0 { Who::Byzantine } else { Who::Crash },
                Quorum::new(n.into(), Some(f)).expect("a quorum"),
            ),
            mode: dwcp_base::NetworkMode::Hybrid,
            calm_ms: dwcp_base::configuration::CALM_MS,
            members: (0..).zip(&keys).map(member).collect(),
            principals: vec![Principal {
                name: "ann".into(),
                key: Ed25519::new([77; 32], &[]).public_key(),
                role: Role::Admin,
            }],
            checkpoint_interval: 128,
            window: 256,
            quota_bytes: 1 << 30,
        };
        let state = State::new(&genesis, Kv::new(1 << 30), Mutants::default());
        let attached = vec![HashSet::new(); keys.len()];
        let moods = vec![Mood::Honest; keys.len()];
        Self {
            state,
            genesis,
            keys,
            moods,
            attached,
            challenges: vec![[0; CHALLENGE_BYTES]; n.into()],
            position: 0,
            view: 0,
            wall_ms: CREATED_MS,
            frames: Vec::new(),
            mute: false,
            leader: None,
            waiting: Vec::new(),
        }
    }

    /// The client connected to this node: nobody is attached, and the challenge is a new one.
    pub(crate) fn connected(&mut self, node: usize) -> [u8; CHALLENGE_BYTES] {
        self.attached[node].clear();
        self.challenges[node][0] += 1;
        self.challenges[node]
    }

    pub(crate) fn attach(&mut self, node: usize, attach: &Attach) {
        let proof = SessionAttach {
            session_key: PublicKey(attach.session_key[..].try_into().expect("32 bytes")),
            signature: Signature(attach.signature[..].try_into().expect("64 bytes")),
        };
        let replica = ReplicaId(u8::try_from(node).expect("few"));
        let holds = proof.verify(&self.keys[0], self.genesis.cluster(), replica, &self.challenges[node]);
        assert!(holds, "a client answers the challenge of the node's present connection");
        self.attached[node].insert(proof.session());
    }

    /// A frame came to this node's gateway; what each node answers to it.
    pub(crate) fn frame(
        &mut self,
        node: usize,
        bytes: &Bytes,
        ack: Option<Ack>,
    ) -> Vec<(usize, ServerMessage)> {
        let checked = ClientFrame::decode(bytes.clone()).expect("a client sends sound frames");
        let (key, message, signature) = checked.signature_item(self.genesis.cluster());
        assert!(self.keys[0].verify(&key, &message, &signature), "a client signs its frames");
        assert!(
            self.attached[node].contains(&checked.session()),
            "a client attaches its session before its frames"
        );
        if let FrameContent::Commands(_) = checked.content() {
            self.frames.push((node, bytes.clone()));
        }
        let (session, first) = (checked.session(), checked.sequences().start);
        let refused = |refusal: Refusal| ServerMessage {
            refused: vec![Refused {
                session: Bytes::copy_from_slice(&session.0),
                first,
                refusal: Bytes::from(encode(&refusal)),
                reason: refusal.to_string(),
                definite: refusal.definite(),
            }],
            ..ServerMessage::default()
        };
        match self.moods[node] {
            Mood::Silent => return Vec::new(),
            Mood::Refusing => return vec![(node, refused(Refusal::SessionExpired))],
            Mood::Honest
            | Mood::Lying
            | Mood::Forging
            | Mood::Posing
            | Mood::Boasting
            | Mood::Relabelling => {}
        }
        match self.state.admit(&checked) {
            Err(refusal) => vec![(node, refused(refusal))],
            Ok(Admission::AllExecuted(results)) => {
                self.answer(node, node, ack, session, first, results).into_iter().collect()
            }
            Ok(Admission::Fresh) => {
                self.position += 1;
                self.state.begin_entry(Position(self.position), LogTime(self.wall_ms));
                let outcome = self.state.execute(&checked);
                let heard: Vec<usize> =
                    (0..self.keys.len()).filter(|node| self.attached[*node].contains(&session)).collect();
                heard
                    .into_iter()
                    .filter_map(|heard| {
                        self.answer(heard, node, ack, session, first, outcome.results.clone())
                    })
                    .collect()
            }
        }
    }

    /// Only the node that the frame came to knows the wish.
    fn answer(
        &mut self,
        node: usize,
        gateway: usize,
        ack: Option<Ack>,
        session: SessionId,
        first: u64,
        results: Vec<CommandResult>,
    ) -> Option<(usize, ServerMessage)> {
        if self.leader.is_some() && node == gateway && ack == Some(Ack::Anchored) {
            self.waiting.push((node, session, first, results));
            return None;
        }
        self.reply(node, session, first, results, self.leader.is_some())
    }

    /// An Anchor covers all that waits for it.
    fn anchor(&mut self) -> Vec<(usize, ServerMessage)> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .filter_map(|(node, session, first, results)| self.reply(node, session, first, results, false))
            .collect()
    }

    fn reply(
        &self,
        node: usize,
        session: SessionId,
        first: u64,
        mut results: Vec<CommandResult>,
        open: bool,
    ) -> Option<(usize, ServerMessage)> {
        let mood = self.moods[node];
        if self.mute || matches!(mood, Mood::Silent | Mood::Refusing) {
            return None;
        }
        if mood == Mood::Boasting {
            results.iter_mut().for_each(|result| result.position.0 += 1000);
        }
        if mood == Mood::Lying {
            results
                .iter_mut()
                .for_each(|result| result.outcome = Outcome::Done(Bytes::from_static(b"a lie")));
        }
        let name = if mood == Mood::Posing { (node + 1) % self.keys.len() } else { node };
        let mut reply = ExecutedReply {
            session,
            first,
            results,
            label: if open || mood == Mood::Relabelling { Label::Crash } else { Label::Byzantine },
            view: View(self.view + if mood == Mood::Boasting { 1000 } else { 0 }),
            ask: ReplicaId(u8::try_from(self.leader.unwrap_or(0)).expect("few")),
            replica: ReplicaId(u8::try_from(name).expect("few")),
            incarnation: Incarnation(0),
            leaf_index: 0,
            leaf_count: 1,
            path: Vec::new(),
            signature: None,
        };
        if self.genesis.policy.quorum.f() > 0 && !open {
            let hash = reply_signing_hash(
                self.genesis.cluster(),
                reply.replica,
                reply.incarnation,
                1,
                reply.leaf_hash(),
            );
            let mut signature = self.keys[node].sign(&hash);
            if mood == Mood::Forging {
                signature.0[5] ^= 1;
            }
            reply.signature = Some(signature);
        }
        let executed = vec![Bytes::from(encode(&reply))];
        Some((node, ServerMessage { executed, ..ServerMessage::default() }))
    }
}

struct World {
    engine: Engine,
    cluster: Cluster,
    instant: Instant,
    clock_error_ms: i64,
}

impl World {
    fn with(n: u8, f: u8, change: impl FnOnce(&mut Settings)) -> Self {
        let cluster = Cluster::new(n, f);
        let principal = PrincipalConfig { name: "ann".into(), seed: [77; 32] };
        let mut config = ClientConfig::of_genesis(&cluster.genesis, principal);
        change(&mut config.settings);
        Self::of(cluster, config)
    }

    fn of(cluster: Cluster, config: ClientConfig) -> Self {
        config.check().expect("a sound configuration");
        let mut seed = 0u64;
        let fresh = Box::new(move || {
            seed += 1;
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            bytes
        });
        Self { engine: Engine::new(config, 1, fresh), cluster, instant: Instant::now(), clock_error_ms: 0 }
    }

    fn new(n: u8, f: u8) -> Self {
        let mut world = Self::with(n, f, |_| {});
        world.connect_all();
        world
    }

    fn now(&self) -> Now {
        Now {
            instant: self.instant,
            wall_ms: self.cluster.wall_ms.saturating_add_signed(self.clock_error_ms),
        }
    }

    fn connect_all(&mut self) {
        for node in 0..self.engine.nodes().len() {
            let now = self.now();
            let challenge = self.cluster.connected(node);
            self.engine.on_connected(now, node, challenge);
        }
        self.run();
    }

    /// Carries messages until nothing moves.
    fn run(&mut self) {
        loop {
            let now = self.now();
            self.engine.flush(now);
            let mut messages = Vec::new();
            for node in 0..self.cluster.keys.len() {
                messages.extend(
                    std::iter::from_fn(|| self.engine.nodes().sent(node)).map(|message| (node, message)),
                );
            }
            let moved = !messages.is_empty();
            // Ordering takes longer than attaching.
            for (node, message) in &messages {
                message.attaches.iter().for_each(|attach| self.cluster.attach(*node, attach));
            }
            for (node, message) in messages {
                let acks = message.frame_acks.iter().map(|ack| match v3::Ack::try_from(*ack) {
                    Ok(v3::Ack::Policy) => None,
                    Ok(v3::Ack::Majority) => Some(Ack::Majority),
                    Ok(v3::Ack::Anchored) => Some(Ack::Anchored),
                    Err(error) => panic!("{error}"),
                });
                for (frame, ack) in message.frames.iter().zip(acks.chain(std::iter::repeat(None))) {
                    for (from, answer) in self.cluster.frame(node, frame, ack) {
                        self.engine.on_message(now, from, answer);
                    }
                }
                if !message.statuses.is_empty() {
                    let status = StatusReply {
                        view: self.cluster.view,
                        vote_key: Bytes::copy_from_slice(&self.cluster.keys[node].public_key().0),
                        ..StatusReply::default()
                    };
                    let statuses = vec![status];
                    self.engine.on_message(now, node, ServerMessage { statuses, ..ServerMessage::default() });
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.instant += time;
        self.cluster.wall_ms += u64::try_from(time.as_millis()).expect("short");
        let now = self.now();
        self.engine.on_wake(now);
        self.run();
    }

    fn call(&mut self, commands: Vec<Bytes>, timeout: Duration) -> oneshot::Receiver<Answers> {
        let (answer, answered) = oneshot::channel();
        let now = self.now();
        self.engine.on_call(now, 0, commands, timeout, None, answer);
        answered
    }

    fn put(&mut self, key: &str) -> oneshot::Receiver<Answers> {
        let answered = self.call(vec![put(key)], Duration::from_secs(10));
        self.run();
        answered
    }

    fn down(&mut self, node: usize) {
        self.cluster.attached[node].clear();
        let now = self.now();
        self.engine.on_disconnected(now, node, "gone".into());
        self.run();
    }
}

/// Four nodes of which none lies, with a segment open that node 2 leads.
fn trusting(f: u8) -> World {
    let mut cluster = Cluster::new(4, f);
    cluster.genesis.policy.trust = Who::Crash;
    cluster.leader = Some(2);
    let principal = PrincipalConfig { name: "ann".into(), seed: [77; 32] };
    let mut config = ClientConfig::of_genesis(&cluster.genesis, principal);
    config.cluster = cluster.genesis.cluster();
    let mut world = World::of(cluster, config);
    world.connect_all();
    world
}

fn put(key: &str) -> Bytes {
    KvCommand::put(Bytes::copy_from_slice(key.as_bytes()), "v").to_command()
}

fn one(answered: &mut oneshot::Receiver<Answers>) -> Result<Bytes, ClientError> {
    believed(answered).map(|believed| believed.reply)
}

fn believed(answered: &mut oneshot::Receiver<Answers>) -> Result<Believed<Bytes>, ClientError> {
    answered.try_recv().expect("answered").remove(0)
}

fn open_yet(answered: &mut oneshot::Receiver<Answers>) -> bool {
    answered.try_recv() == Err(oneshot::error::TryRecvError::Empty)
}

fn revision(answer: Result<Bytes, ClientError>) -> u64 {
    KvReply::decode(&answer.expect("done")).expect("a reply").revision
}

#[test]
fn a_command_is_answered_once_f_plus_one_replicas_signed_the_same() {
    for (n, f) in [(1, 0), (3, 0), (4, 1), (7, 2)] {
        let mut world = World::new(n, f);
        assert_eq!(revision(one(&mut world.put("a"))), 2, "n={n}");
        assert_eq!(revision(one(&mut world.put("b"))), 3, "n={n}");
        assert_eq!(world.engine.counters.retries, 0);
        assert_eq!(world.engine.counters.opens, 1);
    }
}

#[test]
fn where_nobody_lies_one_voice_labelled_crash_is_enough_and_tells_whom_to_ask() {
    let mut world = trusting(1);
    let receipt = believed(&mut world.put("a")).expect("nobody lies").receipt;
    assert_eq!(receipt.label, Label::Crash);
    world.cluster.frames.clear();
    // All but the leader keep silent: its word alone.
    world.cluster.moods = vec![Mood::Silent, Mood::Silent, Mood::Honest, Mood::Silent];
    assert_eq!(revision(one(&mut world.put("b"))), 3);
    let asked: Vec<usize> = world.cluster.frames.iter().map(|(node, _)| *node).collect();
    assert_eq!(asked, [2], "the frame went to who orders, and to nobody else");
    // The leader is gone and another leads.
    world.cluster.moods = vec![Mood::Honest; 4];
    world.cluster.leader = Some(3);
    world.down(2);
    one(&mut world.put("c")).expect("the others do");
    world.cluster.frames.clear();
    one(&mut world.put("d")).expect("the others do");
    assert_eq!(world.cluster.frames.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [3]);
}

#[test]
fn where_members_may_lie_a_voice_labelled_crash_is_worth_nothing() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    // Whatever replicas call their acknowledgement, unsigned ones are not believed, however many agree.
    world.cluster.leader = Some(2);
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered));
    assert!(world.engine.counters.forged > 0);
    world.pass(Duration::from_secs(11));
    assert!(matches!(one(&mut answered), Err(ClientError::Unknown(_))));
}

#[test]
fn what_is_to_be_anchored_waits_for_f_plus_one_signatures() {
    let mut world = trusting(1);
    one(&mut world.put("a")).expect("nobody lies");
    let anchored = |world: &mut World, key: &str| {
        let (answer, answered) = oneshot::channel();
        let (now, within) = (world.now(), Duration::from_secs(10));
        world.engine.on_call(now, 0, vec![put(key)], within, Some(Ack::Anchored), answer);
        world.run();
        answered
    };
    world.cluster.frames.clear();
    let mut answered = anchored(&mut world, "b");
    assert!(open_yet(&mut answered), "committed, and no Anchor covers it");
    assert_eq!(world.cluster.frames.len(), 3, "each that is to sign knows the wish");
    for (index, (from, answer)) in world.cluster.anchor().into_iter().enumerate() {
        assert_eq!(open_yet(&mut answered), index < 2, "f + 1 of them");
        let now = world.now();
        world.engine.on_message(now, from, answer);
        if index == 1 {
            let believed = believed(&mut answered).expect("two signed it");
            assert_eq!(believed.receipt.label, Label::Byzantine);
            break;
        }
    }
    assert_eq!(world.engine.counters.retries, 0);

    // Without an Anchor in time the caller learns that much.
    let mut answered = anchored(&mut world, "c");
    world.pass(Duration::from_secs(11));
    let error = one(&mut answered).expect_err("no Anchor came");
    assert_eq!(error.fate(), Fate::Unknown);
    assert!(error.to_string().starts_with("committed, but not anchored within 10000 ms"), "{error}");
}

/// With f = 0 the label says nothing more, so it must be a node that knew the wish.
#[test]
fn without_liars_an_anchored_answer_is_that_of_a_node_that_waited() {
    let mut world = trusting(0);
    one(&mut world.put("a")).expect("nobody lies");
    world.cluster.attached[0] = world.cluster.attached[2].clone();
    let (answer, mut answered) = oneshot::channel();
    let now = world.now();
    world.engine.on_call(now, 0, vec![put("b")], Duration::from_secs(10), Some(Ack::Anchored), answer);
    world.run();
    assert!(open_yet(&mut answered), "node 0 did not know");
    let (from, reply) = world.cluster.anchor().remove(0);
    assert_eq!(from, 2);
    world.engine.on_message(now, from, reply);
    assert!(one(&mut answered).is_ok());
}

#[test]
fn one_honest_voice_is_not_enough_and_a_second_is() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods = vec![Mood::Honest, Mood::Silent, Mood::Silent, Mood::Silent];
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered));
    world.pass(Duration::from_secs(2));
    assert!(open_yet(&mut answered), "retries do not make one voice two");
    world.cluster.moods[3] = Mood::Honest;
    world.pass(Duration::from_secs(3));
    assert_eq!(revision(one(&mut answered)), 3);
}

#[test]
fn f_equal_lies_lose_to_f_plus_one_truths_whoever_speaks_first() {
    let mut world = World::with(7, 2, |settings| settings.attach = Some(7));
    world.connect_all();
    // The liars are first in line in every round; two more keep silent.
    world.cluster.moods =
        vec![Mood::Lying, Mood::Lying, Mood::Silent, Mood::Silent, Mood::Honest, Mood::Honest, Mood::Honest];
    for revision_expected in 2..10 {
        assert_eq!(revision(one(&mut world.put("a"))), revision_expected);
    }
}

#[test]
fn a_receipt_is_what_f_plus_one_say_alike_whoever_speaks_first() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.view = 5;
    let receipt = believed(&mut world.put("b")).expect("all honest").receipt;
    let expected = Receipt { label: Label::Byzantine, position: Position(3), view: View(5) };
    assert_eq!(receipt, expected);
    assert_eq!(receipt.to_string(), "label byzantine, position 3, view 5");
    // The first in line claims a view and a place far ahead.
    world.cluster.moods[1] = Mood::Boasting;
    let receipt = believed(&mut world.put("c")).expect("three honest").receipt;
    assert_eq!(receipt, Receipt { label: Label::Byzantine, position: Position(4), view: View(5) });
}

#[test]
fn answers_under_different_labels_are_different_answers() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods = vec![Mood::Honest, Mood::Relabelling, Mood::Silent, Mood::Silent];
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered), "one replica cannot weaken or strengthen a label");
    world.cluster.moods[2] = Mood::Honest;
    world.pass(Duration::from_secs(3));
    assert_eq!(believed(&mut answered).expect("two alike").receipt.label, Label::Byzantine);
}

#[test]
fn f_plus_one_equal_lies_win_which_is_what_f_means() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods = vec![Mood::Lying, Mood::Lying, Mood::Silent, Mood::Silent];
    assert_eq!(one(&mut world.put("b")), Ok(Bytes::from_static(b"a lie")));
}

#[test]
fn forged_signatures_and_borrowed_names_count_for_nothing() {
    for mood in [Mood::Forging, Mood::Posing] {
        let mut world = World::with(4, 1, |settings| settings.attach = Some(4));
        world.connect_all();
        one(&mut world.put("a")).expect("all honest");
        world.cluster.moods = vec![mood, Mood::Honest, mood, mood];
        let mut answered = world.put("b");
        assert!(open_yet(&mut answered), "{mood:?}");
        assert!(world.engine.counters.forged >= 1, "{mood:?}");
        world.cluster.moods[2] = Mood::Honest;
        world.pass(Duration::from_secs(2));
        assert_eq!(revision(one(&mut answered)), 3, "{mood:?}");
    }
}

#[test]
fn a_reply_without_signature_is_believed_only_where_nobody_lies() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    let quorum = Quorum::new(4, Some(0)).expect("a quorum");
    let genesis = world.cluster.genesis.clone();
    // The cluster forgets to sign; frames still verify, because the cluster's id is kept by the client.
    world.cluster.genesis.policy.quorum = quorum;
    assert_ne!(world.cluster.genesis.cluster(), genesis.cluster());
    let (answer, mut answered) = oneshot::channel();
    let now = world.now();
    world.engine.on_call(now, 0, vec![put("b")], Duration::from_secs(10), None, answer);
    world.engine.flush(now);
    let frame = world.engine.nodes().sent(0).expect("to the primary").frames.remove(0);
    let checked = ClientFrame::decode(frame).expect("a frame");
    world.cluster.position += 1;
    world.cluster.state.begin_entry(Position(world.cluster.position), LogTime(world.cluster.wall_ms));
    let outcome = world.cluster.state.execute(&checked);
    for node in 0..4 {
        let (_, message) = world
            .cluster
            .reply(node, checked.session(), outcome.first, outcome.results.clone(), false)
            .expect("honest");
        world.engine.on_message(now, node, message);
    }
    assert!(open_yet(&mut answered));
}

#[test]
fn a_silent_primary_costs_one_retry_and_nothing_runs_twice() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods[0] = Mood::Silent;
    world.cluster.frames.clear();
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered));
    assert_eq!(
        world.cluster.frames.iter().map(|(node, _)| *node).collect::<Vec<_>>(),
        [0],
        "to the primary only"
    );
    world.pass(Duration::from_millis(1300));
    assert_eq!(revision(one(&mut answered)), 3, "ran once though three more nodes got it");
    assert_eq!(world.cluster.frames.len(), 5);
    assert!(
        world.cluster.frames.iter().all(|(_, bytes)| *bytes == world.cluster.frames[0].1),
        "the same bytes"
    );
}

#[test]
fn the_new_primary_is_learnt_from_replies() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.view = 2;
    one(&mut world.put("b")).expect("still served");
    world.cluster.frames.clear();
    one(&mut world.put("c")).expect("served");
    assert_eq!(world.cluster.frames[0].0, 2);
}

#[test]
fn a_lost_connection_sends_the_frame_elsewhere_at_once() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods[0] = Mood::Silent;
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered));
    world.down(0);
    assert_eq!(revision(one(&mut answered)), 3, "without waiting for retry_after");
}

#[test]
fn a_node_that_connects_late_completes_what_is_in_flight() {
    let mut world = World::with(4, 1, |_| {});
    let now = world.now();
    let challenge = world.cluster.connected(2);
    world.engine.on_connected(now, 2, challenge);
    world.run();
    let mut answered = world.put("a");
    assert!(open_yet(&mut answered), "one connected node cannot convince");
    let now = world.now();
    let challenge = world.cluster.connected(1);
    world.engine.on_connected(now, 1, challenge);
    world.run();
    assert_eq!(revision(one(&mut answered)), 2, "at once: the latecomer answers from its table");
}

#[test]
fn what_never_left_is_not_applied_and_what_left_is_unknown() {
    let mut world = World::with(4, 1, |_| {});
    let mut unsent = world.call(vec![put("a")], Duration::from_secs(1));
    world.pass(Duration::from_millis(1001));
    let error = one(&mut unsent).expect_err("nobody is there");
    assert!(error.definitely_not_applied(), "{error}");
    assert!(error.to_string().contains("node 3: not reached yet"), "{error}");

    world.connect_all();
    one(&mut world.put("a")).expect("all honest");
    world.cluster.mute = true;
    let mut sent = world.put("b");
    world.pass(Duration::from_secs(11));
    let error = one(&mut sent).expect_err("no answers");
    assert_eq!(error.fate(), Fate::Unknown, "{error}");
    world.cluster.mute = false;
    assert_eq!(revision(one(&mut world.put("c"))), 4, "it had been applied indeed");
}

#[test]
fn an_abandoned_frame_cannot_run_after_a_later_one() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods = vec![Mood::Silent; 4];
    world.cluster.frames.clear();
    let mut lost = world.put("lost");
    world.pass(Duration::from_secs(11));
    assert_eq!(one(&mut lost).expect_err("no answers").fate(), Fate::Unknown);
    world.cluster.moods = vec![Mood::Honest; 4];
    assert_eq!(revision(one(&mut world.put("b"))), 3);
    // A node that kept the frame has it ordered only now.
    let late = world.cluster.frames[0].1.clone();
    let checked = ClientFrame::decode(late).expect("a frame");
    let outcome = world.cluster.state.execute(&checked);
    assert!(
        matches!(outcome.results[0].outcome, Outcome::Refused(Refusal::BelowLowWater { .. })),
        "{outcome:?}"
    );
    assert_eq!(revision(one(&mut world.put("c"))), 4);
}

#[test]
fn calls_that_come_together_share_frames_and_frame_max_is_kept() {
    for (frame_max, frames) in [(256, 3), (64, 10), (1, 600)] {
        let mut world = World::with(4, 1, |settings| {
            settings.frame_max = frame_max;
            settings.frames_in_flight_max = 1024;
        });
        world.connect_all();
        let calls: Vec<_> = (0..600).map(|_| world.call(vec![put("k")], Duration::from_secs(9))).collect();
        world.run();
        let mut revisions: Vec<u64> = calls.into_iter().map(|mut call| revision(one(&mut call))).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (2..602).collect::<Vec<_>>());
        assert_eq!((world.engine.counters.frames, world.engine.counters.commands), (frames, 600));
    }
}

#[test]
fn what_cannot_fit_the_window_waits_and_what_cannot_wait_is_refused() {
    let mut world = World::with(4, 1, |settings| {
        settings.waiting_max = 2048;
        settings.frames_in_flight_max = 1024;
    });
    world.connect_all();
    one(&mut world.put("a")).expect("all honest");
    world.cluster.mute = true;
    let mut first = world.call(vec![put("k"); 1500], Duration::from_secs(60));
    world.run();
    assert_eq!(world.engine.counters.commands, 1 + 1024, "the window");
    let mut refused = world.call(vec![put("k"); 1600], Duration::from_secs(60));
    assert!(
        refused
            .try_recv()
            .expect("at once")
            .iter()
            .all(|r| r.as_ref().is_err_and(ClientError::definitely_not_applied))
    );
    world.cluster.mute = false;
    world.pass(Duration::from_secs(2));
    assert_eq!(first.try_recv().expect("answered").into_iter().filter(Result::is_ok).count(), 1500);
}

#[test]
fn answers_come_in_the_order_of_the_commands_and_an_oversized_one_stays_here() {
    let mut world = World::new(4, 1);
    let large = Bytes::from(vec![0; COMMAND_BYTES_MAX + 1]);
    let get = |key: &'static str| KvCommand::get(key).to_command();
    let commands = vec![put("a"), large, get("a"), Bytes::from_static(b"\xff")];
    let mut answered = world.call(commands, Duration::from_secs(9));
    world.run();
    let answers = answered.try_recv().expect("answered");
    assert!(answers[1].as_ref().is_err_and(|error| error.to_string().contains("split it")));
    let reply = KvReply::decode(&answers[2].as_ref().expect("read").reply).expect("a reply");
    assert!(matches!(reply.body, KvBody::Range { count: 1, .. }), "{reply:?}");
    assert_eq!(answers[3], Err(ClientError::Refused(Refusal::Malformed)));
    assert!(answers[3].as_ref().is_err_and(ClientError::definitely_not_applied));
}

#[test]
fn a_node_that_is_behind_and_refuses_is_passed_over() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods[0] = Mood::Refusing;
    assert_eq!(revision(one(&mut world.put("b"))), 3, "the refusal sends the frame to another node at once");
    assert_eq!(
        (world.engine.counters.refusals, world.engine.counters.opens),
        (1, 1),
        "and the session is kept"
    );
}

#[test]
fn a_session_that_f_plus_one_nodes_deny_for_long_is_replaced_and_its_commands_are_unknown() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.cluster.moods = vec![Mood::Refusing; 4];
    let mut answered = world.put("b");
    assert!(open_yet(&mut answered), "they may be a moment behind");
    world.pass(Duration::from_millis(1100));
    let error = one(&mut answered).expect_err("denied");
    assert_eq!((error.fate(), error), (Fate::Unknown, ClientError::Refused(Refusal::SessionExpired)));
    world.cluster.moods = vec![Mood::Honest; 4];
    assert_eq!(revision(one(&mut world.put("c"))), 3, "in a fresh session");
    assert_eq!(world.engine.counters.opens, 2);
}

#[test]
fn a_session_idle_for_long_is_replaced_before_a_command_is_bet_on_it() {
    let mut world = World::new(4, 1);
    one(&mut world.put("a")).expect("all honest");
    world.pass(Duration::from_secs(301));
    assert_eq!(revision(one(&mut world.put("b"))), 3);
    assert!(world.engine.counters.opens > 1);
    assert_eq!(world.cluster.state.session_count(), 2);
}

#[test]
fn a_clock_that_is_hours_off_is_corrected_by_the_clusters() {
    for error_ms in [-7_200_000, 7_200_000] {
        let mut world = World::with(4, 1, |_| {});
        world.clock_error_ms = error_ms;
        world.connect_all();
        assert_eq!(revision(one(&mut world.put("a"))), 2, "{error_ms}");
    }
}

#[test]
fn a_thousand_sessions_enter_a_cluster_whose_log_time_stood_still_for_a_day() {
    let mut world = World::new(4, 1);
    world.cluster.wall_ms += 86_400_000;
    let mut calls = Vec::new();
    for number in 0..1000 {
        let (answer, answered) = oneshot::channel();
        let now = world.now();
        world.engine.on_call(now, number, vec![put("k")], Duration::from_secs(10), None, answer);
        calls.push(answered);
    }
    world.run();
    assert!(calls.iter_mut().all(|call| one(call).is_ok()));
}

#[test]
fn an_unknown_principal_is_told_so_and_nothing_was_applied() {
    let cluster = Cluster::new(4, 1);
    let principal = PrincipalConfig { name: "eve".into(), seed: [78; 32] };
    let config = ClientConfig::of_genesis(&cluster.genesis, principal);
    let mut world = World::of(cluster, config);
    world.connect_all();
    let error = one(&mut world.put("a")).expect_err("unknown");
    assert!(error.definitely_not_applied(), "{error}");
    assert!(error.to_string().contains("no principal has this name and key"), "{error}");
}

#[test]
fn messages_that_make_no_sense_change_nothing() {
    let mut world = World::new(4, 1);
    world.cluster.mute = true;
    let mut answered = world.put("a");
    let now = world.now();
    for length in 0..200usize {
        let noise = Bytes::from((0..length).map(|i| (i * 31 + length) as u8).collect::<Vec<_>>());
        let refused = Refused { session: noise.clone(), refusal: noise.clone(), ..Refused::default() };
        let message = ServerMessage {
            executed: vec![noise.clone()],
            refused: vec![refused],
            ..ServerMessage::default()
        };
        world.engine.on_message(now, length % 4, message);
    }
    assert!(open_yet(&mut answered));
    world.cluster.mute = false;
    world.pass(Duration::from_secs(2));
    one(&mut answered).expect("answered in the end");
}
