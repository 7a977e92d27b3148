//! The genesis as people read and exchange it: `genesis.toml`, and the `members.toml` it is made from when parties do
//! not share keys.
//!
//! The cluster's id is the hash of the genesis' canonical bytes, not of the file: comments and order of keys are free.
//! Nothing secret stands in either file. Making keys and folders is `init`'s work.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use dwcp_base::configuration::CALM_MS;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{
    Ack, Genesis, Incarnation, Member, NetworkMode, Policy, Quorum, ReplicaId, Sequence, SettingsError, Trust,
};
use serde::Deserialize;

use crate::keys::{HexKey, key_hex};
use crate::settings::line_of;

/// A genesis is a few KiB; a larger file is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who writes a members.toml.
pub(crate) const MEMBERS_WRITER: &str = "`dwcp keygen` prints what belongs into a members.toml";

#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// Who writes such a file is said too.
    #[error("cannot read {}: {source}; {writer}", path.display())]
    Unreadable { path: PathBuf, writer: &'static str, source: std::io::Error },
    #[error("{}:{line}: {what}: correct that line", path.display())]
    Line { path: PathBuf, line: usize, what: String },
    #[error("{}: {what}", path.display())]
    Impossible { path: PathBuf, what: String },
    /// What cannot be says itself what to do about it.
    #[error("{}:{line}: {what}", path.display())]
    At { path: PathBuf, line: usize, what: String },
    /// A sentence others wait for word by word.
    #[error("minimum 4 replicas required for Byzantine tolerance")]
    TooFewForByzantine,
}

impl GenesisError {
    pub(crate) fn impossible(path: &Path, error: SettingsError) -> Self {
        match error {
            SettingsError::TooFewForByzantine => Self::TooFewForByzantine,
            other => Self::Impossible { path: path.into(), what: other.to_string() },
        }
    }

