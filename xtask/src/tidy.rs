//! `cargo xtask tidy`: what a machine can look for, so that reviewers look for the rest.
//!
//! One walk over the tree, then one small check per rule: each takes paths or text and returns lines of the form
//! `path:line: what is wrong: what to do`. Rules about who imports whom are in `layers.rs`; links of the documents are in
//! `tidy/links.rs`. Words that are forbidden here are spelt in halves, so that this file passes its own check.

mod links;

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A file longer than this hides a noun that wants its own file.
const LINES_MAX: usize = 900;

/// Larger files are data (recorded histories, figures): not read for words.
const TEXT_BYTES_MAX: u64 = 2 << 20;

/// Folders that hold nothing written by hand.
const SKIPPED_FOLDERS: &[&str] = &["target", "corpus", "artifacts", "node_modules"];

/// Hidden folders that are part of the project.
const HIDDEN_FOLDERS: &[&str] = &[".ci", ".cargo", ".config", ".github"];

pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let tree = Tree::read(root)?;
    let mut broken = Vec::new();
    broken.extend(check_clippy_settings(&tree));
    broken.extend(check_test_binaries(&tree));
    broken.extend(check_untested_targets(&tree));
    for file in &tree.files {
        let Some(text) = &file.text else { continue };
        if file.path.ends_with(".rs") {
            broken.extend(check_header(&file.path, text));
            broken.extend(check_length(&file.path, text));
            broken.extend(check_leftovers(&file.path, text));
        }
        if file.path != "Cargo.lock" {
            broken.extend(check_words(&file.path, text));
        }
        if links::is_document(&file.path) {
            broken.extend(links::check(&file.path, text, &|path| tree.has(path)));
        }
    }
    for line in &broken {
        eprintln!("tidy: {line}");
    }
    println!("tidy: {} files looked at, {} to mend", tree.files.len(), broken.len());
    Ok(broken.is_empty())
}

/// Every file of the project, with its text where it is text.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// Relative to the root, with forward slashes.
    path: String,
    text: Option<String>,
}

impl Tree {
    fn read(root: &Path) -> anyhow::Result<Tree> {
        let mut files = Vec::new();
        for path in files_below(root)? {
            let small = path.metadata().is_ok_and(|m| m.len() <= TEXT_BYTES_MAX);
            let bytes = if small {
                std::fs::read(&path).with_context(|| path.display().to_string())?
            } else {
                Vec::new()
            };
            let text = if small { String::from_utf8(bytes).ok() } else { None };
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            files.push(File { path, text });
        }
        Ok(Tree { root: root.to_path_buf(), files })
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// Files below a folder in a fixed order, without what git and cargo keep there.
pub(crate) fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Links are not followed: a cycle would never end.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let hidden = name.starts_with('.') && !HIDDEN_FOLDERS.contains(&name.as_str());
                if !hidden && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                    open.push(entry.path());
                }
            } else if kind.is_file() && name != ".git" {
                // In a second working tree that name is a file.
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Clippy takes the first settings file above a crate: one below core/ would replace core/clippy.toml without a word.
fn check_clippy_settings(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    let mut bound = false;
    for file in &tree.files {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        if file.path == "core/clippy.toml" {
            bound = true;
        } else if file.path.starts_with("core/") && matches!(name, "clippy.toml" | ".clippy.toml") {
            broken.push(format!("{}: replaces core/clippy.toml silently: move its lines there", file.path));
        }
    }
    if !bound && tree.has("core") {
        broken.push(String::from(
            "core/clippy.toml: missing: without it nothing keeps clocks and unordered maps out",
        ));
    }
    broken
}

/// Each file in tests/ links everything again: one binary a crate.
fn check_test_binaries(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    let crates = tree.files.iter().filter_map(|f| f.path.strip_suffix("Cargo.toml"));
    for folder in crates {
        let binaries: Vec<&str> = tree
            .files
            .iter()
            .filter_map(|f| f.path.strip_prefix(folder)?.strip_prefix("tests/"))
            .filter(|rest| match rest.split_once('/') {
                None => rest.ends_with(".rs"),
                Some((_, inner)) => inner == "main.rs",
            })
            .collect();
        if binaries.len() > 1 {
            broken.push(format!(
                "{folder}tests: {} test binaries ({}): keep one, make the others its modules",
                binaries.len(),
                binaries.join(", ")
            ));
        }
    }
    broken
}

/// `test = false` spares a target without tests a second compilation; a test written there later would never run.
fn check_untested_targets(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for manifest in &tree.files {
        let (Some(folder), Some(text)) = (manifest.path.strip_suffix("Cargo.toml"), &manifest.text) else {
            continue;
        };
        let main = format!("{folder}src/main.rs");
        let has_library = tree.has(&format!("{folder}src/lib.rs"));
        for table in text.split("\n[").filter(|table| table.lines().any(|line| line == "test = false")) {
            let path = table.lines().find_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
            let program = path.map(|path| format!("{folder}{path}"));
            // A program beside a library is one file; a library, or a program alone, is all the others.
            let of_target = |file: &File| match &program {
                Some(program) if has_library || *program != main => file.path == *program,
                Some(_) => file.path.starts_with(&format!("{folder}src/")),
                None => file.path.starts_with(&format!("{folder}src/")) && file.path != main,
            };
            broken.extend(tree.files.iter().filter(|file| of_target(file) && has_tests(file)).map(|file| {
                let (path, manifest) = (&file.path, &manifest.path);
                format!(
                    "{path}: its tests never run: move them to tests/ or strike `test = false` in {manifest}"
                )
            }));
        }
    }
    broken
}

fn has_tests(file: &File) -> bool {
    let signs = ["#[test]", "#[cfg(test)]", "::test]", "proptest! {"];
    let mut lines = file.text.iter().flat_map(|text| text.lines());
    lines.any(|line| signs.iter().any(|sign| line.trim_end().ends_with(sign)))
}

fn check_header(path: &str, text: &str) -> Option<String> {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim_start();
    let opens_with_a_comment = first.starts_with("//") || first.starts_with("/*");
    (!opens_with_a_comment)
        .then(|| format!("{path}:1: no header: open with what lives here and what it refuses to know"))
}

fn check_length(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LINES_MAX).then(|| {
        format!("{path}: {lines} lines, at most {LINES_MAX}: look for the noun that wants its own file")
    })
}

