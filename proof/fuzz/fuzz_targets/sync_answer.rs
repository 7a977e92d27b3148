//! See the target of this name in `decoders`.
#![no_main]

dwcp_fuzz::target!("sync_answer");
