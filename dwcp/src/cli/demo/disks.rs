//! What stopped nodes have on their disks, read without starting them: the last word on whether anything was lost.
//!
//! A node's log and snapshot are opened and replayed as at a start, but nothing is said to anybody, so no other node can
//! mend what is missing here. Used at the demo's end, and by `dwcp demo --judge` on a folder that `--keep` left.

use std::path::{Path, PathBuf};

use dwcp_base::Now;
use dwcp_node::{Node, NodeConfig};
use dwcp_state::kv::KvReply;

use super::story::{first_page, next_page};
use super::verify::{Holding, NodeView, Verdict};
use crate::cli::output::{Failure, Outcome};

/// One stopped node's disk.
pub fn read(name: String, config_file: &Path) -> Outcome<NodeView> {
    let config = NodeConfig::load(config_file)?;
    let replica = Node::read_stopped(&config)?;
    let status = replica.status(Now::default());
    let mut holding = Holding::new();
    let mut page = Some(first_page());
    while let Some(command) = page {
        let bytes = replica
            .state()
            .query(&command.to_command())
            .map_err(|error| Failure::refused(format!("{name} cannot be read: {error}")))?;
        page = next_page(KvReply::decode(&bytes)?, &mut holding)?;
    }
    let digest = (status.state_digest_sequence.0, hex::encode(status.state_digest.0));
    Ok(NodeView { name, on_disk: true, holding, digest })
}

/// All of them; a disk that cannot be read is a finding like any other.
pub fn read_all(config_files: &[PathBuf]) -> (Vec<NodeView>, Vec<String>) {
    let (mut views, mut unreadable) = (Vec::new(), Vec::new());
    for (number, config_file) in config_files.iter().enumerate() {
        match read(format!("the disk of node {number}"), config_file) {
            Ok(view) => views.push(view),
            Err(failure) => unreadable.push(format!("node {number}: {}", failure.message)),
        }
    }
    (views, unreadable)
}

/// A disk that cannot be read holds something else than the others do.
pub fn add_unreadable(verdict: &mut Verdict, unreadable: Vec<String>) {
    verdict.differences += unreadable.len() as u64;
    verdict.findings.extend(unreadable.into_iter().map(|what| format!("diverged: {what}")));
}

/// The settings files below a folder that the demo kept, by node.
pub fn config_files(kept: &Path) -> Outcome<Vec<PathBuf>> {
    let file = |node: u8| kept.join("cluster").join(format!("node{node}")).join("config.toml");
    let files: Vec<PathBuf> = (0..31).map(file).take_while(|file| file.exists()).collect();
    if files.is_empty() {
        let kept = kept.display();
        return Err(Failure::usage(format!(
            "{kept} holds no cluster: name a folder that `dwcp demo --keep` left"
        )));
    }
    Ok(files)
}
