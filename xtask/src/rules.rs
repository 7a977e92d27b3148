//! Who may import whom: the one table, and the only file to edit when a wall moves.
//!
//! ARCHITECTURE.md explains the walls; `layers.rs` enforces them. A crate that does not stand here does not build in CI.
//! A row may name rooms that are not built yet. Dev-dependencies obey the same row; what a test needs beyond it stands
//! in `DEV_EDGES`, one line with its reason.

/// Which world a crate lives in; the first folder of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Computes only: `no_std`, no clock, chance, thread, socket or file.
    Core,
    /// Touches the world; imports the core, is never imported by it.
    Shell,
    /// The library and the binary users see.
    Face,
    /// Simulator, judges, cluster tests and this program: never shipped, never imported.
    Proof,
}

/// What a crate may import from this workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Imports {
    Only(&'static [&'static str]),
    /// Whatever it exercises.
    Anything,
}

/// One crate: its package name, where it lives, what it may import.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) package: &'static str,
    pub(crate) folder: &'static str,
    pub(crate) zone: Zone,
    pub(crate) imports: Imports,
}

const fn room(package: &'static str, folder: &'static str, zone: Zone, imports: Imports) -> Room {
    Room { package, folder, zone, imports }
}

use Imports::{Anything, Only};
use Zone::{Core, Face, Proof, Shell};

pub(crate) const ROOMS: &[Room] = &[
    room("dwcp-base", "core/base", Core, Only(&[])),
    room("dwcp-log", "core/log", Core, Only(&["dwcp-base"])),
    room("dwcp-crdt", "core/crdt", Core, Only(&["dwcp-base"])),
    room("dwcp-pbft", "core/pbft", Core, Only(&["dwcp-base", "dwcp-log"])),
    room("dwcp-raft", "core/raft", Core, Only(&["dwcp-base", "dwcp-log"])),
    room("dwcp-sync", "core/sync", Core, Only(&["dwcp-base", "dwcp-crdt"])),
    room("dwcp-state", "core/state", Core, Only(&["dwcp-base", "dwcp-crdt"])),
    room(
        "dwcp-replica",
        "core/replica",
        Core,
        Only(&["dwcp-base", "dwcp-log", "dwcp-crdt", "dwcp-pbft", "dwcp-raft", "dwcp-sync", "dwcp-state"]),
    ),
    room("dwcp-storage", "shell/storage", Shell, Only(&["dwcp-base"])),
    room("dwcp-transport", "shell/transport", Shell, Only(&["dwcp-base"])),
    room("dwcp-hints", "shell/hints", Shell, Only(&["dwcp-base"])),
    room("dwcp-proto", "shell/proto", Shell, Only(&[])),
    room(
        "dwcp-node",
        "shell/node",
        Shell,
        Only(&[
            "dwcp-base",
            "dwcp-log",
            "dwcp-state",
            "dwcp-replica",
            "dwcp-storage",
            "dwcp-transport",
            "dwcp-hints",
        ]),
    ),
    room(
        "dwcp-api",
        "shell/api",
        Shell,
        Only(&["dwcp-base", "dwcp-state", "dwcp-replica", "dwcp-proto", "dwcp-node", "dwcp-transport"]),
    ),
    room(
        "dwcp-client",
        "shell/client",
        Shell,
        Only(&["dwcp-base", "dwcp-state", "dwcp-replica", "dwcp-proto", "dwcp-transport"]),
    ),
    room(
        "dwcp",
        "dwcp",
        Face,
        Only(&[
            "dwcp-base",
            "dwcp-log",
            "dwcp-state",
            "dwcp-replica",
            "dwcp-storage",
            "dwcp-transport",
            "dwcp-proto",
            "dwcp-node",
            "dwcp-api",
            "dwcp-client",
        ]),
    ),
    room("sim", "proof/sim", Proof, Anything),
    room("model", "proof/model", Proof, Anything),
    room("cluster", "proof/cluster", Proof, Anything),
    room("decoders", "proof/decoders", Proof, Anything),
    room("conformance", "proof/conformance", Proof, Only(&["dwcp-base", "dwcp-log", "dwcp-raft"])),
    room(
        "sync-bench",
        "proof/sync-bench",
        Proof,
        Only(&["dwcp-base", "dwcp-crdt", "dwcp-sync", "dwcp-storage"]),
    ),
    room(
        "layer-bench",
        "proof/layer-bench",
        Proof,
        Only(&["dwcp-base", "dwcp-log", "dwcp-raft", "dwcp-replica", "dwcp-state"]),
    ),
    // Judges share no code with what they judge.
    room("check", "proof/check", Proof, Only(&[])),
    // Builds while everything else is broken.
    room("xtask", "xtask", Proof, Only(&[])),
];

/// Dev-dependencies beyond a crate's own row: (from, to, why).
pub(crate) const DEV_EDGES: &[(&str, &str, &str)] = &[];

