//! Transactions as people write them: three paragraphs in the manner of `etcdctl txn`, or one JSON object.
//!
//! ```text
//! version("a") = 0          comparisons, one a line; all must hold
//! value("b") = "x y"
//!                           an empty line
//! put a 1                   what runs when they hold
//! get b
//!                           an empty line
//! del a                     what runs when one does not
//! ```
//!
//! It turns text into a `Txn` and knows nothing of the cluster. Depth and number of operations are the store's to judge;
//! here only the nesting of JSON is bounded, by its parser.

use std::fmt;

use bytes::Bytes;
use dwcp_state::kv::{Compare, CompareOp, CompareTarget, DeleteRange, Put, Range, Txn, TxnOp, prefix_end};
use serde::Deserialize;

/// Why a text is no transaction: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed transaction: ")?;
        // It quotes the text, which may hold what a terminal obeys.
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => write!(f, "{c}"),
        })
    }
}

impl std::error::Error for Malformed {}

/// Reads either form; the first character tells which.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(text: &str) -> Result<Txn, Malformed> {
    let txn = if text.trim_start().starts_with('{') { parse_json(text) } else { parse_text(text) };
    txn.map_err(Malformed)
}

fn parse_text(text: &str) -> Result<Txn, String> {
    let mut txn = Txn::default();
    let mut paragraph = 0;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let at = |what: String| format!("line {}: {what}", index + 1);
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if line.is_empty() {
            // A single empty line ends a paragraph, also an empty one; those at the very end do not matter.
            if lines.peek().is_some() {
                paragraph += 1;
            }
            continue;
        }
        match paragraph {
            0 => txn.compare.push(parse_compare(line).map_err(at)?),
            1 => txn.success.push(parse_operation(line).map_err(at)?),
            2 => txn.failure.push(parse_operation(line).map_err(at)?),
            _ => return Err(at("a fourth paragraph: there are comparisons, then, else".into())),
        }
    }
    if txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty() {
        return Err("it is empty".into());
    }
    Ok(txn)
}

/// `value("key") = "text"`.
fn parse_compare(line: &str) -> Result<Compare, String> {
    let form = || format!("`{line}` is no comparison: write for example version(\"a\") = 0");
    let (target, rest) = line.split_once('(').ok_or_else(form)?;
    let (key, rest) = first_word(rest.trim_start(), ")").map_err(|what| format!("{what} in `{line}`"))?;
    let rest = rest.trim_start().strip_prefix(')').ok_or_else(form)?.trim_start();
    let (op, rest) = ["!=", "=", ">", "<"]
        .iter()
        .find_map(|op| rest.strip_prefix(op).map(|rest| (*op, rest.trim_start())))
        .ok_or_else(form)?;
    let (value, rest) = first_word(rest, "").map_err(|what| format!("{what} in `{line}`"))?;
    if !rest.trim().is_empty() {
        return Err(form());
    }
    let value = Bytes::from(value);
    Ok(Compare {
        key: Bytes::from(key),
        range_end: Bytes::new(),
        op: compare_op(op)?,
        target: compare_target(target.trim(), &value)?,
    })
}

fn compare_op(op: &str) -> Result<CompareOp, String> {
    match op {
        "=" | "==" => Ok(CompareOp::Equal),
        "!=" => Ok(CompareOp::NotEqual),
        ">" => Ok(CompareOp::Greater),
        "<" => Ok(CompareOp::Less),
        other => Err(format!("`{other}` compares nothing: use one of = != > <")),
    }
}

fn compare_target(target: &str, value: &Bytes) -> Result<CompareTarget, String> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number =
        || text.parse::<u64>().map_err(|_| format!("{target} is compared with a number, not `{text}`"));
    Ok(match target {
        "value" | "val" => CompareTarget::Value(value.clone()),
        "version" | "ver" => CompareTarget::Version(number()?),
        "create" | "c" => CompareTarget::Create(number()?),
        "mod" | "m" => CompareTarget::Mod(number()?),
        "lease" => {
            let id = text.parse().map_err(|_| format!("lease is compared with a lease id, not `{text}`"))?;
            CompareTarget::Lease(id)
        }
        other => {
            return Err(format!("`{other}` cannot be compared: use value, version, create, mod or lease"));
        }
    })
}

