//! Which checkpoints stay.
//!
//! Only sound checkpoints count, only sound checkpoints are deleted: damaged, temporary, set-aside and foreign names are
//! neither. The checkpoint just saved always stays, so that whatever happens here a good one is left.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::find::list;
use super::manifest::{Fault, check_hashes};
use super::{checkpoints_dir, entries, name_of};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{TEMP_PREFIX, remove_tree};

/// Checkpoints smaller than this are read back before anything is deleted on their account; for larger ones sizes and
/// the manifest have to do, since reading them would stall the training.
pub const REREAD_BELOW: u64 = 4 << 30;

/// How many checkpoints to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many (at least one).
    pub keep: usize,
    /// And every one whose step is a multiple of this; 0 for none.
    pub keep_every: u64,
    /// And those of the steps 1, 2, 4, 8...
    pub log_spaced: bool,
}

impl Retention {
    fn for_good(&self, step: u64) -> bool {
        (self.keep_every > 0 && step.is_multiple_of(self.keep_every)) || (self.log_spaced && step.is_power_of_two())
    }
}

/// Deletes the checkpoints of a run that `keep` does not retain; `fresh` is the one just made durable. Returns what was
/// deleted.
pub fn prune(run_dir: &Path, keep: Retention, fresh: &Path) -> Result<Vec<PathBuf>> {
    let sound = list(&checkpoints_dir(run_dir))?.sound;
    if !sound.iter().any(|valid| valid.dir == fresh) {
        let message = format!("{} is not a sound checkpoint: nothing older was deleted", fresh.display());
        return Err(fail(Exit::Data, message).hint("check the disk: what was just written cannot be read").into());
    }
    let (mut kept, mut doomed) = (0, Vec::new());
    for valid in sound {
        let due = keep.for_good(valid.manifest.step);
        let enough = kept >= keep.keep.max(1);
        if enough && (due || valid.dir == fresh) {
            continue;
        }
        match reread(&valid.dir, &valid.manifest, fresh) {
            Ok(()) if enough => doomed.push(valid.dir),
            Ok(()) => kept += 1,
            Err(Fault::Bad { .. }) => {} // Neither counted nor deleted: the next resume sets it aside.
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    // Oldest first: an interruption leaves the newer ones.
    doomed.reverse();
    for dir in &doomed {
        remove_tree(dir)?;
    }
    Ok(doomed)
}

fn reread(dir: &Path, manifest: &super::Manifest, fresh: &Path) -> Result<(), Fault> {
    if dir == fresh || manifest.total_size() >= REREAD_BELOW {
        return Ok(());
    }
    check_hashes(dir, manifest, |_| true)
}

/// Deletes what saves and deletions of a process that died have left: the caller holds the run's lock.
pub(super) fn sweep_leftovers(root: &Path) -> Result<()> {
    for path in entries(root)? {
        if name_of(&path).strip_prefix(TEMP_PREFIX).is_some_and(|rest| rest.starts_with("step-")) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}
