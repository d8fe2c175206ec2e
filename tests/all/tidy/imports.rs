//! Imports: layers of modules, as the table in src/lib.rs has them, and no circle between files.

use super::{all_sources, code, is_test_file};
use std::collections::{BTreeMap, BTreeSet};

/// The table of src/lib.rs: each module with the modules that it may use. A row may name rows above it and no others.
fn layers() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(crate::support::root().join("src/lib.rs")).unwrap();
    let mut layers = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | `")) {
        let (modules, allowed) = row.trim_end_matches(" |").split_once(" | ").unwrap();
        let above: BTreeSet<String> = layers.keys().cloned().collect();
        let allowed: BTreeSet<String> = match allowed {
            "nothing" => BTreeSet::new(),
            "all of the above" => above.clone(),
            list => list.split(", ").map(|name| name.trim_matches('`').to_owned()).collect(),
        };
        assert!(allowed.is_subset(&above), "src/lib.rs: {modules} may use what stands above it, not {allowed:?}");
        layers.extend(modules.split(", ").map(|name| (name.trim_matches('`').to_owned(), allowed.clone())));
    }
    layers
}

#[test]
fn imports_flow_one_way() {
    let layers = layers();
    // Tests may use what stands above the code that they test.
    for (path, text) in all_sources().into_iter().filter(|(path, _)| !is_test_file(path)) {
        let module = path.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs");
        let Some(allowed) = layers.get(module) else {
            assert!(["lib", "main"].contains(&module), "{path}: src/lib.rs has no row for {module}");
            continue;
        };
        let imported = imports(code(&text));
        for other in imported.iter().filter_map(|path| path.strip_prefix("crate::")?.split("::").next()) {
            let is_layer = layers.contains_key(other) && other != module;
            assert!(!is_layer || allowed.contains(other), "{path} uses crate::{other}");
        }
    }
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let found = circles(&import_graph());
    assert!(found.is_empty(), "these files import each other: {found:?}");
}

#[test]
fn the_parser_of_imports_knows_groups_and_relative_paths() {
    let text = "use crate::a::{self, b::C, d as e};\nuse super::f;\npub use g::H;\n#[cfg(test)]\nmod tests;\n// crate::no\nlet x = crate::i::j::K;\n";
    let paths = imports(text);
    for expected in ["crate::a::self", "crate::a::b::C", "crate::a::d", "super::f", "g::H", "crate::i::j"] {
        assert!(paths.iter().any(|path| path == expected), "{expected}: {paths:?}");
    }
    assert!(!paths.iter().any(|path| path.contains("no")), "{paths:?}");
}

/// For each file of src, the files that it names in `use` or by a path.
fn import_graph() -> BTreeMap<String, BTreeSet<String>> {
    let sources: Vec<(String, String)> = all_sources()
        .into_iter()
        .filter(|(path, _)| !is_test_file(path))
        .map(|(path, text)| (path.trim_start_matches("src/").to_owned(), text))
        .collect();
    let files: BTreeMap<String, String> = sources.iter().map(|(path, _)| (module_of(path), path.clone())).collect();
    let mut graph = BTreeMap::new();
    for (path, text) in &sources {
        let module = module_of(path);
        let imported = imports(code(text)).iter().filter_map(|import| file_of(import, &module, &files)).collect();
        let mut imported: BTreeSet<String> = imported;
        imported.retain(|other| other != path && other != "lib.rs" && !is_face(path, other) && !is_face(other, path));
        graph.insert(path.clone(), imported);
    }
    graph
}

/// `a::b` for a/b.rs; nothing for lib.rs and main.rs.
fn module_of(path: &str) -> String {
    let module = path.trim_end_matches(".rs").replace('/', "::");
    if ["lib", "main"].contains(&module.as_str()) { String::new() } else { module }
}

/// Whether `part` stands in the folder of the file `face`: these two are one subject and may name each other.
fn is_face(face: &str, part: &str) -> bool {
    part.strip_prefix(face.trim_end_matches(".rs")).is_some_and(|rest| rest.starts_with('/'))
}

/// The file that the path `import`, written in `module`, leads to.
fn file_of(import: &str, module: &str, files: &BTreeMap<String, String>) -> Option<String> {
    let mut base: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts: Vec<&str> = import.split("::").collect();
    match parts[0] {
        "crate" => {
            base.clear();
            parts.remove(0);
        }
        "self" => drop(parts.remove(0)),
        "super" => {
            while parts.first() == Some(&"super") {
                parts.remove(0);
                base.pop();
            }
        }
        // A module beside or below this one, or a crate.
        _ if files.contains_key(&[&base[..], &parts[..1]].concat().join("::")) => {}
        _ => return None,
    }
    base.extend(parts);
    while !base.is_empty() && !files.contains_key(&base.join("::")) {
        base.pop();
    }
    files.get(&base.join("::")).cloned()
}

/// The paths that `text` imports, groups unfolded, and those that it names from `crate` or `super` on.
fn imports(text: &str) -> Vec<String> {
    let text = without_tests_and_comments(text);
    let mut paths = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, statement)) = rest.split_once("use ") {
        let line = before.rsplit('\n').next().unwrap_or_default().trim();
        rest = statement;
        if line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')')) {
            unfold("", statement.split(';').next().unwrap_or_default(), &mut paths);
        }
    }
    for root in ["crate::", "super::"] {
        for (at, _) in text.match_indices(root) {
            if text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !"_:".contains(c)) {
                let is_in_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
                let path: String = text[at..].chars().take_while(|c| is_in_path(*c)).collect();
                paths.push(path.trim_end_matches(':').to_owned());
            }
        }
    }
    paths
}

/// The paths of `body`, the part of a `use` behind `prefix`: `a::{b, c as d}` gives `a::b` and `a::c`.
fn unfold(prefix: &str, body: &str, paths: &mut Vec<String>) {
    let mut depth = 0;
    let mut items = vec![String::new()];
    for c in body.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    for item in items.iter().map(|item| item.trim()).filter(|item| !item.is_empty()) {
        match item.strip_suffix('}').and_then(|item| item.split_once('{')) {
            Some((path, group)) => unfold(&format!("{prefix}{path}"), group, paths),
            None => paths.push(format!("{prefix}{}", item.split(" as ").next().unwrap_or(item).trim())),
        }
    }
}

/// `text` without comments and without the modules and imports that only tests have.
fn without_tests_and_comments(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut kept = String::new();
    let mut is_for_tests = false;
    for line in lines {
        let item = line.trim_start();
        if item.starts_with("#[cfg(") && item.contains("test") && !item.contains("not(test") {
            is_for_tests = true;
            continue;
        }
        let is_import = ["use ", "mod ", "pub use ", "pub mod ", "pub(crate) use ", "pub(crate) mod "];
        if is_for_tests && is_import.iter().any(|start| item.starts_with(start)) && item.ends_with(';') {
            is_for_tests = false;
            continue;
        }
        is_for_tests = false;
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The groups of two or more files that reach each other.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|file| (file, reachable_from(file, graph))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for file in graph.keys() {
        let circle: Vec<String> = graph
            .keys()
            .filter(|other| reached[file].contains(other) && reached[other].contains(file))
            .cloned()
            .collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable_from<'a>(start: &'a String, graph: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(file) = open.pop() {
        for next in graph.get(file).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    reached
}
