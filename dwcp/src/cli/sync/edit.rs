//! Operations that need a look at the value first: where a list ends, and which type of register a conflict is settled in. Between the
//! look and the write others may write; a list that has become shorter is then refused, and a register is written over as
//! the node has it then.

use bytes::Bytes;
use clap::Args;
use dwcp_client::values::{Op, Plain, View, Write};
use dwcp_client::{SyncClient, SyncValue};
use dwcp_node::sync_json;

use super::value;
use crate::cli::output::{Failure, Outcome};

/// The place inside a map.
#[derive(Debug, Args)]
pub struct Inside {
    /// Not the key's own value but this field of the map there; again for a field of that field
    #[arg(long = "field", value_name = "NAME")]
    fields: Vec<String>,
}

impl Inside {
    pub fn path(&self) -> Vec<Bytes> {
        self.fields.iter().cloned().map(Bytes::from).collect()
    }

    pub fn write(&self, key: &str, op: Op) -> Write {
        Write::at(key.to_string(), self.path(), op)
    }

    /// As it is typed.
    fn typed(&self, key: &str) -> String {
        let fields: String = self.fields.iter().map(|name| format!("--field {name} ")).collect();
        format!("{fields}{key}")
    }
}

/// All of these behind one another: before the item at `at`, or at the end.
pub async fn insert(
    sync: &SyncClient,
    inside: &Inside,
    key: &str,
    at: Option<usize>,
    values: &[String],
) -> Outcome<Vec<Write>> {
    let at = match at {
        Some(at) => at,
        None => match sync.get(key.to_string(), inside.path()).await?.view {
            Some(View::List(items)) => items.len(),
            // Of another type: refused by the node, which says of which.
            _ => 0,
        },
    };
    let one = |(offset, text): (usize, &String)| {
        let index = at.checked_add(offset).ok_or_else(|| Failure::usage("--at is too large"))?;
        Ok(inside.write(key, Op::Insert { index, value: value(text)? }))
    };
    values.iter().enumerate().map(one).collect()
}

/// What ends a conflict at a key: `chosen`, or what is shown there now. `None`: there is none.
pub async fn settle(
    sync: &SyncClient,
    inside: &Inside,
    key: &str,
    chosen: Option<&str>,
) -> Outcome<Option<Write>> {
    let SyncValue { view, kinds, siblings } = sync.get(key.to_string(), inside.path()).await?;
    let typed = inside.typed(key);
    let chosen: Option<Plain> = chosen.map(value).transpose()?;
    if kinds.len() > 1 {
        return match chosen {
            None => Ok(Some(inside.write(key, Op::Settle))),
            Some(_) => Err(Failure::usage(format!(
                "{key:?} was created with several types at once: `dwcp sync settle {typed}` keeps the {}; write it afterwards",
                kinds[kinds.len() - 1]
            ))),
        };
    }
    match (kinds.last().map(String::as_str), chosen) {
        _ if siblings < 2 => Ok(None),
        (Some("mv-register"), Some(value)) => Ok(Some(inside.write(key, Op::PutMulti(value)))),
        (Some("mv-register"), None) => {
            let shown = view.as_ref().map(sync_json::view).unwrap_or_default();
            Err(Failure::usage(format!(
                "several values stand side by side, {shown}: say which is to stand, `dwcp sync settle {typed} VALUE`"
            )))
        }
        (_, Some(value)) => Ok(Some(inside.write(key, Op::Put(value)))),
        (_, None) => Ok(Some(inside.write(
            key,
            match view {
                Some(View::Register(value)) => Op::Put(value),
                // Of a write and a delete the delete came later.
                _ => Op::Delete,
            },
        ))),
    }
}
