//! Starting cargo from inside cargo.
//!
//! `cargo run` describes the package it runs in the environment. Build scripts that watch those variables (ring's does)
//! would be built anew each time they change hands between xtask and a plain `cargo test`, so they are taken out here.
//! Knows nothing of what the commands are for.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// A cargo command at `root`, with neither input nor the description of xtask itself.
pub(crate) fn cargo(root: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_the_running_package) {
            command.env_remove(&name);
        }
    }
    command
}

fn describes_the_running_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_BIN_")
        || matches!(
            name,
            "CARGO_MANIFEST_DIR"
                | "CARGO_MANIFEST_PATH"
                | "CARGO_CRATE_NAME"
                | "CARGO_PRIMARY_PACKAGE"
                | "CARGO_TARGET_TMPDIR"
                | "OUT_DIR"
        )
}

/// What cargo printed, or its complaint as one error.
pub(crate) fn output_of(mut command: Command) -> anyhow::Result<String> {
    let shown = shown(&command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed something that is not text"))
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let arguments = command.get_args().map(|a| a.to_string_lossy().into_owned());
    std::iter::once(String::from("cargo")).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_xtask_is_withheld_and_settings_are_kept() {
        for gone in ["CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_DIR", "CARGO_BIN_NAME"] {
            assert!(describes_the_running_package(gone), "{gone}");
        }
        for kept in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "RUSTFLAGS", "PATH", "CI"] {
            assert!(!describes_the_running_package(kept), "{kept}");
        }
    }

    #[test]
    fn a_failing_cargo_is_reported_with_its_own_words() {
        let mut command = cargo(Path::new("."));
        command.arg("no-such-subcommand");
        let error = output_of(command).unwrap_err().to_string();
        assert!(error.starts_with("`cargo no-such-subcommand` failed:"), "{error}");
        assert!(error.contains("no such command"), "{error}");
    }
}