/// `put key value`, `get key [--prefix]`, `del key [--prefix]`.
fn parse_operation(line: &str) -> Result<TxnOp, String> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (word, after) = first_word(rest, "").map_err(|what| format!("{what} in `{line}`"))?;
        words.push(word);
        rest = after.trim_start();
    }
    let name = words.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
    let prefix = words.len() == 3 && words[2] == b"--prefix";
    match (name.as_str(), words.len()) {
        ("put", 3) => Ok(TxnOp::Put(Put::new(words.swap_remove(1), words.swap_remove(1)))),
        ("get", 2) => Ok(TxnOp::Range(Range::key(words.swap_remove(1)))),
        ("get", 3) if prefix => Ok(TxnOp::Range(Range::prefix(words.swap_remove(1)))),
        ("del", 2) => Ok(delete(words.swap_remove(1), false)),
        ("del", 3) if prefix => Ok(delete(words.swap_remove(1), true)),
        _ => Err(format!(
            "`{line}` is no operation: write put KEY VALUE, get KEY [--prefix] or del KEY [--prefix]"
        )),
    }
}

fn delete(key: Vec<u8>, prefix: bool) -> TxnOp {
    let range_end = if prefix { prefix_end(&key) } else { Bytes::new() };
    TxnOp::DeleteRange(DeleteRange { key: key.into(), range_end, prev_kv: false })
}

