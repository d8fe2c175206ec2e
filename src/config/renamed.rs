//! Keys that had another name in an earlier version. The old name is read for one version more.

use std::sync::Once;

use crate::runtime::error::note;

/// A key with a new name.
#[derive(Debug)]
pub(super) struct RenamedKey {
    old: &'static str,
    pub(super) new: &'static str,
    noted: Once,
}

static RENAMED_KEYS: [RenamedKey; 1] = [renamed("data.accept_change", "data.allow_change")];

/// The present name of `key`.
pub fn current_key(key: &str) -> &str {
    RenamedKey::find(key).map_or(key, |renamed| renamed.new)
}

/// Says nothing of old names from here on, as `--quiet` asks.
pub fn silence_renamed_keys() {
    RENAMED_KEYS.iter().for_each(|renamed| renamed.noted.call_once(|| {}));
}

const fn renamed(old: &'static str, new: &'static str) -> RenamedKey {
    RenamedKey { old, new, noted: Once::new() }
}

impl RenamedKey {
    /// The entry for `key`, if that is an old name.
    pub(super) fn find(key: &str) -> Option<&'static Self> {
        RENAMED_KEYS.iter().find(|renamed| renamed.old == key)
    }

    /// Says on stderr that the key has a new name, once in the life of the program.
    pub(super) fn note(&self) {
        self.noted.call_once(|| note(&format!("note: {} is now {}", self.old, self.new)));
    }
}
