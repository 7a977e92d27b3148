//! What is asked of convergent keys over plain HTTP, read from a question's parameters or a write's body. Pure functions of
//! bytes: who may ask, and how it is answered, is `sync_http`; values and operations are `sync_json`.

use axum::extract::Query;
use axum::http::Uri;
use bytes::Bytes;
use dwcp_replica::SyncRequest;
use serde_json::Value;

use crate::sync_json;

/// A connection lives for 20 seconds at least (`http.connection_lifetime_ms`).
const TIMEOUT_MS_MAX: u64 = 15_000;

/// A question's parameters, decoded.
pub(crate) type Pairs = Vec<(String, String)>;

/// The request of `GET /v3/sync/NAME?QUERY`.
///
/// # Errors
/// What is wrong with it.
pub fn read(name: &str, query: &str) -> Result<SyncRequest, String> {
    let uri: Uri =
        format!("/v3/sync/{name}?{query}").parse().map_err(|error| format!("no address: {error}"))?;
    let Query(pairs) = Query::<Pairs>::try_from_uri(&uri).map_err(|error| unreadable(&error))?;
    of(name, pairs)
}

pub(crate) fn unreadable(error: &impl std::fmt::Display) -> String {
    format!("parameters cannot be read: {error}")
}

/// The request that these parameters make.
pub(crate) fn of(name: &str, pairs: Pairs) -> Result<SyncRequest, String> {
    let take = |known: &[&str]| Parameters::of(pairs, known);
    Ok(match name {
        "key" => {
            let parameters = take(&["key", "field"])?;
            let path = parameters.all("field").cloned().map(Bytes::from).collect();
            SyncRequest::Get { key: parameters.needed("key")?, path }
        }
        "keys" => {
            let parameters = take(&["prefix", "after", "limit"])?;
            let prefix = parameters.text("prefix").unwrap_or_default();
            SyncRequest::List { prefix, after: parameters.text("after"), limit: parameters.number("limit")? }
        }
        "watch" => SyncRequest::Watch { prefix: take(&["prefix"])?.text("prefix").unwrap_or_default() },
        "conflicts" => SyncRequest::Conflicts { limit: take(&["limit"])?.number("limit")? },
        // Do all peers hold exactly what this node holds?
        "converged" => {
            let within_ms = take(&["within_ms"])?.number("within_ms")?;
            let timeout_ms = within_ms.min(u32::try_from(TIMEOUT_MS_MAX).unwrap_or(u32::MAX));
            SyncRequest::Compare { peers: Vec::new(), timeout_ms }
        }
        "stand" => {
            take(&[])?;
            SyncRequest::Stand
        }
        other => return Err(format!("`{other}` is no question")),
    })
}

/// The parameters of a question. One that nothing is made of is refused, so that a misspelt one does not pass for its default.
pub(crate) struct Parameters(Pairs);

impl Parameters {
    pub(crate) fn of(all: Pairs, known: &[&str]) -> Result<Self, String> {
        match all.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) if known.is_empty() => {
                Err(format!("`{name}` is not known: this takes no parameters"))
            }
            Some((name, _)) => Err(format!("`{name}` is not known: write {}", known.join(", "))),
            None => Ok(Self(all)),
        }
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Option<Bytes> {
        self.all(name).last().cloned().map(Bytes::from)
    }

    fn needed(&self, name: &str) -> Result<Bytes, String> {
        self.text(name).ok_or_else(|| format!("it needs a parameter `{name}`"))
    }

    /// 0 where nothing is said.
    fn number(&self, name: &str) -> Result<u32, String> {
        let Some(text) = self.all(name).last() else { return Ok(0) };
        text.parse().map_err(|_| format!("`{name}` = \"{text}\" is no whole number from 0 to {}", u32::MAX))
    }
}

/// The request of `POST /v3/sync/state`: every member is a key, whatever its name.
///
/// # Errors
/// What is wrong with it.
pub fn state(document: &[u8]) -> Result<SyncRequest, String> {
    let writes = sync_json::state(&sync_json::read(document)?)?;
    Ok(SyncRequest::Write { writes, wait: 0, timeout_ms: timeout_ms(None)? })
}

/// The request of `POST /v3/sync/write`.
///
/// # Errors
/// What is wrong with it.
pub fn write(document: &[u8]) -> Result<SyncRequest, String> {
    let value = sync_json::read(document)?;
    let known = ["writes", "wait", "timeout_ms"];
    let unknown = value.as_object().and_then(|all| all.keys().find(|key| !known.contains(&key.as_str())));
    if let Some(key) = unknown {
        return Err(format!("`{key}` is not known: write {}", known.join(", ")));
    }
    let wait = value.get("wait").map_or(Some(0), Value::as_u64).and_then(|wait| u8::try_from(wait).ok());
    let wait = wait.filter(|wait| *wait <= 31).ok_or("`wait` is a number of nodes, 0 to 31")?;
    let timeout_ms = timeout_ms(value.get("timeout_ms"))?;
    Ok(SyncRequest::Write { writes: sync_json::writes(&value)?, wait, timeout_ms })
}

fn timeout_ms(said: Option<&Value>) -> Result<u32, String> {
    let said = said.map_or(Some(10_000), Value::as_u64).filter(|ms| (1..=TIMEOUT_MS_MAX).contains(ms));
    let said = said.ok_or_else(|| format!("`timeout_ms` is a number from 1 to {TIMEOUT_MS_MAX}"))?;
    Ok(u32::try_from(said).unwrap_or(u32::MAX))
}
