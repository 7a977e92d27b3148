//! Convergent values and operations as JSON, for people and for programs that speak nothing else.
//!
//! A register is its value, a counter a number, sets and lists are arrays, a map is an object. Bytes that are no JSON value
//! are `{"$hex": "..."}`. Keys and names of fields that are not UTF-8 are shown with replacement characters.

use bytes::Bytes;
use dwcp_replica::sync::values::{Conflict, Op, Outcome, Plain, View, Write};
use serde_json::{Map, Value, json};

/// The mark of bytes that are no JSON value.
const HEX: &str = "$hex";

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn plain(value: &Plain) -> Value {
    match value.as_json().map(serde_json::from_str) {
        Some(Ok(value)) => value,
        // A form that this program's own parser refuses is shown as it is.
        Some(Err(_)) | None => json!({ HEX: hex::encode(value.as_bytes()) }),
    }
}

pub fn view(view: &View) -> Value {
    match view {
        View::Register(value) => plain(value),
        View::Siblings(values) | View::List(values) => values.iter().map(plain).collect(),
        View::Set(values) => values.iter().map(plain).collect(),
        View::Count(count) => i64::try_from(*count).map_or_else(|_| count.to_string().into(), Value::from),
        View::Map(fields) => {
            let field = |(name, inner): (&Bytes, &View)| (text(name), self::view(inner));
            Value::Object(fields.iter().map(field).collect())
        }
    }
}

/// One conflict that a node saw.
pub fn conflict(event: &Conflict) -> Value {
    let texts = |all: &[Bytes]| all.iter().map(|name| text(name)).collect::<Vec<_>>();
    json!({
        "key": text(&event.key),
        "path": texts(&event.path),
        "by": event.by.to_string(),
        "siblings": event.siblings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "strategy": event.strategy,
        "outcome": outcome(&event.outcome),
    })
}

/// What readers see after a conflict, in words.
pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Won(dot) => format!("{dot} won"),
        Outcome::Merged => "merged".into(),
        Outcome::AllShown => "all shown".into(),
        Outcome::Deleted => "deleted".into(),
        Outcome::Overtaken => "overtaken".into(),
        Outcome::KindShown(kind) => format!("shown as {kind}"),
    }
}

/// One JSON document. Whole numbers beyond 64 bits would be rounded on the way, so they are refused; fractions are as
/// exact as a double is.
///
/// # Errors
/// What it is instead.
pub fn read(document: &[u8]) -> Result<Value, String> {
    let value = serde_json::from_slice(document).map_err(|error| format!("no JSON: {error}"))?;
    let (mut at, mut is_text) = (0, false);
    while let Some(byte) = document.get(at) {
        let number = match byte {
            b'"' => {
                is_text = !is_text;
                at += 1;
                continue;
            }
            b'\\' if is_text => {
                at += 2;
                continue;
            }
            b'-' | b'0'..=b'9' if !is_text => {
                let rest = &document[at..];
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                text(&rest[..rest.iter().take_while(|byte| is_part(byte)).count()])
            }
            _ => {
                at += 1;
                continue;
            }
        };
        at += number.len();
        let is_whole = !number.contains(['.', 'e', 'E']);
        if is_whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
            return Err(format!("{number} does not fit 64 bits and would be rounded: write it as a text"));
        }
    }
    Ok(value)
}

/// # Errors
/// What no value can be.
pub fn to_plain(value: &Value) -> Result<Plain, String> {
    if let Some(object) = value.as_object().filter(|object| object.len() == 1)
        && let Some(Value::String(digits)) = object.get(HEX)
    {
        let bytes = hex::decode(digits).map_err(|error| format!("{HEX}: {error}"))?;
        return Plain::bytes(bytes).map_err(|error| error.to_string());
    }
    Plain::json(&value.to_string()).map_err(|error| error.to_string())
}

/// Every member of an object becomes a register.
///
/// # Errors
/// No object, or a value that cannot be.
pub fn state(body: &Value) -> Result<Vec<Write>, String> {
    let object = body.as_object().ok_or("the state is an object: {\"key\": value, ...}")?;
    let put = |(key, value): (&String, &Value)| Ok(Write::new(key.clone(), Op::Put(to_plain(value)?)));
    object.iter().map(put).collect()
}

/// `{"writes": [{"key": "n", "op": "adjust", "by": 1}, ...]}`.
///
/// # Errors
/// What is wrong, and with which of them.
pub fn writes(body: &Value) -> Result<Vec<Write>, String> {
    let list = body.get("writes").and_then(Value::as_array).ok_or("it needs an array `writes`")?;
    let read = |(place, one): (usize, &Value)| {
        let object = one.as_object().ok_or_else(|| format!("writes[{place}] is no object"))?;
        operation(object).map_err(|reason| format!("writes[{place}]: {reason}"))
    };
    list.iter().enumerate().map(read).collect()
}

/// What an operation is made of. Anything else is refused, so that a misspelt member does not pass for its default.
const MEMBERS: [&str; 6] = ["key", "path", "op", "value", "by", "index"];

