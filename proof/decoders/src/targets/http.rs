//! What is asked of convergent keys over plain HTTP: the parameters of a question, and the bodies of writes; and what the
//! program takes a node's answer for. A JSON number is kept or refused and never rounded, which a reader of numbers that is written down here once more must find, too.

use crate::Seal::Form;
use crate::meter::bounded;
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp::plain_http;
use dwcp_node::{sync_json, sync_question};
use dwcp_replica::SyncRequest;
use dwcp_replica::sync::values::{Op, Plain, Write};
use serde_json::Value;

pub static SYNC_QUERY: Target =
    Target::new("sync_query", run_query, queries, Form(|b| question(b).is_some_and(|asked| asked.is_ok())))
        .bombs(query_bombs);
pub static SYNC_STATE: Target = Target::new("sync_state", run_state, states, Form(is_json)).bombs(body_bombs);
pub static SYNC_WRITE: Target = Target::new("sync_write", run_write, bodies, Form(is_json)).bombs(body_bombs);

pub static ANSWER: Target =
    Target::new("http_answer", run_answer, answers, Form(has_a_head)).bombs(answer_bombs);

/// The longest that may be asked for.
const TIMEOUT_MS_MAX: u32 = 15_000;
const QUESTIONS: [&str; 6] = ["key", "keys", "watch", "conflicts", "converged", "stand"];

fn one_line(reason: &str) -> Verdict {
    assert!(!reason.is_empty() && !reason.contains('\n'), "a refusal is one line: {reason:?}");
    Verdict::Refused
}

// --- questions ---

/// The first byte says which question, the others are its parameters.
fn question(bytes: &[u8]) -> Option<Result<SyncRequest, String>> {
    let (name, query) = bytes.split_first()?;
    let query = std::str::from_utf8(query).ok()?;
    Some(sync_question::read(QUESTIONS[usize::from(*name) % QUESTIONS.len()], query))
}

/// A question survives being asked anew, each byte of it escaped.
fn run_query(bytes: &[u8]) -> Verdict {
    let Some(read) = bounded(bytes, || question(bytes)) else { return Verdict::Refused };
    let request = match read {
        Ok(request) => request,
        Err(reason) => {
            // What is not known is named as it came, with whatever it has in it.
            assert!(!reason.is_empty(), "a refusal says why");
            return Verdict::Refused;
        }
    };
    let name = QUESTIONS[usize::from(bytes[0]) % QUESTIONS.len()];
    let again = sync_question::read(name, &asked_anew(&request));
    assert!(again.as_ref() == Ok(&request), "{request:?} does not survive its own question: {again:?}");
    Verdict::Accepted
}

fn asked_anew(request: &SyncRequest) -> String {
    let text = |name: &str, bytes: &Bytes| {
        let escaped: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
        format!("{name}={escaped}&")
    };
    let number = |name: &str, number: &u32| format!("{name}={number}");
    match request {
        SyncRequest::Get { key, path } => {
            path.iter().map(|name| text("field", name)).chain([text("key", key)]).collect()
        }
        SyncRequest::List { prefix, after, limit } => {
            let after = after.as_ref().map(|after| text("after", after)).unwrap_or_default();
            [text("prefix", prefix), after, number("limit", limit)].concat()
        }
        SyncRequest::Watch { prefix } => text("prefix", prefix),
        SyncRequest::Conflicts { limit } => number("limit", limit),
        SyncRequest::Compare { peers, timeout_ms } => {
            assert!(
                peers.is_empty() && *timeout_ms <= TIMEOUT_MS_MAX,
                "nobody may ask for that: {request:?}"
            );
            number("within_ms", timeout_ms)
        }
        SyncRequest::Stand => String::new(),
        other => panic!("a question became {other:?}"),
    }
}

fn queries() -> Vec<Vec<u8>> {
    let asked = [
        (0, "key=a"),
        (0, "key=a%20b&field=x&field=%C3%A9"),
        (0, "field=a+b&key=%00"),
        (1, "prefix=user%2F&after=user%2Fx&limit=10"),
        (1, ""),
        (2, "prefix=a"),
        (3, "limit=4294967295"),
        (4, "within_ms=20000"),
        (4, "within_ms=0"),
        (5, ""),
    ];
    asked.iter().map(|(name, query)| [&[*name][..], query.as_bytes()].concat()).collect()
}

