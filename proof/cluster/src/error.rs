//! What can go wrong around a run. A broken promise of the cluster is no error but a finding (`judgement`); here is what
//! keeps a run from being judged at all, or from ending.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the trial cluster cannot be made: {0}")]
    Init(#[from] dwcp_node::init::InitError),
    #[error("the client file cannot be used: {0}")]
    ClientFile(String),
    #[error("no client can be made: {0}")]
    Client(#[from] dwcp_client::ConnectError),
    #[error("node {node} ended by itself ({how}); its last words: {words}")]
    Ended { node: u8, how: String, words: String },
    /// Liveness: deadlines are so generous that a slow machine does not meet them.
    #[error("{what} after {seconds} s; the nodes' logs are below {}", folder.display())]
    Stuck { what: String, seconds: u64, folder: PathBuf },
    #[error("the member order was refused: {0}")]
    Order(String),
    #[error("no namespaces: {0}")]
    Namespaces(String),
    #[error("a client could not do its part: {0}")]
    Work(String),
}

impl Trouble {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
