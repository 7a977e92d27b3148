//! The file form of [`ClientConfig`]: `client.toml`, which `dwcp init` writes beside the nodes' files.
//!
//! [`ClientFile`] *is* the format; whoever writes such a file writes these names, and the sample in this file's tests
//! is the contract. Public keys are 64 hexadecimal digits. Secrets are not in it: `key_file` of a principal names a file
//! of one line, the 64 hexadecimal digits of the Ed25519 seed, readable by its owner alone; a relative path counts from
//! the folder of the client file. A file may list several principals; the first speaks unless another is asked for.

use crate::config::{ClientConfig, ConfigError, NodeConfig, PrincipalConfig, Settings};
use dwcp_base::configuration::Principal;
use dwcp_base::{ClusterId, Genesis, Incarnation, Member, PublicKey, ReplicaId, Trust};
use dwcp_state::frame::{SESSION_TTL_MAX_MS, SESSION_TTL_MIN_MS};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A client file is a few KiB; a longer one is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The only version there is.
pub const CLIENT_FILE_VERSION: u16 = 1;

/// `client.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// 1, also when absent.
    #[serde(default = "only_version")]
    pub version: u16,
    /// The cluster's id.
    pub cluster: String,
    /// Whether replicas may lie. Absent: they may, which believes least.
    #[serde(default)]
    pub trust: TrustWord,
    /// How many may.
    pub f: u8,
    #[serde(default, skip_serializing_if = "SettingsEntry::is_empty")]
    pub settings: SettingsEntry,
    #[serde(rename = "node")]
    pub nodes: Vec<NodeEntry>,
    #[serde(rename = "principal")]
    pub principals: Vec<PrincipalEntry>,
}

fn only_version() -> u16 {
    CLIENT_FILE_VERSION
}

/// The policy's trust, as it is written in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustWord {
    Crash,
    #[default]
    Byzantine,
}

impl From<Trust> for TrustWord {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::Crash => Self::Crash,
            Trust::Byzantine => Self::Byzantine,
        }
    }
}

impl From<TrustWord> for Trust {
    fn from(word: TrustWord) -> Self {
        match word {
            TrustWord::Crash => Self::Crash,
            TrustWord::Byzantine => Self::Byzantine,
        }
    }
}

/// `[[principal]]`: one identity this file can speak as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalEntry {
    pub name: String,
    /// For people: what the name may do stands in the cluster's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub key_file: PathBuf,
}

/// `[[node]]`, once per replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    pub id: u8,
    #[serde(default)]
    pub incarnation: u32,
    pub address: String,
    /// Absent only for a node on a loopback address that listens without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    pub vote_key: String,
}

/// `[settings]`; what is absent keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnect_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_ttl_ms: Option<u64>,
}

/// One setting of `[settings]`, all of them in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct ClientSetting {
    pub key: &'static str,
    pub default_ms: u64,
    pub min: u64,
    pub max: u64,
    pub what: &'static str,
    said: fn(&SettingsEntry) -> Option<u64>,
}

/// All there are. `--help` and the manual are made from them.
pub const CLIENT_SETTINGS: [ClientSetting; 5] = [
    ClientSetting {
        key: "call_timeout_ms",
        default_ms: 10_000,
        min: 1,
        max: 3_600_000,
        what: "a call that has no believed answer after so long ends; `--timeout` says otherwise for one command",
        said: |settings| settings.call_timeout_ms,
    },
    ClientSetting {
        key: "retry_after_ms",
        default_ms: 1_000,
        min: 1,
        max: 60_000,
        what: "a command without believed answer after so long goes to all nodes; doubles with every retry, up to eight times",
        said: |settings| settings.retry_after_ms,
    },
    ClientSetting {
        key: "connect_timeout_ms",
        default_ms: 3_000,
        min: 1,
        max: 60_000,
        what: "how long one attempt to reach a node may take",
        said: |settings| settings.connect_timeout_ms,
    },
    ClientSetting {
        key: "reconnect_after_ms",
        default_ms: 100,
        min: 1,
        max: 60_000,
        what: "first pause before a node is called again; doubles up to sixteen times, with jitter",
        said: |settings| settings.reconnect_after_ms,
    },
    ClientSetting {
        key: "session_ttl_ms",
        default_ms: 600_000,
        min: SESSION_TTL_MIN_MS,
        max: SESSION_TTL_MAX_MS,
        what: "the cluster forgets a session that is idle for so long",
        said: |settings| settings.session_ttl_ms,
    },
];

