//! What clients send: numbered writes of 256 bytes in signed frames, the same bytes for both sides. And what both sides are
//! born with: one genesis, one set of keys.

use crate::world::{NODES, NOON_MS};
use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    ClusterId, Crypto, Genesis, Hash, Incarnation, Member, NetworkMode, Policy, PublicKey, Quorum, ReplicaId,
    Sequence, Signature, Trust,
};
use dwcp_state::kv::KvCommand;
use dwcp_state::{ClientFrame, Command, SessionFrame, SessionOpen};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const VALUE_BYTES: usize = 256;
const KEYS: u64 = 100_000;
pub const QUOTA_BYTES: u64 = 8 << 30;

fn seed(kind: u8, id: u64) -> [u8; 32] {
    let mut seed = [kind; 32];
    seed[..8].copy_from_slice(&id.to_le_bytes());
    seed
}

fn key(kind: u8, id: u64) -> PublicKey {
    Ed25519::new(seed(kind, id), &[]).public_key()
}

/// Three members in one datacenter that trust one another, with the bounds that `dwcp init` writes.
pub fn genesis() -> Arc<Genesis> {
    let member = |id: u8| Member {
        id: ReplicaId(id),
        incarnation: Incarnation(0),
        vote_key: key(1, id.into()),
        tls_key: key(2, id.into()),
        peer_address: format!("h{id}:1"),
        client_address: format!("h{id}:2"),
        votes_after: Sequence::ZERO,
    };
    let genesis = Genesis {
        version: 1,
        name: "bench".into(),
        created_unix_ms: NOON_MS,
        policy: Policy::new(Trust::Crash, Quorum::new(NODES.into(), None).expect("three")),
        mode: NetworkMode::Datacenter,
        calm_ms: 500,
        members: (0..NODES).map(member).collect(),
        principals: vec![Principal { name: "admin".into(), key: key(3, 0), role: Role::Admin }],
        checkpoint_interval: 128,
        window: 512,
        quota_bytes: QUOTA_BYTES,
    };
    genesis.check().expect("a good genesis");
    Arc::new(genesis)
}

/// Ed25519, but for the signatures of these clients where they are taken out of the measurement.
#[derive(Debug)]
struct Trusting {
    own: Ed25519,
    clients: BTreeSet<PublicKey>,
}

impl Crypto for Trusting {
    fn sign(&self, message: &Hash) -> Signature {
        self.own.sign(message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        self.clients.contains(key) || self.own.verify(key, message, signature)
    }

    fn verify_all(&self, items: &[(PublicKey, Hash, Signature)]) -> bool {
        let others: Vec<_> = items.iter().filter(|(key, ..)| !self.clients.contains(key)).copied().collect();
        self.own.verify_all(&others)
    }
}

/// Clients with a session each.
pub struct Clients {
    cluster: ClusterId,
    sessions: Vec<(Ed25519, u64)>,
    commands: u64,
    checked: bool,
}

impl Clients {
    /// `checked`: whether nodes verify what these clients sign.
    pub fn new(genesis: &Genesis, count: usize, checked: bool) -> Self {
        let session = |id: usize| (Ed25519::new(seed(9, id as u64), &[]), 1);
        let sessions = (0..count).map(session).collect();
        Self { cluster: genesis.cluster(), sessions, commands: 0, checked }
    }

    /// What a node signs and verifies with.
    pub fn crypto(&self, genesis: &Genesis, id: u8) -> Arc<dyn Crypto> {
        let known: Vec<PublicKey> = genesis.members.iter().map(|member| member.vote_key).collect();
        let own = Ed25519::new(seed(1, id.into()), &known);
        if self.checked {
            return Arc::new(own);
        }
        let clients = self.sessions.iter().map(|(crypto, _)| crypto.public_key()).collect();
        Arc::new(Trusting { own, clients })
    }

    pub fn opens(&self, wall_ms: u64) -> Vec<Bytes> {
        let admin = Ed25519::new(seed(3, 0), &[]);
        let open = |(crypto, _): &(Ed25519, u64)| {
            let open = SessionOpen {
                principal: "admin".into(),
                session_key: crypto.public_key(),
                ttl_ms: 0,
                valid_until_ms: wall_ms + 30_000,
            };
            ClientFrame::open(&admin, admin.public_key(), self.cluster, &open).encode()
        };
        self.sessions.iter().map(open).collect()
    }

    /// One frame of every client.
    pub fn burst(&mut self, commands: usize) -> Vec<Bytes> {
        let Self { cluster, sessions, commands: counted, .. } = self;
        let frame = |(crypto, next): &mut (Ed25519, u64)| {
            let commands: Vec<Bytes> = (0..commands)
                .map(|_| {
                    *counted += 1;
                    put(*counted)
                })
                .collect();
            let first = *next;
            *next += commands.len() as u64;
            let frame = SessionFrame { session_key: crypto.public_key(), low_water: first, first, commands };
            ClientFrame::commands(crypto, *cluster, &frame).encode()
        };
        sessions.iter_mut().map(frame).collect()
    }
}

fn put(number: u64) -> Bytes {
    let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    let mut value = vec![7; VALUE_BYTES];
    value[..8].copy_from_slice(&number.to_le_bytes());
    Command::Machine(KvCommand::put(format!("{key:016x}"), value).encode()).encode()
}
