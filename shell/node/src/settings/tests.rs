//! Each bad settings file and the line it is answered with.

use super::*;

pub(crate) fn good() -> String {
    "# a node\n\
     replica = 2\n\
     mode = \"internet\"\n\
     genesis_file = \"../genesis.toml\"\n\
     data_dir = \"/var/lib/dwcp\"\n\
     vote_key_file = \"vote.key\"\n\
     tls_key_file = \"tls.pem\"\n\
     peer_listen = \"127.0.0.1:7000\"\n\
     client_listen = \"127.0.0.1:7001\"\n\
     http_listen = \"127.0.0.1:7002\"\n\
     \n\
     [consensus]\n\
     view_timeout_ms = 3000\n"
        .into()
}

/// Bounds of a node with default settings, for other tests of this crate.
pub(crate) fn queues() -> Queues {
    NodeConfig::parse(Path::new("config.toml"), &good()).unwrap().queues
}

fn refusal(text: &str) -> String {
    NodeConfig::parse(Path::new("etc/config.toml"), text).unwrap_err().to_string()
}

fn with(line: &str, instead: &str) -> String {
    let text = good();
    assert!(text.contains(line), "{line}");
    refusal(&text.replace(line, instead))
}

#[test]
fn a_good_file_is_read_into_final_types_with_defaults_of_its_mode() {
    let config = NodeConfig::parse(Path::new("etc/config.toml"), &good()).unwrap();
    assert_eq!(config.replica, ReplicaId(2));
    assert_eq!(config.genesis_file, Path::new("etc/../genesis.toml"));
    assert_eq!(config.data_dir, Path::new("/var/lib/dwcp"));
    assert_eq!(config.consensus.view_timeout_ms, 3000);
    assert_eq!(config.consensus.standing_interval_ms, 1000);
    assert_eq!(config.log_level, LogLevel::Warn);
    let lan = good().replace("internet", "datacenter").replace("view_timeout_ms = 3000\n", "");
    let lan = NodeConfig::parse(Path::new("config.toml"), &lan).unwrap();
    assert_eq!((lan.consensus.view_timeout_ms, lan.consensus.standing_interval_ms), (500, 250));
    assert_eq!(lan.genesis_file, Path::new("../genesis.toml"));
}

