//! Damage to every file of a checkpoint: noticed before any of it is used, set aside, and made good by the one before.

use super::subject::{Running, Subject, begins, contents, copy_tree, events, resume, set_aside};
use super::{count, draws, figures};
use crate::support::checkpoint;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[derive(Clone, Copy, Debug)]
enum Mutation {
    Flip,
    Truncate,
    Append,
    Zero,
    Delete,
    /// The file of the same name of the checkpoint before.
    Swap,
}

const MUTATIONS: [Mutation; 6] =
    [Mutation::Flip, Mutation::Truncate, Mutation::Append, Mutation::Zero, Mutation::Delete, Mutation::Swap];

/// Those that always change something.
const CERTAIN: [Mutation; 4] = [Mutation::Flip, Mutation::Truncate, Mutation::Append, Mutation::Delete];

/// Damages `path`; `other` is the file of the same name elsewhere. False if the file is what it was: then no harm was done.
fn mutate(path: &Path, other: &Path, kind: Mutation, draw: &mut ChaCha8Rng) -> bool {
    let sound = std::fs::read(path).unwrap();
    let mut bytes = sound.clone();
    let at = draw.random_range(0..bytes.len());
    match kind {
        Mutation::Flip => bytes[at] ^= 1 << draw.random_range(0..8),
        Mutation::Truncate => bytes.truncate(at),
        Mutation::Append => bytes.extend_from_slice(b"\n"),
        Mutation::Zero => {
            let end = bytes.len().min(at + 4096);
            bytes[at..end].fill(0);
        }
        Mutation::Delete => {
            std::fs::remove_file(path).unwrap();
            return true;
        }
        Mutation::Swap => bytes = std::fs::read(other).unwrap(),
    }
    std::fs::write(path, &bytes).unwrap();
    bytes != sound
}

/// Names of the files of a checkpoint.
fn files_of(checkpoint: &Path) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    contents(checkpoint).keys().map(name).collect()
}

/// Each kind of damage to each file, in random order; more than there are of these are bit flips.
fn damages(files: &[String], wanted: usize, draw: &mut ChaCha8Rng) -> Vec<(String, Mutation)> {
    let mut all: Vec<_> = files.iter().flat_map(|file| MUTATIONS.map(|kind| (file.clone(), kind))).collect();
    all.shuffle(draw);
    let more = (all.len()..wanted).map(|i| (files[i % files.len()].clone(), Mutation::Flip));
    all.extend(more);
    all.truncate(wanted);
    all
}

/// One damage to the newest checkpoint of a copy of the run: whether it was noticed.
fn survives(subject: &Subject, file: &str, kind: Mutation, draw: &mut ChaCha8Rng) -> bool {
    let out = subject.path("damaged");
    let _ = std::fs::remove_dir_all(&out);
    copy_tree(&subject.whole, &out);
    let newest = checkpoint(&out, subject.steps);
    let changed = mutate(&newest.join(file), &checkpoint(&out, subject.steps - subject.every).join(file), kind, draw);
    let what = format!("{kind:?} of {file}");
    if changed {
        // Named on purpose it is an error, and nothing is moved.
        let before = contents(&out.join("checkpoints"));
        let ended = Running::start(&mut resume(&newest)).end();
        assert_eq!(ended.code(), 65, "{what}: {}", ended.stderr);
        assert!(ended.stderr.contains("step-") && ended.stderr.contains("hint:"), "{what}: {}", ended.stderr);
        assert!(contents(&out.join("checkpoints")) == before, "{what}: a refused checkpoint was touched");
    }
    let ended = Running::start(&mut resume(&out)).end();
    assert!(ended.status.success(), "{what}: {}\n{}", ended.status, ended.stderr);
    subject.assert_same(&out);
    let noticed = events(&out).iter().filter(|e| e["kind"] == "quarantine").count();
    let kept = set_aside(&out, &format!(".bad-{}-", subject.steps)).len();
    assert_eq!((noticed, kept), (usize::from(changed), usize::from(changed)), "{what}: {}", ended.stderr);
    let from = if changed { subject.steps - subject.every } else { subject.steps };
    assert_eq!(begins(&out).last(), Some(&from), "{what}");
    changed
}

#[test]
fn every_file_damaged() {
    const SEED: u64 = 5;
    let (subject, mut draw) = (Subject::new(12, 4, &[]), draws(SEED));
    let files = files_of(&checkpoint(&subject.whole, 12));
    assert!(files.len() >= 8 && files.iter().any(|f| f == "manifest.json"), "{files:?}");
    let damages = damages(&files, count(20, 200), &mut draw);
    let mut noticed = BTreeMap::new();
    for (file, kind) in &damages {
        let (all, found) = noticed.entry(format!("{kind:?}").to_lowercase()).or_insert((0, 0));
        *all += 1;
        *found += usize::from(survives(&subject, file, *kind, &mut draw));
    }
    let found: usize = noticed.values().map(|(_, found)| found).sum();
    let kinds: Vec<String> = noticed.iter().map(|(kind, (all, found))| format!("{kind} {found}/{all}")).collect();
    figures(
        "fallback",
        "every_file_damaged",
        &format!(
            "{} mutations of {} files, {found} changed a byte and were noticed ({}), all ended equal; seed {SEED}",
            damages.len(),
            files.len(),
            kinds.join(", ")
        ),
    );
    assert!(found * 10 >= damages.len() * 7, "most mutations must change something");
}

/// Gives a checkpoint and its files a modification time.
fn touch(dir: &Path, time: SystemTime) {
    for path in contents(dir).into_keys().chain([dir.to_owned()]) {
        std::fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn times_and_names_decide_nothing() {
    let subject = Subject::new(12, 4, &[]);
    let out = subject.path("touched");
    copy_tree(&subject.whole, &out);
    for (age, step) in [(3, 12), (2, 8), (1, 4)] {
        touch(&checkpoint(&out, step), SystemTime::now() - Duration::from_secs(age * 86_400));
    }
    std::fs::rename(checkpoint(&out, 4), checkpoint(&out, 99)).unwrap();
    let ended = Running::start(&mut resume(&out)).end();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(begins(&out).last(), Some(&12), "{}", ended.stderr);
    subject.assert_same(&out);
    figures(
        "fallback",
        "times_and_names",
        "times of 3 checkpoints reversed, the oldest named as the newest: the newest resumed",
    );
}

#[test]
fn nothing_good_left() {
    const SEED: u64 = 6;
    let (subject, mut draw) = (Subject::new(12, 4, &[]), draws(SEED));
    let out = subject.path("damaged");
    for round in 0..count(2, 12) {
        let _ = std::fs::remove_dir_all(&out);
        copy_tree(&subject.whole, &out);
        for step in [4, 8, 12] {
            let files = files_of(&checkpoint(&out, step));
            let path = checkpoint(&out, step).join(&files[draw.random_range(0..files.len())]);
            assert!(mutate(&path, &path, CERTAIN[round % CERTAIN.len()], &mut draw));
        }
        // The second time all are set aside already: still no reason to begin again in silence.
        for _ in 0..2 {
            let ended = Running::start(&mut resume(&out)).end();
            assert_eq!(ended.code(), 65, "{}", ended.stderr);
            assert!(ended.stderr.contains("none that is good") && ended.stderr.contains("hint:"), "{}", ended.stderr);
        }
        assert_eq!(set_aside(&out, ".bad-").len(), 3);
    }
    figures(
        "fallback",
        "nothing_good_left",
        &format!("{} runs with every checkpoint damaged: exit 65, all kept; seed {SEED}", count(2, 12)),
    );
}
