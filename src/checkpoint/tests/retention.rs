//! Retention over random histories of good, damaged, foreign and temporary directories, with deaths in the middle.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::manifest::{FileEntry, Manifest, examine};
use super::super::names;
use super::*;
use crate::checkpoint::{checkpoints_dir, prune, step_name};
use crate::runtime::files::tests::fault_injection::{Mode, trace};

/// A minimal sound checkpoint: to retention its files are only bytes.
fn plant(root: &Path, name: &str, step: u64) -> PathBuf {
    let dir = root.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let content = format!("state of {step}");
    std::fs::write(dir.join("data"), &content).unwrap();
    let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
    let entry = FileEntry { name: "data".into(), size: content.len() as u64, blake3: hash };
    let manifest = Manifest { version: 1, step, tokens: step, files: vec![entry] };
    std::fs::write(dir.join(names::MANIFEST), manifest.render().unwrap()).unwrap();
    dir
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A save, so many steps later.
    Save(u64),
    /// The n-th newest loses its content silently (same size) or its manifest.
    Rot(usize),
    Behead(usize),
    Foreign,
    Temp,
    Dead(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (1_u64..4).prop_map(Event::Save),
        1 => (0_usize..4).prop_map(Event::Rot),
        1 => (0_usize..4).prop_map(Event::Behead),
        1 => Just(Event::Foreign),
        1 => Just(Event::Temp),
        1 => (0_usize..6).prop_map(Event::Dead),
    ];
    prop::collection::vec(event, 1..25)
}

/// What the program would call checkpoints: the names that [`Event::Save`] makes.
fn checkpoints(root: &Path) -> Vec<PathBuf> {
    let ours = |name: &String| name.starts_with("step-0") && name.len() == A_FILE.len() && name != A_FILE;
    listing(root).iter().filter(|name| ours(name)).map(|name| root.join(name)).collect()
}

/// A file under a checkpoint's name.
const A_FILE: &str = "step-00009999";

/// Steps of the wholly sound checkpoints, newest first.
fn sound(root: &Path) -> Vec<u64> {
    let mut steps: Vec<u64> = checkpoints(root).iter().filter_map(|dir| Some(examine(dir).ok()?.step)).collect();
    steps.sort_by(|a, b| b.cmp(a));
    steps
}

/// What must be left of the sound steps `before` (newest first), written down a second time.
fn expected(keep: Retention, before: &[u64]) -> BTreeSet<u64> {
    let due = |step: u64| keep.keep_every > 0 && step.is_multiple_of(keep.keep_every);
    before.iter().enumerate().filter(|&(n, &step)| n < keep.keep || due(step)).map(|(_, &step)| step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_what_they_must(history in events(), keep in 1_usize..4, keep_every in prop::sample::select(vec![0_u64, 3, 5])) {
        let run = quick_dir();
        let root = checkpoints_dir(run.path());
        std::fs::create_dir_all(&root).unwrap();
        let keep = Retention { keep, keep_every, log_spaced: false };
        let (mut step, mut death, mut foreign) = (0, None, BTreeSet::new());
        for event in history {
            match event {
                Event::Save(more) => {
                    step += more;
                    let fresh = plant(&root, &step_name(step), step);
                    let before = sound(&root);
                    let damaged: Vec<PathBuf> = checkpoints(&root).into_iter().filter(|dir| examine(dir).is_err()).collect();
                    let (pruned, _) = trace(death.take().map(|n| (n, Mode::Dead)), || prune(run.path(), keep, &fresh));
                    prop_assert!(examine(&fresh).is_ok(), "the fresh one was lost");
                    prop_assert!(damaged.iter().all(|dir| dir.exists()), "a damaged one was deleted");
                    let must = expected(keep, &before);
                    let left: BTreeSet<u64> = sound(&root).into_iter().collect();
                    prop_assert!(left.is_superset(&must), "{left:?} lacks some of {must:?}");
                    if pruned.is_ok() {
                        prop_assert_eq!(left, must);
                    }
                }
                Event::Rot(n) => {
                    if let Some(dir) = checkpoints(&root).iter().rev().nth(n) {
                        let _ = std::fs::read(dir.join("data")).map(|bytes| std::fs::write(dir.join("data"), vec![b'?'; bytes.len()]));
                    }
                }
                Event::Behead(n) => {
                    if let Some(dir) = checkpoints(&root).iter().rev().nth(n) {
                        let _ = std::fs::remove_file(dir.join(names::MANIFEST));
                    }
                }
                Event::Foreign => {
                    for name in ["my-favourite", "step-1", "step-00000001x", "step-latest", ".bad-3-hash", ".superseded-9-1"] {
                        foreign.insert(plant(&root, name, step + 1000));
                    }
                    std::fs::write(root.join(A_FILE), "a file").unwrap();
                    foreign.insert(root.join(A_FILE));
                }
                Event::Temp => drop(foreign.insert(plant(&root, ".tmp-step-00000077-1", step))),
                Event::Dead(n) => death = Some(n),
            }
            prop_assert!(foreign.iter().all(|path| path.exists()), "something foreign was deleted");
        }
    }
}

#[test]
fn nothing_is_deleted_for_a_fresh_one_that_is_not_sound() {
    let run = tempfile::tempdir().unwrap();
    let root = checkpoints_dir(run.path());
    plant(&root, "step-00000001", 1);
    plant(&root, "step-00000002", 2);
    let fresh = plant(&root, "step-00000003", 3);
    std::fs::write(fresh.join("data"), "torn").unwrap();
    let error = prune(run.path(), Retention { keep: 1, keep_every: 0, log_spaced: false }, &fresh).unwrap_err();
    assert_eq!(exit_of(&error), Exit::Data);
    assert_eq!(listing(&root).len(), 3);
}

#[test]
fn keep_zero_still_keeps_one_and_older_than_the_newest_is_protected() {
    let run = tempfile::tempdir().unwrap();
    let root = checkpoints_dir(run.path());
    let fresh = plant(&root, "step-00000001", 1);
    plant(&root, "step-00000002", 2);
    let none = Retention { keep: 0, keep_every: 0, log_spaced: false };
    assert!(prune(run.path(), none, &fresh).unwrap().is_empty());
    let newest = root.join("step-00000002");
    assert_eq!(prune(run.path(), none, &newest).unwrap(), [fresh]);
    assert_eq!(listing(&root), ["step-00000002"]);
}
