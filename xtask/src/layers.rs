//! `cargo xtask layers`: the walls between the crates, read from the manifests as cargo reads them.
//!
//! Three looks, each at what the others cannot see. Declared edges (`cargo metadata --no-deps`): every dependency on one
//! of ours, also optional and platform-specific ones, without resolving anything, so a forbidden cycle is named here and
//! not by the resolver. Sources: `#![no_std]` in each core crate. Resolved features (`cargo tree`): each core crate
//! *alone*, because in the workspace features unite and a shell crate's `std` would excuse the core's own; and all
//! shipped crates together without `sim`, to see that nothing shipped can switch a safety rule off.
//! The table itself is `rules.rs`; this file takes no decisions about who may import whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use crate::cargo::{cargo, output_of};
use crate::rules::{self, EXPLAINED_IN, Imports, MUTANTS, MUTANTS_USERS, MUTANTS_USERS_NAMED, ROOMS, Zone};

/// A dependency one of our manifests declares on another of our crates, or on any path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: String,
    to: String,
    dev: bool,
    /// Features the manifest asks for on this edge.
    features: Vec<String>,
}

/// A package of the workspace with what the rules look at.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    folder: String,
    features: BTreeMap<String, Vec<String>>,
}

pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let metadata = MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let (members, edges) = read(&metadata, root);

    let mut broken = check_members(&members);
    broken.extend(check_edges(&edges));
    broken.extend(check_mutants_declared(&members, &edges));
    broken.extend(check_no_std(root, &members)?);
    // With a forbidden edge there may be a cycle, which cargo refuses to resolve: report what is known first.
    if broken.is_empty() {
        broken.extend(check_core_resolved(root, &members)?);
        broken.extend(check_mutants_resolved(root, &members)?);
    }

    if broken.is_empty() {
        print!("{}", table(&members, &edges));
        println!("layers: {} rooms, {} edges, all listed", members.len(), edges.len());
        return Ok(true);
    }
    for line in &broken {
        eprintln!("layers: {line}");
    }
    Ok(false)
}

fn read(metadata: &Metadata, root: &Path) -> (Vec<Member>, Vec<Edge>) {
    let mut members: Vec<Member> = metadata.workspace_packages().iter().map(|p| member(p, root)).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let names: BTreeSet<&str> = members.iter().map(|m| m.name.as_str()).collect();
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            if dependency.path.is_none() && !names.contains(dependency.name.as_str()) {
                continue;
            }
            edges.push(Edge {
                from: package.name.to_string(),
                to: dependency.name.to_string(),
                dev: dependency.kind == DependencyKind::Development,
                features: dependency.features.clone(),
            });
        }
    }
    edges.sort();
    (members, edges)
}

fn member(package: &Package, root: &Path) -> Member {
    let folder = package.manifest_path.parent().map(|p| p.as_std_path()).unwrap_or(root);
    let folder = folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().replace('\\', "/");
    let features = package.features.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    Member { name: package.name.to_string(), folder, features }
}

fn check_members(members: &[Member]) -> Vec<String> {
    let mut broken = Vec::new();
    for member in members {
        match rules::room_of(&member.name) {
            None => broken.push(format!(
                "{} ({}) has no row: give it one in xtask/src/rules.rs and say in {EXPLAINED_IN} what it may import",
                member.name, member.folder
            )),
            Some(room) if room.folder != member.folder => broken.push(format!(
                "{} lives in {}, its row says {}: move it or change the row ({EXPLAINED_IN})",
                member.name, member.folder, room.folder
            )),
            Some(_) => {}
        }
    }
    broken
}

