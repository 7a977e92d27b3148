//! The laws that make a store a store: what was applied decides the state; order, grouping, repetition and gaps do not.
//! Claims about one type stand in the module of that type; `random` checks all of them at once.

mod bytes_in;
mod collection;
mod conflicts;
mod counters;
mod lists;
mod maps;
mod model;
mod random;
mod registers;
mod resolvers;
mod semilattice;
mod sets;
mod world;
