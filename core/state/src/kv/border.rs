//! Which commands need an order of keys below a prefix: those that write there, and those that compare. Asked where clients
//! come in, never when an entry is executed.

use crate::kv::wire::{KvCommand, Txn, TxnOp, prefix_end};

/// Does the range that begins at `key` meet the keys below `prefix`? `range_end` as in a `Range`: empty for one key, a zero
/// byte for all from `key` on.
#[must_use]
pub fn range_meets(key: &[u8], range_end: &[u8], prefix: &[u8]) -> bool {
    if range_end.is_empty() {
        return key.starts_with(prefix);
    }
    let open = range_end == [0];
    let end = prefix_end(prefix);
    let begins_before = end[..] == [0] || key < &end[..];
    begins_before && (open || range_end > prefix)
}

fn txn_orders(txn: &Txn, wanted: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let compares = txn.compare.iter().any(|compare| wanted(&compare.key, &compare.range_end));
    let writes = |op: &TxnOp| match op {
        TxnOp::Put(put) => wanted(&put.key, &[]),
        TxnOp::DeleteRange(delete) => wanted(&delete.key, &delete.range_end),
        TxnOp::Txn(inner) => txn_orders(inner, wanted),
        TxnOp::Range(_) => false,
    };
    compares || txn.success.iter().chain(&txn.failure).any(writes)
}

impl KvCommand {
    /// Is one of the keys or ranges that it writes or compares wanted? They are told as in a `Range`: key, range end.
    pub fn orders_any(&self, wanted: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
        match self {
            Self::Put(put) => wanted(&put.key, &[]),
            Self::DeleteRange(delete) => wanted(&delete.key, &delete.range_end),
            Self::Txn(txn) => txn_orders(txn, wanted),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Compare, CompareOp, CompareTarget, DeleteRange};
    use bytes::Bytes;

    fn below(prefix: &[u8]) -> impl Fn(&[u8], &[u8]) -> bool {
        move |key, range_end| range_meets(key, range_end, prefix)
    }

    #[test]
    fn ranges_meet_a_prefix_where_they_share_a_key() {
        for (key, end, expected) in [
            ("a/x", "", true),
            ("b", "", false),
            ("a", "b", true),
            ("a/", "a0", true),
            ("a0", "b", false),
            ("A", "a/", false),
            ("A", "\0", true),
            ("b", "\0", false),
            ("a/zzz", "c", true),
        ] {
            assert_eq!(range_meets(key.as_bytes(), end.as_bytes(), b"a/"), expected, "{key}..{end}");
        }
    }

    #[test]
    fn a_transaction_is_looked_through_to_its_depth() {
        let delete = DeleteRange { key: "a/1".into(), range_end: Bytes::new(), prev_kv: false };
        let inner = Txn { success: [TxnOp::DeleteRange(delete)].into(), ..Txn::default() };
        let outer = Txn { failure: [TxnOp::Txn(inner)].into(), ..Txn::default() };
        assert!(KvCommand::Txn(outer.clone()).orders_any(&below(b"a/")));
        assert!(!KvCommand::Txn(outer).orders_any(&below(b"b/")));
        let compare = Compare {
            key: "a/1".into(),
            range_end: Bytes::new(),
            op: CompareOp::Equal,
            target: CompareTarget::Version(0),
        };
        assert!(
            KvCommand::Txn(Txn { compare: [compare].into(), ..Txn::default() }).orders_any(&below(b"a/"))
        );
        assert!(!KvCommand::get("a/1").orders_any(&below(b"a/")), "reading needs no order");
    }
}