/// One word and what follows it: bare up to white space or one of `ends`, or in double quotes with the escapes
/// \" \\ \n \r \t \xNN.
fn first_word<'a>(text: &'a str, ends: &str) -> Result<(Vec<u8>, &'a str), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || ends.contains(c)).unwrap_or(text.len());
        return if end == 0 {
            Err("a word is missing".into())
        } else {
            Ok((text[..end].into(), &text[end..]))
        };
    };
    let mut word = Vec::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((word, &quoted[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push(b'\n'),
                Some((_, 'r')) => word.push(b'\r'),
                Some((_, 't')) => word.push(b'\t'),
                Some((_, c @ ('"' | '\\'))) => word.push(c as u8),
                Some((at, 'x')) => {
                    let byte = quoted.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    word.push(byte.ok_or("two hexadecimal digits are missing after \\x")?);
                    chars.nth(1);
                }
                _ => return Err("an unknown escape: use \\\" \\\\ \\n \\r \\t or \\xNN".into()),
            },
            c => word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a closing quote is missing".into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTxn {
    #[serde(default)]
    compare: Vec<JsonCompare>,
    #[serde(default)]
    then: Vec<JsonOp>,
    #[serde(default, rename = "else")]
    otherwise: Vec<JsonOp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonCompare {
    key: String,
    #[serde(default)]
    prefix: bool,
    target: String,
    #[serde(default = "equal")]
    op: String,
    value: serde_json::Value,
}

fn equal() -> String {
    "=".into()
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum JsonOp {
    Put(JsonPut),
    Get(JsonRange),
    Delete(JsonRange),
    Txn(JsonTxn),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonPut {
    key: String,
    value: String,
    #[serde(default)]
    lease: i64,
    #[serde(default)]
    prev: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRange {
    key: String,
    #[serde(default)]
    prefix: bool,
    #[serde(default)]
    prev: bool,
}

fn parse_json(text: &str) -> Result<Txn, String> {
    let txn: JsonTxn = serde_json::from_str(text).map_err(|error| error.to_string())?;
    from_json(txn)
}

fn from_json(txn: JsonTxn) -> Result<Txn, String> {
    let operations = |list: Vec<JsonOp>| list.into_iter().map(operation).collect::<Result<Vec<_>, _>>();
    Ok(Txn {
        compare: txn.compare.into_iter().map(comparison).collect::<Result<_, _>>()?,
        success: operations(txn.then)?,
        failure: operations(txn.otherwise)?,
    })
}

fn comparison(compare: JsonCompare) -> Result<Compare, String> {
    let value = match &compare.value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        other => return Err(format!("`{other}` cannot be compared with: give a string or a number")),
    };
    let range_end = if compare.prefix { prefix_end(compare.key.as_bytes()) } else { Bytes::new() };
    Ok(Compare {
        key: Bytes::from(compare.key),
        range_end,
        op: compare_op(&compare.op)?,
        target: compare_target(&compare.target, &Bytes::from(value))?,
    })
}

fn operation(op: JsonOp) -> Result<TxnOp, String> {
    Ok(match op {
        JsonOp::Put(put) => {
            TxnOp::Put(Put { lease: put.lease, prev_kv: put.prev, ..Put::new(put.key, put.value) })
        }
        JsonOp::Get(range) if range.prev => {
            return Err("get has no `prev`: that is for put and delete".into());
        }
        JsonOp::Get(range) if range.prefix => TxnOp::Range(Range::prefix(range.key)),
        JsonOp::Get(range) => TxnOp::Range(Range::key(range.key)),
        JsonOp::Delete(range) => {
            let range_end = if range.prefix { prefix_end(range.key.as_bytes()) } else { Bytes::new() };
            TxnOp::DeleteRange(DeleteRange { key: range.key.into(), range_end, prev_kv: range.prev })
        }
        JsonOp::Txn(txn) => TxnOp::Txn(from_json(txn)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn three_paragraphs_are_comparisons_then_else() {
        let txn = parse(
            "version(\"a\") = 0\nmod(b) > 5\n\nput a 1\nput \"c d\" \"x\\n\\x00\"\n\ndel --prefix\nget a --prefix\n",
        );
        let expected = Txn::default()
            .when("a", CompareOp::Equal, CompareTarget::Version(0))
            .when("b", CompareOp::Greater, CompareTarget::Mod(5))
            .then(TxnOp::Put(Put::new("a", "1")))
            .then(TxnOp::Put(Put::new("c d", &b"x\n\0"[..])))
            .or_else(delete(b"--prefix".to_vec(), false))
            .or_else(TxnOp::Range(Range::prefix("a")));
        assert_eq!(txn.unwrap(), expected);
    }

    #[test]
    fn an_empty_paragraph_is_left_out_by_an_empty_line() {
        let txn = parse("\nput a 1\n").unwrap();
        assert_eq!(txn, Txn::default().then(TxnOp::Put(Put::new("a", "1"))));
        let txn = parse("value(a) != \"\"\n\n\nput a 1\n").unwrap();
        assert_eq!((txn.compare.len(), txn.success.len(), txn.failure.len()), (1, 0, 1));
    }

    #[test]
    fn json_says_the_same_and_nests() {
        let text = r#"{"compare":[{"key":"a","target":"value","op":"!=","value":"x"}],
            "then":[{"put":{"key":"a","value":"1"}},{"txn":{"then":[{"get":{"key":"b","prefix":true}}]}}],
            "else":[{"delete":{"key":"a"}}]}"#;
        let inner = Txn::default().then(TxnOp::Range(Range::prefix("b")));
        let expected = Txn::default()
            .when("a", CompareOp::NotEqual, CompareTarget::Value("x".into()))
            .then(TxnOp::Put(Put::new("a", "1")))
            .then(TxnOp::Txn(inner))
            .or_else(delete(b"a".to_vec(), false));
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        assert!(refusal("vlaue(\"a\") = 1").contains("line 1: `vlaue` cannot be compared"));
        assert!(refusal("version(\"a\") = one").contains("version is compared with a number, not `one`"));
        assert!(refusal("version(\"a\" = 1").contains("is no comparison"));
        assert!(refusal("\n\nput a").contains("line 3: `put a` is no operation"));
        assert!(refusal("\nput \"a 1").contains("a closing quote is missing"));
        assert!(refusal("\nput a \"\\x0\"").contains("hexadecimal"));
        assert!(refusal("\n\n\n\nput a 1\n").contains("fourth paragraph"));
        assert!(refusal("").contains("it is empty"));
        assert!(refusal("{\"compare\":[}").contains("line 1 column"));
        assert!(refusal(r#"{"then":[{"put":{"key":"a"}}]}"#).contains("missing field `value`"));
        assert!(refusal(r#"{"them":[]}"#).contains("unknown field `them`"));
    }

    #[test]
    fn a_refusal_is_one_line_whatever_it_quotes() {
        let refused = refusal("version(\"a\") = \"x\\n\\x1b[2J\"");
        assert!(refused.contains(r"not `x\n\u{1b}[2J`"), "{refused}");
        for text in ["put\u{7}", "{\"a\u{1b}\": 1}", "\nput a\u{9b}"] {
            assert!(!refusal(text).contains(|c: char| c.is_control()), "{text:?}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let bits = ["\"", "\\", "\\x", "(", ")", "=", "put ", "é", "\n", "\n\n", "value", "a", " ", "{", "["];
        for seed in 0..20_000usize {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let text: String = (0..12)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    bits[(state >> 33) % bits.len()]
                })
                .collect();
            let _ = parse(&text);
        }
    }
}