#[test]
fn every_bad_line_is_named_with_its_remedy() {
    let cases = [
        (
            with("view_timeout_ms", "view_timeout"),
            "etc/config.toml:13: unknown setting `consensus.view_timeout`: did you mean `consensus.view_timeout_ms`? \
             `dwcp server --help-settings` lists all",
        ),
        (
            with("replica = 2", "replica = 2\nview_timeout_ms = 5"),
            "etc/config.toml:3: unknown setting `view_timeout_ms`: did you mean `consensus.view_timeout_ms`? \
             `dwcp server --help-settings` lists all",
        ),
        (
            with("[consensus]", "[gossip]"),
            "etc/config.toml:13: unknown setting `gossip.view_timeout_ms`: did you mean `consensus.view_timeout_ms`? \
             `dwcp server --help-settings` lists all",
        ),
        (
            with("replica = 2", "replica = 2\nblockchain = true"),
            "etc/config.toml:3: unknown setting `blockchain`: remove it; `dwcp server --help-settings` lists all",
        ),
        (
            with("3000", "5"),
            "etc/config.toml:13: `consensus.view_timeout_ms` = 5 is out of range: set it within 20..=60000 ms",
        ),
        (
            with("3000", "-1"),
            "etc/config.toml:13: `consensus.view_timeout_ms` = -1 is out of range: set it within 20..=60000 ms",
        ),
        (
            with("3000", "0xffff_ffff_ffff_ffff"),
            "etc/config.toml:13: `consensus.view_timeout_ms` = 9223372036854775807 is out of range: set it within \
             20..=60000 ms",
        ),
        (
            with("3000", "\"3s\""),
            "etc/config.toml:13: `consensus.view_timeout_ms` is a text: write a number of ms, without quotes",
        ),
        (
            with(
                "[consensus]",
                "[queues]\nclient_bytes_max = 70000000\nclients_bytes_max = 60000000\n[consensus]",
            ),
            "etc/config.toml:14: `queues.clients_bytes_max` = 60000000 is below `queues.client_bytes_max` = 70000000: \
             set it to at least that",
        ),
        (
            with("\"internet\"", "\"intranet\""),
            "etc/config.toml:3: `mode` = \"intranet\" is not known: write one of \"internet\", \"datacenter\", \"hybrid\"",
        ),
        (
            with("\"127.0.0.1:7001\"", "\"localhost:7001\""),
            "etc/config.toml:9: `client_listen` = \"localhost:7001\" is no address: write IP:PORT, for example \
             127.0.0.1:7000 or [::1]:7000",
        ),
        (
            with("127.0.0.1:7002", "127.0.0.1:7000"),
            "etc/config.toml:10: `http_listen` = 127.0.0.1:7000 is also `peer_listen`: give each its own port",
        ),
        (
            with("vote_key_file = \"vote.key\"\n", ""),
            "etc/config.toml: setting `vote_key_file` is missing: add it (the secret key that signs votes; readable by \
             its owner alone)",
        ),
        (
            with("\"vote.key\"", "\"\""),
            "etc/config.toml:6: `vote_key_file` is empty: write path; relative to the settings file, in quotes",
        ),
        (
            with("replica = 2", "replica = 31"),
            "etc/config.toml:2: `replica` = 31 is out of range: set it within 0..=30 ",
        ),
        (
            with("[consensus]", "[segment]\nheartbeat_interval_ms = 1500\n[consensus]"),
            "etc/config.toml:13: `segment.election_timeout_ms` = 3000 is below `3 * segment.heartbeat_interval_ms` = 4500: \
             set it to at least that",
        ),
        (
            with("[consensus]", "[segment]\nanchor_interval_ms = 9\n[consensus]"),
            "etc/config.toml:13: `segment.anchor_interval_ms` = 9 is out of range: set it within 10..=10000 ms",
        ),
        (
            with("[consensus]", "[storage]\nsegment_bytes = 65537\n[consensus]"),
            "etc/config.toml:13: `storage.segment_bytes` = 65537 must be a multiple of 4096: set it to 69632",
        ),
        (
            with("[consensus]", "[sync]\nack_patience_ms = 999\n[consensus]"),
            "etc/config.toml:13: `sync.ack_patience_ms` = 999 is out of range: set it within 1000..=604800000 ms",
        ),
        (
            with("[consensus]", "[sync]\naudit_interval_ms = 604800001\n[consensus]"),
            "etc/config.toml:13: `sync.audit_interval_ms` = 604800001 is out of range: set it within 1000..=604800000 ms",
        ),
        (
            with("[consensus]", "[sync]\nfanout = 0\n[consensus]"),
            "etc/config.toml:13: `sync.fanout` = 0 is out of range: set it within 1..=64 peers",
        ),
        (
            with("[consensus]", "[consensus]\nrelay_after_ms = 3001"),
            "etc/config.toml:13: `consensus.relay_after_ms` = 3001 is above `consensus.view_timeout_ms` = 3000: set it to at \
             most that",
        ),
        (
            with("[consensus]", "[consensus]\nresend_interval_ms = 4"),
            "etc/config.toml:13: `consensus.resend_interval_ms` = 4 is out of range: set it within 0 or 5..=10000 ms",
        ),
        (
            with("[consensus]", "[consensus]\nsnapshot_log_bytes = 67108864\nhistory_bytes_max = 67108864"),
            "etc/config.toml:14: `consensus.history_bytes_max` = 67108864 is below `2 * consensus.snapshot_log_bytes` = \
             134217728: set it to at least that",
        ),
        (
            with("[consensus]", "[segment]\nreads_max = 0\n[consensus]"),
            "etc/config.toml:13: `segment.reads_max` = 0 is out of range: set it within 1..=1048576 reads",
        ),
        (
            with("[consensus]", "[sync]\nwaiting_total_bytes_max = 4000000\n[consensus]"),
            "etc/config.toml:13: `sync.waiting_total_bytes_max` = 4000000 is below `sync.waiting_bytes_max` = 4194304: set it \
             to at least that",
        ),
        (
            with("[consensus]", "[links]\nping_interval_ms = 3000\nsilence_max_ms = 5999\n[consensus]"),
            "etc/config.toml:14: `links.silence_max_ms` = 5999 is below `2 * links.ping_interval_ms` = 6000: set it to at least \
             that",
        ),
        (
            with("[consensus]", "[links]\nreconnect_pause_max_ms = 19\n[consensus]"),
            "etc/config.toml:13: `links.reconnect_pause_max_ms` = 19 is below `links.reconnect_pause_min_ms` = 20: set it to at \
             least that",
        ),
        (
            with("[consensus]", "[clients]\ncall_timeout_ms = 0\n[consensus]"),
            "etc/config.toml:13: `clients.call_timeout_ms` = 0 is out of range: set it within 1..=3600000 ms",
        ),
        (
            with("[consensus]", "[http]\nconnections_max = 16\n[consensus]"),
            "etc/config.toml:13: `http.connections_max` = 16 is below `http.watches_max + 1` = 17: set it to at least that",
        ),
        (
            with("[consensus]", "[http]\nwatches_max = 64\n[consensus]"),
            "etc/config.toml:13: `http.connections_max` = 64 is below `http.watches_max + 1` = 65: set it to at least that",
        ),
        (
            with("[consensus]", "[http]\nconnection_lifetime_ms = 19999\n[consensus]"),
            "etc/config.toml:13: `http.connection_lifetime_ms` = 19999 is out of range: set it within 20000..=3600000 ms",
        ),
        (
            with("[consensus]", "[sync]\nack_patience = 5\n[consensus]"),
            "etc/config.toml:13: unknown setting `sync.ack_patience`: did you mean `sync.ack_patience_ms`? \
             `dwcp server --help-settings` lists all",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected.trim_end());
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let found = with("replica = 2", "replica 2");
    assert!(found.starts_with("etc/config.toml:2: is not TOML ("), "{found}");
    let twice = with("replica = 2", "replica = 2\nreplica = 2");
    assert!(twice.starts_with("etc/config.toml:3: is not TOML ("), "{twice}");
    let none = NodeConfig::load(Path::new("no/such/config.toml")).unwrap_err().to_string();
    assert!(none.starts_with("settings file no/such/config.toml cannot be read ("), "{none}");
    assert!(none.ends_with("name the config.toml of a node; `dwcp init` writes one"), "{none}");
}

#[test]
fn the_table_is_sound_and_the_manual_shows_it() {
    for (index, setting) in SETTINGS.iter().enumerate() {
        assert!(SETTINGS[..index].iter().all(|other| other.key != setting.key), "{} twice", setting.key);
        assert!(setting.what.len() > 10 && !setting.what.contains('|'), "{}", setting.key);
        for mode in [Mode::Internet, Mode::Datacenter, Mode::Hybrid] {
            match (setting.preset, setting.allowed) {
                (Preset::Required, _) => {}
                (Preset::Word(word), Allowed::Words(words)) => assert!(words.contains(&word)),
                (Preset::Word(""), Allowed::Prefixes | Allowed::Peers | Allowed::Host | Allowed::Hosts) => {}
                (preset, Allowed::Number { min, max }) => {
                    let value = preset.number(mode).unwrap();
                    assert!((min..=max).contains(&value), "{}", setting.key);
                }
                (preset, Allowed::ZeroOr { min, max }) => {
                    let value = preset.number(mode).unwrap();
                    assert!((min..=max).contains(&value) || value == 0, "{}", setting.key);
                }
                (_, _) => panic!("{} has a default of another type", setting.key),
            }
        }
        // The name ends with the unit, or with the bound.
        let unit_shown = match setting.unit {
            "ms" => setting.key.ends_with("_ms"),
            "bytes" => setting.key.contains("bytes"),
            _ => true,
        };
        assert!(unit_shown, "{}", setting.key);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/settings.md");
    if std::env::var_os("DWCP_WRITE_DOCS").is_some() {
        std::fs::write(&page, settings_markdown()).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        written == settings_markdown(),
        "docs/operating/settings.md is not what the table says: run \
         `DWCP_WRITE_DOCS=1 cargo test -p dwcp-node the_table_is_sound`"
    );
    assert!(SETTINGS.iter().all(|setting| settings_table().contains(setting.key)));
}

#[test]
fn the_defaults_are_the_cores_own_and_every_allowed_value_passes_the_core() {
    let good = good().replace("view_timeout_ms = 3000\n", "");
    for (word, core) in [("internet", Settings::internet()), ("datacenter", Settings::lan())] {
        let config = NodeConfig::parse(Path::new("c.toml"), &good.replace("internet", word)).unwrap();
        assert_eq!(config.to_settings(), core);
    }
    let hybrid = NodeConfig::parse(Path::new("c.toml"), &good.replace("internet", "hybrid")).unwrap();
    assert_eq!(hybrid.to_settings().check(), Ok(()));
    // Between the two: a network of either kind must find it bearable.
    let (lan, wan) = (Settings::lan().segment, Settings::internet().segment);
    let timing = hybrid.to_settings().segment.timing;
    assert!(lan.timing.election_timeout < timing.election_timeout);
    assert!(timing.election_timeout < wan.timing.election_timeout);
    for setting in SETTINGS {
        let Some((section @ ("consensus" | "segment"), name)) = setting.key.split_once('.') else { continue };
        let values = match setting.allowed {
            Allowed::Number { min, max } => vec![min, max],
            Allowed::ZeroOr { min, max } => vec![0, min, max],
            _ => continue,
        };
        for value in values {
            let mut text = good.replace("[consensus]\n", &format!("[{section}]\n{name} = {value}\n"));
            match (name, value) {
                // These bound each other.
                ("snapshot_log_bytes", 1_073_741_824) => text.push_str("history_bytes_max = 2147483648\n"),
                ("resend_interval_ms", 10_000) | ("relay_after_ms", 60_000) => {
                    text.push_str("view_timeout_ms = 60000\n");
                }
                ("heartbeat_interval_ms", 20_000) => text.push_str("election_timeout_ms = 60000\n"),
                ("election_timeout_ms", 10) => text.push_str("heartbeat_interval_ms = 3\n"),
                _ => {}
            }
            let config = NodeConfig::parse(Path::new("c.toml"), &text).unwrap();
            assert_eq!(config.to_settings().check(), Ok(()), "{name} = {value}");
        }
    }
}

#[test]
fn each_setting_of_state_sync_reaches_the_core_and_its_whole_range_passes_there() {
    let setup = |lines: &str| {
        let text = format!("{}\n[sync]\n{lines}", good());
        NodeConfig::parse(Path::new("c.toml"), &text).unwrap().sync.to_setup(Resolvers::default())
    };
    let silent = setup("");
    assert_eq!(silent.timing, dwcp_replica::sync::SyncTiming::default());
    assert_eq!(silent.limits, dwcp_replica::sync::SyncLimits::default());
    let said = setup(
        "exchange_interval_ms = 51\nfanout = 3\nack_patience_ms = 1002\naudit_interval_ms = 1003\n\
         log_bytes_max = 1048577\n",
    );
    let ms = |at: Micros| at.0 / 1_000;
    let timing = said.timing;
    assert_eq!(
        (ms(timing.exchange_interval), ms(timing.ack_patience), ms(timing.audit_interval)),
        (51, 1_002, 1_003)
    );
    assert_eq!((said.limits.fanout, said.limits.log_bytes_max), (3, 1_048_577));
    for setting in SETTINGS {
        let (Some(("sync", name)), Allowed::Number { min, max }) =
            (setting.key.split_once('.'), setting.allowed)
        else {
            continue;
        };
        for value in [min, max] {
            let total = match name {
                "waiting_bytes_max" => format!("waiting_total_bytes_max = {max}\n"),
                "waiting_total_bytes_max" => "waiting_bytes_max = 262144\n".into(),
                _ => String::new(),
            };
            assert_eq!(setup(&format!("{name} = {value}\n{total}")).check(), Ok(()), "{name} = {value}");
        }
    }
}

#[test]
fn settings_that_do_not_fit_the_genesis_are_refused() {
    use dwcp_base::{Policy, Quorum};
    let config = NodeConfig::parse(Path::new("c.toml"), &good()).unwrap();
    let genesis = |n: usize, trust| Genesis {
        version: 1,
        name: String::new(),
        created_unix_ms: 0,
        policy: Policy::root_only(trust, Quorum::new(n, None).unwrap()),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members: (0..n).map(|_| member()).collect(),
        principals: vec![],
        checkpoint_interval: 1,
        window: 2,
        quota_bytes: 0,
    };
    let refusal =
        |config: &NodeConfig, n, trust| config.check_against(&genesis(n, trust)).unwrap_err().to_string();
    assert!(config.check_against(&genesis(4, Trust::Byzantine)).is_ok());
    assert_eq!(refusal(&config, 3, Trust::Crash), "minimum 4 replicas required for Byzantine tolerance");
    assert!(config.check_against(&genesis(5, Trust::Crash)).is_ok(), "it only picks defaults");
    let near = NodeConfig::parse(Path::new("c.toml"), &good().replace("internet", "datacenter")).unwrap();
    assert!(near.check_against(&genesis(5, Trust::Crash)).is_ok());
    assert_eq!(
        refusal(&near, 5, Trust::Byzantine),
        "c.toml:3: mode = \"datacenter\" does not fit the genesis, whose trust is byzantine: set mode = \"internet\" or \
         \"hybrid\", or make another cluster with `dwcp init`"
    );
    let far = NodeConfig::parse(Path::new("c.toml"), &good().replace("replica = 2", "replica = 9")).unwrap();
    assert_eq!(
        refusal(&far, 4, Trust::Byzantine),
        "c.toml:2: replica = 9 is not a member: the genesis has replicas 0..=3"
    );
}

fn member() -> dwcp_base::Member {
    dwcp_base::Member {
        id: ReplicaId(0),
        incarnation: dwcp_base::Incarnation(0),
        vote_key: dwcp_base::PublicKey::default(),
        tls_key: dwcp_base::PublicKey::default(),
        peer_address: String::new(),
        client_address: String::new(),
        votes_after: dwcp_base::Sequence(0),
    }
}
