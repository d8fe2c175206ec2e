//! Which checkpoints a run has, and which of them can be trusted.
//!
//! Order is that of the step inside the verified manifest: names, modification times and clocks decide nothing. What is
//! damaged is set aside under a name of its own, never deleted. What merely cannot be read now (permissions, too many
//! open files, a newer version's layout) is an error instead: a passing trouble must not cost a good checkpoint.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::advice;
use super::manifest::{self, Fault, Manifest};
use super::recognize::is_checkpoint;
use super::{checkpoints_dir, entries, name_of, names};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{io_failure, rename_durable};

/// A checkpoint whose every file has been verified.
#[derive(Clone, Debug)]
pub struct Valid {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// What [`newest_valid`] found.
#[derive(Debug)]
pub struct Found {
    /// The good checkpoint with the highest step; none if the run never saved.
    pub newest: Option<Valid>,
    /// Damaged ones, under the names they now have, with what is wrong with each.
    pub quarantined: Vec<(PathBuf, String)>,
}

/// A checkpoint that is damaged.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) dir: PathBuf,
    kind: &'static str,
    what: String,
}

/// The checkpoints of a run, each judged by [`manifest::glance`].
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) sound: Vec<Valid>,
    pub(super) damaged: Vec<Damaged>,
    /// Whether something here was a checkpoint once.
    set_aside: bool,
}

/// The step that the name of a checkpoint's directory claims; none for foreign names.
fn named_step(path: &Path) -> Option<u64> {
    let digits = name_of(path).strip_prefix("step-")?;
    let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    let real_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if plain && real_dir { digits.parse().ok() } else { None }
}

