//! What `init` writes, reads back; what exists is never overwritten; what cannot be is refused before anything is written.

use std::os::unix::fs::PermissionsExt;

use dwcp_storage::DataDir;

use super::*;
use crate::genesis_file::trust_word;
use crate::settings::NodeConfig;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn trial(nodes: usize, out: &Path, mode: Mode) -> Result<TrialCluster, InitError> {
    let cluster = ClusterOptions { name: "a \"b\"\n[x]".into(), mode, ..ClusterOptions::default() };
    trial_cluster(nodes, out, &TrialOptions { cluster, ..TrialOptions::default() })
}

fn listen(first: u16) -> Listen {
    let at = |port| SocketAddr::new([127, 0, 0, 1].into(), port);
    Listen { peer: at(first), client: at(first + 1), http: at(first + 2) }
}

#[test]
fn a_trial_cluster_is_whole_and_its_secrets_are_private() {
    let folder = folder();
    let out = folder.path().join("trial");
    let made = trial(4, &out, Mode::Internet).unwrap();
    assert_eq!(read_genesis(&made.genesis_file).unwrap(), made.genesis);
    assert_eq!(made.nodes.len(), 4);
    for node in &made.nodes {
        let config = NodeConfig::load(&node.config_file).unwrap();
        config.check_against(&made.genesis).unwrap();
        assert_eq!(config.replica, node.id);
        assert_eq!((config.peer_listen, config.http_listen), (node.listen.peer, node.listen.http));
        assert_eq!(read_genesis(&config.genesis_file).unwrap().cluster(), made.genesis.cluster());
        let member = &made.genesis.members[usize::from(node.id.0)];
        assert_eq!(SecretSeed::read(&config.vote_key_file).unwrap().public_key(), member.vote_key);
        assert_eq!(read_tls_identity(&config.tls_key_file).unwrap().public_key(), member.tls_key.0);
        let opened = DataDir::open(&config.data_dir, &WalSettings::default()).unwrap();
        assert_eq!(opened.dir.manifest().cluster, made.genesis.cluster().0);
        assert_eq!((opened.dir.manifest().replica, opened.dir.manifest().incarnation), (node.id.0, 0));
        assert!(opened.records.is_empty());
    }
    let client = std::fs::read_to_string(&made.client_file).unwrap();
    let client: toml::Table = toml::from_str(&client).unwrap();
    assert_eq!(client["node"].as_array().unwrap().len(), 4);
    assert_eq!(client["f"].as_integer(), Some(1));
    for principal in client["principal"].as_array().unwrap() {
        let key = out.join(principal["key_file"].as_str().unwrap());
        let known =
            made.genesis.principals.iter().find(|p| p.name == principal["name"].as_str().unwrap()).unwrap();
        assert_eq!(SecretSeed::read(&key).unwrap().public_key(), known.key);
    }
    for secret in ["admin.key", "writer.key", "node0/vote.key", "node3/tls.pem"] {
        let mode = std::fs::metadata(out.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
}

#[test]
fn the_defaults_shown_in_a_settings_file_are_settings() {
    let folder = folder();
    let made = trial(1, &folder.path().join("one"), Mode::Datacenter).unwrap();
    let text = std::fs::read_to_string(&made.nodes[0].config_file).unwrap();
    let shown: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let (plain, shown) = (
        NodeConfig::parse(Path::new("c.toml"), &text).unwrap(),
        NodeConfig::parse(Path::new("c.toml"), &shown).unwrap(),
    );
    assert_eq!((&plain.consensus, &plain.queues), (&shown.consensus, &shown.queues));
    assert_eq!((plain.mode, &plain.segment), (Mode::Datacenter, &shown.segment));
}

#[test]
fn a_mode_brings_the_trust_it_needs_and_liars_are_assumed_where_there_are_enough() {
    let folder = folder();
    let modes = [
        (Mode::Internet, 4, Trust::Byzantine, 1),
        (Mode::Hybrid, 4, Trust::Crash, 1),
        (Mode::Hybrid, 3, Trust::Crash, 0),
        (Mode::Datacenter, 5, Trust::Crash, 1),
        (Mode::Datacenter, 1, Trust::Crash, 0),
    ];
    for (mode, nodes, trust, f) in modes {
        let made = trial(nodes, &folder.path().join(format!("{mode}{nodes}")), mode).unwrap();
        let Genesis { mode: begins, policy, .. } = &made.genesis;
        assert_eq!((*begins, policy.trust, policy.quorum.f(), policy.raft), (mode, trust, f, true));
        let client = std::fs::read_to_string(&made.client_file).unwrap();
        let client: toml::Table = toml::from_str(&client).unwrap();
        assert_eq!(client["trust"].as_str(), Some(trust_word(trust)), "what clients may believe");
        assert_eq!(NodeConfig::load(&made.nodes[0].config_file).unwrap().mode, mode);
    }
}

#[test]
fn an_impossible_cluster_is_refused_before_anything_is_written() {
    let folder = folder();
    let out = folder.path().join("trial");
    assert_eq!(
        trial(3, &out, Mode::Internet).unwrap_err().to_string(),
        "minimum 4 replicas required for Byzantine tolerance"
    );
    assert_eq!(trial(32, &out, Mode::Internet).unwrap_err().to_string(), "32 nodes: a cluster has 1 to 31");
    let with = |cluster: ClusterOptions, ports| {
        let options = TrialOptions { cluster, ports, ..TrialOptions::default() };
        trial_cluster(4, &out, &options).unwrap_err().to_string()
    };
    let options = ClusterOptions::default;
    let too_many = with(ClusterOptions { faults: Some(2), ..options() }, Ports::Free);
    assert!(too_many.contains("f = 2 is more than 4 replicas tolerate"), "{too_many}");
    assert!(
        with(ClusterOptions { window: 5, ..options() }, Ports::Free).contains("window must be a multiple")
    );
    let no_raft = ClusterOptions { mode: Mode::Datacenter, raft: false, ..options() };
    let no_raft = with(no_raft, Ports::Free);
    assert!(no_raft.ends_with("datacenter mode runs Raft, which the policy does not allow"), "{no_raft}");
    let ports = with(options(), Ports::From(65_530));
    assert_eq!(ports, "ports 65530..=65541 are not all there: choose a lower first port");
    assert!(!out.exists());
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let folder = folder();
    let out = folder.path().join("trial");
    trial(1, &out, Mode::Datacenter).unwrap();
    let again = trial(1, &out, Mode::Datacenter).unwrap_err();
    assert!(matches!(again, InitError::Exists { .. }), "{again}");

    let host = folder.path().join("host");
    keygen(&host, "a:1", "a:2").unwrap();
    assert!(matches!(keygen(&host, "a:1", "a:2"), Err(InitError::Key(KeyError::Exists { .. }))));
    keygen_principal(&host, "ops", Role::Admin).unwrap();
    assert!(keygen_principal(&host, "ops", Role::Admin).is_err());
}

#[test]
fn parties_that_share_no_keys_make_one_cluster() {
    let folder = folder();
    let host = |i: u16| folder.path().join(format!("host{i}"));
    let mut members = String::new();
    for i in 0..4 {
        let block = keygen(&host(i), &format!("h{i}.example:7000"), &format!("h{i}.example:7001")).unwrap();
        assert_eq!(std::fs::read_to_string(host(i).join(MEMBER_FILE)).unwrap(), block);
        members += &block;
    }
    members += &keygen_principal(folder.path(), "ops/team", Role::Admin).unwrap();
    assert!(folder.path().join("ops_team.key").exists());
    let members_file = folder.path().join("members.toml");
    std::fs::write(&members_file, members).unwrap();
    let genesis_file = folder.path().join("genesis.toml");
    let genesis = from_members(&members_file, &genesis_file, &ClusterOptions::default()).unwrap();
    assert_eq!(read_genesis(&genesis_file).unwrap(), genesis);
    assert!(from_members(&members_file, &genesis_file, &ClusterOptions::default()).is_err(), "it exists");

    let config = node_data(&genesis_file, ReplicaId(2), &host(2), &listen(7000)).unwrap();
    let config = NodeConfig::load(&config).unwrap();
    config.check_against(&read_genesis(&config.genesis_file).unwrap()).unwrap();
    assert_eq!(DataDir::open(&config.data_dir, &WalSettings::default()).unwrap().dir.manifest().replica, 2);

    let wrong = node_data(&genesis_file, ReplicaId(1), &host(3), &listen(7000)).unwrap_err().to_string();
    assert!(
        wrong.ends_with("or with its own replica number") && wrong.contains("is not replica 1's vote key"),
        "{wrong}"
    );
    assert!(!host(3).join(CONFIG_FILE).exists());
    let none = node_data(&genesis_file, ReplicaId(4), &host(3), &listen(7000)).unwrap_err().to_string();
    assert_eq!(none, "replica 4 is not a member: the genesis has replicas 0..=3");
}

#[test]
fn a_replacement_is_the_next_incarnation_with_keys_of_its_own() {
    let folder = folder();
    let made = trial(4, &folder.path().join("trial"), Mode::Internet).unwrap();
    let host = folder.path().join("new1");
    let order = |incarnation, host: &Path| {
        let incarnation = Incarnation(incarnation);
        replacement(&made.genesis_file, ReplicaId(1), incarnation, host, &listen(7500), "n:1", "n:2")
    };
    assert!(matches!(order(0, &host), Err(InitError::NotAReplacement)));
    let replaced = order(1, &host).unwrap();
    assert_eq!(read_order(&replaced.order_file).unwrap(), replaced.order);
    assert_ne!(replaced.order.vote_key, made.genesis.members[1].vote_key);
    assert_ne!(replaced.order.tls_key, made.genesis.members[1].tls_key);
    let config = NodeConfig::load(&replaced.config_file).unwrap();
    assert_eq!(SecretSeed::read(&config.vote_key_file).unwrap().public_key(), replaced.order.vote_key);
    let opened = DataDir::open(&config.data_dir, &WalSettings::default()).unwrap();
    assert_eq!((opened.dir.manifest().replica, opened.dir.manifest().incarnation), (1, 1));
    assert!(matches!(order(2, &host), Err(InitError::Exists { .. })));
}
