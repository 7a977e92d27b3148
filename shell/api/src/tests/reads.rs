//! Reads of one node's state, over a stream and as single calls: what is asked, what an answer says of itself, and where
//! whoever is refused is sent.

use super::*;
use dwcp_proto::v3::{Consistency, QueryReply};

fn linearizable(id: u64, query: &'static [u8], ack: i32) -> QueryRequest {
    let consistency = Consistency::Linearizable.into();
    QueryRequest { id, query: Bytes::from_static(query), consistency, ack }
}

/// The answers to these questions, by id: each asked in a call of its own and then all in one message of a stream.
async fn ask(served: &Served, questions: Vec<QueryRequest>) -> Vec<QueryReply> {
    let mut client = served.connect(None).await.expect("pinned");
    let mut called = Vec::new();
    for question in &questions {
        called.push(client.query(question.clone()).await.expect("answered").into_inner());
    }
    let (sender, mut stream) = session(&mut client).await;
    let count = questions.len();
    sender.send(ClientMessage { queries: questions, ..ClientMessage::default() }).await.expect("open");
    let mut streamed = Vec::new();
    while streamed.len() < count {
        streamed.extend(next(&mut stream).await.queries);
    }
    streamed.sort_by_key(|reply| reply.id);
    assert_eq!(streamed, called, "both roads say the same");
    called
}

#[tokio::test]
async fn an_answer_says_what_it_is_worth_and_where_in_the_log_it_was_read() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let stale = QueryRequest { id: 1, query: Bytes::from_static(b"q"), ..QueryRequest::default() };
    let answers = ask(&served, vec![stale, linearizable(2, b"led", v3::Ack::Majority.into())]).await;
    let seen: Vec<_> = answers.iter().map(|reply| (reply.label(), reply.position, reply.view)).collect();
    assert_eq!(seen, [(v3::ReadLabel::Stale, 17, 5), (v3::ReadLabel::Crash, 17, 5)]);
    assert_eq!(answers[1].outcome, Some(query_reply::Outcome::Result(Bytes::from_static(b"led"))));
    assert_eq!(*served.node.0.acks.lock().expect("no panic"), [Some(Ack::Majority); 2]);
}

#[tokio::test]
async fn a_refusal_says_where_else_an_answer_may_be_found() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let questions = vec![
        linearizable(1, b"follower", 0),
        linearizable(2, b"elsewhere", 0),
        linearizable(3, b"root", 0),
        linearizable(4, b"nonsense", 0),
        // Words of a later version: this node cannot keep them, and does not pretend to.
        linearizable(5, b"led", 99),
        QueryRequest { consistency: 99, ..linearizable(6, b"led", 0) },
    ];
    let answers = ask(&served, questions).await;
    let seen: Vec<_> = answers.iter().map(|reply| (reply.advice(), reply.leader)).collect();
    let expected = [
        (v3::Advice::Leader, Some(3)),
        (v3::Advice::Elsewhere, None),
        (v3::Advice::Order, None),
        (v3::Advice::Nowhere, None),
        (v3::Advice::Order, None),
        (v3::Advice::Order, None),
    ];
    assert_eq!(seen, expected);
    for answer in &answers {
        assert!(matches!(&answer.outcome, Some(query_reply::Outcome::Error(reason)) if !reason.is_empty()));
        assert_eq!(answer.label(), v3::ReadLabel::Unspecified);
    }
}

#[tokio::test]
async fn whoever_proves_no_key_must_order_its_reads_and_a_node_without_room_is_passed_over() {
    let served = serve(Readers::Principals, Limits::default()).await;
    let mut stranger = served.connect(None).await.expect("pinned");
    let refused = stranger.query(linearizable(1, b"led", 0)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let (sender, mut stream) = session(&mut stranger).await;
    let queries = vec![linearizable(1, b"led", 0)];
    sender.send(ClientMessage { queries, ..ClientMessage::default() }).await.expect("open");
    assert_eq!(next(&mut stream).await.queries[0].advice(), v3::Advice::Order);

    let limits = Limits { busy_patience: Duration::ZERO, ..Limits::default() };
    let served = serve(Readers::Anybody, limits).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream, _) = bare_session(&mut client).await;
    served.node.0.busy.store(true, Ordering::SeqCst);
    let queries = vec![linearizable(2, b"led", 0)];
    sender.send(ClientMessage { queries, ..ClientMessage::default() }).await.expect("open");
    assert_eq!(next(&mut stream).await.queries[0].advice(), v3::Advice::Elsewhere);
}