/// The settings of a client file for a terminal.
#[must_use]
pub fn client_settings_table() -> String {
    CLIENT_SETTINGS.iter().fold(
        String::new(),
        |mut text, ClientSetting { key, default_ms, min, max, what, .. }| {
            let _ = writeln!(text, "  {key}  default {default_ms} ms; allowed {min}..={max}\n      {what}");
            text
        },
    )
}

/// The settings of a client file for the manual.
#[must_use]
pub fn client_settings_markdown() -> String {
    let head = String::from("| setting | unit | default | allowed | what |\n|---|---|---|---|---|\n");
    CLIENT_SETTINGS.iter().fold(head, |mut text, ClientSetting { key, default_ms, min, max, what, .. }| {
        let _ = writeln!(text, "| `{key}` | ms | {default_ms} | {min}..={max} | {what} |");
        text
    })
}

impl ClientFile {
    /// What a client of this cluster needs: whom to reach, by which keys to know them, and as whom to speak. Key files
    /// of principals are expected beside it, as `NAME.key`.
    #[must_use]
    pub fn of_genesis(genesis: &Genesis) -> Self {
        let principal = |principal: &Principal| PrincipalEntry {
            name: principal.name.clone(),
            role: Some(format!("{:?}", principal.role).to_lowercase()),
            key_file: PathBuf::from(format!("{}.key", principal.name)),
        };
        let node = |member: &Member| NodeEntry {
            id: member.id.0,
            incarnation: member.incarnation.0,
            address: member.client_address.clone(),
            tls_key: Some(hex::encode(member.tls_key.0)),
            vote_key: hex::encode(member.vote_key.0),
        };
        Self {
            version: CLIENT_FILE_VERSION,
            cluster: hex::encode(genesis.cluster().0),
            trust: genesis.policy.trust.into(),
            f: genesis.policy.quorum.f(),
            settings: SettingsEntry::default(),
            nodes: genesis.members.iter().map(node).collect(),
            principals: genesis.principals.iter().map(principal).collect(),
        }
    }
}

impl SettingsEntry {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A client file that cannot be used. One line, with the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ClientFileError {
    #[error("cannot read {}: {source}; `dwcp init` writes a client.toml", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {what}: correct that line", path.display())]
    Line { path: PathBuf, line: usize, what: String },
    #[error("{}: {what}", path.display())]
    Impossible { path: PathBuf, what: String },
    /// What cannot be says itself what to do about it.
    #[error("{}:{line}: {what}", path.display())]
    At { path: PathBuf, line: usize, what: String },
    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("key file {} can be read by others (mode {mode:o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("key file {} does not hold one line of 64 hexadecimal digits: make one with `dwcp keygen`", path.display())]
    NotASeed { path: PathBuf },
}

impl ClientConfig {
    /// Reads `client.toml` and the key file of `principal`, or of the first one listed.
    ///
    /// # Errors
    /// What is missing, not TOML, unknown or impossible, with the line and the remedy.
    pub fn read(path: &Path, principal: Option<&str>) -> Result<Self, ClientFileError> {
        let text = read_text(path)?;
        let file: ClientFile = toml::from_str(&text).map_err(|error| ClientFileError::Line {
            path: path.into(),
            line: error.span().map_or(1, |span| line_of(&text, span.start)),
            what: error.message().replace('\n', ", "),
        })?;
        check_settings(path, &text, &file.settings)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let chosen = file.principal(path, principal)?;
        let seed = read_seed(&folder.join(&chosen.key_file))?;
        let principal = PrincipalConfig { name: chosen.name.clone(), seed };
        file.into_config(path, principal).map_err(|error| with_line(error, &text))
    }
}

impl ClientFile {
    /// The file's text.
    ///
    /// # Panics
    /// Never: strings and numbers are always TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings and numbers are always TOML")
    }

    fn principal(&self, path: &Path, name: Option<&str>) -> Result<&PrincipalEntry, ClientFileError> {
        let found = match name {
            Some(name) => self.principals.iter().find(|entry| entry.name == name),
            None => self.principals.first(),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = self.principals.iter().map(|entry| entry.name.as_str()).collect();
            let what = format!(
                "no principal {} is listed: choose among {}",
                name.unwrap_or("at all"),
                known.join(", ")
            );
            ClientFileError::Impossible { path: path.into(), what }
        })
    }

