//! Seeds: addresses at which members may be found. An address proves nothing; the key that answers there does. Whoever
//! shows a member's key is reached at that address from now on, and anybody else is left alone.

use dwcp_base::ReplicaId;
use dwcp_client::{Client, ClientConfig, ConfigError, NodeError};
use tokio::task::JoinSet;

/// An address that was given, and whom it turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub address: String,
    /// The member that proved its key there, or why there is none.
    pub member: Result<ReplicaId, String>,
}

/// Asks every seed who it is, all at once, and writes the addresses of those that are members into `config`. The keys in it
/// stay as they are: they are what a seed is measured by.
pub(super) async fn ask(config: &mut ClientConfig, seeds: &[String]) -> Vec<Seed> {
    let mut asked = JoinSet::new();
    for (place, address) in seeds.iter().enumerate() {
        let (config, address) = (config.clone(), address.clone());
        asked.spawn(async move { (place, Seed { member: who(config, &address).await, address }) });
    }
    let mut found = asked.join_all().await;
    found.sort_by_key(|(place, _)| *place);
    let found: Vec<Seed> = found.into_iter().map(|(_, seed)| seed).collect();
    for seed in &found {
        match &seed.member {
            Ok(member) => {
                let node = config.nodes.iter_mut().find(|node| node.id == *member);
                node.expect("only members are asked for").address.clone_from(&seed.address);
            }
            Err(reason) => {
                tracing::warn!(address = seed.address, reason, "a seed is no member that can be reached")
            }
        }
    }
    found
}

/// Whose key is it? The address is dialled once as each member, pinned to that member's key: at most one succeeds, and the
/// status that comes back over that link is that member's.
async fn who(mut config: ClientConfig, address: &str) -> Result<ReplicaId, String> {
    for node in &mut config.nodes {
        if node.tls_key.is_none() {
            return Err(format!("node {} has no tls_key, so nobody could prove to be it", node.id));
        }
        node.address = address.into();
    }
    config.check().map_err(|error: ConfigError| error.to_string())?;
    let client = Client::start(config).map_err(|error| error.to_string())?;
    let mut last = String::from("nobody answers");
    for report in client.status_all().await {
        match report.status {
            Ok(status) => return Ok(status.replica),
            Err(NodeError::Unreachable(reason)) => last = reason,
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
