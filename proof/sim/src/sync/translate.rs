//! From the words of the core to those of the judges.

use check::sync as say;
use dwcp_crdt::{Kind, Op, Origin, Plain, VersionVector, View, Write};
use std::collections::BTreeMap;

#[must_use]
pub fn origin(origin: Origin) -> say::Origin {
    say::Origin { id: origin.id.0, incarnation: origin.incarnation.0 }
}

#[must_use]
pub fn applied(vector: &VersionVector, branches: &BTreeMap<Origin, u32>) -> say::Applied {
    let stretches = |list: &[dwcp_crdt::Interval]| list.iter().map(|i| (i.first, i.last)).collect();
    say::Applied {
        dots: vector.iter().map(|(who, list)| (origin(who), stretches(list))).collect(),
        branches: branches.iter().map(|(who, branch)| (origin(*who), *branch)).collect(),
    }
}

fn plain(value: &Plain) -> say::Plain {
    match value.as_json() {
        Some(text) => say::Plain::Json(text.to_string()),
        None => say::Plain::Bytes(value.as_bytes().to_vec()),
    }
}

#[must_use]
pub fn write(write: &Write) -> say::Write {
    use say::Operation as To;
    let operation = match &write.op {
        Op::Put(value) => To::Put(plain(value)),
        Op::PutMulti(value) => To::PutMulti(plain(value)),
        Op::Grow(by) => To::Grow(*by),
        Op::Adjust(by) => To::Adjust(*by),
        Op::AddForever(value) => To::AddForever(plain(value)),
        Op::AddOnce(value) => To::AddOnce(plain(value)),
        Op::RemoveForGood(value) => To::RemoveForGood(plain(value)),
        Op::Add(value) => To::Add(plain(value)),
        Op::Remove(value) => To::Remove(plain(value)),
        Op::Insert { index, value } => To::Insert { index: *index, value: plain(value) },
        Op::Erase { index } => To::Erase { index: *index },
        Op::Delete => To::Delete,
        Op::Settle => To::Settle,
    };
    let path = write.path.iter().map(|field| field.to_vec()).collect();
    say::Write { key: write.key.to_vec(), path, operation }
}

#[must_use]
pub fn view(view: &View) -> say::View {
    match view {
        View::Register(value) => say::View::Register(plain(value)),
        View::Siblings(values) => say::View::Siblings(values.iter().map(plain).collect()),
        View::Count(count) => say::View::Count(*count),
        View::Set(elements) => say::View::Set(elements.iter().map(plain).collect()),
        View::Map(fields) => {
            say::View::Map(fields.iter().map(|(name, below)| (name.to_vec(), self::view(below))).collect())
        }
        View::List(items) => say::View::List(items.iter().map(plain).collect()),
    }
}

/// Kinds that hold other things than one value.
#[must_use]
pub fn is_register(kind: Kind) -> bool {
    matches!(kind, Kind::LwwRegister | Kind::MvRegister)
}
