//! Key files: secret ones that only their owner can read, and the hexadecimal form of public ones.
//!
//! A vote key (and a principal's key) is a file of one line: 64 hexadecimal digits, the Ed25519 seed. A TLS key is PEM.
//! Files are created, never overwritten; secret bytes are never printed, not even by `Debug`.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dwcp_base::PublicKey;
use dwcp_base::crypto::Ed25519;
use dwcp_transport::{IdentityError, TlsIdentity};
use serde::{Deserialize, Deserializer};

/// A larger file is not a key.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read key file {}: {source}; `dwcp init` and `dwcp keygen` write key files", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("key file {} can be read by others (mode {mode:o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("key file {} does not hold one line of 64 hexadecimal digits: make one with `dwcp keygen`", path.display())]
    NotASeed { path: PathBuf },
    #[error("key file {}: {source}", path.display())]
    Tls { path: PathBuf, source: IdentityError },
    #[error("{} exists already and is not overwritten: choose an empty folder, or move it away", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("the system gives no randomness for keys: {0}")]
    NoRandomness(String),
}

/// The secret half of an Ed25519 key.
#[derive(Clone)]
pub struct SecretSeed([u8; 32]);

impl fmt::Debug for SecretSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretSeed(of {:?})", self.public_key())
    }
}

impl SecretSeed {
    /// # Errors
    /// A system without randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| KeyError::NoRandomness(error.to_string()))?;
        Ok(Self(seed))
    }

    pub fn public_key(&self) -> PublicKey {
        Ed25519::new(self.0, &[]).public_key()
    }

    /// Signs with this key; `known` keys are decompressed once.
    pub fn signer(&self, known: &[PublicKey]) -> Ed25519 {
        Ed25519::new(self.0, known)
    }

    /// # Errors
    /// A file that is missing, readable by others, or not a seed.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::parse(path, &read_secret(path)?)
    }

    /// Reads a seed from text; `path` names it in refusals.
    ///
    /// # Errors
    /// What is not a seed.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| KeyError::NotASeed { path: path.into() })?;
        Ok(Self(seed))
    }

    /// # Errors
    /// A file that exists already, or a disk that refuses it.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        write_new(path, format!("{}\n", hex::encode(self.0)).as_bytes(), 0o600)
    }
}

/// Reads the TLS key of this node's links.
///
/// # Errors
/// A file that is missing, readable by others, or no Ed25519 key.
pub fn read_tls_identity(path: &Path) -> Result<TlsIdentity, KeyError> {
    parse_tls_identity(path, &read_secret(path)?)
}

/// Reads a TLS key from PEM; `path` names it in refusals.
///
/// # Errors
/// What is no Ed25519 key.
pub fn parse_tls_identity(path: &Path, pem: &str) -> Result<TlsIdentity, KeyError> {
    TlsIdentity::from_pkcs8_pem(pem).map_err(|source| KeyError::Tls { path: path.into(), source })
}

/// 64 hexadecimal digits.
pub fn key_hex(key: &PublicKey) -> String {
    hex::encode(key.0)
}

/// A public key as it stands in a TOML file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HexKey(pub(crate) PublicKey);

impl<'de> Deserialize<'de> for HexKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut key = [0; 32];
        hex::decode_to_slice(&text, &mut key)
            .map_err(|_| serde::de::Error::custom("a public key is 64 hexadecimal digits"))?;
        Ok(Self(PublicKey(key)))
    }
}

fn read_secret(path: &Path) -> Result<String, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.into(), mode });
    }
    if metadata.len() > KEY_FILE_BYTES_MAX {
        return Err(KeyError::NotASeed { path: path.into() });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// Creates a file with these bytes, durable when this returns. What exists already is refused.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let unwritable = |source| KeyError::Unwritable { path: path.into(), source };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(KeyError::Exists { path: path.into() });
        }
        Err(source) => return Err(unwritable(source)),
    };
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(unwritable)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_file_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vote.key");
        let seed = SecretSeed::generate().unwrap();
        seed.write_new(&path).unwrap();
        assert_eq!(SecretSeed::read(&path).unwrap().public_key(), seed.public_key());
        assert!(matches!(seed.write_new(&path), Err(KeyError::Exists { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_secret_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vote.key");
        SecretSeed::generate().unwrap().write_new(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = SecretSeed::read(&path).unwrap_err().to_string();
        assert!(error.ends_with(&format!("(mode 644): run `chmod 600 {}`", path.display())), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_and_no_secret_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vote.key");
        write_new(&path, b"feed", 0o600).unwrap();
        assert!(matches!(SecretSeed::read(&path), Err(KeyError::NotASeed { .. })));
        assert!(matches!(read_tls_identity(&path), Err(KeyError::Tls { .. })));
        assert!(matches!(SecretSeed::read(&folder.path().join("none")), Err(KeyError::Unreadable { .. })));
        let seed = SecretSeed([0xab; 32]);
        assert!(!format!("{seed:?}").contains("abab"));
    }
}
