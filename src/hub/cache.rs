//! The cache on disk, in the layout of Python's `huggingface_hub`, so that both find each other's files.
//!
//! ```text
//! CACHE/datasets--OWNER--NAME/blobs/<etag>                 each content once
//!                             blobs/<etag>.incomplete      a download that can be resumed
//!                             snapshots/<commit>/<path>    -> ../../blobs/<etag>
//!                             refs/<branch>                the commit it was at
//!                             trees/<commit>.json          the files of a commit
//!                             configs/<commit>.json        the subsets that its card names; only this program's
//! CACHE/.locks/datasets--OWNER--NAME/<etag>.lock           held during a download
//! ```
//! A model's folder is called `models--OWNER--NAME`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::name::{Repo, RepoKind, is_commit, is_repo, is_revision, is_safe_path};
use crate::runtime::error::{Exit, Failure, fail, note};
use crate::runtime::files::{Lock, create_dirs, link, lock, read_bounded, write_atomic};

/// Version of the format of `trees/<commit>.json`.
const TREE_FORMAT: u64 = 1;
/// Largest list of subsets read, indented; an answer of the Hub has at most 64 MiB.
const CONFIGS_MAX: u64 = 512 << 20;
/// Largest listing read; a million files have less.
const TREE_MAX: u64 = 512 << 20;

/// The part of the cache that belongs to one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

/// A file of a commit, as the cache describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeEntry {
    pub(super) size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

impl TreeEntry {
    /// `lfs` is the hash and the size of a large file.
    pub(super) fn new(size: u64, blob_id: String, lfs: Option<(String, u64)>, xet_hash: Option<String>) -> Self {
        let (lfs_sha256, lfs_size) = lfs.unzip();
        Self { size: lfs_size.unwrap_or(size), blob_id, lfs_sha256, lfs_size, xet_hash }
    }
}

/// The files of a commit by path.
pub(super) type Tree = BTreeMap<String, TreeEntry>;

#[derive(Serialize, Deserialize)]
struct TreeFile {
    format_version: u64,
    files: Tree,
}