/// Lists the checkpoints under `root` without changing anything.
pub(super) fn list(root: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    for dir in entries(root)? {
        let name = name_of(&dir);
        listing.set_aside |= name.starts_with(".bad-") || name.starts_with(".superseded-");
        if named_step(&dir).is_none() {
            continue;
        }
        match manifest::glance(&dir) {
            Ok(manifest) => listing.sound.push(Valid { dir, manifest }),
            Err(Fault::Bad { kind, what }) => listing.damaged.push(Damaged { dir, kind, what }),
            // It was there a moment ago: the run that writes here has just deleted it.
            Err(Fault::Other(_)) if !dir.exists() => {}
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    listing.sound.sort_by(|a, b| (b.manifest.step, &b.dir).cmp(&(a.manifest.step, &a.dir)));
    Ok(listing)
}

/// The checkpoints of a run, newest first, each as far as its manifest and the sizes of its files are sound. For readers:
/// takes no lock, changes nothing.
pub fn sound(run_dir: &Path) -> Result<Vec<Valid>> {
    Ok(list(&checkpoints_dir(run_dir))?.sound)
}

/// Moves newer ones found damaged to `listing.damaged` until the newest left is wholly verified.
fn verify_newest(listing: &mut Listing) -> Result<Option<Valid>> {
    while !listing.sound.is_empty() {
        let candidate = listing.sound.remove(0);
        match manifest::check_hashes(&candidate.dir, &candidate.manifest, |_| true) {
            Ok(()) => return Ok(Some(candidate)),
            Err(Fault::Bad { kind, what }) => listing.damaged.push(Damaged { dir: candidate.dir, kind, what }),
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// The newest good checkpoint of a run, for resuming: the caller holds the run's lock. Damaged ones met on the way are
/// renamed `.bad-<step>-<reason>`. If the run has saved but nothing good is left, that is exit 65; if it never saved,
/// `newest` is none.
pub fn newest_valid(run_dir: &Path) -> Result<Found> {
    newest_valid_until(run_dir, u64::MAX)
}

/// [`newest_valid`] of those that contain no step after `last`.
pub fn newest_valid_until(run_dir: &Path, last: u64) -> Result<Found> {
    let root = checkpoints_dir(run_dir);
    let mut listing = list(&root)?;
    let newer = listing.sound.iter().filter(|valid| valid.manifest.step > last).count();
    let passed_over = listing.sound.drain(..newer).count() > 0;
    let newest = verify_newest(&mut listing)?;
    let mut quarantined = Vec::new();
    for Damaged { dir, kind, what } in &listing.damaged {
        let name = format!(".bad-{}-{kind}", named_step(dir).unwrap_or_default());
        quarantined.push((set_aside(dir, &name)?, format!("{}: {what}", name_of(dir))));
    }
    if newest.is_none() && !passed_over && (listing.set_aside || !quarantined.is_empty()) {
        return Err(nothing_good(run_dir, quarantined.iter().map(|(_, what)| what.as_str())));
    }
    Ok(Found { newest, quarantined })
}

fn nothing_good<'a>(run_dir: &Path, findings: impl Iterator<Item = &'a str>) -> anyhow::Error {
    let mut message = format!("{} has saved checkpoints, but none that is good", run_dir.display());
    for (n, what) in findings.enumerate() {
        message.push_str(if n == 0 { ": " } else { "; " });
        message.push_str(what);
    }
    let hint = "restore a checkpoint from a copy, or start afresh in another directory; the damaged ones are kept in \
                checkpoints/.bad-*";
    fail(Exit::Data, message).hint(hint).into()
}

/// Renames `dir` to `name` beside it, or to `name-2`, `name-3`... if taken.
pub fn set_aside(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut target = dir.with_file_name(name);
    let mut n = 1;
    while target.symlink_metadata().is_ok() {
        n += 1;
        target = dir.with_file_name(format!("{name}-{n}"));
    }
    rename_durable(dir, &target)?;
    Ok(target)
}

/// Sets aside the checkpoints beyond `step`, which is resumed on purpose, as `.superseded-<step>-<attempt>`, so that a
/// later resume does not come back to a future that was left. Returns their new names.
pub fn supersede(run_dir: &Path, step: u64, attempt: u64) -> Result<Vec<PathBuf>> {
    let listing = list(&checkpoints_dir(run_dir))?;
    let newer = listing.sound.iter().filter(|valid| valid.manifest.step > step);
    newer.map(|valid| set_aside(&valid.dir, &format!(".superseded-{}-{attempt}", valid.manifest.step))).collect()
}

/// What `--ckpt` means: a checkpoint or Hugging Face directory as it is, or the newest good checkpoint of a run
/// directory. For readers: takes no lock, changes nothing; damaged checkpoints of a run are passed over.
pub fn resolve(ckpt: &Path) -> Result<PathBuf> {
    Ok(resolve_verified(ckpt)?.map_or_else(|| ckpt.to_owned(), |valid| valid.dir))
}

/// [`resolve`], keeping the verification: none means that `ckpt` is itself a model directory, not yet verified.
pub(super) fn resolve_verified(ckpt: &Path) -> Result<Option<Valid>> {
    let present = |name: &str| ckpt.join(name).symlink_metadata().is_ok();
    if [names::CONFIG, names::ADAPTER_CONFIG].into_iter().any(present) || is_checkpoint(ckpt)? {
        return Ok(None);
    }
    match std::fs::metadata(ckpt) {
        Ok(meta) if meta.is_file() => return Err(advice::not_a_directory(ckpt).into()),
        Ok(_) => {}
        Err(error) => return Err(io_failure("open", ckpt, &error).into()),
    }
    let root = checkpoints_dir(ckpt);
    let mut listing = list(&root)?;
    let mut newest = verify_newest(&mut listing)?;
    if newest.is_none() && listing.damaged.iter().any(|damaged| !damaged.dir.exists()) {
        // A running training has replaced them while we read: once more, with what is there now.
        listing = list(&root)?;
        newest = verify_newest(&mut listing)?;
    }
    match newest {
        Some(valid) => Ok(Some(valid)),
        None if listing.damaged.is_empty() => Err(advice::no_model(ckpt).into()),
        None => Err(nothing_good(ckpt, listing.damaged.iter().map(|damaged| damaged.what.as_str()))),
    }
}