    /// Checks and converts; `path` names the file in refusals.
    ///
    /// # Errors
    /// A key that is none, another version, or a configuration that cannot work.
    pub fn into_config(
        self,
        path: &Path,
        principal: PrincipalConfig,
    ) -> Result<ClientConfig, ClientFileError> {
        let impossible = |what: String| ClientFileError::Impossible { path: path.into(), what };
        if self.version != CLIENT_FILE_VERSION {
            let what = format!("version {} is not {CLIENT_FILE_VERSION}: upgrade this program", self.version);
            return Err(impossible(what));
        }
        let cluster = hex32(&self.cluster).ok_or_else(|| {
            impossible("cluster must be 64 hexadecimal digits: copy it from genesis.toml".into())
        })?;
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for node in self.nodes {
            let key = |name: &str, text: &str| {
                let what = || impossible(format!("{name} of node {} must be 64 hexadecimal digits", node.id));
                hex32(text).map(PublicKey).ok_or_else(what)
            };
            nodes.push(NodeConfig {
                id: ReplicaId(node.id),
                tls_key: node.tls_key.as_deref().map(|text| key("tls_key", text)).transpose()?,
                vote_key: key("vote_key", &node.vote_key)?,
                incarnation: Incarnation(node.incarnation),
                address: node.address,
            });
        }
        let defaults = Settings::default();
        let or = |ms: Option<u64>, default: Duration| ms.map_or(default, Duration::from_millis);
        let settings = Settings {
            call_timeout: or(self.settings.call_timeout_ms, defaults.call_timeout),
            retry_after: or(self.settings.retry_after_ms, defaults.retry_after),
            connect_timeout: or(self.settings.connect_timeout_ms, defaults.connect_timeout),
            reconnect_after: or(self.settings.reconnect_after_ms, defaults.reconnect_after),
            session_ttl: or(self.settings.session_ttl_ms, defaults.session_ttl),
            ..defaults
        };
        let config = ClientConfig {
            cluster: ClusterId(cluster),
            trust: self.trust.into(),
            f: self.f,
            nodes,
            principal,
            settings,
        };
        config.check().map_err(|source| ClientFileError::Config { path: path.into(), source })?;
        Ok(config)
    }
}

