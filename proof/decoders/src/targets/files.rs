//! Files that people write: every refusal is one line, and what is accepted reads back the same.
//!
//! TOML nests; the bombs are as deep as a file may be long.

use crate::Seal::Form;
use crate::keys::genesis;
use crate::meter::bounded;
use crate::{Target, Verdict};
use dwcp_base::{NetworkMode, Policy, Quorum, Trust};
use dwcp_client::{ClientFile, NodeEntry, PrincipalConfig, PrincipalEntry, SettingsEntry, TrustWord};
use dwcp_node::NodeConfig;
use dwcp_node::genesis_file::{genesis_text, parse_genesis, parse_members};
use dwcp_node::init::parse_order;
use dwcp_state::kv::KvCommand;
use std::path::{Path, PathBuf};

pub static GENESIS: Target =
    Target::new("genesis_toml", run_genesis, genesis_seeds, Form(is_toml)).bombs(bombs);
pub static TXN: Target = Target::new(
    "txn_text",
    run_txn,
    txn_seeds,
    Form(|b| text(b).is_some_and(|text| dwcp::txn_text::parse(text).is_ok())),
)
.bombs(txn_bombs);
pub static MEMBERS: Target =
    Target::new("members_toml", run_members, member_seeds, Form(is_toml)).bombs(bombs);
pub static ORDER: Target = Target::new("order_toml", run_order, order_seeds, Form(is_toml)).bombs(bombs);
pub static NODE: Target = Target::new("node_toml", run_node, node_seeds, Form(is_toml)).bombs(bombs);
pub static CLIENT: Target = Target::new("client_toml", run_client, client_seeds, Form(is_toml)).bombs(bombs);

/// Text that is no TOML reaches no field.
fn is_toml(bytes: &[u8]) -> bool {
    text(bytes).is_some_and(|text| toml::from_str::<toml::Table>(text).is_ok())
}

fn one_line(error: &impl std::fmt::Display) -> Verdict {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "a refusal is one line: {text:?}");
    Verdict::Refused
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn run_genesis(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let path = Path::new("genesis.toml");
    match parse_genesis(path, text) {
        Ok(genesis) => {
            let again = parse_genesis(path, &genesis_text(&genesis)).expect("its own text");
            assert!(again == genesis, "a genesis does not survive its own text");
            Verdict::Accepted
        }
        Err(error) => one_line(&error),
    }
}

fn run_members(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let read = parse_members(Path::new("members.toml"), text);
    read.map_or_else(|error| one_line(&error), |_| Verdict::Accepted)
}

fn run_order(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let read = parse_order(Path::new("order.toml"), text);
    read.map_or_else(|error| one_line(&error), |_| Verdict::Accepted)
}

fn run_node(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    match NodeConfig::parse(Path::new("/etc/dwcp/node.toml"), text) {
        Ok(config) => match config.check_against(&genesis()) {
            Ok(()) => Verdict::Accepted,
            Err(error) => one_line(&error),
        },
        Err(error) => one_line(&error),
    }
}

fn run_client(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let Ok(file) = toml::from_str::<ClientFile>(text) else { return Verdict::Refused };
    let again: ClientFile = toml::from_str(&file.to_toml()).expect("its own text");
    assert!(again == file, "a client file does not survive its own text");
    let principal = PrincipalConfig { name: "admin".into(), seed: [1; 32] };
    match file.into_config(Path::new("client.toml"), principal) {
        Ok(config) => {
            let _ = config.weak();
            Verdict::Accepted
        }
        Err(error) => one_line(&error),
    }
}

/// What `dwcp kv txn` reads. The store judges depth and numbers: what it takes must travel as it is.
fn run_txn(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    match bounded(bytes, || dwcp::txn_text::parse(text)) {
        Ok(txn) => {
            let lines = text.lines().count();
            let json = text.trim_start().starts_with('{');
            let parts = txn.compare.len() + txn.success.len() + txn.failure.len();
            assert!(json || (1..=lines).contains(&parts), "{parts} parts in {lines} lines");
            let command = KvCommand::Txn(txn);
            if let Ok(again) = KvCommand::decode(&command.encode()) {
                assert!(again == command, "a transaction does not survive its own bytes");
            }
            Verdict::Accepted
        }
        Err(error) => one_line(&error),
    }
}

fn txn_seeds() -> Vec<Vec<u8>> {
    let text = "# who was first\nversion(\"a b\") = 0\nvalue(b) != \"x\\n\\x00é\"\nmod(c) > 5\ncreate(d) < 7\nlease(e) = 0\n\n\
                put a 1\nput \"c d\" \"\\\"quoted\\\"\"\nget a --prefix\n\ndel --prefix\ndel a --prefix\nget a\n";
    let json = r#"{"compare":[{"key":"a","target":"value","op":"!=","value":"x"},{"key":"p","prefix":true,"target":"version","value":3}],
        "then":[{"put":{"key":"a","value":"1","lease":7,"prev":true}},{"txn":{"then":[{"get":{"key":"b","prefix":true}}]}}],
        "else":[{"delete":{"key":"a","prefix":true}},{"get":{"key":"\u00e9"}}]}"#;
    vec![
        text.as_bytes().to_vec(),
        json.as_bytes().to_vec(),
        b"\nput a 1\n".to_vec(),
        b"value(a) = \"\"\n\n\nget a".to_vec(),
    ]
}

