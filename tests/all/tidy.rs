//! The rules of the code base, held by the machine: imports flow one way, files and functions stay short, every file says what it
//! is, presets load, every op is in the gradient tests.

mod claims;
mod imports;
mod names;

use crate::support::root;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    assert!(paths.len() > 40);
    let read =
        |p: &PathBuf| (p.strip_prefix(root()).unwrap().display().to_string(), std::fs::read_to_string(p).unwrap());
    paths.iter().map(read).collect()
}

/// Whether the file holds only tests, or what only tests use.
fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// The part of a file that is not its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn files_are_documented_short_and_safe() {
    for (path, text) in all_sources() {
        assert!(text.starts_with("//!") || path.ends_with("tests.rs"), "{path} does not say what it is");
        assert!(text.lines().count() <= 400, "{path} has {} lines", text.lines().count());
        let calls_libraries = [
            "src/distributed/mpi.rs",
            "src/distributed/mpi/abi.rs",
            "src/distributed/nccl.rs",
            "src/distributed/nccl/abi.rs",
        ];
        let may_be_unsafe =
            path.starts_with("src/ops/") || path == "src/main.rs" || calls_libraries.contains(&path.as_str());
        let uses = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("unsafe {"));
        assert!(may_be_unsafe || !uses, "{path} has unsafe code");
        for word in ["todo!(", "unimplemented!("] {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}

#[test]
fn functions_are_short() {
    for (path, text) in all_sources() {
        let (mut name, mut start, mut indent) = (String::new(), None, String::new());
        for (i, line) in code(&text).lines().enumerate() {
            let trimmed = line.trim_start();
            let is_fn = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "unsafe fn ", "pub(crate) unsafe fn "];
            if start.is_none() && is_fn.iter().any(|f| trimmed.starts_with(f)) && !trimmed.ends_with(';') {
                indent = line[..line.len() - trimmed.len()].to_string();
                (name, start) = (trimmed.chars().take(60).collect(), Some(i));
            }
            if let Some(s) = start
                && (line == format!("{indent}}}") || (i == s && line.ends_with('}')))
            {
                assert!(i - s < 80, "{path}: {name} has {} lines", i - s + 1);
                start = None;
            }
        }
    }
}

/// A closure that is not inlined into the SIMD dispatch is compiled for the baseline: right, and several times slower.
#[test]
fn what_runs_in_simd_is_inlined() {
    for (path, text) in all_sources() {
        assert!(path == "src/ops/cpu.rs" || !text.contains(".dispatch("), "{path}: use cpu::simd!");
    }
}

/// A copy from a GPU is only queued when candle returns, so whoever reads it by another way than `to_host` may see what was there before.
#[test]
fn what_comes_from_a_device_is_waited_for() {
    const ON_HOST: [&str; 7] = [
        "src/model/generation.rs",  // token ids
        "src/ops/cpu.rs",           // the CPU's part of the ops
        "src/ops/selftest.rs",      // the CPU's ops, and what cuda/selftest.rs has fetched
        "src/ops/cuda/selftest.rs", // logits that `to_host` has fetched
        "src/ops/cuda/selftest/update.rs",
        "src/ops/cuda/test_tensors.rs", // tests
        "src/ops/transfer.rs",
    ];
    for (path, text) in all_sources() {
        if is_test_file(&path) || ON_HOST.contains(&path.as_str()) {
            continue;
        }
        for statement in code(&text).split([';', '{', '}']) {
            let reads = [".to_vec0", ".to_vec1", ".to_vec2", ".to_vec3", ".to_scalar", ".to_device(&Device::Cpu)"];
            let is_read = reads.iter().any(|read| statement.contains(read));
            assert!(!is_read || statement.contains("to_host("), "{path}: use ops::transfer::to_host in{statement}");
        }
    }
}

#[test]
fn every_preset_loads() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Fine-tuning takes its model from the command line: config/tests.rs.
        if !name.starts_with("sft-") {
            llama_lite::config::Config::load(&path, &[]).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
        }
        names.push(name);
    }
    for name in ["quickstart", "develop", "llama-124m", "llama-978m", "llama-1.7b", "sft-alpaca"] {
        assert!(names.iter().any(|n| n == name), "configs/{name}.toml is missing");
    }
}

#[test]
fn every_op_is_in_the_gradient_tests() {
    let checked: Vec<&str> = llama_lite::ops::selftest::names().collect();
    for (path, text) in all_sources() {
        let Some(op) = path.strip_prefix("src/ops/").and_then(|p| p.strip_suffix(".rs")) else { continue };
        // The parts of an op are in a folder of its name.
        if op.contains('/') {
            continue;
        }
        if text.contains("pub fn reference(") {
            assert!(checked.contains(&op), "{path} is not in ops/selftest.rs");
        } else {
            assert!(
                [
                    "adapter",
                    "cpu",
                    "cuda",
                    "device",
                    "elements",
                    "flat",
                    "gemm",
                    "heads",
                    "large_pages",
                    "mask",
                    "noise",
                    "positions",
                    "precision",
                    "prefix_tree",
                    "product_algorithms",
                    "product_rate",
                    "products",
                    "selftest",
                    "simd",
                    "squares",
                    "stream",
                    "targets",
                    "transfer"
                ]
                .contains(&op),
                "{path} has no reference"
            );
        }
    }
}

/// A mistake of scripts/mutants/*.toml.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    file: String,
    text: String,
    becomes: String,
    tests: String,
    #[serde(default)]
    build: bool,
}

