//! Four nodes that write convergent values, in memory: the frames they sign, and one of them, node 0, with half of these
//! in its log. Built once per process from the real store and the real engine; it judges nothing.

use crate::keys::{START_MS, Signer, cluster, key, sign};
use bytes::Bytes;
use dwcp_base::{
    Chance, Hash, Micros, Mutants, Now, PublicKey, Signature, SigningKind, encode, signing_hash,
};
use dwcp_crdt::{Bundle, Floor, Op, Origin, Plain, Resolvers, Store, VersionVector, Write};
use dwcp_sync::audit::{self, Work};
use dwcp_sync::message::{Head, Heads, Load, ShortHash};
use dwcp_sync::repair::{self, Question};
use dwcp_sync::{
    Action, Base, Cut, Frame, Limits, Message, Proof, Received, Record, Restored, Setup, SignedHeader, Sync,
    Timing,
};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// Nodes, numbered from 0.
pub const NODES: u32 = 4;
/// Bytes of a frame before its bundle: version, origin, first, last, hash of the frame before, clock, signature.
const FRONT_BYTES: usize = 129;
const SIGNATURE_AT: usize = 65;

/// The origin of a node's first life.
#[must_use]
pub fn origin(id: u32) -> Origin {
    Origin::new(id, 0)
}

/// That of the replica of this number, so that a live replica takes these frames too.
fn key_of(origin: Origin) -> PublicKey {
    key("vote", origin.id.0.into(), origin.incarnation.0.into())
}

/// So much later than the beginning, on both clocks.
#[must_use]
pub fn at(ms: u64) -> Now {
    Now { mono: Micros::from_millis(1_000_000 + ms), wall_ms: START_MS + ms }
}

#[derive(Debug)]
pub struct SyncWorld {
    pub setup: Setup,
    /// Node 0's store, and the records that tell of the same.
    pub store: Store,
    pub records: Vec<Bytes>,
    /// All that was written, and what of it node 0 lacks.
    pub all: Vec<Frame>,
    pub lacking: Vec<Frame>,
    /// A store that has everything.
    pub whole: Store,
    /// Messages to node 0, each with its sender.
    pub messages: Vec<(u32, Message)>,
    pub proof: Proof,
    pub cut: Cut,
    pub floor: Floor,
    pub base: Base,
    /// The round in which each peer is asked first.
    pub rounds: BTreeMap<u32, u64>,
}

#[must_use]
pub fn world() -> &'static SyncWorld {
    static WORLD: LazyLock<SyncWorld> = LazyLock::new(build);
    &WORLD
}

impl SyncWorld {
    /// Headers that may show node 0 a contradiction: two that do, and some that it has.
    #[must_use]
    pub fn hints(&self) -> Vec<SignedHeader> {
        let known = self.all.iter().take(NODES as usize).map(|frame| *frame.signed());
        self.proof.headers().map(|header| *header).into_iter().chain(known).collect()
    }

    /// Node 0 with these records after its own.
    ///
    /// # Errors
    /// Why it refuses to begin.
    pub fn open(&self, extra: &[Bytes]) -> Result<Sync, dwcp_sync::OpenError> {
        let records: Vec<Bytes> = self.records.iter().chain(extra).cloned().collect();
        let restored = Restored { applied: self.store.applied(), floor: self.store.floor_number() };
        Sync::open(&self.setup, restored, &records, at(0))
    }
}

fn text(text: &str) -> Plain {
    Plain::bytes(text.as_bytes().to_vec()).expect("short")
}

