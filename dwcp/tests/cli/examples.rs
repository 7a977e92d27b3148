//! The examples of the library, run as they stand.

#[allow(dead_code)]
#[path = "../../examples/adaptive.rs"]
mod adaptive;
#[allow(dead_code)]
#[path = "../../examples/both_engines.rs"]
mod both;
#[allow(dead_code)]
#[path = "../../examples/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../examples/counter_bank.rs"]
mod counter_bank;

use dwcp::settings::Mode;

use super::Trial;

pub use self::both::story as both_engines;

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

#[test]
fn a_cluster_with_a_machine_of_its_own_survives_a_node_in_either_mode() {
    for mode in [Mode::Hybrid, Mode::Internet] {
        let folder = tempfile::tempdir().expect("a folder");
        let bank = runtime().block_on(counter_bank::story(&folder.path().join("bank"), mode));
        assert_eq!(bank.expect("the story is told"), 7, "{mode}");
    }
}

#[test]
fn a_client_program_takes_a_lock_once() {
    let trial = Trial::started(4, "internet");
    let alone = runtime().block_on(client::story(&trial.path("client.toml")));
    assert!(alone.expect("the story is told"));
}

#[test]
fn four_embedded_nodes_agree_across_a_switch_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let fields = runtime().block_on(adaptive::story(&folder.path().join("adaptive")));
    assert_eq!(fields.expect("the story is told"), 3);
}
