//! The list of targets. Whoever adds a decoder to the repository adds it here.

pub mod chunks;
pub mod disk;
pub mod entries;
pub mod files;
pub mod hints;
pub mod links;
pub mod messages;
pub mod raft;
pub mod replica;
pub mod rows;
pub mod state;
pub mod sync;
pub mod wire;

use crate::Target;

/// Every target, lightest first.
pub static ALL: &[&Target] = &[
    // What replicas say and keep.
    &messages::PEER_MESSAGE,
    &messages::RECORD,
    &messages::VIEW_CHANGE,
    &messages::NEW_VIEW,
    &messages::PROPOSAL,
    &entries::ROOT_ENTRY,
    &messages::OPERATOR_ORDER,
    &messages::SNAPSHOT_META,
    &messages::CONTROL,
    &messages::EXECUTED_REPLY,
    // What clients say.
    &state::CLIENT_FRAME,
    &state::COMMAND,
    &state::KV_COMMAND,
    &state::KV_REPLY,
    &state::RESULTS,
    &wire::CLIENT_MESSAGE,
    &wire::SERVER_MESSAGE,
    // What disks hold.
    &chunks::STATE_CHUNK,
    &disk::WAL_SEGMENT,
    &disk::MANIFEST,
    &rows::SNAPSHOT_ROWS,
    // Convergent state: what travels, what is kept, and a live engine.
    &sync::FRAME,
    &sync::MESSAGE,
    &sync::RECORD,
    &sync::BUNDLE,
    &sync::JSON,
    &sync::SNAPSHOT,
    &sync::LOG,
    &sync::NODE,
    // Who is where.
    &hints::MESSAGE,
    // A segment.
    &raft::MESSAGE,
    &raft::LOG,
    &raft::FOLLOWER,
    &raft::LEADER,
    // What people write.
    &files::GENESIS,
    &files::MEMBERS,
    &files::ORDER,
    &files::NODE,
    &files::CLIENT,
    &files::TXN,
    // A live replica.
    &replica::HEIR,
    &replica::BACKUP,
    &replica::SLEEPER,
    &replica::LOG,
    // A live link.
    &links::ACCEPTOR,
    &links::DIALLER,
];