/// What a node writes in its n-th frame: together every operation on every kind.
fn writes(id: u32, round: u32) -> Vec<Write> {
    let own = |name: &str| format!("{name}{id}");
    match round {
        0 => vec![
            Write::new("shared", Op::Put(text(&own("v")))),
            Write::new("votes", Op::PutMulti(text(&own("m")))),
            Write::new(own("seen"), Op::Grow(3)),
            Write::new("stock", Op::Adjust(-2)),
            Write::at("user", ["tags"], Op::Add(text(&own("t")))),
        ],
        1 => vec![
            Write::new("shared", Op::Put(Plain::json(r#"{"a":[1,2.50],"b":null}"#).expect("JSON"))),
            Write::new("grown", Op::AddForever(text(&own("g")))),
            Write::new("once", Op::AddOnce(text(&own("o")))),
            Write::new("list", Op::Insert { index: 0, value: text(&own("i")) }),
            Write::at("user", ["deep", "er"], Op::Put(text("x"))),
        ],
        2 => vec![
            Write::new("once", Op::RemoveForGood(text(&own("o")))),
            Write::new("list", Op::Erase { index: 0 }),
            Write::at("user", ["tags"], Op::Remove(text(&own("t")))),
            Write::new("votes", Op::PutMulti(text(&own("n")))),
            // Node 3 does not hear what kind this is to the others.
            Write::new("clash", if id == 3 { Op::Grow(1) } else { Op::Put(text("x")) }),
        ],
        _ => vec![
            Write::new("stock", Op::Delete),
            Write::new("user", Op::Delete),
            Write::new(own("seen"), Op::Grow(4)),
            Write::new("shared", Op::Delete),
        ],
    }
}

fn build() -> SyncWorld {
    let members: BTreeMap<Origin, PublicKey> =
        (0..NODES).map(|id| (origin(id), key_of(origin(id)))).collect();
    let setup = Setup {
        cluster: cluster(),
        me: origin(0),
        members,
        faults: 1,
        timing: Timing::default(),
        limits: Limits { exchange_peers: NODES as usize - 1, ..Limits::default() },
        seed: 3,
        crypto: Arc::new(Signer(key_of(origin(0)))),
        mutants: Mutants::default(),
    };
    let mut stores: Vec<Store> = (0..NODES).map(|id| Store::new(origin(id), Resolvers::default())).collect();
    let mut chains = vec![Hash::ZERO; NODES as usize];
    let (mut all, mut store_then) = (Vec::new(), None);
    for round in 0..4 {
        for id in 0..NODES {
            // Node 0 writes no more after the second round, so that nothing of its own is missing.
            if id == 0 && round > 1 {
                continue;
            }
            let place = id as usize;
            let now_ms = START_MS - 10_000 + u64::from(round * 100 + id);
            let bundle = stores[place].write(&writes(id, round), 0, now_ms);
            let bundle = bundle.expect("a good write").expect("it changes something");
            let frame = Frame::seal(&bundle, chains[place], cluster(), &Signer(key_of(origin(id))));
            chains[place] = frame.hash();
            for (other, store) in stores.iter_mut().enumerate() {
                // Node 3 hears nothing in the third round, so that there are conflicts.
                if other != place && (other != 3 || round != 2) {
                    store.apply(&bundle, now_ms).expect("an honest bundle");
                }
            }
            all.push(frame);
        }
        if round == 1 {
            store_then = Some(stores[0].clone());
        }
    }
    let store = store_then.expect("there was a second round");
    let (known, lacking) = all.split_at(2 * NODES as usize);
    let records: Vec<Bytes> =
        known.iter().map(|frame| Record::Frame(frame.bytes().clone()).to_bytes()).collect();

    // Node 3 signs another third frame.
    let mut other = Store::new(origin(3), Resolvers::default());
    known.iter().for_each(|frame| drop(other.apply(frame.bundle(), START_MS)));
    let lie =
        other.write(&[Write::new("lie", Op::Grow(1))], 0, START_MS).expect("a good write").expect("a change");
    let second = known.iter().rev().find(|frame| frame.header().origin == origin(3)).expect("two rounds");
    let lie = Frame::seal(&lie, second.hash(), cluster(), &Signer(key_of(origin(3))));
    let third = lacking.iter().find(|frame| frame.header().origin == origin(3)).expect("three rounds");
    let proof = Proof::of(*lie.signed(), *third.signed()).expect("two frames with one dot");
    let cut = Cut { origin: origin(3), last: second.header().last, hash: second.hash() };
    let acknowledged = (0..NODES).map(|id| (origin(id), store.applied().clone())).collect();
    let floor = Floor::of(1, &acknowledged, BTreeMap::new());

    let mut world = SyncWorld {
        setup,
        whole: stores[0].clone(),
        store,
        records,
        lacking: lacking.to_vec(),
        all: all.clone(),
        messages: Vec::new(),
        proof,
        cut,
        floor,
        base: Base::default(),
        rounds: BTreeMap::new(),
    };
    let mut sync = world.open(&[]).expect("honest records");
    world.base = sync.base(world.store.applied(), 0).expect("all is durable");
    let due = sync.next_wakeup();
    sync.on_time(Now { mono: due, ..at(0) });
    for action in sync.take() {
        if let Action::Send { to, message, .. } = action
            && let Ok(Message::Ask { round, .. }) = Message::read(&message)
        {
            world.rounds.insert(to.0, round);
        }
    }
    world.messages = messages(&world);
    world
}

/// Where somebody stands who has these frames.
fn heads(me: u32, frames: &[Frame], applied: &VersionVector) -> Heads {
    let mut heads: BTreeMap<Origin, Head> = BTreeMap::new();
    for frame in frames {
        let (origin, last) = (frame.header().origin, frame.header().last);
        let (hash, acked) = (ShortHash::from(&frame.hash()), applied.prefix(origin));
        heads.insert(
            origin,
            Head { origin, base: 0, last, hash, acked, frozen: false, stretches: Vec::new() },
        );
    }
    let written = heads.get(&origin(me)).map_or(0, |head| head.last);
    Heads { me: origin(me), written, floor: 0, heads: heads.into_values().collect() }
}

fn messages(world: &SyncWorld) -> Vec<(u32, Message)> {
    let mut said = Vec::new();
    for frame in &world.lacking {
        let message = Message::Push { hops: 0, frame: frame.bytes().clone() };
        said.push((frame.header().origin.id.0, message));
    }
    let known = &world.all[..world.all.len() - world.lacking.len()];
    let load = Load {
        frames: world.lacking.iter().map(|frame| frame.bytes().clone()).collect(),
        hints: world.hints(),
        more: false,
    };
    for id in 1..NODES {
        let round = world.rounds.get(&id).copied().unwrap_or(1);
        let equal = heads(id, known, world.store.applied());
        let ahead = heads(id, &world.all, world.whole.applied());
        let mut gaps = equal.clone();
        for head in &mut gaps.heads {
            (head.base, head.frozen) = (head.last.min(1), true);
            head.stretches = vec![dwcp_crdt::Interval { first: head.last + 3, last: head.last + 9 }];
        }
        for heads in [&equal, &ahead, &gaps, &heads(id, &[], world.store.applied())] {
            said.push((id, Message::Ask { round: 1, heads: heads.clone() }));
        }
        said.push((id, Message::Answer { round, heads: ahead, load: load.clone() }));
        said.push((id, Message::Answer { round, heads: gaps, load: Load { more: true, ..Load::default() } }));
        said.push((id, Message::Rest { load: load.clone() }));
        said.push((id, Message::Contradiction { proof: Box::new(world.proof) }));
    }
    said.extend(works(world).into_iter().map(|work| (1, Message::Audit { work })));
    said.extend(copies(world));
    said
}

/// Where node 0 stands.
fn stands(world: &SyncWorld) -> Hash {
    let sync = world.open(&[]).expect("honest records");
    sync.stand(world.store.applied()).expect("it has applied all that is in line")
}

/// A question for copies of keys, and answers.
fn copies(world: &SyncWorld) -> Vec<(u32, Message)> {
    let stands = stands(world);
    let keys: Vec<Bytes> = world.store.keys(b"").cloned().chain(["~".into()]).collect();
    let question = Question { round: 1, at: audit::place(&world.store, stands), keys };
    let copies = repair::copies(&world.store, Some(stands), &question).expect("it stands there");
    let mut said = vec![(1, Message::Copy { question })];
    said.extend((1..NODES).map(|id| {
        let round = world.rounds.get(&id).copied().unwrap_or(1);
        (id, Message::Copied { round, copies: copies.clone() })
    }));
    said
}

/// Steps of an audit in which all differs: fingerprints that were altered on the way.
fn works(world: &SyncWorld) -> Vec<Work> {
    let mut works = Vec::new();
    let stands = stands(world);
    let mut work = audit::step(&world.store, stands, None).reply;
    while let Some(mut said) = work.take().filter(|_| works.len() < 6) {
        works.push(said.clone());
        said.ranges.iter_mut().for_each(|range| range.print.0[0] ^= 1);
        for leaf in &mut said.leaves {
            leaf.keys.iter_mut().for_each(|(_, hash)| hash.0[0] ^= 1);
        }
        work = audit::step(&world.store, stands, Some(&said)).reply;
    }
    works
}

fn signature(hash: &Hash, origin: Origin) -> Signature {
    sign(&key_of(origin), &signing_hash(SigningKind::SyncFrame, cluster(), &hash.0))
}

/// Signs a header as its origin.
pub fn seal_header(signed: &mut SignedHeader) {
    signed.signature = signature(&signed.header.hash(), signed.header.origin);
}

/// Makes a frame's front what its bundle says, three times in four, and signs it. False when no header can be read then.
pub fn seal_frame(bytes: &mut [u8], chance: &mut Chance) -> bool {
    if bytes.len() < FRONT_BYTES {
        return false;
    }
    if chance.per_mille(750) {
        bytes[0] = 1;
        if let Ok(bundle) = Bundle::decode(Bytes::copy_from_slice(&bytes[FRONT_BYTES..])) {
            bytes[1..9].copy_from_slice(&encode(&bundle.origin()));
            bytes[9..17].copy_from_slice(&bundle.first().to_le_bytes());
            bytes[17..25].copy_from_slice(&bundle.last().to_le_bytes());
            bytes[57..SIGNATURE_AT].copy_from_slice(&bundle.hlc().0.to_le_bytes());
        }
    }
    let Ok(received) = Received::read(Bytes::copy_from_slice(bytes)) else { return false };
    let signature = signature(&received.hash(), received.header().origin);
    bytes[SIGNATURE_AT..FRONT_BYTES].copy_from_slice(&signature.0);
    true
}

/// A good signature of the header's origin?
#[must_use]
pub fn is_signed(signed: &SignedHeader) -> bool {
    let origin = signed.header.origin;
    signed.verify(cluster(), &key_of(origin), &Signer(key_of(origin)))
}

/// Signs what is signed in a message. False when a frame in it is too broken for that.
pub fn seal_message(message: &mut Message, from: u32, chance: &mut Chance) -> bool {
    let stand = |heads: &mut Heads, chance: &mut Chance| {
        if chance.per_mille(750) {
            heads.me = origin(from);
        }
    };
    match message {
        Message::Push { frame, .. } => seal_shared(frame, chance),
        Message::Ask { heads, .. } => {
            stand(heads, chance);
            true
        }
        Message::Answer { round, heads, load } => {
            stand(heads, chance);
            if chance.per_mille(750) {
                *round = world().rounds.get(&from).copied().unwrap_or(*round);
            }
            seal_load(load, chance)
        }
        Message::Rest { load } => seal_load(load, chance),
        Message::Contradiction { proof } => seal_proof(proof),
        Message::Audit { .. } | Message::Copy { .. } | Message::Copied { .. } => true,
    }
}

fn seal_load(load: &mut Load, chance: &mut Chance) -> bool {
    load.hints.iter_mut().for_each(seal_header);
    let mut good = true;
    for frame in &mut load.frames {
        good &= seal_shared(frame, chance);
    }
    good
}

fn seal_shared(frame: &mut Bytes, chance: &mut Chance) -> bool {
    let mut bytes = frame.to_vec();
    let good = seal_frame(&mut bytes, chance);
    *frame = Bytes::from(bytes);
    good
}

/// Two headers that contradict each other, signed; false when they do not.
pub fn seal_proof(proof: &mut Proof) -> bool {
    let [mut one, mut other] = proof.headers().map(|header| *header);
    seal_header(&mut one);
    seal_header(&mut other);
    Proof::of(one, other).map(|sealed| *proof = sealed).is_some()
}

/// Signs what is signed in a record. False when a frame in it is too broken for that.
pub fn seal_record(record: &mut Record, chance: &mut Chance) -> bool {
    match record {
        Record::Frame(frame) => seal_shared(frame, chance),
        Record::Proof(proof) => seal_proof(proof),
        Record::Base(base) => {
            seal_base(base);
            true
        }
        Record::Cut(_) | Record::Floor(_) | Record::Floors(_) | Record::Halt(_) | Record::Settled(..) => true,
    }
}

/// Signs a base's heads and proofs.
pub fn seal_base(base: &mut Base) {
    base.heads.iter_mut().for_each(seal_header);
    base.proofs.iter_mut().for_each(|proof| {
        seal_proof(proof);
    });
}