/// Unfinished code and switched-off tests.
fn check_leftovers(path: &str, text: &str) -> Vec<String> {
    let words = [
        (concat!("todo", "!("), "unfinished code: finish it or refuse with a typed error"),
        (concat!("unimplemented", "!("), "unfinished code: finish it or refuse with a typed error"),
        (concat!("FIX", "ME"), "known fault: mend it, or write an issue"),
        (concat!("#[", "ignore"), "ignored test: run it or delete it"),
        (concat!(", ", "ignore)]"), "ignored test: run it or delete it"),
        (concat!("```", "ignore"), "ignored example: make it compile (no_run) or mark it text"),
        (concat!("```rust,", "ignore"), "ignored example: make it compile (no_run) or mark it text"),
    ];
    let mut broken = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, remedy) in words {
            if line.contains(word) {
                broken.push(format!("{path}:{}: `{word}`: {remedy}", number + 1));
            }
        }
    }
    broken
}

/// The repository speaks of the project: not of the machine or the tools it was written with.
fn check_words(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in forbidden_words() {
            if holds_word(line, word) {
                broken.push(format!("{path}:{}: `{word}` does not belong in the repository", number + 1));
            }
        }
        if cites_a_paper_outside(line) {
            broken.push(format!("{path}:{}: cites a text that is not here: say it in own words", number + 1));
        }
    }
    broken
}

fn forbidden_words() -> [&'static str; 12] {
    [
        concat!("/wo", "rk/"),
        concat!("/tmp/", "tgt"),
        concat!("/tmp/", "brief"),
        concat!(".lib", "rary"),
        concat!("../sha", "red"),
        concat!("DESIGN", ".md"),
        concat!("LAYOUT", ".md"),
        concat!("STYLE", ".md"),
        concat!("sub", "agent"),
        concat!("L", "LM"),
        concat!("Cla", "ude"),
        concat!("AI ", "assistant"),
    ]
}

/// Sections of working papers, such as the word DESIGN before a number: a reader of the repository cannot look them up.
fn cites_a_paper_outside(line: &str) -> bool {
    [concat!("DES", "IGN"), concat!("LAY", "OUT")].iter().any(|paper| {
        line.match_indices(paper).any(|(at, _)| {
            let after = line[at + paper.len()..].trim_start_matches([' ', '(', '§']);
            let section = after.strip_prefix("section ").unwrap_or(after);
            section.len() < line.len() - at - paper.len() && section.starts_with(|c: char| c.is_ascii_digit())
        })
    })
}

