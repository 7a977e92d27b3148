//! What is written: keys of every type, some that everybody treats as another type, operations that make sense about
//! as often as users do.

use bytes::Bytes;
use check::sync::Rule;
use dwcp_base::Chance;
use dwcp_crdt::{Kind, Op, Plain, Resolver, Resolvers, Sibling, Store, Strategy, View, Write};
use std::sync::Arc;

/// Keys, the most contended first, with what is done to them; without a kind, anything.
pub const KEYS: &[(&str, Option<Kind>)] = &[
    ("reg/a", Some(Kind::LwwRegister)),
    ("list/a", Some(Kind::List)),
    ("or/a", Some(Kind::OrSet)),
    ("pn/a", Some(Kind::PnCounter)),
    ("map/a", Some(Kind::Map)),
    ("r/a", Some(Kind::LwwRegister)),
    ("2p/a", Some(Kind::TwoPhaseSet)),
    ("mv/a", Some(Kind::MvRegister)),
    ("any/a", None),
    ("m/a", Some(Kind::LwwRegister)),
    ("l/a", Some(Kind::LwwRegister)),
    ("g/a", Some(Kind::GCounter)),
    ("gs/a", Some(Kind::GSet)),
    ("map/b", Some(Kind::Map)),
    ("reg/b", Some(Kind::LwwRegister)),
    ("any/b", None),
    ("list/b", Some(Kind::List)),
    ("or/b", Some(Kind::OrSet)),
    ("reg/c", Some(Kind::LwwRegister)),
    ("pn/b", Some(Kind::PnCounter)),
];

/// The register that a liar writes two ways at once, and the one that its second history goes on with.
pub const FORKED: [&str; 2] = ["reg/a", "reg/b"];

/// Depends on the order of what it is handed, so the core must not believe it.
#[derive(Debug)]
struct First;

impl Resolver for First {
    fn name(&self) -> &'static str {
        "first"
    }

    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        siblings.first().and_then(|sibling| sibling.value.cloned())
    }
}

#[derive(Debug)]
struct Longest;

impl Resolver for Longest {
    fn name(&self) -> &'static str {
        "longest"
    }

    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        let values = siblings.iter().filter_map(|sibling| sibling.value);
        values.max_by_key(|value| (value.as_bytes().len(), value.as_bytes())).cloned()
    }
}

#[must_use]
pub fn resolvers() -> Resolvers {
    let mut resolvers = Resolvers::default();
    resolvers.set("r/", Strategy::Custom(Arc::new(First)));
    resolvers.set("l/", Strategy::Custom(Arc::new(Longest)));
    resolvers.set("m/", Strategy::Merge);
    resolvers
}

/// What those amount to. The one that depends on order is to be read as if there were none.
#[must_use]
pub fn rules() -> Vec<(Vec<u8>, Rule)> {
    vec![(b"m/".to_vec(), Rule::Merge), (b"l/".to_vec(), Rule::Longest)]
}

#[derive(Debug)]
pub struct Workload {
    chance: Chance,
    /// Values are never used twice, but where elements must meet.
    next_value: u64,
    keys: usize,
    operations_max: u64,
}

impl Workload {
    #[must_use]
    pub fn new(chance: Chance, keys: u64, operations_max: u64) -> Self {
        let keys = usize::try_from(keys).unwrap_or(KEYS.len()).clamp(1, KEYS.len());
        Self { chance, next_value: 0, keys, operations_max: operations_max.max(1) }
    }

    /// One write of a few operations, as somebody thinks of it who sees this store.
    pub fn writes(&mut self, store: &Store) -> Vec<Write> {
        let count = self.chance.between(1, self.operations_max);
        let same = self.chance.per_mille(150).then(|| self.key());
        (0..count)
            .map(|_| {
                let (key, kind) = same.unwrap_or_else(|| self.key());
                self.write(store, key, kind)
            })
            .collect()
    }

