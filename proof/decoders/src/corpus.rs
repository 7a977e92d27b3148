//! Saved inputs: one folder a target, one file an input, named by its hash. Written by `decoders bless`; an input that
//! once broke something is added as `regression-*.bin` and stays.

use crate::Target;
use anyhow::{Context, Result};
use dwcp_base::Hash;
use std::fs;
use std::path::{Path, PathBuf};

/// Larger seeds are made anew in every run instead of being saved.
const FILE_BYTES_MAX: usize = 6_000;
/// Files that `bless` writes for one target, spread over its seeds.
const FILES_MAX: usize = 16;

/// Where the corpus of the repository lies.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A name for these bytes.
#[must_use]
pub fn name_of(bytes: &[u8]) -> String {
    hex::encode(&Hash::of(bytes).0[..8])
}

/// The saved inputs of a target with their names, in order of names; none when there is no folder.
///
/// # Errors
/// A file that cannot be read.
pub fn load(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = folder().join(target.name);
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "bin"));
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes))
    };
    paths.into_iter().map(read).collect()
}

/// Writes the seeds of a target as its corpus. Regressions stay; what was blessed before goes.
///
/// # Errors
/// A folder that cannot be written.
pub fn bless(target: &Target) -> Result<usize> {
    let folder = folder().join(target.name);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, _) in load(target)? {
        if name.starts_with("seed-") {
            fs::remove_file(folder.join(name))?;
        }
    }
    let mut seeds = (target.seeds)();
    seeds.retain(|seed| seed.len() <= FILE_BYTES_MAX);
    let step = seeds.len().div_ceil(FILES_MAX).max(1);
    let mut written = 0;
    for seed in seeds.iter().step_by(step) {
        fs::write(folder.join(format!("seed-{}.bin", name_of(seed))), seed)?;
        written += 1;
    }
    Ok(written)
}