fn query_bombs() -> Vec<Vec<u8>> {
    const LONG: usize = 60_000;
    let long = |text: &str| [&[1][..], text.repeat(LONG / text.len()).as_bytes()].concat();
    vec![long("&"), long("prefix=a&"), long("%25"), long("%"), long("a"), long("=")]
}

// --- bodies ---

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

/// The document without its texts: a quote begins or ends one, unless an odd number of backslashes stands before it.
fn outside_texts(document: &str) -> String {
    let (mut outside, mut is_text) = (String::new(), false);
    for piece in document.split('"') {
        if !is_text {
            outside.push_str(piece);
            outside.push(' ');
        }
        let escapes = piece.len() - piece.trim_end_matches('\\').len();
        is_text = !is_text || escapes % 2 == 1;
    }
    outside
}

/// Is each whole number of a good document one of 64 bits?
fn all_fit(document: &str) -> bool {
    let outside = outside_texts(document);
    let numbers = outside
        .split(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'))
        .filter(|number| number.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
    let mut whole = numbers.filter(|number| !number.contains(['.', 'e', 'E']));
    let range = i128::from(i64::MIN)..=i128::from(u64::MAX);
    whole.all(|number| number.parse::<i128>().is_ok_and(|number| range.contains(&number)))
}

/// What a document says, after both readers were asked for its numbers.
fn document(bytes: &[u8]) -> Option<Value> {
    let read = bounded(bytes, || sync_json::read(bytes));
    // Whoever skips numbers does not see that one is beyond all doubles.
    let is_read = serde_json::from_slice::<Value>(bytes).is_ok();
    let good = is_read && std::str::from_utf8(bytes).is_ok_and(all_fit);
    assert!(read.is_ok() == good, "two readers of numbers differ: {read:?}");
    read.map_err(|reason| one_line(&reason)).ok()
}

fn taken(read: Result<SyncRequest, String>, said: usize) -> Verdict {
    match read {
        Ok(SyncRequest::Write { writes, wait, timeout_ms }) => {
            assert!(wait <= 31 && (1..=TIMEOUT_MS_MAX).contains(&timeout_ms), "nobody may ask for that");
            assert!(writes.len() == said, "{said} writes became {}", writes.len());
            writes.iter().filter_map(value).for_each(survives);
            Verdict::Accepted
        }
        Ok(other) => panic!("a write became {other:?}"),
        // A member that is not known is named as it came.
        Err(reason) => {
            assert!(!reason.is_empty(), "a refusal says why");
            Verdict::Refused
        }
    }
}

fn value(write: &Write) -> Option<&Plain> {
    match &write.op {
        Op::Put(value)
        | Op::PutMulti(value)
        | Op::AddForever(value)
        | Op::AddOnce(value)
        | Op::RemoveForGood(value)
        | Op::Add(value)
        | Op::Remove(value)
        | Op::Insert { value, .. } => Some(value),
        _ => None,
    }
}

/// A value survives being shown. Fractions may come back as another nearest one.
fn survives(value: &Plain) {
    if value.as_json().is_some_and(|text| !text.contains(['.', 'e', 'E'])) {
        let again = sync_json::to_plain(&sync_json::plain(value));
        assert!(again.as_ref() == Ok(value), "{value:?} does not survive being shown: {again:?}");
    }
}

fn run_state(bytes: &[u8]) -> Verdict {
    let Some(value) = document(bytes) else { return Verdict::Refused };
    taken(sync_question::state(bytes), value.as_object().map_or(0, serde_json::Map::len))
}

fn run_write(bytes: &[u8]) -> Verdict {
    let Some(value) = document(bytes) else { return Verdict::Refused };
    let said = value.get("writes").and_then(Value::as_array).map_or(0, Vec::len);
    taken(sync_question::write(bytes), said)
}

fn states() -> Vec<Vec<u8>> {
    let documents = [
        r#"{"a": 1, "b": [2.5, -3, 1e300], "c": {"deep": [null, true, "x\"y\\"]}}"#,
        r#"{"h": {"$hex": "00ff"}, "18446744073709551616\\": 18446744073709551615}"#,
        r#"{"n": -9223372036854775808}"#,
        r#"{"\u00e9": "\u0000", "": []}"#,
        "{}",
    ];
    documents.map(|text| text.as_bytes().to_vec()).into()
}

fn bodies() -> Vec<Vec<u8>> {
    let one = |write: &str| format!(r#"{{"writes":[{write}]}}"#);
    vec![
        one(r#"{"key":"a","value":1}"#),
        one(r#"{"key":"n","op":"adjust","by":-2},{"key":"g","op":"grow","by":3}"#),
        one(r#"{"key":"m","path":["x","y"],"op":"add","value":"t"}"#),
        one(r#"{"key":"l","op":"insert","index":0,"value":[1,"\"2"]}"#),
        one(r#"{"key":"l","op":"erase","index":18446744073709551615}"#),
        one(r#"{"key":"o","op":"remove-for-good","value":{"$hex":"00FF"}}"#),
        r#"{"writes": [{"key": "a", "op": "delete"}], "wait": 3, "timeout_ms": 15000}"#.into(),
        r#"{"writes":[],"wait":31}"#.into(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect()
}

fn body_bombs() -> Vec<Vec<u8>> {
    const DEEP: usize = 60_000;
    let writes =
        [r#"{"writes":["#, &r#"{"key":"a","op":"delete"},"#.repeat(2_000), r#"{"key":"a"}]}"#].concat();
    let number = [r#"{"a":"#, &"9".repeat(DEEP), "}"].concat();
    let escapes = ["{\"", &"\\\\".repeat(DEEP), "\":1}"].concat();
    ["[".repeat(DEEP), r#"{"a":"#.repeat(DEEP), "\"".repeat(DEEP), "9,".repeat(DEEP), writes, number, escapes]
        .map(String::into_bytes)
        .into()
}

// --- answers ---

fn has_a_head(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/") && bytes.windows(4).any(|end| end == b"\r\n\r\n")
}

/// A page is what came, whole or in chunks, and each of its figures is of a line of it.
fn run_answer(bytes: &[u8]) -> Verdict {
    let Some(answer) = bounded(bytes, || plain_http::parse(bytes)) else { return Verdict::Refused };
    // A byte that is no text becomes a mark of three.
    assert!(answer.body.len() <= 3 * bytes.len(), "{} bytes became {}", bytes.len(), answer.body.len());
    let again = format!("HTTP/1.1 {} -\r\n\r\n{}", answer.status, answer.body);
    let again = plain_http::parse(again.as_bytes()).expect("it was written as an answer");
    assert!(
        (again.status, &again.body) == (answer.status, &answer.body),
        "an answer does not survive itself"
    );
    let page = answer.body.as_bytes();
    let sums = bounded(page, || plain_http::samples(&answer.body));
    assert!(sums.len() <= answer.body.lines().count(), "a line has more than one figure");
    Verdict::Accepted
}

fn answers() -> Vec<Vec<u8>> {
    let page = "# HELP a b\na{x=\"1\"} 2\na{x=\"2\"} 3.5\nb 7\nc NaN\nd +Inf\nno value\n";
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
    let (front, back) = page.split_at(20);
    let chunked = format!(
        "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{front}\r\n{:X}\r\n{back}\r\n0\r\n\r\n",
        front.len(),
        back.len()
    );
    vec![whole.into_bytes(), chunked.into_bytes(), b"HTTP/1.0 204\r\n\r\n".to_vec()]
}

fn answer_bombs() -> Vec<Vec<u8>> {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunked = |body: &[u8]| [&head[..], body].concat();
    vec![
        chunked(b"ffffffffffffffff\r\na"),
        chunked(b"1ffffffffffffffff\r\na"),
        chunked(&b"1\r\na\r\n".repeat(20_000)),
        chunked(&b"3\r\n\xff\r\n".repeat(20_000)),
        b"a: b\r\n".repeat(20_000),
        b"\xff".repeat(100_000),
    ]
}
