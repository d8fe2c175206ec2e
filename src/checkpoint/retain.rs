//! Which checkpoints stay.
//!
//! Only valid checkpoints count, only valid checkpoints are deleted: damaged, temporary, quarantined and foreign names are
//! neither. The checkpoint just saved always stays, so that whatever happens here a good one is left.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::find::list;
use super::manifest::{Fault, check_hashes};
use super::{checkpoints_dir, entries, name_of};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{TEMP_PREFIX, remove_tree};

/// Checkpoints smaller than this are read back before an older one is deleted; for larger ones the sizes and the manifest
/// must suffice, since reading them would stall the training.
pub const REREAD_BELOW: u64 = 4 << 30;

/// Which checkpoints to keep: the newest `keep` (at least one), and for good those that the other fields name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub keep: usize,
    /// Every checkpoint whose step is a multiple of this; 0 for none.
    pub keep_every: u64,
    /// The steps 1, 2, 4, 8...
    pub log_spaced: bool,
}

impl Retention {
    /// Whether the checkpoint of `step` is never deleted.
    pub fn keeps_for_good(&self, step: u64) -> bool {
        (self.keep_every > 0 && step.is_multiple_of(self.keep_every)) || (self.log_spaced && step.is_power_of_two())
    }
}

/// Deletes the checkpoints of a run that `retention` does not keep; `fresh` is the one just made durable. Returns what was
/// deleted.
pub fn prune(run_dir: &Path, retention: Retention, fresh: &Path) -> Result<Vec<PathBuf>> {
    let valid_ones = list(&checkpoints_dir(run_dir))?.valid;
    if !valid_ones.iter().any(|valid| valid.dir == fresh) {
        let message = format!("{} is not a valid checkpoint: nothing older was deleted", fresh.display());
        return Err(fail(Exit::Data, message).hint("check the disk: what was just written cannot be read").into());
    }
    let mut kept = 0;
    let mut to_delete = Vec::new();
    for valid in valid_ones {
        let for_good = retention.keeps_for_good(valid.manifest.step);
        let enough = kept >= retention.keep.max(1);
        if enough && (for_good || valid.dir == fresh) {
            continue;
        }
        // Small ones are read back first: a damaged checkpoint is no reserve.
        match reread_if_small(&valid.dir, &valid.manifest, fresh) {
            Ok(()) if enough => to_delete.push(valid.dir),
            Ok(()) => kept += 1,
            Err(Fault::Bad { .. }) => {} // Neither counted nor deleted: the next resume quarantines it.
            Err(Fault::Other(error)) => return Err(error),
        }
    }
    // Oldest first: an interruption leaves the newer ones.
    to_delete.reverse();
    for dir in &to_delete {
        remove_tree(dir)?;
    }
    Ok(to_delete)
}

fn reread_if_small(dir: &Path, manifest: &super::Manifest, fresh: &Path) -> Result<(), Fault> {
    if dir == fresh || manifest.total_size() >= REREAD_BELOW {
        return Ok(());
    }
    check_hashes(dir, manifest, |_| true)
}

/// Deletes the temporary directories that saves and deletions of a dead process have left: the caller holds the run's lock.
pub(super) fn sweep_leftovers(root: &Path) -> Result<()> {
    for path in entries(root)? {
        if name_of(&path).strip_prefix(TEMP_PREFIX).is_some_and(|rest| rest.starts_with("step-")) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}
