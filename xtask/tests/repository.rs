//! The checks of xtask held against a real tree: this repository, and copies of it with one wall broken.
//!
//! A copy holds the manifests and sources without building them: cargo resolves it offline from the same lock file. Each
//! test breaks one rule and reads the one line that names it; the unbroken copy passes first, so that a test cannot be
//! green for another reason. The rules one by one are unit tests in the files that hold them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn repository() -> PathBuf {
    Path::new(HERE).parent().expect("xtask lives in the workspace").to_path_buf()
}

/// Manifests, lock file and sources of this repository in a folder of their own.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Copy {
        let copy = Copy(tempfile::tempdir().unwrap());
        copy_sources(&repository(), copy.path());
        copy
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn append(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, old + text).unwrap();
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let path = self.path().join(file);
        let old = std::fs::read_to_string(&path).unwrap();
        assert!(old.contains(from), "{file} has no `{from}` to replace");
        std::fs::write(path, old.replace(from, to)).unwrap();
    }
}

fn copy_sources(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !name.starts_with('.') && name != "target" && name != "corpus" {
            copy_sources(&entry.path(), &to.join(&name));
        } else if kind.is_file() && (name.ends_with(".rs") || name.ends_with(".toml") || name == "Cargo.lock")
        {
            std::fs::create_dir_all(to).unwrap();
            std::fs::copy(entry.path(), to.join(&name)).unwrap();
        }
    }
}

fn xtask(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    // Everything the lock file names was fetched to build this test.
    command.arg("--root").arg(root).args(arguments).env("CARGO_NET_OFFLINE", "true");
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_passes(output: &Output) {
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), errors(output));
}

/// The command failed, and the only lines it wrote are those expected, by their beginnings.
fn assert_refuses(output: &Output, beginnings: &[&str]) {
    let errors = errors(output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), beginnings.len(), "{errors}");
    for (line, beginning) in lines.iter().zip(beginnings) {
        assert!(line.starts_with(beginning), "`{line}` does not begin with `{beginning}`");
    }
}

#[test]
fn this_repository_keeps_its_walls() {
    let output = xtask(&repository(), &["layers"]);
    assert_passes(&output);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for room in ["dwcp-base", "dwcp-pbft", "dwcp-node", "sim", "xtask"] {
        assert!(table.contains(room), "{table}");
    }
}

#[test]
fn a_forbidden_edge_fails_and_is_named_with_the_place_of_the_rule() {
    let copy = Copy::new();
    assert_passes(&xtask(copy.path(), &["layers"]));

    // A cycle on purpose: cargo could not even resolve it, the message must not depend on that.
    copy.append("core/base/Cargo.toml", "\n[dependencies.dwcp-pbft]\nworkspace = true\n");
    copy.append(
        "core/log/Cargo.toml",
        "\n[target.'cfg(windows)'.dependencies.dwcp-storage]\nworkspace = true\n",
    );
    copy.append("dwcp/Cargo.toml", "\n[dev-dependencies.check]\nworkspace = true\n");
    let output = xtask(copy.path(), &["layers"]);
    assert_refuses(
        &output,
        &[
            "layers: dwcp -> check (dev-dependency): not listed;",
            "layers: dwcp-base -> dwcp-pbft: not listed; dwcp-base may import nothing of ours",
            "layers: dwcp-log -> dwcp-storage: not listed; dwcp-log may import dwcp-base",
        ],
    );
    assert!(errors(&output).lines().all(|line| line.contains("ARCHITECTURE.md")));
}

#[test]
fn a_core_crate_that_turns_on_std_of_a_dependency_fails() {
    let copy = Copy::new();
    // A table of its own, true everywhere, so that the test does not depend on how the manifest is written.
    let table = "\n[target.'cfg(not(any()))'.dependencies.bytes]\nworkspace = true\nfeatures = [\"std\"]\n";
    copy.append("core/base/Cargo.toml", table);
    let output = xtask(copy.path(), &["layers"]);
    let expected = "links bytes with feature `std`";
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains(&format!("layers: dwcp-base {expected}")), "{}", errors(&output));
    // Whoever imports it links the same.
    assert!(errors(&output).contains(&format!("layers: dwcp-replica {expected}")), "{}", errors(&output));
}

