//! Model checking of the real protocol core, with `stateright`: the very `Pbft` that the server runs is stepped through
//! every order in which letters may arrive (the normal case, with a primary that lies), and through millions of random
//! ones (view changes, restarts, and a liar who speaks whenever it likes). And the rules by which a segment ends are put
//! before every short history of an abstract Raft.
//!
//! Read `node` (one replica under the checker), then `cluster` (the model: what may happen next), then `liar`, then
//! `claims` (what must hold); for segments `sealing`, then `closing`. It knows nothing of clients, state or disks: those belong to the simulator.

pub mod claims;
pub mod closing;
pub mod cluster;
pub mod keys;
pub mod liar;
pub mod node;
pub mod run;
pub mod sealing;