fn operation(object: &Map<String, Value>) -> Result<Write, String> {
    let unknown = object.keys().find(|name| !MEMBERS.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(format!("`{name}` is not known: write {}", MEMBERS.join(", ")));
    }
    let word = |name: &str| object.get(name).and_then(Value::as_str);
    let key = word("key").ok_or("it needs a `key`")?.to_string();
    let path = match object.get("path") {
        None => Vec::new(),
        Some(Value::Array(names)) => {
            let name = |name: &Value| name.as_str().map(|name| Bytes::from(name.to_string()));
            names.iter().map(name).collect::<Option<_>>().ok_or("`path` is an array of texts")?
        }
        Some(_) => return Err("`path` is an array of texts".into()),
    };
    let value = || to_plain(object.get("value").ok_or("it needs a `value`")?);
    let by = || object.get("by").and_then(Value::as_i64).ok_or("it needs a whole number `by`".to_string());
    let index = || {
        let index = object.get("index").and_then(Value::as_u64).ok_or("it needs an `index`".to_string())?;
        usize::try_from(index).map_err(|_| "`index` is too large".to_string())
    };
    let op = match word("op").unwrap_or("put") {
        "put" => Op::Put(value()?),
        "put-multi" => Op::PutMulti(value()?),
        "grow" => Op::Grow(u64::try_from(by()?).map_err(|_| "this counter only grows")?),
        "adjust" => Op::Adjust(by()?),
        "add-forever" => Op::AddForever(value()?),
        "add-once" => Op::AddOnce(value()?),
        "remove-for-good" => Op::RemoveForGood(value()?),
        "add" => Op::Add(value()?),
        "remove" => Op::Remove(value()?),
        "insert" => Op::Insert { index: index()?, value: value()? },
        "erase" => Op::Erase { index: index()? },
        "delete" => Op::Delete,
        "settle" => Op::Settle,
        other => {
            return Err(format!(
                "`op` = \"{other}\" is not known: write put, put-multi, grow, adjust, add-forever, add-once, \
                 remove-for-good, add, remove, insert, erase, delete or settle"
            ));
        }
    };
    Ok(Write { key: Bytes::from(key), path, op })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_in() {
        for value in [json!(1), json!("a"), json!({"b": [1, null]}), json!({"$hex": "00ff"})] {
            assert_eq!(plain(&to_plain(&value).unwrap()), value);
        }
        assert!(to_plain(&json!({"$hex": "0"})).is_err());
    }

    #[test]
    fn whole_numbers_are_kept_or_refused_and_never_rounded() {
        for good in [
            "18446744073709551615",
            "-9223372036854775808",
            "[0, -1, {\"a\": 1.5e300}]",
            "\"18446744073709551616\"",
            "{\"18446744073709551616\\\"\": \"\\\\\"}",
        ] {
            let value = read(good.as_bytes()).unwrap();
            assert_eq!(plain(&to_plain(&value).unwrap()), serde_json::from_str::<Value>(good).unwrap());
        }
        for bad in ["18446744073709551616", "-9223372036854775809", "[1, {\"\\\"\": 99999999999999999999}]"] {
            let reason = read(bad.as_bytes()).unwrap_err();
            assert!(reason.contains("does not fit 64 bits"), "{bad}: {reason}");
        }
        assert!(read(b"[").unwrap_err().starts_with("no JSON"));
    }

    #[test]
    fn every_operation_is_known_by_its_word() {
        let value = || to_plain(&json!("v")).unwrap();
        let rows = [
            (json!({}), Op::Put(value())),
            (json!({"op": "put"}), Op::Put(value())),
            (json!({"op": "put-multi"}), Op::PutMulti(value())),
            (json!({"op": "grow"}), Op::Grow(3)),
            (json!({"op": "adjust"}), Op::Adjust(3)),
            (json!({"op": "add-forever"}), Op::AddForever(value())),
            (json!({"op": "add-once"}), Op::AddOnce(value())),
            (json!({"op": "remove-for-good"}), Op::RemoveForGood(value())),
            (json!({"op": "add"}), Op::Add(value())),
            (json!({"op": "remove"}), Op::Remove(value())),
            (json!({"op": "insert"}), Op::Insert { index: 7, value: value() }),
            (json!({"op": "erase"}), Op::Erase { index: 7 }),
            (json!({"op": "delete"}), Op::Delete),
            (json!({"op": "settle"}), Op::Settle),
        ];
        for (mut one, op) in rows {
            let members = json!({"key": "k", "path": ["a", "b"], "value": "v", "by": 3, "index": 7});
            one.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            let expected = Write::at("k", ["a", "b"], op);
            assert_eq!(writes(&json!({ "writes": [one] })).unwrap(), [expected]);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_place() {
        let good = json!({"writes": [{"key": "n", "op": "adjust", "by": -2}, {"key": "a", "value": 1}]});
        assert_eq!(writes(&good).unwrap()[0].op, Op::Adjust(-2));
        for (body, expected) in [
            (json!({}), "an array `writes`"),
            (json!({"writes": [1]}), "writes[0] is no object"),
            (json!({"writes": [{"key": "a", "op": "?"}]}), "is not known"),
            (json!({"writes": [{"key": "a", "op": "grow", "by": -1}]}), "only grows"),
            (json!({"writes": [{"value": 1}]}), "needs a `key`"),
            (json!({"writes": [{"key": "a", "path": "b", "value": 1}]}), "array of texts"),
            (json!({"writes": [{"key": "a", "value": 1}, {"key": "a"}]}), "writes[1]: it needs a `value`"),
            (json!({"writes": [{"key": "a", "value": 1, "opp": "add"}]}), "`opp` is not known"),
            (json!({"writes": [{"key": "a", "op": "adjust", "by": 1.5}]}), "whole number `by`"),
            (json!({"writes": [{"key": "a", "op": "erase"}]}), "needs an `index`"),
        ] {
            let reason = writes(&body).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
        assert!(state(&json!([1])).is_err());
    }
}
