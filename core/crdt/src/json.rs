//! Checks that bytes are one JSON document (RFC 8259), and joins documents field by field for the `merge` resolver.
//!
//! The check is a loop with a counted depth, not a recursion. Numbers stay text: the core has no floats, and 1.10 is
//! not 1.1 to everybody.

use crate::limits::JSON_DEPTH_MAX;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Is this one JSON document?
///
/// # Errors
/// The first byte at which it stops being one.
pub(crate) fn check(text: &[u8]) -> Result<(), usize> {
    if let Err(error) = core::str::from_utf8(text) {
        return Err(error.valid_up_to());
    }
    let end = value_end(text, space(text, 0))?;
    let end = space(text, end);
    if end == text.len() { Ok(()) } else { Err(end) }
}

fn space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Where the value that starts at `at` ends. A stack of one bit per level says what is open: object or list.
fn value_end(text: &[u8], mut at: usize) -> Result<usize, usize> {
    let mut open: Vec<u8> = Vec::new();
    loop {
        // Here a value must start.
        match text.get(at) {
            Some(b @ (b'{' | b'[')) => {
                let close = if *b == b'{' { b'}' } else { b']' };
                if open.len() >= JSON_DEPTH_MAX {
                    return Err(at);
                }
                let inside = space(text, at + 1);
                if text.get(inside) == Some(&close) {
                    at = inside + 1;
                } else {
                    open.push(*b);
                    at = if *b == b'{' { member_value(text, inside)? } else { inside };
                    continue;
                }
            }
            Some(b'"') => at = string_end(text, at)?,
            Some(b'-' | b'0'..=b'9') => at = number_end(text, at)?,
            Some(b't') => at = word_end(text, at, b"true")?,
            Some(b'f') => at = word_end(text, at, b"false")?,
            Some(b'n') => at = word_end(text, at, b"null")?,
            _ => return Err(at),
        }
        // A value has ended: close what it closes, or go on to the next one.
        loop {
            let Some(inner) = open.last().copied() else { return Ok(at) };
            at = space(text, at);
            match (text.get(at), inner) {
                (Some(b','), b'{') => {
                    at = member_value(text, space(text, at + 1))?;
                    break;
                }
                (Some(b','), _) => {
                    at = space(text, at + 1);
                    break;
                }
                (Some(b'}'), b'{') | (Some(b']'), b'[') => {
                    open.pop();
                    at += 1;
                }
                _ => return Err(at),
            }
        }
    }
}

/// From a member's name to where its value starts.
fn member_value(text: &[u8], at: usize) -> Result<usize, usize> {
    let colon = space(text, string_end(text, at)?);
    if text.get(colon) == Some(&b':') { Ok(space(text, colon + 1)) } else { Err(colon) }
}

fn string_end(text: &[u8], at: usize) -> Result<usize, usize> {
    if text.get(at) != Some(&b'"') {
        return Err(at);
    }
    let mut at = at + 1;
    loop {
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match text.get(at + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                Some(b'u')
                    if text.len() >= at + 6 && text[at + 2..at + 6].iter().all(u8::is_ascii_hexdigit) =>
                {
                    at += 6
                }
                _ => return Err(at),
            },
            Some(0..=0x1f) | None => return Err(at),
            Some(_) => at += 1,
        }
    }
}

fn digits(text: &[u8], mut at: usize) -> Result<usize, usize> {
    let start = at;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at > start { Ok(at) } else { Err(at) }
}

fn number_end(text: &[u8], at: usize) -> Result<usize, usize> {
    let mut at = if text.get(at) == Some(&b'-') { at + 1 } else { at };
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = digits(text, at + 1)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = matches!(text.get(at + 1), Some(b'+' | b'-'));
        at = digits(text, at + 1 + usize::from(sign))?;
    }
    Ok(at)
}

fn word_end(text: &[u8], at: usize, word: &[u8]) -> Result<usize, usize> {
    if text[at..].starts_with(word) { Ok(at + word.len()) } else { Err(at) }
}

/// The members of a checked object: raw name with its quotes to raw value; of a name that stands twice, the last.
/// Nothing when it is not an object.
fn members(text: &[u8]) -> Option<BTreeMap<&[u8], &[u8]>> {
    let mut at = space(text, 0);
    if text.get(at) != Some(&b'{') {
        return None;
    }
    let mut members = BTreeMap::new();
    at = space(text, at + 1);
    while text.get(at) == Some(&b'"') {
        let name_end = string_end(text, at).ok()?;
        let value = member_value(text, at).ok()?;
        let end = value_end(text, value).ok()?;
        members.insert(&text[at..name_end], &text[value..end]);
        at = space(text, end);
        if text.get(at) == Some(&b',') {
            at = space(text, at + 1);
        }
    }
    Some(members)
}

