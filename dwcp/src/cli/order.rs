//! Orders of the operator on their way in: whose key signs them, and how mode and policy orders are numbered.
//!
//! Each mode or policy order names the number after the last one, so that none can be repeated and two operators cannot
//! undo each other unseen. What an order does is the cluster's; `mode.rs`, `policy.rs` and `member.rs` say which.

use std::path::Path;

use dwcp_base::Trust;
use dwcp_base::crypto::Ed25519;
use dwcp_client::{ClientConfig, ClientFile, Status};
use dwcp_log::order::OrderBody;
use dwcp_log::{OperatorOrder, SignedOrder};

use super::cluster::{ClusterArgs, Link, runtime};
use super::output::{Failure, Kind, Outcome};

/// How the core refuses a number that is not the next.
const OVERTAKEN: &str = "another mode or policy order was executed first";

/// The configuration of a principal that may order this.
pub fn admin(cluster: &ClusterArgs) -> Outcome<ClientConfig> {
    if cluster.speaks_as_named() {
        return cluster.config();
    }
    let path = cluster.file()?;
    let client = read_client(&path)?;
    let admin = client.principals.iter().find(|principal| principal.role.as_deref() == Some("admin"));
    let admin = admin.ok_or_else(|| {
        Failure::refused(format!("{} lists no principal with role admin: name one with --as", path.display()))
    })?;
    cluster.config_as(&admin.name)
}

/// Signs as the principal of this configuration.
pub fn sign<O: OrderBody>(config: &ClientConfig, order: O) -> SignedOrder<O> {
    let key = Ed25519::new(config.principal.seed, &[]);
    SignedOrder::new(order, config.cluster, config.principal.public_key(), &key)
}

/// What became of a numbered order.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub number: u64,
    /// In force from this sequence of the root log on.
    pub sequence: u64,
}

/// Hands in the order that `make` signs under the next number, as the cluster stands; once more if another operator was
/// quicker.
pub fn submit_numbered(
    cluster: &ClusterArgs,
    make: impl Fn(&ClientConfig, &Status) -> Outcome<OperatorOrder>,
) -> Outcome<Done> {
    let config = admin(cluster)?;
    runtime()?.block_on(async {
        let link = Link::connect(config.clone())?;
        let mut retried = false;
        loop {
            let status = standing(&config, link.statuses().await)?;
            let order = make(&config, &status)?;
            // A node that is behind would take the next number for a wrong one.
            match link.order(Some(status.replica), &order).await {
                Ok(sequence) => return Ok(Done { number: status.next_order, sequence }),
                Err(failure) if !retried && failure.message.contains(OVERTAKEN) => retried = true,
                Err(failure) => return Err(failure),
            }
        }
    })
}

/// How the cluster stands, by the word of the node that knows most orders; where members may lie, of one that f others
/// outdo or equal.
pub fn standing(config: &ClientConfig, nodes: Vec<(u8, Result<Status, String>)>) -> Outcome<Status> {
    let mut known: Vec<Status> = nodes.into_iter().filter_map(|(_, status)| status.ok()).collect();
    known.sort_by_key(|status| std::cmp::Reverse((status.next_order, status.executed.0)));
    let outdone = if config.trust == Trust::Crash { 0 } else { usize::from(config.f) };
    if known.is_empty() {
        return Err(Failure::new(
            Kind::Unreachable,
            "no node answers: are they started (`dwcp server --config ...`), and is the client file theirs?",
        ));
    }
    let chosen = outdone.min(known.len() - 1);
    Ok(known.swap_remove(chosen))
}

/// Reads the client file as it is written, without its keys.
pub fn read_client(path: &Path) -> Outcome<ClientFile> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::refused(format!("cannot read {}: {error}; `dwcp init` writes a client.toml", path.display()))
    })?;
    toml::from_str(&text)
        .map_err(|error| Failure::refused(format!("{}: {}", path.display(), error.message())))
}

/// Rewrites the client file after an order, whole or not at all.
pub fn write_client(path: &Path, client: &ClientFile) -> Outcome {
    let new = path.with_extension("toml.new");
    std::fs::write(&new, client.to_toml()).and_then(|()| std::fs::rename(&new, path)).map_err(|error| {
        Failure::refused(format!("the order is in force, but {} is not updated: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::blank_status;
    use dwcp_base::ReplicaId;
    use dwcp_client::PrincipalConfig;

    #[test]
    fn one_liar_cannot_choose_the_number_of_an_order() {
        let config = |trust| ClientConfig {
            cluster: dwcp_client::ClusterId([1; 32]),
            trust,
            f: 1,
            nodes: Vec::new(),
            principal: PrincipalConfig { name: "admin".into(), seed: [1; 32] },
            settings: dwcp_client::Settings::default(),
        };
        let node = |id: u8, next_order: u64| (id, Ok(Status { next_order, ..blank_status(ReplicaId(id)) }));
        let nodes = || vec![node(0, 4), (1, Err("gone".into())), node(2, u64::MAX), node(3, 5)];
        let next = |trust| standing(&config(trust), nodes()).unwrap().next_order;
        assert_eq!(next(Trust::Byzantine), 5);
        assert_eq!(next(Trust::Crash), u64::MAX, "where nobody lies the furthest is right");
        let alone = standing(&config(Trust::Byzantine), vec![node(0, 7)]).unwrap();
        assert_eq!(alone.next_order, 7, "all there is; the nodes judge the number");
        let none = standing(&config(Trust::Crash), vec![(0, Err("gone".into()))]).unwrap_err();
        assert_eq!(none.kind, Kind::Unreachable);
    }
}
