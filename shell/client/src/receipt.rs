//! What a believed result comes with: whom it trusts, where in the virtual log it stands, and in which view it was told.
//!
//! Label and position are the common word of the replicas that were believed: f + 1, or, for the label `crash` where members
//! only crash, one. Nothing here says what the result means.

use dwcp_base::{Position, View};
use dwcp_replica::Label;
use std::fmt;
use std::ops::Deref;

/// What the believed replicas said alike about a result, beside the result itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whom the acknowledgement trusts: `Byzantine` holds though f members lie, `Crash` as long as members only crash.
    pub label: Label,
    /// The entry of the virtual log in which the command ran. A retry is told the same one.
    pub position: Position,
    /// A view that at least one honest replica among them has reached. A hint, and not signed.
    pub view: View,
}

/// A believed result with its [`Receipt`]. Reads as the result itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed<T> {
    pub reply: T,
    pub receipt: Receipt,
}

impl<T> Believed<T> {
    /// The same receipt for what the result reads as.
    ///
    /// # Errors
    /// What `read` refuses.
    pub fn try_map<U, E>(self, read: impl FnOnce(T) -> Result<U, E>) -> Result<Believed<U>, E> {
        Ok(Believed { reply: read(self.reply)?, receipt: self.receipt })
    }
}

impl<T> Deref for Believed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.reply
    }
}

impl fmt::Display for Receipt {
    /// As one phrase: `label byzantine, position 17, view 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "label {}, position {}, view {}", label_word(self.label), self.position, self.view)
    }
}

/// What one node read of its own state, and what it said of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnState<T> {
    pub reply: T,
    /// The last entry of the virtual log in that state, and the node's view; `None`: a node of an earlier version, which
    /// does not say.
    pub read_at: Option<(Position, View)>,
}

impl<T> OwnState<T> {
    /// The word for what it is worth: the node's own state, which may be old.
    pub const LABEL: &'static str = "stale";

    /// The same for what the result reads as.
    ///
    /// # Errors
    /// What `read` refuses.
    pub fn try_map<U, E>(self, read: impl FnOnce(T) -> Result<U, E>) -> Result<OwnState<U>, E> {
        Ok(OwnState { reply: read(self.reply)?, read_at: self.read_at })
    }
}

impl<T> Deref for OwnState<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.reply
    }
}

/// The label as it is written everywhere.
#[must_use]
pub fn label_word(label: Label) -> &'static str {
    match label {
        Label::Byzantine => "byzantine",
        Label::Crash => "crash",
    }
}
