//! What the simulator's package tests as claims: single stories on the real cores, and the simulator's own promises.

mod mistakes;
mod simulator;
mod sync;