fn read_text(path: &Path) -> Result<String, ClientFileError> {
    let unreadable = |source| ClientFileError::Unreadable { path: path.into(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        let what = "longer than 1 MiB, hence no client file".into();
        return Err(ClientFileError::Impossible { path: path.into(), what });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn read_seed(path: &Path) -> Result<[u8; 32], ClientFileError> {
    let text = read_text(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let unreadable = |source| ClientFileError::Unreadable { path: path.into(), source };
        let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ClientFileError::Exposed { path: path.into(), mode });
        }
    }
    hex32(text.trim()).ok_or_else(|| ClientFileError::NotASeed { path: path.into() })
}

fn hex32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// The first setting outside its range, with its line.
fn check_settings(path: &Path, text: &str, settings: &SettingsEntry) -> Result<(), ClientFileError> {
    for setting in CLIENT_SETTINGS {
        let (key, min, max) = (setting.key, setting.min, setting.max);
        let Some(value) = (setting.said)(settings).filter(|value| !(min..=max).contains(value)) else {
            continue;
        };
        let line = line_at(text, "settings", None, key).unwrap_or(1);
        let what = format!("`settings.{key}` = {value} is out of range: set it within {min}..={max} ms");
        return Err(ClientFileError::At { path: path.into(), line, what });
    }
    Ok(())
}

/// The same refusal with the line of what it speaks of, where it speaks of one.
fn with_line(error: ClientFileError, text: &str) -> ClientFileError {
    // Of two nodes that contradict each other the later one is at fault.
    let of_node = |id: u8, key: &str| {
        let file: ClientFile = toml::from_str(text).ok()?;
        line_at(text, "node", file.nodes.iter().rposition(|node| node.id == id), key)
    };
    match error {
        ClientFileError::Config { path, source } => {
            let line = match &source {
                ConfigError::TooFewNodes { .. } => line_at(text, "f", None, ""),
                ConfigError::NodeTwice(id) | ConfigError::NodeId(id) => of_node(id.0, "id"),
                ConfigError::SameVoteKey(one, other) => {
                    of_node(one.0, "vote_key").max(of_node(other.0, "vote_key"))
                }
                ConfigError::PlainTextAbroad { id, .. } | ConfigError::Address { id, .. } => {
                    of_node(id.0, "address")
                }
                ConfigError::NoNodes | ConfigError::PrincipalName { .. } | ConfigError::OutOfRange { .. } => {
                    None
                }
            };
            match line {
                Some(line) => ClientFileError::At { path, line, what: source.to_string() },
                None => ClientFileError::Config { path, source },
            }
        }
        ClientFileError::Impossible { path, what } => {
            // It begins with the key that it is about; those of a node say whose.
            let (key, node) = what.split_once(' ').unwrap_or((&what, ""));
            let id = node.strip_prefix("of node ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            let line = id.map_or_else(|| line_at(text, key, None, ""), |id| of_node(id, key));
            match line {
                Some(line) => ClientFileError::At { path, line, what },
                None => ClientFileError::Impossible { path, what },
            }
        }
        other => other,
    }
}

/// The line of `table`, or of `key` in it; with `index` in that one of an array of tables.
fn line_at(text: &str, table: &str, index: Option<usize>, key: &str) -> Option<usize> {
    use toml::de::{DeTable, DeValue};
    let whole = DeTable::parse(text).ok()?;
    let (name, value) = whole.get_ref().get_key_value(table)?;
    let inner = match (value.get_ref(), index) {
        (DeValue::Table(inner), None) => inner,
        (DeValue::Array(all), Some(index)) => all.get(index)?.get_ref().as_table()?,
        _ => return Some(line_of(text, name.span().start)),
    };
    inner.get_key_value(key).map(|(name, _)| line_of(text, name.span().start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `dwcp init` writes, word by word.
    const SAMPLE: &str = r#"# How clients reach cluster "trial". Key files are relative to this file.
cluster = "0101010101010101010101010101010101010101010101010101010101010101"
# Who may lie: "byzantine" (up to f replicas do anything) or "crash" (they only stop).
trust = "crash"
# A reply is believed once f + 1 different replicas signed the same.
f = 1

[[node]]
id = 0
address = "127.0.0.1:8000"
incarnation = 0
vote_key = "b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0"
tls_key = "a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0"

[[node]]
id = 1
address = "127.0.0.1:8001"
vote_key = "b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1"

[[principal]]
name = "admin"
role = "admin"
key_file = "admin.key"

[[principal]]
name = "writer"
role = "writer"
key_file = "writer.key"
"#;

    #[cfg(unix)]
    fn written(folder: &Path, text: &str, key: &str, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("client.toml");
        std::fs::write(&path, text).expect("write");
        std::fs::write(folder.join("admin.key"), key).expect("write");
        std::fs::set_permissions(folder.join("admin.key"), std::fs::Permissions::from_mode(mode))
            .expect("mode");
        path
    }

    fn seed() -> String {
        format!("{}\n", "2a".repeat(32))
    }

    #[test]
    #[cfg(unix)]
    fn the_sample_gives_a_whole_configuration() {
        let folder = tempfile::tempdir().expect("folder");
        let config =
            ClientConfig::read(&written(folder.path(), SAMPLE, &seed(), 0o600), None).expect("the sample");
        assert_eq!(config.cluster, ClusterId([1; 32]));
        assert_eq!((config.trust, config.f, config.nodes.len()), (Trust::Crash, 1, 2));
        assert_eq!(config.nodes[0].tls_key, Some(PublicKey([0xa0; 32])));
        assert_eq!(config.nodes[1].tls_key, None);
        assert_eq!(config.nodes[1].incarnation, Incarnation(0));
        assert_eq!(config.principal.seed, [0x2a; 32]);
        assert_eq!(config.settings, Settings::default());
    }

    /// A file of an older version must not make a client believe more than it did.
    #[test]
    fn a_file_that_does_not_speak_of_trust_trusts_nobody_alone() {
        let file: ClientFile = toml::from_str(&SAMPLE.replace("trust = \"crash\"", "")).expect("the sample");
        assert_eq!(file.trust, TrustWord::Byzantine);
    }

    #[test]
    fn the_settings_that_are_told_are_those_that_hold_and_the_manual_shows_them() {
        let principal = || PrincipalConfig { name: "admin".into(), seed: [0; 32] };
        let held = |lines: &str| {
            let text = SAMPLE.replace("f = 1\n", &format!("f = 1\n[settings]\n{lines}"));
            let file: ClientFile = toml::from_str(&text).expect("the sample");
            check_settings(Path::new("c"), &text, &file.settings).expect("within the ranges");
            file.into_config(Path::new("c"), principal()).expect("the configuration's own check").settings
        };
        let defaults: String =
            CLIENT_SETTINGS.iter().map(|one| format!("{} = {}\n", one.key, one.default_ms)).collect();
        assert_eq!(held(&defaults), Settings::default());
        for ClientSetting { key, min, max, .. } in CLIENT_SETTINGS {
            assert_ne!(held(&format!("{key} = {min}\n")), held(&format!("{key} = {max}\n")), "{key}");
            assert!(client_settings_table().contains(key));
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/commands.md");
        let page = std::fs::read_to_string(page).expect("the manual");
        let table = client_settings_markdown();
        assert!(page.contains(&table), "docs/operating/commands.md lacks:\n{table}");
    }

    #[test]
    fn the_type_writes_what_it_reads() {
        let file: ClientFile = toml::from_str(SAMPLE).expect("the sample");
        assert_eq!(toml::from_str::<ClientFile>(&file.to_toml()).expect("own text"), file);
    }

    #[test]
    #[cfg(unix)]
    fn every_mistake_names_its_place_and_remedy() {
        let folder = tempfile::tempdir().expect("folder");
        let refusal = |text: &str, key: &str, mode| {
            ClientConfig::read(&written(folder.path(), text, key, mode), None)
                .expect_err("a mistake")
                .to_string()
        };
        let unknown = refusal(&SAMPLE.replace("f = 1", "faults = 1"), &seed(), 0o600);
        assert!(unknown.contains("client.toml:6: unknown field `faults`"), "{unknown}");
        let trusting = refusal(&SAMPLE.replace("\"crash\"", "\"everybody\""), &seed(), 0o600);
        assert!(trusting.contains("client.toml:4: unknown variant `everybody`"), "{trusting}");
        let version = refusal(&format!("version = 2\n{SAMPLE}"), &seed(), 0o600);
        assert!(version.ends_with("client.toml:1: version 2 is not 1: upgrade this program"), "{version}");
        for (line, value, said) in [
            ("call_timeout_ms", 3_600_001, "1..=3600000"),
            ("retry_after_ms", 0, "1..=60000"),
            ("connect_timeout_ms", 60_001, "1..=60000"),
            ("reconnect_after_ms", 0, "1..=60000"),
            ("session_ttl_ms", 119_999, "120000..=86400000"),
        ] {
            let settings = format!("f = 1\n[settings]\n{line} = {value}\n");
            let told = refusal(&SAMPLE.replace("f = 1\n", &settings), &seed(), 0o600);
            let expected = format!(
                "client.toml:8: `settings.{line}` = {value} is out of range: set it within {said} ms"
            );
            assert!(told.ends_with(&expected), "{told}");
        }
        let abroad = refusal(&SAMPLE.replace("\"127.0.0.1:8001", "\"10.0.0.1:8001"), &seed(), 0o600);
        assert!(abroad.contains("client.toml:17: node 1 has no tls_key"), "{abroad}");
        let address = refusal(&SAMPLE.replace("127.0.0.1:8000", "8000"), &seed(), 0o600);
        assert!(
            address.contains("client.toml:10: \"8000\" of node 0 is no address: write HOST:PORT"),
            "{address}"
        );
        let twice = refusal(&SAMPLE.replace("id = 1", "id = 0"), &seed(), 0o600);
        assert!(twice.contains("client.toml:16: node 0 is listed twice: remove one"), "{twice}");
        let same = refusal(&SAMPLE.replace("b1", "b0"), &seed(), 0o600);
        assert!(same.contains("client.toml:18: nodes 0 and 1 have the same vote key"), "{same}");
        let name = refusal(&SAMPLE.replace("\"0101", "\"01"), &seed(), 0o600);
        assert!(name.contains("client.toml:2: cluster must be 64 hexadecimal digits"), "{name}");
        let short = refusal(&SAMPLE.replace("\"b1b1", "\"b1"), &seed(), 0o600);
        assert!(
            short.ends_with("client.toml:18: vote_key of node 1 must be 64 hexadecimal digits"),
            "{short}"
        );
        let lone = refusal(&SAMPLE.replace("f = 1", "f = 2"), &seed(), 0o600);
        assert!(lone.contains("client.toml:6: 2 nodes are too few to believe anything with f = 2"), "{lone}");
        let exposed = refusal(SAMPLE, &seed(), 0o644);
        assert!(exposed.contains("(mode 644): run `chmod 600 "), "{exposed}");
        assert!(refusal(SAMPLE, "feed", 0o600).contains("does not hold one line of 64"));
        let path = written(folder.path(), SAMPLE, &seed(), 0o600);
        let stranger = ClientConfig::read(&path, Some("ann")).expect_err("not listed").to_string();
        assert!(stranger.ends_with("no principal ann is listed: choose among admin, writer"), "{stranger}");
        let missing =
            ClientConfig::read(&folder.path().join("none.toml"), None).expect_err("missing").to_string();
        assert!(missing.ends_with("`dwcp init` writes a client.toml"), "{missing}");
    }
}
