//! README.md and docs/ hold together: the README is short, every page begins with a command, what they link to and name exists.
//!
//! `hints.rs` parses the commands of the pages; `scripts/check_docs.sh` runs them.

use crate::support::root;
use std::path::{Path, PathBuf};

pub(crate) struct Page {
    path: PathBuf,
    pub(crate) name: String,
    pub(crate) text: String,
}

/// README.md and the pages of docs/.
pub(crate) fn pages() -> Vec<Page> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    paths.push(root().join("README.md"));
    paths.sort();
    paths.into_iter().map(page).collect()
}

fn page(path: PathBuf) -> Page {
    let name = path.strip_prefix(root()).unwrap().display().to_string();
    let text = std::fs::read_to_string(&path).unwrap();
    Page { path, name, text }
}

/// With LLAMA_LITE_UPDATE_DOCS=1 the page is written again.
#[test]
fn the_docs_list_every_configuration_key() {
    const FIRST: &str = "### `[model]`";
    let Page { path, text, .. } = page(root().join("docs/configuration.md"));
    let reference = llama_lite::config::reference();
    if std::env::var_os("LLAMA_LITE_UPDATE_DOCS").is_some() {
        let introduction = text.split(FIRST).next().unwrap();
        std::fs::write(&path, format!("{introduction}{}\n", reference.trim())).unwrap();
        return;
    }
    let listed = text.find(FIRST).map(|at| text[at..].trim());
    let remedy = "LLAMA_LITE_UPDATE_DOCS=1 cargo test --release --test all the_docs_list";
    assert_eq!(listed, Some(reference.trim()), "docs/configuration.md is not what the program says: {remedy}");
}

#[test]
fn the_readme_is_short_and_pages_begin_with_a_command() {
    let pages = pages();
    assert!(pages.len() >= 15, "{}", pages.len());
    for Page { name, text, .. } in &pages {
        assert!(name != "README.md" || text.lines().count() <= 200 && text.len() <= 18_000, "README.md is too long");
        assert!(text.lines().take(30).any(|line| line == "```sh"), "{name}: no command at its head");
    }
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let mut wrong = Vec::new();
    for Page { path, name, text } in pages() {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !linked.exists() || !anchor.is_empty() && !has_heading(&linked, anchor) {
                wrong.push(format!("{name}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the page has a heading to which GitHub gives this anchor.
fn has_heading(page: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap();
    text.lines().any(|line| line.starts_with('#') && slug(line.trim_start_matches('#').trim()) == anchor)
}

fn slug(heading: &str) -> String {
    let kept: String = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect();
    kept.to_lowercase().replace(' ', "-")
}

/// Paths in code marks, such as `scripts/check.sh`; placeholders and globs are left alone.
#[test]
fn every_file_that_the_pages_name_exists() {
    const FOLDERS: [&str; 5] = ["src/", "scripts/", "configs/", "tests/", "docs/"];
    let mut wrong = Vec::new();
    for Page { name, text, .. } in pages() {
        for word in text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace) {
            let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains(['*', '…', '{', '<']);
            if is_path && !root().join(word).exists() {
                wrong.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_script_is_named_on_a_page() {
    let pages = pages();
    let scripts = std::fs::read_dir(root().join("scripts")).unwrap();
    for script in scripts.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        // Each comparison stands beside its self-test; Python leaves a folder of its own.
        let name = script.replace("_selftest.py", ".py");
        let is_named = pages.iter().any(|page| page.text.contains(&format!("scripts/{name}")));
        assert!(is_named || name == "__pycache__", "scripts/{script} is on no page: name it in docs/development.md");
    }
}

/// Paths of modules and tests in code marks, such as `torture::kill::random_kills`: that room exists, and something in it has the last name.
#[test]
fn every_test_that_the_pages_name_exists() {
    let mut sources = Vec::new();
    for room in ["src", "tests/all"] {
        collect_sources(&root().join(room), &mut sources);
    }
    let mut wrong = Vec::new();
    for Page { name, text, .. } in pages() {
        for word in text.split('`').skip(1).step_by(2).filter(|word| is_module_path(word)) {
            let room = word.split("::").next().unwrap();
            let last = word.rsplit("::").next().unwrap();
            let definitions = [format!("fn {last}("), format!("mod {last};"), format!("mod {last} {{")];
            let is_there = sources.iter().any(|(path, text)| {
                path.contains(&format!("/{room}")) && definitions.iter().any(|definition| text.contains(definition))
            });
            if !is_there {
                wrong.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_module_path(word: &str) -> bool {
    word.contains("::") && word.split("::").all(is_snake_case)
}

fn is_snake_case(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b))
}

fn collect_sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            collect_sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}