/// The feature that switches safety rules off, and the only packages that may ask for it.
pub(crate) const MUTANTS: &str = "mutants";
pub(crate) const MUTANTS_USERS: &[&str] = &["sim", "model", "conformance"];
pub(crate) const MUTANTS_USERS_NAMED: &str = "sim, model and conformance";

/// Features of dependencies that would bring the operating system into the core.
pub(crate) const CORE_FORBIDDEN_FEATURES: &[&str] =
    &["std", "getrandom", "os_rng", "sys_rng", "thread_rng", "rand", "runtime-rng", "wall-clock"];

/// Packages that are the operating system, whatever their features.
pub(crate) const CORE_FORBIDDEN_PACKAGES: &[&str] = &[
    "getrandom",
    "rand",
    "libc",
    "rustix",
    "tokio",
    "mio",
    "socket2",
    "num_cpus",
    "rayon",
    "chrono",
    "time",
];

/// Where the rule is explained, named in every error.
pub(crate) const EXPLAINED_IN: &str = "ARCHITECTURE.md";

pub(crate) fn room_of(package: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.package == package)
}

/// May `from` name `to` in its manifest? `dev` marks a dev-dependency.
pub(crate) fn may_import(from: &Room, to: &str, dev: bool) -> bool {
    let to_is_proof = room_of(to).is_some_and(|room| room.zone == Proof);
    if to_is_proof && from.zone != Proof {
        return false;
    }
    let by_row = match from.imports {
        Anything => from.package != to,
        Only(list) => list.contains(&to),
    };
    by_row || (dev && DEV_EDGES.iter().any(|(f, t, _)| *f == from.package && *t == to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_only_rooms_of_the_table_and_never_itself() {
        for room in ROOMS {
            let Only(list) = room.imports else { continue };
            for to in list {
                assert!(room_of(to).is_some(), "{} names {to}, which has no row", room.package);
                assert_ne!(room.package, *to);
            }
        }
        for (from, to, why) in DEV_EDGES {
            assert!(room_of(from).is_some() && room_of(to).is_some() && why.len() > 10);
        }
    }

    #[test]
    fn every_package_and_folder_stands_once_and_in_its_zone() {
        for (i, room) in ROOMS.iter().enumerate() {
            let twin = ROOMS[i + 1..].iter().find(|r| r.package == room.package || r.folder == room.folder);
            assert!(twin.is_none(), "{} has two rows", room.package);
            let by_folder = match room.folder.split('/').next() {
                Some("core") => Core,
                Some("shell") => Shell,
                Some("dwcp") => Face,
                Some("proof" | "xtask") => Proof,
                other => panic!("{other:?} is no zone"),
            };
            assert_eq!(room.zone, by_folder, "{}", room.package);
        }
    }

    #[test]
    fn the_core_imports_nothing_but_core_and_the_table_has_no_cycle() {
        for room in ROOMS.iter().filter(|r| r.zone == Core) {
            let Only(list) = room.imports else { panic!("{} must list its imports", room.package) };
            assert!(list.iter().all(|to| room_of(to).is_some_and(|r| r.zone == Core)), "{}", room.package);
        }
        // Removing rooms whose imports are gone must empty the table.
        let mut left: Vec<&Room> = ROOMS.iter().filter(|r| r.imports != Anything).collect();
        while !left.is_empty() {
            let names: Vec<&str> = left.iter().map(|r| r.package).collect();
            let before = left.len();
            left.retain(|r| matches!(r.imports, Only(list) if list.iter().any(|to| names.contains(to))));
            assert!(left.len() < before, "cycle among {names:?}");
        }
    }

    #[test]
    fn whoever_may_switch_rules_off_is_proof() {
        for user in MUTANTS_USERS {
            assert_eq!(room_of(user).unwrap().zone, Proof, "{user}");
        }
        let (last, others) = MUTANTS_USERS.split_last().expect("somebody may");
        assert_eq!(MUTANTS_USERS_NAMED, format!("{} and {last}", others.join(", ")));
    }

    #[test]
    fn the_walls_named_in_the_architecture_stand() {
        let forbidden = [
            ("dwcp-base", "dwcp-log"),
            ("dwcp-pbft", "dwcp-raft"),
            ("dwcp-raft", "dwcp-pbft"),
            ("dwcp-sync", "dwcp-log"),
            ("dwcp-replica", "dwcp-node"),
            ("dwcp-client", "dwcp-node"),
            ("dwcp-storage", "dwcp-transport"),
            ("dwcp-node", "dwcp-api"),
            ("dwcp", "sim"),
            ("dwcp", "dwcp-pbft"),
            ("check", "dwcp-base"),
            ("xtask", "dwcp-base"),
            ("sim", "sim"),
        ];
        for (from, to) in forbidden {
            for dev in [false, true] {
                assert!(!may_import(room_of(from).unwrap(), to, dev), "{from} -> {to}");
            }
        }
        for (from, to) in [("sim", "check"), ("cluster", "dwcp"), ("dwcp-replica", "dwcp-pbft")] {
            assert!(may_import(room_of(from).unwrap(), to, false), "{from} -> {to}");
        }
    }
}
