//! The client library: what an application imports to speak to a cluster of which f members may lie.
//!
//! It opens a session (a fresh key, named in an ordered open signed by a principal), numbers commands, packs what is
//! called together into signed frames, sends each frame to whom it presumes to order, and believes an answer once f + 1
//! different replicas have signed the same, or, where its configuration says that members only crash, one replica's word
//! that is labelled so. A frame is retried through other nodes under the same bytes, and the cluster
//! runs it once. A linearizable read costs no entry of the log where one node may be believed and a Raft segment is open: its
//! leader answers it. Where no answer can be believed in time, the error says whether the command was *not applied* or
//! its outcome is *unknown*.
//!
//! It learns neither keys nor whom to trust over the wire, and knows nothing of views beyond a
//! guess at the primary. Read `client`, then `engine`, then `trust`.

mod client;
mod config;
mod config_file;
mod connection;
mod driver;
mod engine;
mod error;
mod kv;
mod nodes;
mod reads;
mod receipt;
mod session;
#[cfg(test)]
mod socket_tests;
mod status;
mod sync;
mod sync_convert;
mod trust;

pub use client::{CallOptions, Client, ConnectError, NodeReport, Session};
pub use config::{ClientConfig, ConfigError, NodeConfig, PrincipalConfig, Settings};
pub use config_file::{
    CLIENT_FILE_VERSION, CLIENT_SETTINGS, ClientFile, ClientFileError, ClientSetting, NodeEntry,
    PrincipalEntry, SettingsEntry, TrustWord, client_settings_markdown, client_settings_table,
};
pub use engine::Counters;
pub use error::{ClientError, NodeError};
pub use kv::{
    AlarmReply, DeleteReply, GrantReply, Kv, KvRequest, LeaseReply, PutReply, RangeReply, Request,
    RevisionReply, TxnReply,
};
pub use receipt::{Believed, OwnState, Receipt, label_word};
pub use status::{HintStatus, HintsStatus};
pub use sync::{
    SyncClient, SyncCompared, SyncConflict, SyncConflicts, SyncError, SyncStanding, SyncValue, SyncWatch,
};

/// What a client makes of the messages of nodes that may lie, and asks with: pure, for whoever judges that without a socket.
pub mod reading {
    pub use crate::status::{hints, status};
    pub use crate::sync_convert::{
        changes, compared, conflicts, keys, operation, standing, value, view, written,
    };
}

/// The vocabulary of commands and answers, so that applications need no other crate.
pub use dwcp_base::{Ack, ClusterId, Incarnation, NetworkMode, Position, PublicKey, ReplicaId, Trust, View};
pub use dwcp_replica::sync::{Road, SyncPeerStatus, SyncStatus, SyncWritten, values};
pub use dwcp_replica::{Label, OrderOutcome, Status};
pub use dwcp_state::{AdminCommand, AdminReply, Command, Fate, Refusal, kv as store};
