//! The way back for a member whose disk was lost: new keys, the next incarnation, and an order that an admin signs.
//!
//! What is written on the new host is useless until the cluster has executed the signed order; what is signed names
//! nothing secret, so it can be carried to wherever the admin's key is (`order.toml`).

use std::path::{Path, PathBuf};

use dwcp_base::{Incarnation, ReplicaId};
use dwcp_log::MemberOrder;
use serde::Deserialize;

use super::{InitError, Listen, make_folder, make_member_keys, member_of, prepare};
use crate::genesis_file::{GenesisError, is_host_and_port, parse, quoted, read_genesis, read_text};
use crate::keys::{HexKey, key_hex, write_new};

const ORDER_FILE: &str = "order.toml";

/// A member's next incarnation, as made on its new host.
#[derive(Clone, Debug)]
pub struct Replacement {
    pub order: MemberOrder,
    /// The same order as a file, for the admin.
    pub order_file: PathBuf,
    pub config_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderFile {
    id: u8,
    incarnation: u32,
    vote_key: HexKey,
    tls_key: HexKey,
    peer_address: String,
    client_address: String,
}

/// Makes keys, settings and data directory of `incarnation` of member `id` in `folder`, and the order that puts it in
/// force. `incarnation` is the one in force plus one (`dwcp status` shows it). The addresses are those by which others
/// will reach it.
///
/// # Errors
/// A member or incarnation that cannot be, or anything that exists in `folder` already.
pub fn replacement(
    genesis_file: &Path,
    id: ReplicaId,
    incarnation: Incarnation,
    folder: &Path,
    listen: &Listen,
    peer_address: &str,
    client_address: &str,
) -> Result<Replacement, InitError> {
    let genesis = read_genesis(genesis_file)?;
    member_of(&genesis, id)?;
    if incarnation == Incarnation(0) {
        return Err(InitError::NotAReplacement);
    }
    for address in [peer_address, client_address] {
        if !is_host_and_port(address) {
            return Err(InitError::NotAnAddress { address: address.into() });
        }
    }
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(InitError::Exists { path: folder.into() });
    }
    make_folder(folder)?;
    let (vote_key, tls_key) = make_member_keys(folder)?;
    let order = MemberOrder {
        id,
        incarnation,
        vote_key,
        tls_key,
        peer_address: peer_address.into(),
        client_address: client_address.into(),
    };
    let order_file = folder.join(ORDER_FILE);
    write_new(&order_file, order_text(&order).as_bytes(), 0o644)?;
    let genesis_path = std::path::absolute(genesis_file)
        .map_err(|source| InitError::Folder { path: genesis_file.into(), source })?;
    let config_file = prepare(&genesis, &genesis_path.to_string_lossy(), id, incarnation, folder, listen)?;
    Ok(Replacement { order, order_file, config_file })
}

/// Reads an order that [`replacement`] wrote.
///
/// # Errors
/// What is not such a file.
pub fn read_order(path: &Path) -> Result<MemberOrder, GenesisError> {
    parse_order(path, &read_text(path, "`dwcp member replace --prepare-only` writes an order.toml")?)
}

/// Reads an order from text; `path` names it in refusals.
///
/// # Errors
/// As [`read_order`].
pub fn parse_order(path: &Path, text: &str) -> Result<MemberOrder, GenesisError> {
    let file: OrderFile = parse(path, text)?;
    // The cluster does not judge addresses: a member that nobody reaches would be in force.
    for address in [&file.peer_address, &file.client_address] {
        if !is_host_and_port(address) {
            let what = format!("\"{address}\" is no address: write HOST:PORT");
            return Err(GenesisError::Impossible { path: path.into(), what }.with_line(text));
        }
    }
    Ok(MemberOrder {
        id: ReplicaId(file.id),
        incarnation: Incarnation(file.incarnation),
        vote_key: file.vote_key.0,
        tls_key: file.tls_key.0,
        peer_address: file.peer_address,
        client_address: file.client_address,
    })
}

fn order_text(order: &MemberOrder) -> String {
    format!(
        "# Replaces the lost disk of replica {id}. In force once an admin of the cluster has signed and sent it.\n\
         id = {id}\n\
         incarnation = {incarnation}\n\
         vote_key = \"{vote}\"\n\
         tls_key = \"{tls}\"\n\
         peer_address = {peer}\n\
         client_address = {client}\n",
        id = order.id,
        incarnation = order.incarnation,
        vote = key_hex(&order.vote_key),
        tls = key_hex(&order.tls_key),
        peer = quoted(&order.peer_address),
        client = quoted(&order.client_address),
    )
}
