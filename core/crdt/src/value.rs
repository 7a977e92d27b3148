//! What users put in and get out: plain values, the kinds of typed values, and what a read shows.
//!
//! JSON is kept as the text it came in: numbers are never rounded, and equal means equal bytes.

use crate::json;
use crate::limits::VALUE_BYTES_MAX;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;

/// A value that is replaced as a whole: register content, set element, list item.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plain(pub(crate) PlainForm);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PlainForm {
    /// Checked to be one JSON document.
    Json(Bytes),
    Bytes(Bytes),
}

/// Why a plain value was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainError {
    TooLong { bytes: usize },
    NotJson { at_byte: usize },
}

impl fmt::Display for PlainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => write!(
                f,
                "{bytes} bytes exceed the {VALUE_BYTES_MAX} bytes of one value: split it over several keys"
            ),
            Self::NotJson { at_byte } => {
                write!(f, "not a JSON document (byte {at_byte}): correct it or store it as bytes")
            }
        }
    }
}

impl core::error::Error for PlainError {}

impl Plain {
    /// A JSON document, checked.
    ///
    /// # Errors
    /// When it is too long, nests deeper than 64 levels, or is not JSON (RFC 8259).
    pub fn json(text: &str) -> Result<Self, PlainError> {
        Self::json_bytes(Bytes::copy_from_slice(text.as_bytes()))
    }

    pub(crate) fn json_bytes(text: Bytes) -> Result<Self, PlainError> {
        if text.len() > VALUE_BYTES_MAX {
            return Err(PlainError::TooLong { bytes: text.len() });
        }
        json::check(&text).map_err(|at_byte| PlainError::NotJson { at_byte })?;
        Ok(Self(PlainForm::Json(text)))
    }

    /// Opaque bytes.
    ///
    /// # Errors
    /// When there are too many.
    pub fn bytes(bytes: impl Into<Bytes>) -> Result<Self, PlainError> {
        let bytes = bytes.into();
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(PlainError::TooLong { bytes: bytes.len() });
        }
        Ok(Self(PlainForm::Bytes(bytes)))
    }

    /// The JSON text, if it is JSON.
    #[must_use]
    pub fn as_json(&self) -> Option<&str> {
        match &self.0 {
            PlainForm::Json(text) => Some(core::str::from_utf8(text).expect("checked JSON is UTF-8")),
            PlainForm::Bytes(_) => None,
        }
    }

    /// The bytes of either form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            PlainForm::Json(bytes) | PlainForm::Bytes(bytes) => bytes,
        }
    }

    /// The same value in memory of its own, so that it does not keep a whole received frame alive.
    pub(crate) fn detached(&self) -> Self {
        Self(match &self.0 {
            PlainForm::Json(bytes) => PlainForm::Json(Bytes::copy_from_slice(bytes)),
            PlainForm::Bytes(bytes) => PlainForm::Bytes(Bytes::copy_from_slice(bytes)),
        })
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PlainForm::Json(text) => write!(f, "{}", String::from_utf8_lossy(text)),
            PlainForm::Bytes(bytes) => write!(f, "{bytes:?}"),
        }
    }
}

/// The type of a value. When two nodes create one key with different types at the same time, the higher of this order
/// is shown and the other is kept behind it until somebody settles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Kind {
    /// Last writer wins; what untyped writes get.
    LwwRegister = 0,
    /// Shows every concurrent value.
    MvRegister = 1,
    GCounter = 2,
    PnCounter = 3,
    GSet = 4,
    TwoPhaseSet = 5,
    OrSet = 6,
    Map = 7,
    List = 8,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::LwwRegister,
        Self::MvRegister,
        Self::GCounter,
        Self::PnCounter,
        Self::GSet,
        Self::TwoPhaseSet,
        Self::OrSet,
        Self::Map,
        Self::List,
    ];

    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LwwRegister => "register",
            Self::MvRegister => "mv-register",
            Self::GCounter => "g-counter",
            Self::PnCounter => "pn-counter",
            Self::GSet => "g-set",
            Self::TwoPhaseSet => "2p-set",
            Self::OrSet => "or-set",
            Self::Map => "map",
            Self::List => "list",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a read shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// The one value of an LWW register, after its prefix's resolver.
    Register(Plain),
    /// All concurrent values of an MV register, each once, ascending.
    Siblings(Vec<Plain>),
    /// A counter of either kind.
    Count(i128),
    /// A set of any kind.
    Set(BTreeSet<Plain>),
    Map(BTreeMap<Bytes, View>),
    List(Vec<Plain>),
}
