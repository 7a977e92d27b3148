//! Where a member says that it can be reached: a record that it signs with the key of its votes, so that nobody else can send
//! the others into the void.

use alloc::string::String;

use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{ClusterId, Crypto, Hash, Incarnation, PublicKey, ReplicaId, Signature, SigningKind};
use dwcp_base::{encode, signing_hash};

use crate::wire::Identity;

/// Bytes of an address. A host name has at most 253.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Why a record is not believed, whoever brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    BadAddress,
    BadSignature,
}

/// What a member says of itself. Of two of one incarnation the one with the greater version holds.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Record {
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    /// Its owner counts up with each start, each new address, and each time others took it for dead.
    pub version: u64,
    /// `host:port` for the other replicas.
    pub address: String,
    /// By the owner's vote key, under a domain of its own that names the cluster.
    pub signature: Signature,
}

impl Record {
    /// The record of the replica whose key `crypto` signs with.
    #[must_use]
    pub fn sign(crypto: &dyn Crypto, cluster: ClusterId, identity: Identity, address: String) -> Self {
        let hash = signed_hash(cluster, identity, &address);
        let Identity { replica, incarnation, version } = identity;
        Self { replica, incarnation, version, address, signature: crypto.sign(&hash) }
    }

    /// Did the holder of this key say so, in this cluster?
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(
        &self,
        crypto: &dyn Crypto,
        cluster: ClusterId,
        key: &PublicKey,
    ) -> Result<(), RecordFault> {
        if !check_address(&self.address) {
            return Err(RecordFault::BadAddress);
        }
        let hash = signed_hash(cluster, self.identity(), &self.address);
        match crypto.verify(key, &hash, &self.signature) {
            true => Ok(()),
            false => Err(RecordFault::BadSignature),
        }
    }

    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { replica: self.replica, incarnation: self.incarnation, version: self.version }
    }

    /// Whether this one replaces `other`, which is of the same replica. An owner that signs two with one version gets the
    /// greater address everywhere, whichever came first.
    pub(crate) fn replaces(&self, other: &Self) -> bool {
        let rank = |record: &Self| (record.incarnation, record.version);
        (rank(self), &self.address) > (rank(other), &other.address)
    }
}

fn signed_hash(cluster: ClusterId, identity: Identity, address: &str) -> Hash {
    signing_hash(SigningKind::AddressRecord, cluster, &encode(&(identity, address)))
}

/// Is this a `host:port` that may travel?
#[must_use]
pub fn check_address(address: &str) -> bool {
    let printable = address.bytes().all(|byte| byte.is_ascii_graphic());
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let port_fits = port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+');
    address.len() <= ADDRESS_BYTES_MAX && printable && !host.is_empty() && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port_and_an_end() {
        for good in ["10.0.0.1:7000", "[::1]:1", "node-1.example:65535"] {
            assert!(check_address(good), "{good}");
        }
        let long = alloc::format!("{}:7000", "h".repeat(ADDRESS_BYTES_MAX));
        for bad in
            ["", ":7000", "host", "host:", "host:0", "host:65536", "host:+1", "ho st:1", "h\u{e9}:1", &long]
        {
            assert!(!check_address(bad), "{bad}");
        }
    }
}