/// Does the line hold the word, whatever its case, not as a part of a longer word? Paths match anywhere.
fn holds_word(line: &str, word: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let word = word.to_ascii_lowercase();
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric());
    line.match_indices(&word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let starts_free = !word.starts_with(char::is_alphanumeric) || !is_letter(before);
        let ends_free = !word.ends_with(char::is_alphanumeric) || !is_letter(after) || after == Some('s');
        starts_free && ends_free
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "//! x\n").unwrap();
        }
        let tree = Tree::read(folder.path()).unwrap();
        (folder, tree)
    }

    #[test]
    fn clippy_settings_below_the_core_are_refused_and_the_core_has_its_own() {
        let (_keep, good) = tree(&["core/clippy.toml", "core/base/src/lib.rs", "shell/clippy.toml"]);
        assert!(check_clippy_settings(&good).is_empty());
        let (_keep, nearer) = tree(&["core/clippy.toml", "core/base/clippy.toml", "core/log/.clippy.toml"]);
        assert_eq!(check_clippy_settings(&nearer).len(), 2);
        let (_keep, none) = tree(&["core/base/src/lib.rs"]);
        assert_eq!(check_clippy_settings(&none).len(), 1);
    }

    #[test]
    fn a_second_test_binary_is_refused_and_modules_are_not_counted() {
        let (_keep, good) =
            tree(&["a/Cargo.toml", "a/tests/walls.rs", "a/tests/walls/part.rs", "b/tests/x.rs"]);
        assert!(check_test_binaries(&good).is_empty());
        let (_keep, two) = tree(&["a/Cargo.toml", "a/tests/walls.rs", "a/tests/more/main.rs"]);
        assert_eq!(check_test_binaries(&two).len(), 1);
    }

    #[test]
    fn tests_in_a_target_that_says_it_has_none_are_found() {
        let found = |manifest: &str, file: &str| {
            let (keep, _) = tree(&["a/src/lib.rs", "a/src/main.rs", "a/src/room.rs", "a/tests/a.rs"]);
            std::fs::write(keep.path().join("a/Cargo.toml"), manifest).unwrap();
            std::fs::write(keep.path().join(file), "//! x\n#[cfg(test)]\nmod tests;\n").unwrap();
            check_untested_targets(&Tree::read(keep.path()).unwrap()).len()
        };
        let library = "[package]\nname = \"a\"\n\n[lib]\ntest = false\n";
        let program = "[[bin]]\nname = \"a\"\npath = \"src/main.rs\"\ntest = false\n\n[dependencies]\n";
        assert_eq!(["src/lib.rs", "src/room.rs"].map(|file| found(library, &format!("a/{file}"))), [1, 1]);
        assert_eq!(["src/main.rs", "tests/a.rs"].map(|file| found(library, &format!("a/{file}"))), [0, 0]);
        assert_eq!(["src/main.rs", "src/room.rs"].map(|file| found(program, &format!("a/{file}"))), [1, 0]);
        assert_eq!(found("[package]\nname = \"a\"\n", "a/src/lib.rs"), 0);
    }

    #[test]
    fn build_output_and_hidden_folders_are_not_looked_at() {
        let (_keep, tree) = tree(&["target/a.rs", ".git/b.rs", "proof/fuzz/corpus/c", ".ci/run", "d.rs"]);
        let paths: Vec<&str> = tree.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, [".ci/run", "d.rs"]);
    }

    #[test]
    fn a_source_file_opens_with_its_header() {
        assert_eq!(check_header("a.rs", "\n//! What lives here.\n"), None);
        assert_eq!(check_header("a.rs", "// what lives here\nfn a() {}\n"), None);
        for bare in ["", "fn main() {}\n", "#![no_std]\n//! late\n"] {
            assert!(check_header("a.rs", bare).is_some(), "{bare:?}");
        }
    }

    #[test]
    fn a_file_may_have_900_lines_and_not_one_more() {
        assert_eq!(check_length("a.rs", &"x\n".repeat(900)), None);
        assert!(check_length("a.rs", &"x\n".repeat(901)).is_some());
    }

    #[test]
    fn unfinished_code_and_ignored_tests_are_found_with_their_line() {
        let found = |text: &str| check_leftovers("a.rs", text);
        assert!(found("//! A list of what is left to do; ignore it.\n").is_empty());
        for word in [
            concat!("todo", "!()"),
            concat!("unimplemented", "!(\"x\")"),
            concat!("// FIX", "ME later"),
            concat!("#[", "ignore]"),
            concat!("#[", "ignore = \"slow\"]"),
        ] {
            assert_eq!(found(&format!("fn a() {{\n{word}\n}}\n")).len(), 1, "{word}");
        }
        assert!(found(concat!("a\n\n    to", "do!()\n"))[0].starts_with("a.rs:3: "));
        assert_eq!(found(concat!("#[cfg_attr(windows, igno", "re)]\n")).len(), 1);
        assert_eq!(found(concat!("/// ```igno", "re\n")).len(), 1);
    }

    #[test]
    fn words_of_the_workshop_are_found_as_words() {
        let found = |text: &str| check_words("a.md", text).len();
        assert_eq!(
            found("networking; a workload; claudette; the llama; library of styles; see a/work.md"),
            0
        );
        for word in forbidden_words() {
            assert_eq!(found(&format!("see {word} there")), 1, "{word}");
            assert_eq!(found(&word.to_uppercase()), 1, "{word}");
        }
        assert_eq!(found(&format!("two {}s", concat!("L", "LM"))), 1);
    }

    #[test]
    fn a_section_of_a_text_that_is_not_here_is_found() {
        let paper = concat!("DES", "IGN");
        for cited in ["{} 8", "see {} section 4.", "({} §5)"] {
            assert!(cites_a_paper_outside(&cited.replace("{}", paper)), "{cited}");
        }
        for fine in ["{}", "{}ATED 4", "{} of 4", "{}8", "design 8"] {
            assert!(!cites_a_paper_outside(&fine.replace("{}", paper)), "{fine}");
        }
    }
}