fn txn_bombs() -> Vec<Vec<u8>> {
    const LONG: usize = 100_000;
    let nested = r#"{"then":[{"txn":"#.repeat(LONG / 10);
    let lines = "\nput a 1".repeat(LONG / 10);
    let quoted = ["\nput a \"", &"\\x".repeat(LONG), "\""].concat();
    let word = ["value(", &"(".repeat(LONG), ") = 1"].concat();
    [
        nested,
        lines,
        quoted,
        word,
        "\n".repeat(LONG),
        "\"".repeat(LONG),
        "[".repeat(LONG),
        "\nget \\".repeat(LONG / 10),
    ]
    .map(String::into_bytes)
    .into()
}

/// The whole file, and shorter ones that say as much of each kind: of one member, without comments, in another mode.
fn genesis_seeds() -> Vec<Vec<u8>> {
    let mut small = (*genesis()).clone();
    small.members.truncate(1);
    small.principals.truncate(1);
    small.policy = Policy::root_only(Trust::Crash, Quorum::new(1, None).expect("one is enough"));
    let alone = without_comments(&genesis_text(&small));
    small.mode = NetworkMode::Datacenter;
    small.policy = Policy { raft: true, ..small.policy };
    let datacenter = without_comments(&genesis_text(&small));
    let defaults: String = lines(&alone).filter(|line| !line.starts_with("calm_ms")).collect();
    vec![
        alone.into_bytes(),
        datacenter.into_bytes(),
        defaults.into_bytes(),
        genesis_text(&genesis()).into_bytes(),
    ]
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
}

fn without_comments(text: &str) -> String {
    lines(text).filter(|line| !line.starts_with('#') && line.len() > 1).collect()
}

fn member_seeds() -> Vec<Vec<u8>> {
    let blocks = |text: &str| text.find("[[member]]").map_or("", |at| &text[at..]).as_bytes().to_vec();
    let short = String::from_utf8(genesis_seeds().remove(0)).expect("it was text");
    vec![blocks(&genesis_text(&genesis())), blocks(&short), blocks(&short.replace("writer", "reader"))]
}

fn order_seeds() -> Vec<Vec<u8>> {
    let key = "ab".repeat(32);
    let text = format!(
        "id = 3\nincarnation = 1\nvote_key = \"{key}\"\ntls_key = \"{key}\"\n\
         peer_address = \"h:1\"\nclient_address = \"h:2\"\n"
    );
    vec![text.into_bytes()]
}

/// What must be said, and beside it some of what may be.
fn node_seeds() -> Vec<Vec<u8>> {
    let base = "replica = 1\nmode = \"internet\"\ngenesis_file = \"genesis.toml\"\ndata_dir = \"data\"\n\
                vote_key_file = \"vote.key\"\ntls_key_file = \"tls.key\"\npeer_listen = \"127.0.0.1:7001\"\n\
                client_listen = \"127.0.0.1:8001\"\nhttp_listen = \"127.0.0.1:9001\"\n";
    let more = "log_level = \"info\"\n[consensus]\nview_timeout_ms = 2000\npipeline_depth = 16\n\
                batch_bytes_max = 1048576\n[storage]\nsegment_bytes = 67108864\n\
                [queues]\nclient_bytes_max = 8388608\nclients_bytes_max = 67108864\n";
    let short = base.replace("genesis.toml", "g").replace("vote.key", "v").replace("tls.key", "t");
    vec![base.as_bytes().to_vec(), short.into_bytes(), [base, more].concat().into_bytes()]
}

fn client_seeds() -> Vec<Vec<u8>> {
    // Two nodes with one key are refused.
    let key = |kind: u8, id: u8| format!("{kind:x}{id:x}").repeat(32);
    let node = |id: u8| NodeEntry {
        id,
        incarnation: 0,
        address: format!("127.0.0.1:{}", 8000 + u16::from(id)),
        tls_key: (id != 3).then(|| key(12, id)),
        vote_key: key(13, id),
    };
    let file = ClientFile {
        trust: TrustWord::Crash,
        version: 1,
        cluster: key(14, 0),
        f: 1,
        settings: SettingsEntry { call_timeout_ms: Some(5_000), ..SettingsEntry::default() },
        nodes: (0..4).map(node).collect(),
        principals: vec![PrincipalEntry {
            name: "admin".into(),
            role: Some("admin".into()),
            key_file: PathBuf::from("admin.key"),
        }],
    };
    let alone = ClientFile { f: 0, nodes: vec![node(1)], ..file.clone() };
    let pair = ClientFile { f: 0, nodes: (0..2).map(node).collect(), principals: Vec::new(), ..file.clone() };
    vec![alone.to_toml().into_bytes(), pair.to_toml().into_bytes(), file.to_toml().into_bytes()]
}

fn bombs() -> Vec<Vec<u8>> {
    const DEEP: usize = 100_000;
    vec![
        ["a = ".to_string(), "[".repeat(DEEP)].concat().into_bytes(),
        ["a = ".to_string(), "{ a = ".repeat(DEEP)].concat().into_bytes(),
        ["a.".repeat(DEEP), "b = 1".to_string()].concat().into_bytes(),
        ["[".to_string(), "a.".repeat(DEEP), "b]".to_string()].concat().into_bytes(),
        "[[a]]\n".repeat(20_000).into_bytes(),
        vec![b'"'; DEEP],
    ]
}
