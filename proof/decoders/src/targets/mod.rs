//! The list of targets. Whoever adds a decoder to the repository adds it here.

pub mod chunks;
pub mod disk;
pub mod entries;
pub mod files;
pub mod hints;
pub mod http;
pub mod links;
pub mod messages;
pub mod raft;
pub mod replica;
pub mod rows;
pub mod secrets;
pub mod state;
pub mod sync;
pub mod sync_api;
pub mod wire;

use crate::Target;

/// Every target. Decoders get as many damaged inputs as were asked for, live targets a part of them.
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
    &sync_api::REQUEST,
    &sync_api::ANSWER,
    // What disks hold.
    &chunks::STATE_CHUNK,
    &disk::WAL_SEGMENT,
    &disk::MANIFEST,
    &rows::SNAPSHOT_ROW,
    // Convergent state: what travels and what is kept.
    &sync::FRAME,
    &sync::MESSAGE,
    &sync::RECORD,
    &sync::BUNDLE,
    &sync::JSON,
    &sync::SNAPSHOT,
    // Who is where.
    &hints::MESSAGE,
    // A segment.
    &raft::MESSAGE,
    &raft::RECORD,
    // The first words on a link, and what follows.
    &links::HELLO_READ,
    &links::ANSWER_READ,
    // What people write.
    &files::GENESIS,
    &files::MEMBERS,
    &files::ORDER,
    &files::NODE,
    &files::CLIENT,
    &files::TXN,
    &secrets::VOTE_KEY,
    &secrets::TLS_PEM,
    // What is asked over plain HTTP.
    &http::SYNC_QUERY,
    &http::SYNC_STATE,
    &http::SYNC_WRITE,
    &http::ANSWER,
    // Who lives on with what was read: a state, a disk, an engine of convergent state, a member of a segment.
    &state::FRAME_EXECUTED,
    &state::KV_EXECUTED,
    &chunks::STATE_RESTORED,
    &disk::WAL_REOPENED,
    &rows::SNAPSHOT_ROWS,
    &sync::STORE,
    &sync::RESTORED,
    &sync::LOG,
    &sync::NODE,
    &raft::LOG,
    &raft::FOLLOWER,
    &raft::LEADER,
    &hints::TOLD,
    // A live replica.
    &replica::HEIR,
    &replica::BACKUP,
    &replica::SLEEPER,
    &replica::LOG,
    // A live link.
    &links::ACCEPTOR,
    &links::DIALLER,
];
