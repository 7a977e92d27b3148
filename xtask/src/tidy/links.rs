//! Links and paths in the documents: each must lead somewhere.
//!
//! Two kinds. A Markdown link `[text](target)` is relative to its document. A path in backticks that starts with one of the
//! project's folders is relative to the root; patterns (`*`, `<name>`, `NNNN`) are not paths. Fenced blocks are examples
//! and are skipped, as are other hosts: whether the internet answers is not for a check that must run offline. The
//! changelog tells of the past, so the paths it names may be gone; its links may not.

/// First folders of paths that are checked in backticks.
const FOLDERS: &[&str] =
    &["core/", "shell/", "dwcp/", "proof/", "xtask/", "docs/", ".ci/", ".cargo/", ".config/"];

pub(super) fn is_document(path: &str) -> bool {
    path.ends_with(".md") && (!path.contains('/') || path.starts_with("docs/") || path.ends_with("README.md"))
}

/// Every dead end as `path:line: what, remedy`. `exists` answers for paths relative to the root.
pub(super) fn check(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        for target in link_targets(line) {
            let Some(target) = local(target) else { continue };
            match beside(path, target) {
                Some(full) if exists(&full) => {}
                _ => broken.push(format!(
                    "{path}:{}: link to `{target}` leads nowhere: mend or drop it",
                    number + 1
                )),
            }
        }
        if path == "CHANGELOG.md" {
            continue;
        }
        for code in code_spans(line) {
            if is_path(code) && !exists(code.trim_end_matches('/')) {
                broken.push(format!("{path}:{}: `{code}` does not exist: mend or drop it", number + 1));
            }
        }
    }
    broken
}

/// Targets of inline links; text in backticks is code, not a link.
fn link_targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    for (at, part) in line.split('`').enumerate() {
        // Odd parts lie between backticks. A link's own text may be code: `[`a`](b)` leaves `](b)` outside.
        if at % 2 == 1 {
            continue;
        }
        let mut rest = part;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, behind)) = after.split_once(')') else { break };
            // A title may follow the target: [text](target "title").
            targets.push(target.split_whitespace().next().unwrap_or_default());
            rest = behind;
        }
    }
    targets
}

/// The path part of a target inside the repository; nothing for other hosts and places in the same document.
fn local(target: &str) -> Option<&str> {
    let elsewhere = target.contains("://") || target.starts_with("mailto:");
    let here = target.starts_with('#');
    (!elsewhere && !here).then(|| target.split('#').next().unwrap_or_default())
}

/// `target` as seen from `document`, as a path from the root; nothing when it leaves the repository.
fn beside(document: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop()?;
            }
            "" => return None,
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').enumerate().filter(|(at, _)| at % 2 == 1).map(|(_, code)| code)
}

fn is_path(code: &str) -> bool {
    let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_'));
    plain && FOLDERS.iter().any(|folder| code.starts_with(folder)) && !code.contains("NNNN")
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: &[&str] =
        &["README.md", "docs/glossary.md", "docs/decisions", "docs/decisions/0001-a.md", "core/base"];

    fn dead(path: &str, text: &str) -> Vec<String> {
        check(path, text, &|p| THERE.contains(&p))
    }

    #[test]
    fn links_are_followed_from_the_document_they_stand_in() {
        let text = "See [words](../glossary.md#epoch), [one](0001-a.md \"why\"), [top](../../README.md), [`x`](0001-a.md).\n";
        assert_eq!(dead("docs/decisions/README.md", text), Vec::<String>::new());
        assert_eq!(dead("README.md", "[words](../glossary.md) and [one](0001-a.md)\n").len(), 2);
        assert_eq!(
            dead("README.md", "a\n[gone](docs/gone.md)\n")[0],
            "README.md:2: link to `docs/gone.md` leads nowhere: mend or drop it"
        );
    }

    #[test]
    fn an_empty_link_is_dead_and_other_hosts_are_not_asked() {
        assert_eq!(dead("README.md", "[a]()\n").len(), 1);
        let text = "[a](https://example.org/x) [b](#below) [c](mailto:a@example.org)\n";
        assert_eq!(dead("README.md", text), Vec::<String>::new());
    }

    #[test]
    fn a_path_in_backticks_must_exist_and_a_pattern_is_no_path() {
        let text = "`core/base`, `core/base/`, `docs/decisions/NNNN-title.md`, `core/*`, `cargo test`, `either/or`\n";
        assert_eq!(dead("ARCHITECTURE.md", text), Vec::<String>::new());
        assert_eq!(dead("ARCHITECTURE.md", "`core/gone/src/lib.rs`\n").len(), 1);
    }

    #[test]
    fn examples_in_fences_are_skipped_and_the_text_behind_them_is_not() {
        let text = "```text\n`core/gone` [a](gone.md)\n```\n`core/gone`\n";
        let found = dead("README.md", text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("README.md:4:"));
    }

    #[test]
    fn the_changelog_may_name_what_is_gone_but_not_link_to_it() {
        assert_eq!(dead("CHANGELOG.md", "`core/gone`\n"), Vec::<String>::new());
        assert_eq!(dead("CHANGELOG.md", "[a](core/gone)\n").len(), 1);
    }
}