    /// The same with the line that it is about, if `text` has one.
    pub(crate) fn with_line(self, text: &str) -> Self {
        match self {
            Self::Impossible { path, what } => match line_about(text, &what) {
                Some(line) => Self::At { path, line, what },
                None => Self::Impossible { path, what },
            },
            other => other,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u16,
    name: String,
    created_unix_ms: u64,
    mode: ModeWord,
    #[serde(default = "calm_ms")]
    calm_ms: u64,
    trust: TrustWord,
    f: u8,
    #[serde(default = "yes")]
    raft: bool,
    #[serde(default)]
    default_ack: AckWord,
    checkpoint_interval: u64,
    window: u64,
    quota_bytes: u64,
    #[serde(rename = "member")]
    members: Vec<MemberEntry>,
    #[serde(rename = "principal")]
    principals: Vec<PrincipalEntry>,
}

fn calm_ms() -> u64 {
    CALM_MS
}

fn yes() -> bool {
    true
}

/// What parties send each other: blocks written by `dwcp keygen`, put one after the other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersFile {
    #[serde(rename = "member")]
    members: Vec<MemberEntry>,
    #[serde(rename = "principal")]
    principals: Vec<PrincipalEntry>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeWord {
    Datacenter,
    Internet,
    Hybrid,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AckWord {
    #[default]
    Majority,
    Anchored,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TrustWord {
    Crash,
    Byzantine,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberEntry {
    vote_key: HexKey,
    tls_key: HexKey,
    peer_address: String,
    client_address: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleWord {
    Reader,
    Writer,
    Admin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrincipalEntry {
    name: String,
    role: RoleWord,
    key: HexKey,
}

/// Reads and checks a genesis file.
///
/// # Errors
/// What is not TOML, not a genesis, or a genesis whose promises do not hold.
pub fn read_genesis(path: &Path) -> Result<Genesis, GenesisError> {
    parse_genesis(path, &read_text(path, "`dwcp init` writes a genesis.toml")?)
}

/// Reads a genesis from text; `path` names it in refusals.
///
/// # Errors
/// As [`read_genesis`].
pub fn parse_genesis(path: &Path, text: &str) -> Result<Genesis, GenesisError> {
    let file: File = parse(path, text)?;
    genesis_of(path, file).map_err(|error| error.with_line(text))
}

fn genesis_of(path: &Path, file: File) -> Result<Genesis, GenesisError> {
    let quorum =
        Quorum::new(file.members.len(), Some(file.f)).map_err(|e| GenesisError::impossible(path, e))?;
    let trust = match file.trust {
        TrustWord::Crash => Trust::Crash,
        TrustWord::Byzantine => Trust::Byzantine,
    };
    let genesis = Genesis {
        version: file.version,
        name: file.name,
        created_unix_ms: file.created_unix_ms,
        policy: Policy {
            raft: file.raft,
            default_ack: match file.default_ack {
                AckWord::Majority => Ack::Majority,
                AckWord::Anchored => Ack::Anchored,
            },
            ..Policy::new(trust, quorum)
        },
        mode: match file.mode {
            ModeWord::Datacenter => NetworkMode::Datacenter,
            ModeWord::Internet => NetworkMode::Internet,
            ModeWord::Hybrid => NetworkMode::Hybrid,
        },
        calm_ms: file.calm_ms,
        members: numbered(file.members),
        principals: file.principals.into_iter().map(principal).collect(),
        checkpoint_interval: file.checkpoint_interval,
        window: file.window,
        quota_bytes: file.quota_bytes,
    };
    check(path, &genesis)?;
    Ok(genesis)
}

/// The line that a refusal is about: that of the first word in it which is a key of the whole cluster. One that repeats a name or
/// an address in quotes is about that of a member or principal; of two equal ones the later is meant.
fn line_about(text: &str, what: &str) -> Option<usize> {
    let pairs: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once('=').map_or(("", ""), |(key, value)| (key.trim(), value.trim())))
        .collect();
    let index = if let Some((_, rest)) = what.split_once('"') {
        let value = quoted(rest.rsplit_once('"')?.0);
        let repeated = ["name", "peer_address", "client_address"];
        pairs.iter().rposition(|(key, said)| *said == value && repeated.contains(key))
    } else {
        let entries = text.lines().position(|line| line.trim_start().starts_with('[')).unwrap_or(pairs.len());
        let whole = &pairs[..entries];
        let mut words =
            what.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
        words.find_map(|word| whole.iter().position(|(key, _)| *key == word))
    };
    index.map(|index| index + 1)
}

/// Members and principals of a members file, members numbered in the order of the file.
///
/// # Errors
/// What is not TOML or lacks a field.
pub fn read_members(path: &Path) -> Result<(Vec<Member>, Vec<Principal>), GenesisError> {
    parse_members(path, &read_text(path, MEMBERS_WRITER)?)
}

/// Reads a members file from text; `path` names it in refusals.
///
/// # Errors
/// As [`read_members`].
pub fn parse_members(path: &Path, text: &str) -> Result<(Vec<Member>, Vec<Principal>), GenesisError> {
    let file: MembersFile = parse(path, text)?;
    Ok((numbered(file.members), file.principals.into_iter().map(principal).collect()))
}

/// Everything a genesis promises, and that each address can be dialled.
pub(crate) fn check(path: &Path, genesis: &Genesis) -> Result<(), GenesisError> {
    genesis.check().map_err(|error| GenesisError::impossible(path, error))?;
    for member in &genesis.members {
        for address in [&member.peer_address, &member.client_address] {
            if !is_host_and_port(address) {
                let what = format!("\"{address}\" of member {} is no address: write HOST:PORT", member.id);
                return Err(GenesisError::Impossible { path: path.into(), what });
            }
        }
    }
    for principal in &genesis.principals {
        if !(1..=64).contains(&principal.name.len()) {
            let what = format!("principal \"{}\" must have a name of 1 to 64 bytes", principal.name);
            return Err(GenesisError::Impossible { path: path.into(), what });
        }
        if genesis.principals.iter().filter(|other| other.name == principal.name).count() > 1 {
            let what = format!("two principals are named \"{}\": give each its own name", principal.name);
            return Err(GenesisError::Impossible { path: path.into(), what });
        }
    }
    Ok(())
}

/// The file's text for a genesis that passed `check`.
pub fn genesis_text(genesis: &Genesis) -> String {
    let mut text = format!(
        "# Genesis of cluster {name}: the same on every node, nothing secret. The cluster's id is\n\
         # {id}\n\
         version = {version}\n\
         name = {name}\n\
         created_unix_ms = {created}\n\
         # The network it begins in: \"datacenter\" (Raft), \"internet\" (PBFT) or \"hybrid\" (Raft while it moves, else PBFT).\n\
         # `dwcp mode set` orders another.\n\
         mode = \"{mode}\"\n\
         # Hybrid: milliseconds without a failed Raft segment before the next one is tried; doubles with each failure.\n\
         calm_ms = {calm}\n\
         # Who may lie: \"byzantine\" (up to f members do anything) or \"crash\" (members only stop). Raft needs \"crash\".\n\
         trust = \"{trust}\"\n\
         f = {f}\n\
         # May Raft be used at all?\n\
         raft = {raft}\n\
         # When commands are acknowledged that do not say: \"majority\" (once committed) or \"anchored\" (once PBFT vouches for it).\n\
         default_ack = \"{ack}\"\n\
         # Proposals between checkpoints, and how far proposals may run ahead of the last stable one.\n\
         checkpoint_interval = {interval}\n\
         window = {window}\n\
         # Keys and values in bytes above which writes are refused until space is made and the alarm disarmed.\n\
         quota_bytes = {quota}\n",
        name = quoted(&genesis.name),
        id = hex::encode(genesis.cluster().0),
        version = genesis.version,
        created = genesis.created_unix_ms,
        mode = genesis.mode,
        calm = genesis.calm_ms,
        trust = trust_word(genesis.policy.trust),
        f = genesis.policy.quorum.f(),
        raft = genesis.policy.raft,
        ack = ack_word(genesis.policy.default_ack),
        interval = genesis.checkpoint_interval,
        window = genesis.window,
        quota = genesis.quota_bytes,
    );
    for member in &genesis.members {
        let _ = write!(text, "\n# replica {}\n{}", member.id, member_block(member));
    }
    for principal in &genesis.principals {
        let _ = write!(text, "\n{}", principal_block(principal));
    }
    text
}

pub(crate) fn member_block(member: &Member) -> String {
    format!(
        "[[member]]\nvote_key = \"{}\"\ntls_key = \"{}\"\npeer_address = {}\nclient_address = {}\n",
        key_hex(&member.vote_key),
        key_hex(&member.tls_key),
        quoted(&member.peer_address),
        quoted(&member.client_address),
    )
}

pub(crate) fn principal_block(principal: &Principal) -> String {
    format!(
        "[[principal]]\nname = {}\nrole = \"{}\"\nkey = \"{}\"\n",
        quoted(&principal.name),
        role_word(principal.role),
        key_hex(&principal.key)
    )
}

/// As it is written everywhere.
pub fn trust_word(trust: Trust) -> &'static str {
    match trust {
        Trust::Crash => "crash",
        Trust::Byzantine => "byzantine",
    }
}

/// As it is written everywhere.
pub fn ack_word(ack: Ack) -> &'static str {
    match ack {
        Ack::Majority => "majority",
        Ack::Anchored => "anchored",
    }
}

pub(crate) fn role_word(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Writer => "writer",
        Role::Admin => "admin",
    }
}

/// A TOML string on one line, so that it may also stand in a comment.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

pub(crate) fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

pub(crate) fn read_text(path: &Path, writer: &'static str) -> Result<String, GenesisError> {
    let unreadable = |source| GenesisError::Unreadable { path: path.into(), writer, source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(GenesisError::Impossible {
            path: path.into(),
            what: "longer than 1 MiB: no such file".into(),
        });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T, GenesisError> {
    toml::from_str(text).map_err(|error| GenesisError::Line {
        path: path.into(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        what: error.message().replace('\n', ", "),
    })
}

fn numbered(entries: Vec<MemberEntry>) -> Vec<Member> {
    let numbered = entries.into_iter().zip(0u8..=u8::MAX);
    numbered
        .map(|(entry, id)| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: entry.vote_key.0,
            tls_key: entry.tls_key.0,
            peer_address: entry.peer_address,
            client_address: entry.client_address,
            votes_after: Sequence(0),
        })
        .collect()
}

fn principal(entry: PrincipalEntry) -> Principal {
    let role = match entry.role {
        RoleWord::Reader => Role::Reader,
        RoleWord::Writer => Role::Writer,
        RoleWord::Admin => Role::Admin,
    };
    Principal { name: entry.name, key: entry.key.0, role }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretSeed;

    fn genesis(n: u8, trust: Trust) -> Genesis {
        let key = || SecretSeed::generate().unwrap().public_key();
        let member = |id| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: key(),
            tls_key: key(),
            peer_address: format!("127.0.0.1:{}", 7000 + u16::from(id)),
            client_address: format!("node{id}.example.org:8000"),
            votes_after: Sequence(0),
        };
        Genesis {
            version: 1,
            name: "a \"quoted\" name\n".into(),
            created_unix_ms: 1_700_000_000_000,
            policy: Policy {
                default_ack: Ack::Anchored,
                raft: n > 3,
                ..Policy::new(trust, Quorum::new(usize::from(n), None).unwrap())
            },
            mode: if n == 4 { NetworkMode::Internet } else { NetworkMode::Hybrid },
            calm_ms: 77,
            members: (0..n).map(member).collect(),
            principals: vec![
                Principal { name: "admin".into(), key: key(), role: Role::Admin },
                Principal { name: "o'neil".into(), key: key(), role: Role::Reader },
            ],
            checkpoint_interval: 128,
            window: 512,
            quota_bytes: 1 << 31,
        }
    }

    fn refusal(text: &str) -> String {
        parse_genesis(Path::new("g.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_genesis_survives_its_file_and_keeps_the_clusters_id() {
        for n in [1, 3, 4, 31] {
            let trust = if n < 4 { Trust::Crash } else { Trust::Byzantine };
            let genesis = genesis(n, trust);
            let read = parse_genesis(Path::new("g.toml"), &genesis_text(&genesis)).unwrap();
            assert_eq!(read, genesis);
            assert_eq!(read.cluster(), genesis.cluster());
        }
    }

    #[test]
    fn each_bad_genesis_is_refused_with_its_line_or_promise() {
        let good = genesis_text(&genesis(4, Trust::Byzantine));
        let line_of = |start: &str| good.lines().position(|line| line.starts_with(start)).unwrap() + 1;
        let at = |key: &str, what: &str| format!("g.toml:{}: {what}", line_of(&format!("{key} =")));
        assert!(
            refusal(&good.replace("f = 1", "f = 2")).starts_with(&at("f", "f = 2 is more than 4 replicas"))
        );
        let window = |value: &str| refusal(&good.replace("window = 512", &format!("window = {value}")));
        assert!(window("5").starts_with(&at("window", "window must be a multiple")), "{}", window("5"));
        assert!(
            window("32768").starts_with(&at("window", "window = 32768 is too large")),
            "{}",
            window("32768")
        );
        let interval = refusal(&good.replace("checkpoint_interval = 128", "checkpoint_interval = 0"));
        assert!(
            interval.starts_with(&at("checkpoint_interval", "checkpoint_interval must be 1")),
            "{interval}"
        );
        let version = refusal(&good.replace("version = 1", "version = 9"));
        assert!(version.starts_with(&at("version", "the genesis format version is not 1")), "{version}");
        assert!(refusal(&good.replace("version = 1", "version = 9")).contains("upgrade this program"));
        assert!(
            refusal(&good.replace("role = \"admin\"", "role = \"boss\"")).contains("unknown variant `boss`")
        );
        let address = refusal(&good.replace("127.0.0.1:7001", "127.0.0.1"));
        let line = line_of("peer_address = \"127.0.0.1:7001");
        let expected = format!("g.toml:{line}: \"127.0.0.1\" of member 1 is no address: write HOST:PORT");
        assert_eq!(address, expected);
        let datacenter = refusal(&good.replace("mode = \"internet\"", "mode = \"datacenter\""));
        assert!(
            datacenter.starts_with(&at("mode", "datacenter mode"))
                && datacenter.ends_with("datacenter mode trusts every member: it needs trust = crash"),
            "{datacenter}"
        );
        let calm = refusal(&good.replace("calm_ms = 77", "calm_ms = 3600001"));
        assert!(calm.starts_with(&at("calm_ms", "calm_ms must be 0 to")), "{calm}");
        assert!(
            refusal(&good.replace("\"internet\"", "\"intranet\"")).contains("unknown variant `intranet`")
        );
        let line = good.lines().position(|line| line.starts_with("quota_bytes")).unwrap() + 1;
        let unknown = refusal(&good.replace("quota_bytes", "quota"));
        assert!(unknown.starts_with(&format!("g.toml:{line}: unknown field `quota`")), "{unknown}");
        let short = good.replacen("vote_key = \"", "vote_key = \"0", 1);
        assert!(refusal(&short).contains("a public key is 64 hexadecimal digits"), "{}", refusal(&short));
        let twice = refusal(&good.replace("name = \"o'neil\"", "name = \"admin\""));
        let line = line_of("name = \"o'neil\"");
        assert!(twice.starts_with(&format!("g.toml:{line}: two principals are named \"admin\"")), "{twice}");
        let nameless = refusal(&good.replace("name = \"o'neil\"", "name = \"\""));
        assert!(
            nameless.starts_with(&format!("g.toml:{line}: principal \"\" must have a name")),
            "{nameless}"
        );
    }

    #[test]
    fn what_a_genesis_does_not_say_of_its_policy_is_the_default() {
        let text: String = genesis_text(&genesis(5, Trust::Crash))
            .lines()
            .filter(|line| !["calm_ms", "raft", "default_ack"].iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        let read = parse_genesis(Path::new("g.toml"), &text).unwrap();
        assert_eq!((read.calm_ms, read.policy.raft, read.policy.default_ack), (CALM_MS, true, Ack::Majority));
    }

    #[test]
    fn three_byzantine_replicas_are_refused_word_by_word() {
        let text = genesis_text(&genesis(3, Trust::Crash)).replace("\"crash\"", "\"byzantine\"");
        assert_eq!(refusal(&text), "minimum 4 replicas required for Byzantine tolerance");
    }
}