/// Joins checked documents, the one that wins ties first: objects field by field, anything else is the first one's.
/// The result is compact at every level that was joined, names ascending.
pub(crate) fn merge(ranked: &[&[u8]]) -> Vec<u8> {
    // Bounded by JSON_DEPTH_MAX: every level of recursion enters one level of a checked document.
    let trimmed = |text: &[u8]| text.trim_ascii().to_vec();
    let Some(first) = ranked.first() else { return Vec::new() };
    if ranked.iter().all(|text| text == first) {
        return trimmed(first);
    }
    let objects: Option<Vec<_>> = ranked.iter().map(|text| members(text)).collect();
    let Some(objects) = objects else { return trimmed(first) };
    let mut fields: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for object in &objects {
        for (name, value) in object {
            fields.entry(name).or_default().push(value);
        }
    }
    let mut merged = Vec::from(*b"{");
    for (name, values) in fields {
        if merged.len() > 1 {
            merged.push(b',');
        }
        merged.extend_from_slice(name);
        merged.push(b':');
        merged.extend_from_slice(&merge(&values));
    }
    merged.push(b'}');
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn json_documents_pass() {
        for good in [
            "null",
            " true ",
            "false",
            "0",
            "-0",
            "-12.50e+3",
            "1E9",
            "\"\"",
            r#""a\"\\\u00e9\n""#,
            "\"é\"",
            "[]",
            "[ ]",
            "{}",
            r#"{"a":[1,2,{"b":null}],"a":2}"#,
            " [ 1 , [ ] , { } ] ",
            r#"{ "x" : { "y" : "}" } }"#,
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
    }

    #[test]
    fn everything_else_is_refused_at_its_byte() {
        for (bad, at) in [
            ("", 0),
            (" ", 1),
            ("nul", 0),
            ("truex", 4),
            ("01", 1),
            ("-", 1),
            ("1.", 2),
            (".5", 0),
            ("1e", 2),
            ("+1", 0),
            ("NaN", 0),
            ("\"a", 2),
            ("\"\n\"", 1),
            (r#""\x""#, 1),
            (r#""\u12g4""#, 1),
            ("[1,]", 3),
            ("[1 2]", 3),
            ("[", 1),
            ("]", 0),
            ("{a:1}", 1),
            (r#"{"a"}"#, 4),
            (r#"{"a":}"#, 5),
            (r#"{"a":1,}"#, 7),
            ("[}", 1),
            ("[1}", 2),
            ("1 2", 2),
            ("'a'", 0),
        ] {
            assert_eq!(check(bad.as_bytes()), Err(at), "{bad}");
        }
        assert_eq!(check(b"\"\xff\""), Err(1));
    }

    #[test]
    fn depth_is_counted_not_recursed() {
        let deep = |levels: usize| {
            let mut text: String = "[".repeat(levels);
            text.push_str(&"]".repeat(levels));
            text
        };
        assert_eq!(check(deep(JSON_DEPTH_MAX).as_bytes()), Ok(()));
        assert_eq!(check(deep(JSON_DEPTH_MAX + 1).as_bytes()), Err(JSON_DEPTH_MAX));
        assert_eq!(check("[".repeat(1_000_000).as_bytes()), Err(JSON_DEPTH_MAX));
    }

    #[test]
    fn objects_merge_by_field_and_the_first_wins_ties() {
        let merged = |list: &[&str]| {
            let bytes: Vec<&[u8]> = list.iter().map(|t| t.as_bytes()).collect();
            let merged = merge(&bytes);
            assert_eq!(check(&merged), Ok(()));
            String::from_utf8(merged).unwrap()
        };
        assert_eq!(merged(&[r#"{"a":1}"#, r#"{"b":2}"#]), r#"{"a":1,"b":2}"#);
        assert_eq!(
            merged(&[r#"{"a":1,"c":{"x":1}}"#, r#"{"a":2,"c":{"y":2}}"#]),
            r#"{"a":1,"c":{"x":1,"y":2}}"#
        );
        assert_eq!(merged(&["[1]", "[2]"]), "[1]");
        assert_eq!(merged(&["1", r#"{"a":1}"#]), "1");
        assert_eq!(merged(&["{}", "{}"]), "{}");
        assert_eq!(merged(&[" {} ", "{ }"]), "{}");
        assert_eq!(merged(&[" 7 "]), "7");
    }
}
