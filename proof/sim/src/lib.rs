//! The simulator: one seed in, one whole cluster history out, in virtual time, judged.
//!
//! It drives the real replica core exactly as the server does and owns everything around it: network, disks, clocks,
//! clients, liars, the operator. It knows nothing of how the core decides; what is right is for the judges in
//! `proof/check`. Read `world`, then `driver`, then `faults`; `ending` for what is demanded; `docs/testing.md` for use.

pub mod client;
pub mod convergent;
pub mod coverage;
pub mod dials;
pub mod disk;
pub mod driver;
pub mod ending;
pub mod false_frames;
pub mod false_words;
pub mod faults;
pub mod held_back;
pub mod image;
pub mod keys;
pub mod leases;
pub mod mutants;
pub mod net;
pub mod node;
pub mod observe;
pub mod operator;
pub mod puppet;
pub mod reads;
pub mod room_hunts;
pub mod runner;
pub mod scenario;
pub mod segment_hunts;
pub mod segments;
pub mod shrink;
pub mod store;
pub mod sync;
pub mod trace;
pub mod translate;
pub mod trick;
pub mod workload;
pub mod world;
