//! The root protocol: PBFT (Castro & Liskov, OSDI '99 and TOCS '02) as a deterministic machine without input or output.
//!
//! [`Pbft`] orders opaque payloads. It is told what time it is, hands out [`Action`]s in order, and never touches the
//! world; what payloads mean, what state they change and how snapshots travel is its caller's business.
//! Read `message`, then `state`, then the phases in the order a payload meets them: `normal`, `checkpoint`,
//! `view_change`, `new_view`, and `catchup` for whatever got lost. `docs/protocol/pbft.md` has the pictures.
#![no_std]

extern crate alloc;

pub mod catchup;
pub mod certificate;
mod check;
mod checkpoint;
pub mod config;
pub mod message;
pub mod new_view;
mod normal;
pub mod output;
pub mod record;
pub mod slot;
pub mod state;
mod step;
mod timer;
mod view_change;

pub use certificate::Configurations;
pub use config::{PbftSetup, Timing};
pub use message::{
    Certificate, Claim, Decided, Introduction, Message, NewView, PrePrepared, PreparedCertificate, Signed,
    SignedBody, SlotHeld, Standing, Statement, ViewChange, Vote, Voucher,
};
pub use output::{Action, Output};
pub use record::{NewViewProof, Record};
pub use state::{Application, Pbft};
