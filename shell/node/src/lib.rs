//! The runtime of one node.
pub mod genesis_file;
pub mod keys;
pub mod settings;
