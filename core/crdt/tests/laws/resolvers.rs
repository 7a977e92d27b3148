//! The laws of resolvers: what siblings amount to is a function of their set. Neither the order in which they came shows, nor how
//! often, nor who reads, nor what was read before.

use crate::conflicts::Longest;
use crate::world::{NOON_MS, Replica, origin, text};
use dwcp_base::Chance;
use dwcp_crdt::{Bundle, Op, Plain, Resolver, Resolvers, Sibling, Store, Strategy, View};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes something new of all of them, and deletes what somebody deleted.
#[derive(Debug)]
struct Joined;

impl Resolver for Joined {
    fn name(&self) -> &'static str {
        "joined"
    }

    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        let values: Option<Vec<&Plain>> = siblings.iter().map(|s| s.value).collect();
        let mut values: Vec<&[u8]> = values?.into_iter().map(Plain::as_bytes).collect();
        values.sort();
        Plain::bytes(values.join(&b'+')).ok()
    }
}

/// Whatever stands first: no function of the set.
#[derive(Debug)]
struct First;

impl Resolver for First {
    fn name(&self) -> &'static str {
        "first"
    }

    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        siblings.first()?.value.cloned()
    }
}

/// The values in the order in which they stand: no function of the set, and nearly always seen to be none.
#[derive(Debug)]
struct AsTheyStand;

impl Resolver for AsTheyStand {
    fn name(&self) -> &'static str {
        "as they stand"
    }

    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        let values: Vec<&[u8]> = siblings.iter().filter_map(|s| s.value).map(Plain::as_bytes).collect();
        Plain::bytes(values.join(&b'+')).ok()
    }
}

const KEYS: [&str; 5] = ["plain/k", "merge/k", "longest/k", "joined/k", "stand/k"];

fn replica(id: u32) -> Replica {
    let mut resolvers = Resolvers::default();
    resolvers.set("merge/", Strategy::Merge);
    resolvers.set("longest/", Strategy::Custom(Arc::new(Longest)));
    resolvers.set("joined/", Strategy::Custom(Arc::new(Joined)));
    resolvers.set("stand/", Strategy::Custom(Arc::new(AsTheyStand)));
    Replica { store: Store::new(origin(id), resolvers), log: Vec::new(), now_ms: NOON_MS }
}

/// A JSON document that is known without a parser.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tree {
    Leaf(u64),
    Node(BTreeMap<&'static str, Self>),
}

impl Tree {
    fn any(chance: &mut Chance, depth: u32) -> Self {
        if depth == 0 || chance.per_mille(250) {
            return Self::Leaf(chance.below(9));
        }
        let names = ["a", "b", "c"].into_iter().filter(|_| chance.per_mille(600)).collect::<Vec<_>>();
        Self::Node(names.into_iter().map(|name| (name, Self::any(chance, depth - 1))).collect())
    }

    fn text(&self) -> String {
        match self {
            Self::Leaf(number) => number.to_string(),
            Self::Node(fields) => {
                let fields = fields.iter().map(|(name, tree)| format!("\"{name}\":{}", tree.text()));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }
        }
    }

    /// The rule of `merge` as the documentation has it: objects field by field, of anything else the latest.
    fn merged(latest_first: &[&Self]) -> Self {
        let objects: Option<Vec<_>> = latest_first
            .iter()
            .map(|tree| match tree {
                Self::Node(fields) => Some(fields),
                Self::Leaf(_) => None,
            })
            .collect();
        let Some(objects) = objects else { return latest_first[0].clone() };
        let names = ["a", "b", "c"].into_iter();
        let field = |name| {
            let values: Vec<&Self> = objects.iter().filter_map(|fields| fields.get(name)).collect();
            (!values.is_empty()).then(|| (name, Self::merged(&values)))
        };
        Self::Node(names.filter_map(field).collect())
    }
}

/// Writers of whom some know some of the others, and all trees that were written, by their text.
fn written(seed: u64) -> (Vec<Replica>, BTreeMap<String, Tree>) {
    let mut chance = Chance::new(seed);
    let mut writers: Vec<Replica> = (0..chance.between(2, 5)).map(|id| replica(id as u32)).collect();
    let mut trees = BTreeMap::new();
    for _ in 0..chance.between(2, 8) {
        let at = chance.below(writers.len() as u64) as usize;
        if chance.per_mille(250) {
            let other = writers[chance.below(writers.len() as u64) as usize].clone();
            writers[at].pull(&other);
        }
        // Clocks that differ: a later write may bear the earlier time.
        writers[at].now_ms = NOON_MS + chance.below(40);
        for key in KEYS {
            let tree = Tree::any(&mut chance, 3);
            let value = if chance.per_mille(100) {
                text("raw")
            } else {
                trees.insert(tree.text(), tree.clone());
                Plain::json(&tree.text()).expect("JSON")
            };
            let deletes = chance.per_mille(120) && writers[at].get(key).is_some();
            writers[at].write(key, if deletes { Op::Delete } else { Op::Put(value) });
        }
    }
    (writers, trees)
}

fn bundles(writers: &[Replica]) -> Vec<Bundle> {
    let mut all: Vec<Bundle> = Vec::new();
    for bundle in writers.iter().flat_map(|writer| &writer.log) {
        if !all.iter().any(|known| (known.origin(), known.first()) == (bundle.origin(), bundle.first())) {
            all.push(bundle.clone());
        }
    }
    all
}