#[test]
fn a_core_crate_without_no_std_or_with_std_by_the_back_door_fails() {
    let copy = Copy::new();
    copy.replace("core/base/src/lib.rs", "#![no_std]", "#![allow(missing_docs)]");
    copy.append("core/log/src/back_door.rs", "//! x\nextern crate std;\n");
    assert_refuses(
        &xtask(copy.path(), &["layers"]),
        &[
            "layers: core/base/src/lib.rs: no `#![no_std]` line",
            "layers: core/log/src/back_door.rs:2: `extern crate std`",
        ],
    );
}

#[test]
fn a_shell_crate_that_asks_for_mutants_fails() {
    let copy = Copy::new();
    let table =
        "\n[target.'cfg(windows)'.dependencies.dwcp-base]\nworkspace = true\nfeatures = [\"mutants\"]\n";
    copy.append("shell/node/Cargo.toml", table);
    assert_refuses(
        &xtask(copy.path(), &["layers"]),
        &["layers: dwcp-node -> dwcp-base asks for feature `mutants`: only sim, model and conformance may"],
    );
}

#[test]
fn a_new_crate_without_a_row_fails() {
    let copy = Copy::new();
    copy.append("shell/extra/Cargo.toml", "[package]\nname = \"dwcp-extra\"\nedition = \"2024\"\n");
    copy.append("shell/extra/src/lib.rs", "//! x\n");
    copy.replace("Cargo.toml", "members = [", "members = [\n    \"shell/extra\",");
    assert_refuses(&xtask(copy.path(), &["layers"]), &["layers: dwcp-extra (shell/extra) has no row"]);
}

#[test]
fn tidy_names_each_fault_with_its_place() {
    let tree = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("core/clippy.toml", "# x\n");
    write("core/base/Cargo.toml", "[package]\n");
    write("core/base/src/lib.rs", "//! What lives here.\n");
    write("README.md", "[base](core/base/src/lib.rs)\n");
    assert_passes(&xtask(tree.path(), &["tidy"]));

    write("core/base/clippy.toml", "# nearer\n");
    write("core/base/tests/a.rs", "//! x\n");
    write("core/base/tests/b.rs", "//! x\n");
    write("core/base/src/lib.rs", concat!("fn a() { to", "do!() }\n"));
    write("README.md", "[base](core/gone.rs)\n");
    assert_refuses(
        &xtask(tree.path(), &["tidy"]),
        &[
            "tidy: core/base/clippy.toml: replaces core/clippy.toml silently",
            "tidy: core/base/tests: 2 test binaries (a.rs, b.rs)",
            "tidy: README.md:1: link to `core/gone.rs` leads nowhere",
            "tidy: core/base/src/lib.rs:1: no header",
            concat!("tidy: core/base/src/lib.rs:1: `to", "do!(`: unfinished code"),
        ],
    );
}

#[test]
fn audit_tests_reads_real_files_and_treats_a_missing_skip_log_as_no_skips() {
    let folder = tempfile::tempdir().unwrap();
    let (output, skips) = (folder.path().join("out"), folder.path().join("skips"));
    std::fs::write(
        &output,
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s\n",
    )
    .unwrap();
    let arguments =
        ["audit-tests", "--strict", "--output", output.to_str().unwrap(), "--skips", skips.to_str().unwrap()];
    assert_passes(&xtask(&repository(), &arguments));

    std::fs::write(&skips, "SKIPPED(no-time): the_long_one\n").unwrap();
    assert_refuses(
        &xtask(&repository(), &arguments),
        &["audit-tests: the_long_one skipped itself (no-time)"],
    );
}

/// `.ci/run` in a folder of its own, with a cargo that only writes down how it was called.
#[cfg(unix)]
mod ci_run {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const GREEN: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s";

