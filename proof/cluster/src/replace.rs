//! The way back for a member whose disk is lost, as `dwcp member replace` goes it: new keys, the next incarnation, an
//! order signed by an admin, the client file rewritten. Nothing here starts a process.

use std::time::Instant;

use dwcp_base::crypto::Ed25519;
use dwcp_base::{Incarnation, ReplicaId};
use dwcp_client::{Client, ClientConfig, ClientFile, OrderOutcome};
use dwcp_log::{OperatorOrder, SignedMemberOrder};
use dwcp_node::init::replacement;

use crate::cluster::{Cluster, VIEW_TIMEOUT, set_setting};
use crate::error::Trouble;
use crate::process::Process;
use crate::watch::PATIENCE;

/// Replaces member `node`, whose process must not run, by its next incarnation on an empty disk at the same addresses.
/// Returns the sequence at which the cluster took it in.
///
/// # Errors
/// A disk that refuses, an order that is refused, or no answer to it in time.
pub async fn replace_member(cluster: &mut Cluster, node: usize) -> Result<u64, Trouble> {
    let view_timeout_ms = cluster.options().view_timeout_ms;
    let member = &cluster.members[node];
    assert!(!member.process.is_started(), "only a dead member is replaced");
    let (id, incarnation) = (ReplicaId(member.id), Incarnation(member.incarnation + 1));
    let folder = member.folder.with_file_name(format!("node{}-{incarnation}", member.id));
    let (peer, client) = (member.listen.peer.to_string(), member.listen.client.to_string());
    let made = replacement(&cluster.genesis_file, id, incarnation, &folder, &member.listen, &peer, &client)?;
    set_setting(&made.config_file, VIEW_TIMEOUT, view_timeout_ms)?;

    let unusable = |error: &dyn std::fmt::Display| Trouble::ClientFile(error.to_string());
    let admin = ClientConfig::read(&cluster.client_file, Some("admin")).map_err(|error| unusable(&error))?;
    let key = Ed25519::new(admin.principal.seed, &[]);
    let signed =
        SignedMemberOrder::new(made.order.clone(), admin.cluster, admin.principal.public_key(), &key);
    let bytes = dwcp_base::encode(&OperatorOrder::Member(signed));
    let from = submit(&Client::start(admin)?, &bytes).await?;

    let text =
        std::fs::read_to_string(&cluster.client_file).map_err(Trouble::io("cannot read client.toml"))?;
    let mut file: ClientFile = toml::from_str(&text).map_err(|error| unusable(&error))?;
    for entry in file.nodes.iter_mut().filter(|entry| entry.id == id.0) {
        entry.incarnation = incarnation.0;
        entry.vote_key = hex::encode(made.order.vote_key.0);
        entry.tls_key = Some(hex::encode(made.order.tls_key.0));
    }
    std::fs::write(&cluster.client_file, file.to_toml()).map_err(Trouble::io("cannot write client.toml"))?;

    let member = &mut cluster.members[node];
    let log = folder.join("node.log");
    member.process = Process::new(id.0, member.process.program.clone(), made.config_file, log);
    member.incarnation = incarnation.0;
    member.folder = folder;
    Ok(from)
}

async fn submit(client: &Client, order: &[u8]) -> Result<u64, Trouble> {
    let began = Instant::now();
    loop {
        match client.submit_order(None, order.to_vec().into()).await {
            Ok(OrderOutcome::Done { sequence }) => return Ok(sequence.0),
            Ok(OrderOutcome::Refused { reason }) => return Err(Trouble::Order(reason)),
            Err(error) if began.elapsed() > PATIENCE => return Err(Trouble::Order(error.to_string())),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
        }
    }
}
