//! What the documentation of src/lib.rs claims of the code and a reader of the sources can check.

use super::{all_sources, code, is_test_file};
use crate::support::root;

#[test]
fn only_one_module_writes_files() {
    let writers =
        ["fs::write(", " File::create(", "fs::File::create(", "fs::rename(", "OpenOptions::new(", "fs::create_dir"];
    for (path, text) in all_sources() {
        // Build scripts have a directory of their own to write to.
        if path.starts_with("src/runtime/files") || path.ends_with("/build.rs") || is_test_file(&path) {
            continue;
        }
        for w in writers {
            assert!(!code(&text).contains(w), "{path} uses {w}: files are written by runtime/files.rs");
        }
    }
}

#[test]
fn only_commands_write_to_stdout() {
    for (path, text) in all_sources() {
        // A build script talks to cargo.
        if path.starts_with("src/commands") || path.ends_with("/build.rs") || is_test_file(&path) {
            continue;
        }
        for output in [" print!(", " println!(", "stdout()"] {
            assert!(!code(&text).contains(output), "{path} uses {output}: stdout is for data, which commands print");
        }
    }
}

#[test]
fn the_model_does_no_input_or_output() {
    for (path, text) in all_sources().into_iter().filter(|(path, _)| path.starts_with("src/model")) {
        for word in ["std::fs", "std::io", "std::net", "runtime::files"] {
            assert!(is_test_file(&path) || !code(&text).contains(word), "{path} uses {word}");
        }
    }
}

/// What the compiler and clippy check for us stays switched on.
#[test]
fn lints_hold_the_other_claims() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let lints = &manifest["lints"]["clippy"];
    for lint in ["iter_over_hash_type", "print_stdout", "undocumented_unsafe_blocks", "unwrap_used"] {
        assert_eq!(lints[lint].as_str(), Some("warn"), "Cargo.toml, [lints.clippy]");
    }
}