impl RepoCache {
    /// The part of `cache` that belongs to `repo`.
    ///
    /// # Errors
    /// [`Exit::Data`] if `repo` has no name that a repository can have.
    pub(super) fn new(cache: &Path, repo: Repo) -> Result<Self> {
        if !is_repo(repo.name) {
            return Err(untrusted("repository", repo.name).into());
        }
        let folder = format!("{}--{}", repo.kind.plural(), repo.name.replace('/', "--"));
        Ok(Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) })
    }

    /// The path of the file `path` of `commit` in the cache: a link to its blob.
    ///
    /// # Errors
    /// [`Exit::Data`] if `commit` is no commit hash or `path` leads out of the repository.
    pub(super) fn pointer(&self, commit: &str, path: &str) -> Result<PathBuf> {
        let snapshot = self.snapshot(commit)?;
        if !is_safe_path(path) {
            return Err(untrusted("path of a file", path).into());
        }
        Ok(snapshot.join(path))
    }

    /// The directory of the files of `commit`.
    ///
    /// # Errors
    /// [`Exit::Data`] if `commit` is no commit hash.
    pub(super) fn snapshot(&self, commit: &str) -> Result<PathBuf> {
        if !is_commit(commit) {
            return Err(untrusted("commit", commit).into());
        }
        Ok(self.root.join("snapshots").join(commit))
    }

    /// The path of the content `etag`, which need not exist.
    pub(super) fn blob(&self, etag: &str) -> Result<PathBuf> {
        // It becomes a file name: nothing in it may lead elsewhere.
        let is_plain = etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !(1..=128).contains(&etag.len()) || !is_plain || etag.starts_with('.') {
            return Err(untrusted("ETag", etag).into());
        }
        Ok(self.root.join("blobs").join(etag))
    }

    /// Creates the directories that a download needs.
    pub(super) fn prepare(&self, pointer: &Path) -> Result<()> {
        create_dirs(&self.root.join("blobs"))?;
        create_dirs(&self.locks)?;
        pointer.parent().map_or(Ok(()), create_dirs)
    }

    /// Waits until no other process downloads the content `etag`. Python takes the same lock, but may delete its file after
    /// use; the rare race that this allows ends in a hash that does not match.
    pub(super) fn lock(&self, etag: &str, poll: Duration) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        let mut is_noted = false;
        loop {
            let error = match lock(&path) {
                Ok(lock) => return Ok(lock),
                Err(error) => error,
            };
            let Some(busy) = error.downcast_ref::<Failure>().filter(|f| f.exit == Exit::Busy) else {
                return Err(error);
            };
            if !is_noted {
                note(&format!("waiting for another download of the same file: {busy}"));
                is_noted = true;
            }
            std::thread::sleep(poll);
        }
    }

    /// Links `pointer`, which is that of the file `path`, to the content `etag`.
    pub(super) fn link_pointer(&self, etag: &str, path: &str, pointer: &Path) -> Result<()> {
        // Relative, as Python's library makes them, so that the cache can be moved.
        let up = "../".repeat(2 + path.matches('/').count());
        link(Path::new(&format!("{up}blobs/{etag}")), pointer)
    }

    /// The commit that a branch or tag was at when it was last looked up, or the commit itself.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let bytes = read_bounded(&self.reference(revision)?, 64, true).ok()?;
        String::from_utf8(bytes).ok().map(|text| text.trim().to_owned()).filter(|text| is_commit(text))
    }

    /// Records the commit of `revision`.
    pub(super) fn write_reference(&self, revision: &str, commit: &str) -> Result<()> {
        let Some(path) = self.reference(revision).filter(|_| self.commit(revision).as_deref() != Some(commit)) else {
            return Ok(());
        };
        path.parent().map_or(Ok(()), create_dirs)?;
        write_atomic(&path, commit.as_bytes())
    }

    fn reference(&self, revision: &str) -> Option<PathBuf> {
        (is_revision(revision) && !is_commit(revision)).then(|| self.root.join("refs").join(revision))
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.root.join("trees").join(format!("{commit}.json"))
    }

    /// The files of `commit`, if they were listed before. A damaged list is ignored.
    pub(super) fn tree(&self, commit: &str) -> Option<Tree> {
        let bytes = read_bounded(&self.tree_path(commit), TREE_MAX, true).ok()?;
        let cached: TreeFile = serde_json::from_slice(&bytes).ok()?;
        (cached.format_version == TREE_FORMAT).then_some(cached.files)
    }

    fn configs_path(&self, commit: &str) -> PathBuf {
        self.root.join("configs").join(format!("{commit}.json"))
    }

    /// The field `configs` of the card of `commit`, if the Hub was asked for it before.
    pub(super) fn configs(&self, commit: &str) -> Option<Value> {
        let bytes = read_bounded(&self.configs_path(commit), CONFIGS_MAX, true).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Stores the field `configs` of the card of `commit`, which never changes.
    pub(super) fn write_configs(&self, commit: &str, configs: &Value) -> Result<()> {
        let path = self.configs_path(commit);
        path.parent().map_or(Ok(()), create_dirs)?;
        write_atomic(&path, &serde_json::to_vec_pretty(configs)?)
    }

    /// Stores the list of files of `commit`, which never changes.
    pub(super) fn write_tree(&self, commit: &str, tree: &Tree) -> Result<()> {
        let path = self.tree_path(commit);
        path.parent().map_or(Ok(()), create_dirs)?;
        let file = TreeFile { format_version: TREE_FORMAT, files: tree.clone() };
        write_atomic(&path, &serde_json::to_vec_pretty(&file)?)
    }
}

/// The repository whose part of a cache, this one or any other, `path` lies in.
pub fn repository_of(path: &Path) -> Option<(RepoKind, String)> {
    path.iter().rev().find_map(|part| {
        let (plural, name) = part.to_str()?.split_once("--")?;
        let kind = [RepoKind::Dataset, RepoKind::Model].into_iter().find(|kind| kind.plural() == plural)?;
        let name = name.replacen("--", "/", 1);
        is_repo(&name).then_some((kind, name))
    })
}

/// Size of the regular file that `path` is or leads to by links, if there is one.
pub(super) fn length(path: &Path) -> Option<u64> {
    path.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len())
}

/// The failure for a name from a server that no honest server sends.
fn untrusted(what: &str, text: &str) -> Failure {
    let shown: String = text.chars().take(100).collect();
    fail(Exit::Data, format!("the Hub names the {what} `{}`, which is refused", shown.escape_debug()))
        .hint("do not use this repository, or check that HF_ENDPOINT is a server you trust")
}