fn shown(replica: &Replica, key: &str) -> Option<Plain> {
    match replica.get(key) {
        None => None,
        Some(View::Register(value)) => Some(value),
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn what_is_shown_depends_on_no_order_no_repetition_and_no_reader() {
    let mut siblings = BTreeMap::new();
    for seed in 0..200 {
        let (mut readers, _) = written(seed);
        let all = bundles(&readers);
        let mut chance = Chance::new(seed);
        let writers = readers.len() as u32;
        // Below, between and above the writers' own numbers, and the writers themselves.
        readers.extend([0, 1, 2].map(|n| replica(writers + n)));
        for reader in &mut readers {
            let mut order = all.clone();
            chance.shuffle(&mut order);
            for bundle in order {
                reader.receive(&bundle);
                // Reading writes nothing, so an early look cannot show later.
                KEYS.iter().for_each(|key| drop(shown(reader, key)));
                if chance.per_mille(300) {
                    reader.receive(&bundle);
                }
            }
        }
        for key in KEYS {
            let expected = shown(&readers[0], key);
            for reader in &readers {
                assert_eq!(shown(reader, key), expected, "seed {seed}, {key}");
            }
            *siblings.entry(readers[0].siblings(key).len()).or_insert(0) += 1;
        }
    }
    for count in [1, 2, 3] {
        assert!(siblings.get(&count) >= Some(&40), "so many siblings were hardly met: {siblings:?}");
    }
}

#[test]
fn each_strategy_shows_what_it_says() {
    let (mut joined, mut impure) = (0, 0);
    for seed in 0..200 {
        let (writers, trees) = written(seed);
        let mut reader = replica(9);
        bundles(&writers).iter().for_each(|bundle| drop(reader.receive(bundle)));
        for key in KEYS {
            let mut versions = reader.store.siblings(key.as_bytes(), &[]);
            versions.sort_by_key(|version| core::cmp::Reverse(version.stamp));
            let last = versions.first().and_then(|version| version.value.clone());
            let values: Vec<Plain> = versions.iter().filter_map(|version| version.value.clone()).collect();
            let alone = versions.len() < 2;
            let expected = match key {
                _ if alone => last,
                "merge/k" => {
                    let found: Option<Vec<&Tree>> =
                        values.iter().map(|value| trees.get(value.as_json()?)).collect();
                    match found.filter(|found| !found.is_empty()) {
                        Some(found) => {
                            joined += u32::from(found.len() > 1);
                            Some(Plain::json(&Tree::merged(&found).text()).expect("JSON"))
                        }
                        None => last,
                    }
                }
                "longest/k" => values.into_iter().max_by_key(|v| (v.as_bytes().len(), v.clone())),
                "joined/k" if values.len() < versions.len() => None,
                "joined/k" => {
                    let mut bytes: Vec<&[u8]> = values.iter().map(Plain::as_bytes).collect();
                    bytes.sort();
                    Some(Plain::bytes(bytes.join(&b'+')).expect("short"))
                }
                "stand/k" => {
                    let ahead: Vec<&[u8]> = values.iter().map(Plain::as_bytes).collect();
                    let back: Vec<&[u8]> = ahead.iter().rev().copied().collect();
                    // What depends on the order is not believed.
                    if ahead == back { Plain::bytes(ahead.join(&b'+')).ok() } else { last }
                }
                _ => last,
            };
            assert_eq!(shown(&reader, key), expected, "seed {seed}, {key}: {versions:?}");
        }
        impure += u32::from(reader.store.resolutions_impure() > 0);
    }
    assert!(joined >= 30 && impure >= 30, "{joined} merges and {impure} impure resolvers were met");
}

/// The law itself, asked of any resolver: every order of a set of siblings gives one answer.
fn is_a_function_of_the_set(
    resolver: &dyn Resolver,
    siblings: &mut Vec<Sibling<'_>>,
    chance: &mut Chance,
) -> bool {
    let answer = resolver.resolve(b"k", siblings);
    (0..8).all(|_| {
        chance.shuffle(siblings);
        resolver.resolve(b"k", siblings) == answer
    })
}

#[test]
fn the_law_holds_for_functions_of_the_set_and_is_broken_by_the_others() {
    let resolvers: [(&dyn Resolver, bool); 4] =
        [(&Longest, true), (&Joined, true), (&First, false), (&AsTheyStand, false)];
    for (resolver, lawful) in resolvers {
        let mut broken = 0;
        for seed in 0..200 {
            let (writers, _) = written(seed);
            let mut reader = replica(9);
            bundles(&writers).iter().for_each(|bundle| drop(reader.receive(bundle)));
            let versions = reader.store.siblings(b"plain/k", &[]);
            let mut siblings: Vec<Sibling<'_>> =
                versions.iter().map(|v| Sibling { stamp: v.stamp, value: v.value.as_ref() }).collect();
            broken += u32::from(!is_a_function_of_the_set(resolver, &mut siblings, &mut Chance::new(seed)));
        }
        assert_eq!(broken == 0, lawful, "{}: broken {broken} times of 200", resolver.name());
    }
}

/// One that the two opposite orders do not give away would be shown differently by different readers, were it asked in the
/// order in which a reader met the siblings.
#[cfg(feature = "mutants")]
#[test]
fn a_store_that_asks_as_it_met_the_siblings_breaks_the_law() {
    use dwcp_base::{Mutant, Mutants};
    let mut broken = 0;
    for seed in 0..200 {
        let (mut readers, _) = written(seed);
        let all = bundles(&readers);
        for reader in &mut readers {
            reader.store.set_mutants(Mutants::default().with(Mutant::CrdtResolverByOrder));
            all.iter().for_each(|bundle| drop(reader.receive(bundle)));
        }
        let first = shown(&readers[0], "stand/k");
        broken += u32::from(readers.iter().any(|reader| shown(reader, "stand/k") != first));
    }
    assert!(broken >= 20, "broken {broken} times of 200");
}
