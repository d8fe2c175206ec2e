//! Which checkpoints a run has, and which of them can be trusted.
//!
//! Order is that of the step inside the verified manifest: names, modification times and clocks decide nothing. What is
//! damaged is quarantined under a name of its own, never deleted. What merely cannot be read now (permissions, too many
//! open files, a newer version's layout) is an error instead: a temporary failure must not cost a good checkpoint.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::advice;
use super::manifest::{self, Fault, Manifest};
use super::recognize::is_checkpoint;
use super::{checkpoints_dir, entries, name_of, names};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{io_failure, rename_durable};

/// A checkpoint that has passed its checks: those of [`manifest::check_sizes`], or where a function says so, the hash of every file.
#[derive(Clone, Debug)]
pub struct Valid {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// The result of [`newest_valid`].
#[derive(Debug)]
pub struct NewestValid {
    /// The verified checkpoint with the highest step; none if the run never saved.
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

/// The checkpoints of a run, sorted by the result of [`manifest::check_sizes`].
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) valid: Vec<Valid>,
    pub(super) damaged: Vec<Damaged>,
    /// Whether a checkpoint was quarantined or superseded here before.
    has_quarantined: bool,
}

/// The step that the name of a checkpoint's directory claims; none for foreign names.
fn named_step(path: &Path) -> Option<u64> {
    let digits = name_of(path).strip_prefix("step-")?;
    // Eight as they are written, more after 99,999,999 steps.
    let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    let real_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if plain && real_dir { digits.parse().ok() } else { None }
}

/// Lists the checkpoints under `root` without changing anything.
pub(super) fn list(root: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    for dir in entries(root)? {
        let name = name_of(&dir);
        listing.has_quarantined |= name.starts_with(".bad-") || name.starts_with(".superseded-");
        if named_step(&dir).is_none() {
            continue;
        }
        match manifest::check_sizes(&dir) {
            Ok(manifest) => listing.valid.push(Valid { dir, manifest }),
            Err(Fault::Bad { kind, what }) => listing.damaged.push(Damaged { dir, kind, what }),
            // It was there a moment ago: the run that writes here has just deleted it.
            Err(Fault::Other(_)) if !dir.exists() => {}
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    // By name where steps are equal: the order must not be that of the file system.
    listing.valid.sort_by(|a, b| (b.manifest.step, &b.dir).cmp(&(a.manifest.step, &a.dir)));
    Ok(listing)
}

/// The checkpoints of a run whose manifest and file sizes are right, newest first; no content is hashed. For readers: takes
/// no lock, changes nothing.
pub fn list_valid(run_dir: &Path) -> Result<Vec<Valid>> {
    Ok(list(&checkpoints_dir(run_dir))?.valid)
}

/// Moves newer ones found damaged to `listing.damaged` until the newest left is wholly verified.
fn verify_newest(listing: &mut Listing) -> Result<Option<Valid>> {
    while !listing.valid.is_empty() {
        // Newest first, and no more of them are hashed than it takes to find a good one.
        let candidate = listing.valid.remove(0);
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
pub fn newest_valid(run_dir: &Path) -> Result<NewestValid> {
    newest_valid_until(run_dir, u64::MAX)
}

/// [`newest_valid`] among the checkpoints that contain no step after `last`.
pub fn newest_valid_until(run_dir: &Path, last: u64) -> Result<NewestValid> {
    let root = checkpoints_dir(run_dir);
    let mut listing = list(&root)?;
    // The list is sorted, so those after `last` are in front.
    let newer = listing.valid.iter().filter(|valid| valid.manifest.step > last).count();
    let skipped_newer = listing.valid.drain(..newer).count() > 0;
    let newest = verify_newest(&mut listing)?;
    let mut quarantined = Vec::new();
    for Damaged { dir, kind, what } in &listing.damaged {
        let name = format!(".bad-{}-{kind}", named_step(dir).unwrap_or_default());
        quarantined.push((quarantine(dir, &name)?, format!("{}: {what}", name_of(dir))));
    }
    // Checkpoints that are only too new say nothing about damage.
    if newest.is_none() && !skipped_newer && (listing.has_quarantined || !quarantined.is_empty()) {
        return Err(nothing_good(run_dir, quarantined.iter().map(|(_, what)| what.as_str())));
    }
    Ok(NewestValid { newest, quarantined })
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
pub fn quarantine(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut target = dir.with_file_name(name);
    let mut n = 1;
    while target.symlink_metadata().is_ok() {
        n += 1;
        target = dir.with_file_name(format!("{name}-{n}"));
    }
    rename_durable(dir, &target)?;
    Ok(target)
}

/// Renames the checkpoints beyond `step`, which is resumed on purpose, to `.superseded-<step>-<attempt>`, so that a later
/// resume does not continue from a future that was given up. Returns their new names.
pub fn supersede(run_dir: &Path, step: u64, attempt: u64) -> Result<Vec<PathBuf>> {
    let listing = list(&checkpoints_dir(run_dir))?;
    let newer = listing.valid.iter().filter(|valid| valid.manifest.step > step);
    newer.map(|valid| quarantine(&valid.dir, &format!(".superseded-{}-{attempt}", valid.manifest.step))).collect()
}

/// What `--ckpt` means: a checkpoint or Hugging Face directory as it is, or the newest good checkpoint of a run
/// directory. For readers: takes no lock, changes nothing; damaged checkpoints of a run are skipped.
pub fn resolve(ckpt: &Path) -> Result<PathBuf> {
    Ok(resolve_verified(ckpt)?.map_or_else(|| ckpt.to_owned(), |valid| valid.dir))
}

/// [`resolve`], keeping the verification: none means that `ckpt` is itself a model directory, not yet verified.
pub(super) fn resolve_verified(ckpt: &Path) -> Result<Option<Valid>> {
    let configs = [names::CONFIG, names::ADAPTER_CONFIG];
    if configs.iter().any(|name| ckpt.join(name).symlink_metadata().is_ok()) || is_checkpoint(ckpt)? {
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
