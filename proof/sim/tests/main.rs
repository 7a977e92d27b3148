//! What the simulator's package tests as claims: single stories on the real cores, beside the histories that seeds make.

mod mistakes;
