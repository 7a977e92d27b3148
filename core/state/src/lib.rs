//! The replicated state: who may speak (principals), who is speaking (sessions), what time the log says it is, and the
//! state machine that commands change. One deterministic value; equal inputs in equal order give equal digests.
//!
//! This crate computes and nothing else. It knows nothing of replicas, views, messages or disks: it is handed entries of
//! the virtual log in order and hands back results. Whether a signature is good is for the caller to verify, with
//! [`frame::CheckedFrame::signature_item`]. Read `frame`, then `state`, then `machine`, then `kv`.
#![no_std]

extern crate alloc;

pub mod attach;
pub mod carried;
mod command;
pub mod frame;
pub mod kv;
pub mod machine;
pub mod outcome;
pub mod principal;
pub mod session;
pub mod snapshot;
pub mod state;

pub use attach::{CHALLENGE_BYTES, SessionAttach};
pub use carried::{Carried, Writer};
pub use command::{AdminCommand, AdminReply, CLUSTER_VERSION_MAX, Command};
pub use frame::{
    CheckedFrame, ClientFrame, FrameContent, FrameError, OpenReply, SessionFrame, SessionId, SessionOpen,
};
pub use machine::{Context, FrozenMachine, MachineRefusal, QueryError, Small, SmallMachine, StateMachine};
pub use outcome::{Admission, CommandResult, Fate, FrameOutcome, Outcome, Refusal};
pub use principal::PrincipalError;
pub use session::SESSION_BUCKETS;
pub use snapshot::{FrozenState, RestoreError, Restorer, SnapshotError};
pub use state::{State, state_digest};