fn check_edges(edges: &[Edge]) -> Vec<String> {
    let mut broken = Vec::new();
    for edge in edges {
        // A package without a row was already reported.
        let Some(from) = rules::room_of(&edge.from) else { continue };
        if rules::may_import(from, &edge.to, edge.dev) {
            continue;
        }
        let kind = if edge.dev { " (dev-dependency)" } else { "" };
        let may = match from.imports {
            Imports::Anything => String::from("anything but itself"),
            Imports::Only([]) => String::from("nothing of ours"),
            Imports::Only(list) => list.join(", "),
        };
        broken.push(format!(
            "{} -> {}{kind}: not listed; {} may import {may} (the walls: {EXPLAINED_IN}, the table: xtask/src/rules.rs)",
            edge.from, edge.to, edge.from
        ));
    }
    broken
}

/// Nobody but `sim` and `model` asks for `mutants`, and no feature of a shipped crate passes it on.
fn check_mutants_declared(members: &[Member], edges: &[Edge]) -> Vec<String> {
    let mut broken = Vec::new();
    for edge in edges.iter().filter(|e| !MUTANTS_USERS.contains(&e.from.as_str())) {
        if edge.features.iter().any(|f| f == MUTANTS) {
            broken.push(format!(
                "{} -> {} asks for feature `{MUTANTS}`: only {MUTANTS_USERS_NAMED} may switch safety rules off ({EXPLAINED_IN})",
                edge.from, edge.to
            ));
        }
    }
    for member in members.iter().filter(|m| !MUTANTS_USERS.contains(&m.name.as_str())) {
        let core = rules::room_of(&member.name).is_some_and(|r| r.zone == Zone::Core);
        for (feature, enables) in &member.features {
            let reaches = enables.iter().any(|e| e == MUTANTS || e.ends_with(&format!("/{MUTANTS}")));
            // A core crate may define `mutants` and hand it to the core crates below it.
            let allowed = if feature == MUTANTS { core } else { !reaches };
            if !allowed {
                broken.push(format!(
                    "{}: feature `{feature}` leads to `{MUTANTS}`: only {MUTANTS_USERS_NAMED} may switch safety rules off ({EXPLAINED_IN})",
                    member.name
                ));
            }
        }
    }
    broken
}

fn check_no_std(root: &Path, members: &[Member]) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for member in core(members) {
        let lib = root.join(&member.folder).join("src/lib.rs");
        let text = std::fs::read_to_string(&lib)
            .map_err(|e| anyhow::anyhow!("{}: {e}; a core crate has a src/lib.rs", lib.display()))?;
        if !text.lines().any(|line| line.trim() == "#![no_std]") {
            broken.push(format!(
                "{}/src/lib.rs: no `#![no_std]` line: core crates compute and touch nothing ({EXPLAINED_IN})",
                member.folder
            ));
        }
        for file in crate::tidy::files_below(&root.join(&member.folder).join("src"))? {
            if file.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&file)?;
                broken.extend(std_by_the_back_door(&text).map(|line| {
                    let shown = file.strip_prefix(root).unwrap_or(&file).display();
                    format!(
                        "{shown}:{line}: `extern crate std` outside `#[cfg(test)]` undoes no_std ({EXPLAINED_IN})"
                    )
                }));
            }
        }
    }
    Ok(broken)
}

/// The first line that links `std` without `#[cfg(test)]` right before it.
fn std_by_the_back_door(text: &str) -> Option<usize> {
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        let links_std = line.contains("extern crate std") && !line.starts_with("#[cfg(test)]");
        if links_std && before != "#[cfg(test)]" {
            return Some(number + 1);
        }
        before = line;
    }
    None
}

/// Each core crate resolved alone, with all its features, without build scripts, macros and tests: what would be linked.
fn check_core_resolved(root: &Path, members: &[Member]) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for member in core(members) {
        let mut tree = cargo(root);
        tree.args(["tree", "--package", &member.name, "--all-features", "--edges", "normal,no-proc-macro"]);
        tree.args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{f}"]);
        broken.extend(check_core_tree(&member.name, &output_of(tree)?));
    }
    Ok(broken)
}