    fn key(&mut self) -> (&'static str, Option<Kind>) {
        let index = self.chance.below(self.keys as u64) as usize;
        KEYS[index]
    }

    fn value(&mut self, key: &str) -> Plain {
        self.next_value += 1;
        let number = self.next_value;
        if key.starts_with("m/") {
            let names = ["x", "y", "z"];
            let (one, other) = (self.chance.below(3) as usize, self.chance.below(3) as usize);
            let text = if one == other {
                format!(r#"{{"{}":{number}}}"#, names[one])
            } else {
                format!(r#"{{"{}":{number},"{}":{number}}}"#, names[one], names[other])
            };
            return Plain::json(&text).expect("an object");
        }
        let length = if key.starts_with("l/") { self.chance.below(6) as usize } else { 0 };
        Plain::bytes(format!("v{number}{}", "-".repeat(length))).expect("short")
    }

    /// From few, so that they meet.
    fn element(&mut self) -> Plain {
        Plain::bytes(format!("e{}", self.chance.below(4))).expect("short")
    }

    fn write(&mut self, store: &Store, key: &str, kind: Option<Kind>) -> Write {
        let mut path: Vec<Bytes> = Vec::new();
        let kind = match kind {
            Some(Kind::Map) => {
                let depth = self.chance.between(1, 2);
                for _ in 0..depth {
                    path.push(["f", "g"][self.chance.below(2) as usize].into());
                }
                // A field has its own type, so that kinds clash now and then only.
                let usual = [Kind::LwwRegister, Kind::OrSet, Kind::PnCounter, Kind::List];
                let index = path.iter().map(|field| usize::from(field.as_ref() == b"g")).sum::<usize>();
                if self.chance.per_mille(60) && depth > 1 {
                    path.pop();
                }
                usual[(index + path.len()) % usual.len()]
            }
            Some(kind) => kind,
            None => {
                let shown = store.kinds(key.as_bytes(), &[]);
                if shown.len() > 1 && self.chance.per_mille(400) {
                    return Write::new(key.to_string(), Op::Settle);
                }
                let any = Kind::ALL[self.chance.below(9) as usize];
                let shown = shown.last().copied().filter(|_| self.chance.per_mille(800));
                match shown.unwrap_or(any) {
                    Kind::Map => {
                        path.push("f".into());
                        Kind::OrSet
                    }
                    kind => kind,
                }
            }
        };
        let op = self.operation(store, key, &path, kind);
        Write::at(key.to_string(), path, op)
    }

    fn operation(&mut self, store: &Store, key: &str, path: &[Bytes], kind: Kind) -> Op {
        if self.chance.per_mille(90) {
            return Op::Delete;
        }
        if self.chance.per_mille(10) {
            return Op::Settle;
        }
        let adds = self.chance.per_mille(600);
        match kind {
            Kind::LwwRegister => Op::Put(self.value(key)),
            Kind::MvRegister => Op::PutMulti(self.value(key)),
            Kind::GCounter => Op::Grow(self.chance.below(9)),
            Kind::PnCounter => Op::Adjust(self.chance.below(19) as i64 - 9),
            Kind::GSet => Op::AddForever(self.element()),
            Kind::TwoPhaseSet if adds => Op::AddOnce(self.element()),
            Kind::TwoPhaseSet => Op::RemoveForGood(self.element()),
            Kind::OrSet | Kind::Map if adds => Op::Add(self.element()),
            Kind::OrSet | Kind::Map => Op::Remove(self.element()),
            Kind::List => {
                let length = match store.get_at(key.as_bytes(), path) {
                    Some(View::List(items)) => items.len() as u64,
                    _ => 0,
                };
                if adds || length == 0 {
                    // One beyond the end is refused.
                    let beyond = u64::from(self.chance.per_mille(30));
                    let index = self.chance.below(length + 1 + beyond) as usize;
                    Op::Insert { index, value: self.value(key) }
                } else {
                    Op::Erase { index: self.chance.below(length) as usize }
                }
            }
        }
    }
}
