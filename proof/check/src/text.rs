//! How bytes, digests and sessions are spelled in journal files: lower-case hexadecimal strings.
//!
//! JSON has no bytes and its numbers end at 64 bits, so both become text. Also the short form used in findings, where a person reads
//! it. Nothing here knows what the bytes mean.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Longest stretch of a key or value that is shown in a finding.
const SHOWN_BYTES_MAX: usize = 48;

pub mod bytes {
    use super::*;

    pub fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

pub mod digest {
    use super::*;

    pub fn serialize<S: Serializer>(value: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    pub(super) fn parse(text: &str) -> Result<[u8; 32], String> {
        let bytes = hex::decode(text).map_err(|error| error.to_string())?;
        bytes.try_into().map_err(|_| "a digest has 64 hexadecimal digits".to_string())
    }
}

pub mod optional_digest {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(digest) => serializer.serialize_some(&hex::encode(digest)),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| digest::parse(&text).map_err(D::Error::custom))
            .transpose()
    }
}

pub mod session {
    use super::*;

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(D::Error::custom)
    }
}

/// A key or value for a person: printable ASCII as it is, the rest escaped, cut when long.
pub(crate) fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let cut = if shown.len() < bytes.len() { "..." } else { "" };
    format!("\"{}{cut}\"", shown.escape_ascii())
}

/// The first eight digits of a digest, enough to tell two apart in a finding.
pub(crate) fn short(digest: &[u8; 32]) -> String {
    hex::encode(&digest[..4])
}