fn check_core_tree(member: &str, printed: &str) -> BTreeSet<String> {
    let mut broken = BTreeSet::new();
    for (package, features) in resolved(printed) {
        if rules::CORE_FORBIDDEN_PACKAGES.contains(&package) {
            broken.insert(format!(
                "{member} links {package}, which is the operating system: find the dependency that brings it with \
                 `cargo tree -p {member} -i {package}` ({EXPLAINED_IN})"
            ));
        }
        for feature in features.iter().filter(|f| rules::CORE_FORBIDDEN_FEATURES.contains(f)) {
            broken.insert(format!(
                "{member} links {package} with feature `{feature}`: the core takes neither std nor chance from outside; \
                 use default-features = false ({EXPLAINED_IN})"
            ));
        }
    }
    broken
}

/// All shipped crates resolved together without them: the widest view a release build can have.
fn check_mutants_resolved(root: &Path, members: &[Member]) -> anyhow::Result<Vec<String>> {
    let shipped = |m: &&Member| {
        rules::room_of(&m.name).is_some_and(|room| matches!(room.zone, Zone::Shell | Zone::Face))
    };
    let mut tree = cargo(root);
    tree.args(["tree", "--all-features", "--edges", "normal,build", "--prefix", "none", "--no-dedupe"]);
    tree.args(["--format", "{p}|{f}"]);
    for member in members.iter().filter(shipped) {
        tree.args(["--package", &member.name]);
    }
    Ok(check_mutants_tree(&output_of(tree)?).into_iter().collect())
}

fn check_mutants_tree(printed: &str) -> BTreeSet<String> {
    let seen = resolved(printed).into_iter().filter(|(_, features)| features.contains(&MUTANTS));
    seen.map(|(package, _)| {
        format!(
            "shipped crates see {package} with feature `{MUTANTS}`: only {MUTANTS_USERS_NAMED} may switch safety rules off ({EXPLAINED_IN})"
        )
    })
    .collect()
}

/// Lines of `cargo tree --format "{p}|{f}"` as (package name, features).
fn resolved(printed: &str) -> Vec<(&str, Vec<&str>)> {
    let lines = printed.lines().filter_map(|line| line.split_once('|'));
    lines
        .filter_map(|(package, features)| {
            let name = package.split_whitespace().next()?;
            let features = features.trim_end_matches(" (*)").trim_end_matches("(*)");
            Some((name, features.split(',').map(str::trim).filter(|f| !f.is_empty()).collect()))
        })
        .collect()
}

fn core(members: &[Member]) -> impl Iterator<Item = &Member> {
    members.iter().filter(|m| rules::room_of(&m.name).is_some_and(|room| room.zone == Zone::Core))
}

