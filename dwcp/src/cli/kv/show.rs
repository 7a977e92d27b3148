//! Answers of the store as text and as JSON.
//!
//! Keys and values are bytes. As text they are written as they are, for pipes; in JSON they are strings where they are
//! UTF-8 (`key`, `value`) and hexadecimal where they are not (`key_hex`, `value_hex`).

use bytes::Bytes;
use dwcp_state::kv::{KeyValue, KvBody};
use serde_json::{Map, Value, json};

/// What of a key is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub keys_only: bool,
    pub values_only: bool,
    /// Revisions, version and lease behind each key.
    pub verbose: bool,
}

/// Lines for people and pipes.
pub fn text(body: &KvBody, shape: Shape) -> Vec<u8> {
    let mut out = Vec::new();
    write_body(&mut out, body, shape);
    out
}

fn write_body(out: &mut Vec<u8>, body: &KvBody, shape: Shape) {
    let line = |out: &mut Vec<u8>, text: String| {
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
    };
    match body {
        KvBody::Put { prev_kv } => {
            line(out, "OK".into());
            if let Some(kv) = prev_kv {
                write_key(out, kv, shape);
            }
        }
        KvBody::Range { kvs, more, count } => {
            for kv in kvs {
                write_key(out, kv, shape);
            }
            if shape.verbose {
                let rest = if *more { ", more beyond the limit" } else { "" };
                line(out, format!("# {} of {count} keys{rest}", kvs.len()));
            }
        }
        KvBody::DeleteRange { deleted, prev_kvs } => {
            line(out, deleted.to_string());
            for kv in prev_kvs {
                write_key(out, kv, shape);
            }
        }
        KvBody::Txn(reply) => {
            line(out, if reply.succeeded { "SUCCESS" } else { "FAILURE" }.into());
            for response in &reply.responses {
                out.push(b'\n');
                write_body(out, response, shape);
            }
        }
        KvBody::Compact => line(out, "compacted".into()),
        KvBody::LeaseGrant { id, ttl_s } => line(out, format!("lease {id} granted with TTL({ttl_s}s)")),
        KvBody::LeaseRevoke => line(out, "revoked".into()),
        KvBody::LeaseKeepAlive { id, ttl_s } => {
            line(out, format!("lease {id} kept alive with TTL({ttl_s}s)"))
        }
        KvBody::LeaseTimeToLive { id, ttl_s, granted_ttl_s, keys } => {
            if *ttl_s < 0 {
                return line(out, format!("lease {id} does not exist (expired or revoked)"));
            }
            line(out, format!("lease {id} granted with TTL({granted_ttl_s}s), remaining({ttl_s}s)"));
            for key in keys {
                out.extend_from_slice(key);
                out.push(b'\n');
            }
        }
        KvBody::LeaseList { ids } => ids.iter().for_each(|id| line(out, id.to_string())),
        KvBody::Alarms { no_space, bytes, quota_bytes } => {
            let alarm = if *no_space { "ALARM no space" } else { "no alarm" };
            line(out, format!("{alarm}: {bytes} of {quota_bytes} bytes"));
        }
    }
}

fn write_key(out: &mut Vec<u8>, kv: &KeyValue, shape: Shape) {
    if !shape.values_only {
        out.extend_from_slice(&kv.key);
        out.push(b'\n');
    }
    if !shape.keys_only {
        out.extend_from_slice(&kv.value);
        out.push(b'\n');
    }
    if shape.verbose {
        let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
        let line = format!(
            "# create revision {}, mod revision {}, version {}{lease}\n",
            kv.create_revision, kv.mod_revision, kv.version
        );
        out.extend_from_slice(line.as_bytes());
    }
}

/// The same as one JSON object.
pub fn json(body: &KvBody) -> Value {
    match body {
        KvBody::Put { prev_kv } => match prev_kv {
            Some(kv) => json!({ "put": true, "prev": key_json(kv) }),
            None => json!({ "put": true }),
        },
        KvBody::Range { kvs, more, count } => {
            json!({ "count": count, "more": more, "kvs": kvs.iter().map(key_json).collect::<Vec<_>>() })
        }
        KvBody::DeleteRange { deleted, prev_kvs } => {
            json!({ "deleted": deleted, "prev": prev_kvs.iter().map(key_json).collect::<Vec<_>>() })
        }
        KvBody::Txn(reply) => {
            json!({ "succeeded": reply.succeeded, "responses": reply.responses.iter().map(json).collect::<Vec<_>>() })
        }
        KvBody::Compact => json!({ "compacted": true }),
        KvBody::LeaseGrant { id, ttl_s } | KvBody::LeaseKeepAlive { id, ttl_s } => {
            json!({ "lease": id, "ttl_s": ttl_s })
        }
        KvBody::LeaseRevoke => json!({ "revoked": true }),
        KvBody::LeaseTimeToLive { id, ttl_s, granted_ttl_s, keys } => {
            let keys: Vec<_> = keys.iter().map(|key| Value::from(String::from_utf8_lossy(key))).collect();
            json!({ "lease": id, "ttl_s": ttl_s, "granted_ttl_s": granted_ttl_s, "keys": keys })
        }
        KvBody::LeaseList { ids } => json!({ "leases": ids }),
        KvBody::Alarms { no_space, bytes, quota_bytes } => {
            json!({ "no_space": no_space, "bytes": bytes, "quota_bytes": quota_bytes })
        }
    }
}

fn key_json(kv: &KeyValue) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", &kv.key);
    put_bytes(&mut object, "value", &kv.value);
    object.insert("create_revision".into(), kv.create_revision.into());
    object.insert("mod_revision".into(), kv.mod_revision.into());
    object.insert("version".into(), kv.version.into());
    if kv.lease != 0 {
        object.insert("lease".into(), kv.lease.into());
    }
    Value::Object(object)
}

fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &Bytes) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex::encode(bytes).into()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &'static [u8]) -> KeyValue {
        let value = Bytes::from_static(value);
        KeyValue { key: "a".into(), value, create_revision: 2, mod_revision: 3, version: 2, lease: 0 }
    }

    #[test]
    fn text_holds_the_bytes_as_they_are() {
        let body = KvBody::Range { kvs: vec![kv(&[0xff, 0])], more: false, count: 1 };
        assert_eq!(text(&body, Shape::default()), b"a\n\xff\0\n");
        assert_eq!(text(&body, Shape { keys_only: true, ..Shape::default() }), b"a\n");
        assert_eq!(text(&body, Shape { values_only: true, ..Shape::default() }), b"\xff\0\n");
        let verbose = text(&body, Shape { verbose: true, ..Shape::default() });
        assert!(verbose.ends_with(b"# create revision 2, mod revision 3, version 2\n# 1 of 1 keys\n"));
    }

    #[test]
    fn json_turns_what_is_no_text_into_hexadecimal() {
        let body = KvBody::Range { kvs: vec![kv(b"1"), kv(&[0xff])], more: true, count: 9 };
        let value = json(&body);
        assert_eq!(value["kvs"][0]["value"], "1");
        assert_eq!(value["kvs"][1]["value_hex"], "ff");
        assert_eq!((&value["count"], &value["more"]), (&json!(9), &json!(true)));
    }
}
