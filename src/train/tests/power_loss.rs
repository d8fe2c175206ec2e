//! Losses of power at every moment of a run: whatever the disk has kept of what was not synced, a resume finds the
//! newest checkpoint that was saved and the logs that belong to it. And what a resume relies on is really needed: with
//! a sync left out, or a deletion moved forward, the same search finds the loss.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::story::{Story, check};
use super::thorough;
use crate::checkpoint::tests::quick_dir;
use crate::runtime::files::fault::Op;
use crate::runtime::files::tests::fault_injection::{Recorded, record};
use crate::runtime::files::tests::power_loss::{Disk, FIXED, Policy, fingerprint, materialise, read_tree};

/// A story that has been played, and all that it did to the disk.
struct Played {
    base: PathBuf,
    story: Story,
    ops: Vec<Recorded>,
}

fn play() -> Played {
    let dir = quick_dir();
    let base = dir.path().to_owned();
    let mut story = Story::new(&base);
    let (done, ops) = record(|| story.play());
    done.unwrap();
    let mut disk = Disk::empty(&base);
    for op in &ops {
        disk.split(op).iter().for_each(|part| disk.apply(part));
    }
    assert!(disk.state(Policy::All) == read_tree(&base), "the recording is not what was done");
    Played { base, story, ops }
}

/// A search for states from which the run cannot go on as it should.
struct Search<'p> {
    played: &'p Played,
    /// Random states at each moment.
    drawn: u64,
    /// Violations after which it ends.
    enough: usize,
    place: tempfile::TempDir,
    moments: usize,
    states: BTreeSet<[u8; 32]>,
    /// A state may be right at one moment and a loss at another.
    checked: BTreeSet<(usize, [u8; 32])>,
    violations: Vec<String>,
}

impl Search<'_> {
    fn new(played: &Played, drawn: u64, enough: usize) -> Search<'_> {
        let (states, checked) = (BTreeSet::new(), BTreeSet::new());
        let place = quick_dir();
        Search { played, drawn, enough, place, moments: 0, states, checked, violations: Vec::new() }
    }

    /// Loses power after each of `ops`, those left out included.
    fn run(mut self, ops: &[Option<Recorded>]) -> Self {
        let mut disk = Disk::empty(&self.played.base);
        self.moment(&disk, 0, "nothing");
        for (n, op) in ops.iter().enumerate() {
            let Some(op) = op else {
                self.moment(&disk, n + 1, "what was left out");
                continue;
            };
            let parts = disk.split(op);
            for (part, left) in parts.iter().zip((0..parts.len()).rev()) {
                disk.apply(part);
                self.moment(&disk, if left == 0 { n + 1 } else { n }, &outline(part));
            }
            if self.violations.len() >= self.enough {
                break;
            }
        }
        self
    }

    fn moment(&mut self, disk: &Disk, done: usize, what: &str) {
        self.moments += 1;
        let story = &self.played.story;
        let (claim_number, claim) = story.claim_at(done);
        let seed = self.moments as u64 * 1_000_003;
        let seeds = (0..self.drawn).map(|n| Policy::Random(seed + n));
        for policy in FIXED.into_iter().chain(seeds) {
            let tree = disk.state(policy);
            let key = fingerprint(&tree);
            self.states.insert(key);
            if !self.checked.insert((claim_number, key)) {
                continue;
            }
            let place = self.place.path().join("disk");
            materialise(&tree, &place);
            let run = place.join(story.run.strip_prefix(&self.played.base).unwrap());
            if let Err(error) = check(&run, claim, &story.kinds) {
                self.violations.push(format!("after operation {done}, {what}; {policy:?} kept: {error:#}"));
            }
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
}

/// The operation without the content.
fn outline(op: &Recorded) -> String {
    let text = format!("{op:?}");
    text.chars().take(150).collect()
}

fn whole(ops: &[Recorded]) -> Vec<Option<Recorded>> {
    ops.iter().cloned().map(Some).collect()
}

#[test]
fn no_loss_of_power_costs_a_saved_checkpoint_or_its_logs() {
    let played = play();
    let drawn = if thorough() { 60 } else { 3 };
    let search = Search::new(&played, drawn, 20).run(&whole(&played.ops));
    let (moments, states, checked) = (search.moments, search.states.len(), search.checked.len());
    println!("{moments} moments, {states} distinct states, {checked} resumes tried");
    assert!(search.violations.is_empty(), "{}", search.violations.join("\n"));
    // The search has not silently become a smaller one.
    assert!(moments > 850 && states > 2500 && checked >= states, "{moments} moments, {states} states, {checked} tried");
}

fn is_log(path: &Path, name: &str) -> bool {
    path.ends_with(format!("runs/story/{name}"))
}

fn in_unfinished(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|dir| dir.to_string_lossy().starts_with(".tmp-step-"))
}

