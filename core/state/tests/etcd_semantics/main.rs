//! The replicated state against an independent, naive model of what it should do, and against hostile bytes.
//! `model` says what etcd's data model answers; `store` compares; `sessions` holds each command to running once;
//! `snapshots` compares a state with its restored copies; `hostile` feeds it rubbish.

mod differences;
mod hostile;
mod model;
#[cfg(feature = "mutants")]
mod mutants;
mod sessions;
mod snapshots;
mod store;

use bytes::Bytes;
use dwcp_base::configuration::{Member, Policy, Principal, Role, Trust};
use dwcp_base::{
    ClusterId, Crypto, Genesis, Hash, Incarnation, LogTime, Position, PublicKey, Quorum, ReplicaId, Sequence,
    Signature,
};
use dwcp_state::kv::{Kv, KvCommand, KvError, KvReply};
use dwcp_state::{
    CheckedFrame, ClientFrame, CommandResult, Context, FrozenMachine, Outcome, SessionFrame, SessionOpen,
    StateMachine,
};

pub const CLUSTER: ClusterId = ClusterId([7; 32]);
pub const BORN_MS: u64 = 1_000_000;

/// Execution never looks at signatures: the caller has verified them.
#[derive(Debug)]
pub struct Unsigned;

impl Crypto for Unsigned {
    fn sign(&self, _: &Hash) -> Signature {
        Signature([0; 64])
    }

    fn verify(&self, _: &PublicKey, _: &Hash, _: &Signature) -> bool {
        true
    }
}

pub fn key(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

/// Principals: `root` (admin, key 1), `ann` (writer, key 2), `eve` (reader, key 3).
pub fn genesis() -> Genesis {
    let quorum = Quorum::new(1, None).unwrap();
    let principal = |name: &str, byte, role| Principal { name: name.to_string(), key: key(byte), role };
    let genesis = Genesis {
        version: 1,
        name: "test".to_string(),
        created_unix_ms: BORN_MS,
        policy: Policy::root_only(Trust::Crash, quorum),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members: vec![Member {
            id: ReplicaId(0),
            incarnation: Incarnation(0),
            vote_key: key(200),
            tls_key: key(201),
            peer_address: String::new(),
            client_address: String::new(),
            votes_after: Sequence(0),
        }],
        principals: vec![
            principal("root", 1, Role::Admin),
            principal("ann", 2, Role::Writer),
            principal("eve", 3, Role::Reader),
        ],
        checkpoint_interval: 128,
        window: 256,
        quota_bytes: 1 << 30,
    };
    genesis.check().unwrap();
    genesis
}

pub fn open_frame(
    principal: &str,
    principal_key: u8,
    session: u8,
    ttl_ms: u64,
    valid_until_ms: u64,
) -> CheckedFrame {
    let open =
        SessionOpen { principal: principal.to_string(), session_key: key(session), ttl_ms, valid_until_ms };
    ClientFrame::decode(ClientFrame::open(&Unsigned, key(principal_key), CLUSTER, &open).encode()).unwrap()
}

pub fn frame(session: u8, low_water: u64, first: u64, commands: &[Bytes]) -> CheckedFrame {
    let frame = SessionFrame { session_key: key(session), low_water, first, commands: commands.to_vec() };
    ClientFrame::decode(ClientFrame::commands(&Unsigned, CLUSTER, &frame).encode()).unwrap()
}

pub fn put(key: &str, value: &str) -> Bytes {
    KvCommand::put(key.to_string(), value.to_string()).to_command()
}

pub fn reply(result: &CommandResult) -> KvReply {
    match &result.outcome {
        Outcome::Done(bytes) => KvReply::decode(bytes).unwrap(),
        Outcome::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

pub fn context(role: Role, expiry_ms: u64) -> Context<'static> {
    Context { position: Position(1), log_time: LogTime(BORN_MS), expiry_ms, principal: "root", role }
}

/// Runs one command on a bare store.
pub fn apply(kv: &mut Kv, command: &KvCommand, expiry_ms: u64) -> Result<KvReply, KvError> {
    match kv.apply(&context(Role::Admin, expiry_ms), &command.encode()) {
        Ok(bytes) => Ok(KvReply::decode(&bytes).unwrap()),
        Err(refusal) => Err(KvError::of(&refusal).expect("the store's refusals are typed")),
    }
}

pub fn kv_digests(kv: &mut Kv) -> Vec<Hash> {
    (0..kv.chunk_count()).map(|index| kv.chunk_digest(index)).collect()
}

/// A copy of a store made through its snapshot chunks, taken last to first.
pub fn kv_copy(kv: &mut Kv) -> Kv {
    let digests = kv_digests(kv);
    let frozen = kv.freeze();
    let mut copy = Kv::new(0);
    for index in (0..kv.chunk_count()).rev() {
        copy.restore_chunk(index, &frozen.chunk(index).unwrap(), &digests[index as usize]).unwrap();
    }
    copy.restore_finish().unwrap();
    copy
}