    /// Runs the script with `while_testing` as what happens inside `cargo test`; returns its output, and the calls of cargo
    /// and of what was built.
    fn run(readme: &str, while_testing: &str) -> (Output, String) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let tools = root.join("tools");
        for path in [root.join(".ci"), tools.clone()] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::copy(repository().join(".ci/run"), root.join(".ci/run")).unwrap();
        std::fs::write(root.join("README.md"), readme).unwrap();
        let calls = root.join("calls");
        let cargo = format!(
            "#!/bin/bash\necho \"$*\" >>'{}'\ncase \"$1\" in\ntest) {while_testing} ;;\n\
             xtask) [[ $2 != audit-tests ]] || exec '{}' \"${{@:2}}\" ;;\nesac\n",
            calls.display(),
            env!("CARGO_BIN_EXE_xtask"),
        );
        let built = root.join("target/debug");
        std::fs::create_dir_all(&built).unwrap();
        let told = format!("#!/bin/sh\necho \"${{0##*/}} $*\" >>'{}'\n", calls.display());
        for (folder, name, text) in [
            (&tools, "cargo", cargo.as_str()),
            (&tools, "rustc", "#!/bin/sh\n"),
            (&built, "dwcp", &told),
            (&built, "cluster", &told),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command
            .env_remove("CARGO_TARGET_DIR")
            .arg(root.join(".ci/run"))
            .env("PATH", path)
            .env("CI", "true")
            .env("PROTOC", "/bin/true");
        let output = command.output().unwrap();
        (output, std::fs::read_to_string(calls).unwrap_or_default())
    }

    const README: &str = "Run `cargo test --workspace`.\n";

    #[test]
    fn the_test_command_runs_first_and_exactly_as_the_readme_gives_it() {
        let (output, calls) = run(README, &format!("echo '{GREEN}'"));
        assert_passes(&output);
        let calls: Vec<&str> = calls.lines().collect();
        assert_eq!(calls[0], "--version");
        assert_eq!(calls[1], "test --workspace");
        assert!(calls[2].starts_with("xtask audit-tests --output "), "{calls:?}");
        assert_eq!(calls[3], "xtask ci --skip-tests --skip-simulation");
        let of_a_built_one =
            |call: &str| ["dwcp ", "cluster "].iter().any(|program| call.starts_with(program));
        let is_program = |call: &&str| call.starts_with("run --release") || of_a_built_one(call);
        assert!(calls[4..].iter().all(is_program), "{calls:?}");
        assert!(calls.contains(&"dwcp demo --json"), "{calls:?}");
        assert!(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == GREEN), "untouched");

        let (output, calls) = run("Run the tests.\n", &format!("echo '{GREEN}'"));
        assert_refuses(&output, &["ci: README.md does not give the command `cargo test --workspace`"]);
        assert_eq!(calls, "--version\n", "nothing is run that the README does not promise");
    }

    #[test]
    fn failing_ignored_and_wrongly_skipped_tests_end_the_run() {
        let ignored = GREEN.replace("0 ignored", "1 ignored");
        let skipped = format!("echo 'SKIPPED(no-mood): lazy' >>\"$DWCP_SKIP_LOG\"; echo '{GREEN}'");
        for tests in [format!("echo '{GREEN}'; exit 101"), format!("echo '{ignored}'"), skipped] {
            let (output, calls) = run(README, &tests);
            assert!(!output.status.success(), "{tests}");
            assert!(!calls.contains("xtask ci"), "{tests}");
        }
        let accepted = format!("echo 'SKIPPED(needs-root): netns' >>\"$DWCP_SKIP_LOG\"; echo '{GREEN}'");
        assert_passes(&run(README, &accepted).0);
    }

    #[test]
    fn a_build_that_calls_protoc_or_cmake_fails_even_if_it_goes_on_without() {
        for call in ["protoc --version", "cmake .."] {
            let (output, _) = run(README, &format!("{call} || true; echo '{GREEN}'"));
            assert_eq!(output.status.code(), Some(1));
            assert!(
                errors(&output).contains(&format!("ci: the build called a hidden tool: {call}")),
                "{}",
                errors(&output)
            );
        }
        let (output, _) = run(README, &format!("[[ -z \"${{PROTOC:-}}\" ]] || exit 9; echo '{GREEN}'"));
        assert_passes(&output);
    }
}
