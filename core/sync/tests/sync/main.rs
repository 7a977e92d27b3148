//! What a replica's sync promises: alone against crafted messages (`frames`, `border`, `liars`, `floors`, `restart`, `repairs`), and in small
//! networks that lose, delay, double and reorder, judged by the model of `core/crdt`'s own tests (`histories`). `mutants`
//! shows that the rules matter.

mod accusing;
mod audits;
mod border;
mod ending;
mod floors;
mod frames;
mod histories;
mod liars;
#[path = "../../../crdt/tests/laws/model.rs"]
mod model;
#[cfg(feature = "mutants")]
mod mutants;
mod net;
mod reaching;
mod repairs;
mod restart;
mod world;