/// Rooms in the table's order, each with what it imports today.
fn table(members: &[Member], edges: &[Edge]) -> String {
    let mut out = format!("{:<8} {:<16} {:<16} imports\n", "zone", "room", "folder");
    for room in ROOMS {
        if !members.iter().any(|m| m.name == room.package) {
            continue;
        }
        let mut imports: Vec<String> = edges
            .iter()
            .filter(|e| e.from == room.package)
            .map(|e| if e.dev { format!("({})", e.to) } else { e.to.clone() })
            .collect();
        imports.dedup();
        let imports = if imports.is_empty() { String::from("-") } else { imports.join(" ") };
        let zone = format!("{:?}", room.zone).to_lowercase();
        out.push_str(&format!("{zone:<8} {:<16} {:<16} {imports}\n", room.package, room.folder));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> Edge {
        Edge { from: from.into(), to: to.into(), dev: false, features: Vec::new() }
    }

    fn member(name: &str, features: &[(&str, &[&str])]) -> Member {
        let folder = rules::room_of(name).map(|r| r.folder).unwrap_or("elsewhere").to_string();
        let own = |list: &[&str]| list.iter().map(|f| f.to_string()).collect();
        let features = features.iter().map(|(k, v)| (k.to_string(), own(v))).collect();
        Member { name: name.into(), folder, features }
    }

    #[test]
    fn a_forbidden_edge_is_named_with_the_place_of_the_rule() {
        let broken = check_edges(&[edge("dwcp-base", "dwcp-pbft"), edge("dwcp-pbft", "dwcp-base")]);
        assert_eq!(broken.len(), 1);
        assert!(broken[0].starts_with("dwcp-base -> dwcp-pbft: not listed"), "{}", broken[0]);
        assert!(broken[0].contains("ARCHITECTURE.md"), "{}", broken[0]);
    }

    #[test]
    fn a_path_outside_the_workspace_is_an_unlisted_edge() {
        let broken = check_edges(&[edge("dwcp-node", "a-friendly-neighbour")]);
        assert_eq!(broken.len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_or_in_the_wrong_folder_is_refused() {
        let mut moved = member("dwcp-log", &[]);
        moved.folder = "shell/log".into();
        let broken = check_members(&[member("dwcp-extra", &[]), moved, member("dwcp-base", &[])]);
        assert_eq!(broken.len(), 2, "{broken:?}");
    }

    #[test]
    fn mutants_may_be_defined_in_the_core_handed_down_and_asked_for_by_sim_and_model_alone() {
        let fine = [
            member("dwcp-pbft", &[("mutants", &[])]),
            member("dwcp-replica", &[("mutants", &["dwcp-pbft/mutants"])]),
            member("sim", &[("default", &["dwcp-replica/mutants"])]),
        ];
        let mut asks = edge("sim", "dwcp-pbft");
        asks.features = vec!["mutants".into()];
        assert_eq!(check_mutants_declared(&fine, &[asks.clone()]), Vec::<String>::new());

        asks.from = "model".into();
        assert_eq!(check_mutants_declared(&fine, &[asks.clone()]), Vec::<String>::new());
        asks.from = "cluster".into();
        assert_eq!(check_mutants_declared(&fine, &[asks.clone()]).len(), 1);
        asks.from = "dwcp-node".into();
        assert_eq!(check_mutants_declared(&fine, &[asks]).len(), 1);
        for leak in [
            member("dwcp-pbft", &[("default", &["mutants"])]),
            member("dwcp-replica", &[("fast", &["dwcp-pbft?/mutants"])]),
            member("dwcp", &[("mutants", &[])]),
        ] {
            assert_eq!(check_mutants_declared(std::slice::from_ref(&leak), &[]).len(), 1, "{leak:?}");
        }
    }

    #[test]
    fn a_resolved_std_or_a_source_of_chance_in_the_core_is_found() {
        let clean = "dwcp-base v0.1.0 (/x)|\nbytes v1.12.2|\nborsh v1.8.1|borsh-derive,bytes,derive (*)\n";
        assert!(check_core_tree("dwcp-base", clean).is_empty());
        let dirty = "dwcp-base v0.1.0 (/x)|\nbytes v1.12.2|default,std\nbytes v1.12.2|default,std (*)\ngetrandom v0.3.1|\n";
        let broken = check_core_tree("dwcp-base", dirty);
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken.iter().any(|b| b.contains("bytes with feature `std`")));
        assert!(broken.iter().any(|b| b.contains("links getrandom")));
    }

    #[test]
    fn a_shipped_crate_that_sees_mutants_is_found() {
        assert!(check_mutants_tree("dwcp v0.1.0 (/x)|cli\ndwcp-pbft v0.1.0 (/x)|\n").is_empty());
        assert_eq!(check_mutants_tree("dwcp-pbft v0.1.0 (/x)|default,mutants\n").len(), 1);
    }

    #[test]
    fn std_may_be_linked_by_tests_only() {
        assert_eq!(std_by_the_back_door("#[cfg(test)]\nextern crate std;\n"), None);
        assert_eq!(std_by_the_back_door("#[cfg(test)]\n// why\nextern crate std;\n"), None);
        assert_eq!(std_by_the_back_door("//! x\nextern crate alloc;\n  extern crate std;\n"), Some(3));
        assert_eq!(std_by_the_back_door("#[cfg(not(test))]\nextern crate std;\n"), Some(2));
        assert_eq!(std_by_the_back_door("// extern crate std is refused\n"), None);
    }
}