type Sync = (&'static str, fn(&Recorded) -> bool);

/// What is synced and must be.
const SYNCS: [Sync; 13] = [
    ("all files", |op| matches!(op, Op::Fsync(_))),
    ("all directories", |op| matches!(op, Op::FsyncDir(_))),
    ("metrics", |op| matches!(op, Op::Fsync(path) if is_log(path, "metrics.jsonl"))),
    ("samples", |op| matches!(op, Op::Fsync(path) if is_log(path, "samples.jsonl"))),
    ("times", |op| matches!(op, Op::Fsync(path) if is_log(path, "times.jsonl"))),
    ("sequences", |op| matches!(op, Op::Fsync(path) if is_log(path, "sequences.jsonl"))),
    ("events", |op| matches!(op, Op::Fsync(path) if is_log(path, "events.jsonl"))),
    ("configuration", |op| matches!(op, Op::Fsync(path) if path.to_string_lossy().contains(".tmp-config.toml"))),
    ("files of checkpoints", |op| matches!(op, Op::Fsync(path) if in_unfinished(path))),
    ("manifests", |op| matches!(op, Op::Fsync(path) if in_unfinished(path) && path.ends_with("manifest.json"))),
    ("names in checkpoints", |op| matches!(op, Op::FsyncDir(path) if in_unfinished(&path.join("x")))),
    ("names of checkpoints", |op| matches!(op, Op::FsyncDir(path) if path.ends_with("story/checkpoints"))),
    ("the name of the run", |op| matches!(op, Op::FsyncDir(path) if path.ends_with("runs"))),
];

#[test]
fn every_sync_left_out_is_missed() {
    let played = play();
    for (what, left_out) in SYNCS {
        let ops: Vec<_> = played.ops.iter().map(|op| (!left_out(op)).then(|| op.clone())).collect();
        let missing = ops.iter().filter(|op| op.is_none()).count();
        let search = Search::new(&played, 0, 1).run(&ops);
        println!("{what}: {missing} syncs left out, after {} moments: {:?}", search.moments, search.violations.first());
        assert!(missing > 0 && !search.violations.is_empty(), "{what}: {missing} syncs left out, nothing was lost");
    }
}

#[test]
fn deleting_before_the_new_checkpoint_is_there_is_noticed() {
    let played = play();
    let mut ops = whole(&played.ops);
    let mut moved = 0;
    for published in 0..ops.len() - 5 {
        // Published, durable, then one of the old ones: renamed, made durable, deleted.
        let pruning = match &ops[published..published + 5] {
            [
                Some(Op::Publish(..)),
                Some(Op::FsyncDir(_)),
                Some(Op::Rename(old, _)),
                Some(Op::FsyncDir(_)),
                Some(Op::Remove(_)),
            ] => old.to_string_lossy().contains("/step-"),
            _ => false,
        };
        if pruning {
            ops[published..published + 5].rotate_right(3);
            moved += 1;
        }
    }
    assert!(moved >= 5, "{moved} deletions");
    let search = Search::new(&played, 0, 1).run(&ops);
    println!("{moved} deletions moved, after {} moments: {:?}", search.moments, search.violations.first());
    assert!(search.violations.first().is_some_and(|what| what.contains("1 good checkpoints instead of 2")));
}
