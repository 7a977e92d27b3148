//! Reads that cost no entry: who answers them, what an answer says of itself, and where whoever cannot sends the reader.

use super::switching::crash;
use super::*;
use dwcp_base::Ack;
use dwcp_replica::{Advice, Answered, Label, ReadLabel, Unanswered};
use dwcp_state::kv::{KvBody, KvReply};

type Outcome = Result<Answered, Unanswered>;

impl Cluster {
    fn question(&mut self, at: u8, request: ClientRequest) {
        let client = ClientId(9);
        self.nodes[usize::from(at)].inbox.push_back(Input::Client { client, request });
    }

    fn read_led(&mut self, at: u8, id: u64, key: &str, ack: Option<Ack>) {
        let bytes = Command::Machine(KvCommand::get(key.as_bytes().to_vec()).encode()).encode();
        self.question(at, ClientRequest::Read { id, bytes, ack });
    }

    fn outcome(&self, id: u64) -> Option<&Outcome> {
        let mut told = self.replies.iter().filter_map(|(_, reply)| match reply {
            ClientReply::Query { id: of, outcome } if *of == id => Some(outcome),
            _ => None,
        });
        let first = told.next();
        assert!(told.next().is_none(), "one answer for one question");
        first
    }

    fn answered(&self, id: u64) -> &Answered {
        self.outcome(id).expect("it was answered").as_ref().expect("by what was read")
    }

    fn advice(&self, id: u64) -> Advice {
        self.outcome(id).expect("it was answered").as_ref().expect_err("by a refusal").advice
    }
}

fn value(answered: &Answered) -> Option<Vec<u8>> {
    match KvReply::decode(&answered.bytes).unwrap().body {
        KvBody::Range { kvs, .. } => kvs.first().map(|kv| kv.value.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_leader_answers_at_the_head_of_the_log_without_an_entry_and_the_others_name_it() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Datacenter);
    cluster.run(500);
    let leader = cluster.leader(0).unwrap();
    let other = (leader + 1) % 4;
    let mut session = Session::open(&mut cluster, other);
    cluster.load(&mut session, other, 20);
    let frame = session.put("k", b"new");
    cluster.send(other, &frame);
    cluster.run(50);
    let written = cluster.executed(other).last().unwrap().results[0].position;
    let before = cluster.status(leader);
    for id in 100..200 {
        cluster.read_led(leader, id, "k", None);
    }
    cluster.run(5);
    for id in 100..200 {
        let answered = cluster.answered(id);
        assert_eq!(value(answered).as_deref(), Some(&b"new"[..]));
        assert_eq!(answered.label, ReadLabel::Crash);
        assert!(answered.position >= written, "{answered:?} is older than {written:?}");
    }
    let after = cluster.status(leader);
    // A Tick may have been due.
    assert!(
        after.position.0 - before.position.0 <= 1,
        "{} entries for 100 reads",
        after.position.0 - before.position.0
    );
    assert_eq!(after.executed_commands, before.executed_commands);
    assert_eq!(cluster.counted(leader, "linearizable reads without an entry"), 100);
    cluster.read_led(other, 200, "k", None);
    cluster.run(5);
    assert_eq!(cluster.advice(200), Advice::Leader(ReplicaId(leader)));
    // What cannot be read is refused as what it is, and nobody is to be asked instead.
    let bytes = session.put("k", b"x").encode();
    cluster.question(leader, ClientRequest::Read { id: 201, bytes, ack: None });
    cluster.run(5);
    assert_eq!(cluster.advice(201), Advice::Nowhere);
}

#[test]
fn a_nodes_own_state_is_called_stale_wherever_it_is_asked() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Datacenter);
    cluster.run(500);
    for at in 0..4 {
        let bytes = Command::Machine(KvCommand::get(b"k".to_vec()).encode()).encode();
        cluster.question(at, ClientRequest::Query { id: 300 + u64::from(at), bytes });
        cluster.run(5);
        let position = cluster.status(at).position;
        let answered = cluster.answered(300 + u64::from(at));
        assert_eq!(answered.label, ReadLabel::Stale);
        assert!(answered.position <= position && answered.position.0 + 1 >= position.0);
    }
}

#[test]
fn without_a_segment_and_for_whoever_wants_it_anchored_a_read_must_be_ordered() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Internet);
    cluster.run(500);
    cluster.read_led(0, 1, "k", None);
    cluster.run(5);
    assert_eq!(cluster.advice(1), Advice::Order);

    let anchored = Policy { default_ack: Ack::Anchored, ..crash(4) };
    let mut cluster = Cluster::with(4, anchored, NetworkMode::Datacenter);
    cluster.run(500);
    let leader = cluster.leader(0).unwrap();
    cluster.read_led(leader, 2, "k", None);
    cluster.read_led(leader, 3, "k", Some(Ack::Anchored));
    cluster.read_led(leader, 4, "k", Some(Ack::Majority));
    cluster.run(5);
    assert_eq!((cluster.advice(2), cluster.advice(3)), (Advice::Order, Advice::Order));
    assert_eq!(cluster.answered(4).label, ReadLabel::Crash);
}

#[test]
fn a_leader_that_lost_its_majority_never_answers_and_refuses_once_it_knows() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let leader = cluster.leader(0).unwrap();
    let other = (leader + 1) % 4;
    let mut session = Session::open(&mut cluster, other);
    cluster.load(&mut session, other, 20);
    cluster.apart = vec![leader];
    // It still takes itself for the leader: a lease would have it answer.
    assert_eq!(cluster.leader(leader), Some(leader));
    cluster.read_led(leader, 1, "k", None);
    cluster.run(20);
    assert_eq!(cluster.outcome(1), None);
    // The others go on, and what they write it does not know.
    let frame = session.put("k", b"new");
    cluster.send(other, &frame);
    cluster.run(5_000);
    let last = cluster.executed(other).last().copied().expect("they serve clients");
    assert_eq!((last.first, last.label), (21, Label::Byzantine), "after a Close, in the root");
    assert!(cluster.outcome(1).is_none_or(Result::is_err), "{:?}", cluster.outcome(1));
    cluster.apart.clear();
    cluster.run(3_000);
    assert!(cluster.outcome(1).expect("it hears of the end").is_err());
}