fn mutants() -> Vec<Mutant> {
    #[derive(serde::Deserialize)]
    struct List {
        mutant: Vec<Mutant>,
    }
    let lists = std::fs::read_dir(root().join("scripts/mutants")).unwrap().map(|entry| entry.unwrap().path());
    let parse = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        toml::from_str::<List>(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mutant
    };
    lists.filter(|path| path.extension().is_some_and(|e| e == "toml")).flat_map(parse).collect()
}

/// The names of all tests below `dir`, as the test program itself prints them.
fn tests_below(dir: &str) -> Vec<String> {
    let (mut paths, mut names) = (Vec::new(), Vec::new());
    sources(&root().join(dir), &mut paths);
    for path in paths {
        let module = path.strip_prefix(root().join(dir)).unwrap().with_extension("");
        let module: Vec<_> = module.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
        let (text, mut inside, mut attribute) = (std::fs::read_to_string(&path).unwrap(), "", false);
        for line in text.lines().map(str::trim_start) {
            if line == "mod tests {" || line.starts_with("pub(crate) mod tests {") {
                inside = "::tests";
            }
            if line.starts_with("#[test]") {
                attribute = true;
            } else if let Some((name, _)) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
                names.extend(attribute.then(|| format!("{}{inside}::{name}", module.join("::"))));
                attribute = false;
            }
        }
    }
    names
}

/// A planted mistake whose text has gone, or whose tests have other names now, would prove nothing.
#[test]
fn planted_mistakes_can_be_planted_and_their_tests_exist() {
    let (mutants, unit, all) = (mutants(), tests_below("src"), tests_below("tests/all"));
    assert!(unit.len() > 300 && all.len() > 100, "{} {}", unit.len(), all.len());
    for (i, mutant) in mutants.iter().enumerate() {
        let Mutant { name, file, text, becomes, tests, .. } = mutant;
        assert!(mutants[..i].iter().all(|other| other.name != *name), "two are called {name:?}");
        let marks = (text.matches('«').count(), text.matches('»').count());
        assert!(marks == (0, 0) || marks == (1, 1), "{name}: « and » mark one part of the text");
        let source = std::fs::read_to_string(root().join(file)).unwrap();
        let (plain, count) = (text.replace(['«', '»'], ""), |text: &str| source.matches(text).count());
        assert_eq!(count(&plain), 1, "{name}: {file} must hold this once:\n{plain}");
        assert!(!plain.is_empty() && plain != *becomes, "{name} changes nothing");
        assert!(mutant.build || !becomes.is_empty(), "{name}: an empty branch is written ()");
        let (names, filter) = match tests.split_once(' ') {
            Some(("--lib", filter)) => (&unit, filter),
            Some(("--test", rest)) => (&all, rest.strip_prefix("all ").unwrap_or_else(|| panic!("{name}: {tests}"))),
            _ => panic!("{name}: tests are --lib NAME or --test all NAME, not {tests}"),
        };
        assert!(names.iter().any(|test| test.contains(filter)), "{name}: no test is called {filter}");
    }
}

/// Paths below the root of everything in scripts/ that can be run or imported.
fn scripts() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("scripts")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
            if path.is_dir() {
                folders.push(path);
            } else if matches!(extension.as_deref(), None | Some("py" | "sh")) {
                found.push(path.strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// Path and text of every file that may run a script, and of the pages for those who work on the program.
fn script_users() -> Vec<(String, String)> {
    let mut tests = Vec::new();
    sources(&root().join("tests"), &mut tests);
    // This file names scripts that do not exist.
    tests.retain(|path| !path.ends_with("tests/all/tidy.rs"));
    let pages = [".ci/run", "README.md", "docs/development.md"].map(|page| root().join(page));
    let paths = scripts().into_iter().map(|script| root().join(script)).chain(tests).chain(pages);
    paths
        .filter_map(|path| {
            let text = std::fs::read_to_string(&path).ok()?;
            Some((path.strip_prefix(root()).unwrap().display().to_string(), text))
        })
        .collect()
}

fn holds_word(text: &str, word: &str) -> bool {
    let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        !before.is_some_and(part_of_a_name) && !after.is_some_and(part_of_a_name)
    })
}

/// Whether a file other than the script itself names or imports it.
fn is_used(script: &str, users: &[(String, String)]) -> bool {
    let name = script.strip_prefix("scripts/").unwrap();
    let module = name.strip_suffix(".py").map(|module| module.replace('/', "."));
    users.iter().filter(|(path, _)| path != script).any(|(_, text)| {
        let imported = module.as_ref().is_some_and(|module| {
            let in_folder = module.contains('.') && holds_word(text, module);
            in_folder || ["import", "from"].iter().any(|word| holds_word(text, &format!("{word} {module}")))
        });
        imported || holds_word(text, name)
    })
}

/// A script that nothing runs and no page names is forgotten, and rots.
#[test]
fn every_script_is_run_or_named() {
    let scripts = scripts();
    let users = script_users();
    assert!(scripts.len() > 20, "{scripts:?}");
    assert!(users.iter().any(|(path, _)| path == ".ci/run") && users.iter().any(|(path, _)| path == "README.md"));
    for forgotten in ["scripts/nobody_runs_this.py", "scripts/eck.sh", "scripts/benches/nothing.py"] {
        assert!(!is_used(forgotten, &users), "{forgotten} does not exist, and counts as used");
    }
    for script in scripts {
        assert!(is_used(&script, &users), "nothing runs {script}: name it in docs/development.md, or delete it");
    }
}
