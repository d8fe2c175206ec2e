//! Names: a public type is called by a name that no other file uses.

use super::{all_sources, code, is_test_file};
use std::collections::{BTreeMap, BTreeSet};

/// Names that the language's habit gives to a type of many modules.
const HABITUAL: [&str; 2] = ["Error", "Options"];

#[test]
fn no_public_type_has_the_name_of_another() {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in all_sources().into_iter().filter(|(path, _)| !is_test_file(path)) {
        for name in code(&text).lines().filter_map(public_type) {
            files.entry(name).or_default().insert(path.clone());
        }
    }
    files.retain(|name, files| files.len() > 1 && !HABITUAL.contains(&name.as_str()));
    assert!(files.is_empty(), "give all but one of each a more specific name: {files:?}");
}

/// The name of the type that `line` defines for other files.
fn public_type(line: &str) -> Option<String> {
    let line = line.trim_start();
    let item = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let kinds = ["struct ", "enum ", "trait ", "type "];
    let rest = kinds.iter().find_map(|kind| item.strip_prefix(kind))?;
    // A macro may stand for the name.
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    Some(name).filter(|name| !name.is_empty())
}
