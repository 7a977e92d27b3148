//! A few replicas, and bundles on their way between them.

use dwcp_crdt::{
    Applied, Bundle, Dot, Kind, Op, Origin, Plain, Resolvers, Restore, Store, View, Write, WriteRefused,
};

/// Milliseconds; far from zero, so that clocks can be behind.
pub const NOON_MS: u64 = 1_000_000;

pub fn text(text: &str) -> Plain {
    Plain::bytes(text.as_bytes().to_vec()).expect("short")
}

pub fn origin(id: u32) -> Origin {
    Origin::new(id, 0)
}

/// A replica that keeps every bundle it has applied or written, as its peers would ask for them.
#[derive(Clone, Debug)]
pub struct Replica {
    pub store: Store,
    pub log: Vec<Bundle>,
    pub now_ms: u64,
}

impl Replica {
    pub fn new(id: u32) -> Self {
        Self { store: Store::new(origin(id), Resolvers::default()), log: Vec::new(), now_ms: NOON_MS }
    }

    /// The same state under the next incarnation, from a snapshot.
    pub fn reborn(&self) -> Self {
        let me = self.store.me().reborn();
        let head = self.store.snapshot_head();
        let mut restore = Restore::new(me, Resolvers::default(), &head).expect("our own head");
        restore.piece(&self.store.snapshot_piece(None, usize::MAX).bytes).expect("our own piece");
        let store = restore.finish().expect("whole");
        Self { store, log: self.log.clone(), now_ms: self.now_ms }
    }

    pub fn try_write(&mut self, writes: &[Write]) -> Result<Option<Bundle>, WriteRefused> {
        self.now_ms += 1;
        let bundle = self.store.write(writes, 0, self.now_ms)?;
        self.log.extend(bundle.clone());
        self.store.check();
        Ok(bundle)
    }

    pub fn write(&mut self, key: &str, op: Op) -> Bundle {
        self.write_at(key, &[], op)
    }

    pub fn write_at(&mut self, key: &str, path: &[&str], op: Op) -> Bundle {
        let path: Vec<Vec<u8>> = path.iter().map(|f| f.as_bytes().to_vec()).collect();
        let write = Write::at(key.as_bytes().to_vec(), path, op);
        self.try_write(&[write]).expect("a good write").expect("a change")
    }

    pub fn put(&mut self, key: &str, value: &str) -> Bundle {
        self.write(key, Op::Put(text(value)))
    }

    /// Applies a bundle as it comes over the wire.
    pub fn receive(&mut self, bundle: &Bundle) -> Applied {
        let bundle = Bundle::decode(bundle.encode()).expect("bundles survive the wire");
        let applied = self.store.apply(&bundle, NOON_MS + 100_000).expect("a good bundle");
        let known = self
            .log
            .iter()
            .any(|b| (b.origin(), b.first(), b.last()) == (bundle.origin(), bundle.first(), bundle.last()));
        if !known {
            self.log.push(bundle);
        }
        self.store.check();
        applied
    }

    /// Takes everything the other has, in the other's order.
    pub fn pull(&mut self, other: &Self) {
        for bundle in &other.log {
            self.receive(bundle);
        }
    }

    pub fn get(&self, key: &str) -> Option<View> {
        self.store.get(key.as_bytes())
    }

    pub fn kinds(&self, key: &str) -> Vec<Kind> {
        self.store.kinds(key.as_bytes(), &[])
    }

    pub fn register(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            View::Register(value) => Some(String::from_utf8(value.as_bytes().to_vec()).expect("text")),
            other => panic!("{key} is {other:?}"),
        }
    }

    pub fn siblings(&self, key: &str) -> Vec<Dot> {
        self.store.siblings(key.as_bytes(), &[]).iter().map(|v| v.stamp.dot).collect()
    }

    pub fn count(&self, key: &str) -> Option<i128> {
        match self.get(key)? {
            View::Count(count) => Some(count),
            other => panic!("{key} is {other:?}"),
        }
    }

    pub fn set(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            None => Vec::new(),
            Some(View::Set(set)) => {
                set.iter().map(|e| String::from_utf8(e.as_bytes().to_vec()).expect("text")).collect()
            }
            other => panic!("{key} is {other:?}"),
        }
    }
}

/// Everybody takes everything from everybody; then all must be equal in every way.
pub fn settle(replicas: &mut [&mut Replica]) {
    for _ in 0..2 {
        for i in 0..replicas.len() {
            for j in 0..replicas.len() {
                if i != j {
                    let other = replicas[j].clone();
                    replicas[i].pull(&other);
                }
            }
        }
    }
    let (first, rest) = replicas.split_first_mut().expect("some replicas");
    for other in rest {
        assert_same(first, other);
    }
}

pub fn assert_same(a: &mut Replica, b: &mut Replica) {
    assert_eq!(a.store.held_count(), 0);
    assert_eq!(a.store.applied(), b.store.applied());
    let (head_a, head_b) =
        (a.store.snapshot_piece(None, usize::MAX), b.store.snapshot_piece(None, usize::MAX));
    for key in a.store.keys(b"") {
        assert_eq!(a.store.get(key), b.store.get(key), "{key:?}");
    }
    assert_eq!(head_a, head_b);
    assert_eq!(a.store.conflict_count(), b.store.conflict_count());
    assert_eq!(a.store.conflicts_open(), b.store.conflicts_open());
    assert_eq!(a.store.digest(), b.store.digest());
}
