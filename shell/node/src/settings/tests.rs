//! Each bad settings file and the line it is answered with.

use super::*;

fn good() -> String {
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
    assert_eq!(config.consensus.status_interval_ms, 500);
    assert_eq!(config.log_level, LogLevel::Warn);
    let lan = good().replace("internet", "datacenter").replace("view_timeout_ms = 3000\n", "");
    let lan = NodeConfig::parse(Path::new("config.toml"), &lan).unwrap();
    assert_eq!((lan.consensus.view_timeout_ms, lan.consensus.status_interval_ms), (500, 200));
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
            "etc/config.toml:13: `consensus.view_timeout_ms` = 5 is out of range: set it within 50..=600000 ms",
        ),
        (
            with("3000", "-1"),
            "etc/config.toml:13: `consensus.view_timeout_ms` = -1 is out of range: set it within 50..=600000 ms",
        ),
        (
            with("3000", "0xffff_ffff_ffff_ffff"),
            "etc/config.toml:13: `consensus.view_timeout_ms` = 9223372036854775807 is out of range: set it within \
             50..=600000 ms",
        ),
        (
            with("3000", "\"3s\""),
            "etc/config.toml:13: `consensus.view_timeout_ms` is a text: write a number of ms, without quotes",
        ),
        (
            with("3000", "60001\nview_timeout_max_ms = 60000"),
            "etc/config.toml:14: `consensus.view_timeout_max_ms` = 60000 is below `consensus.view_timeout_ms` = 60001: \
             set it to at least that",
        ),
        (
            with("\"internet\"", "\"hybrid\""),
            "etc/config.toml:3: `mode` = \"hybrid\" is not known: write one of \"internet\", \"datacenter\"",
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
            with("[consensus]", "[storage]\nsegment_bytes = 65537\n[consensus]"),
            "etc/config.toml:13: `storage.segment_bytes` = 65537 must be a multiple of 4096: set it to 69632",
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
        for mode in [Mode::Internet, Mode::Datacenter] {
            match (setting.preset, setting.allowed) {
                (Preset::Required, _) => {}
                (Preset::Word(word), Allowed::Words(words)) => assert!(words.contains(&word)),
                (preset, Allowed::Number { min, max }) => {
                    let value = preset.number(mode).unwrap();
                    assert!((min..=max).contains(&value), "{}", setting.key);
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
