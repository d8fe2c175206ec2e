//! The files of a model's repository. What of them makes a model is known to those who read models.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use super::cache::{RepoCache, length};
use super::name::{ModelName, Repo, RepoKind};
use super::{Hub, RemoteFile, without_odd_names};
use crate::runtime::error::Failure;

/// A model's repository at a commit. Displayed as `hub:OWNER/NAME@COMMIT`, which names the same files for ever.
#[derive(Clone, Debug)]
pub struct ModelRepo {
    /// `OWNER/NAME`, as addresses of the Hub have it.
    pub repo: String,
    pub commit: String,
    /// The directory that the files are in once they are fetched.
    pub dir: PathBuf,
    /// Its page on the Hub.
    pub page: String,
    /// Whether `files` are all that the repository has. Without a network, they may be those that happen to be in the cache.
    pub is_listed: bool,
    files: BTreeMap<String, RemoteFile>,
}

impl ModelRepo {
    /// The file `path`, if there is one.
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        self.files.get(path)
    }

    /// The paths of all files, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl fmt::Display for ModelRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub:{}@{}", self.repo, self.commit)
    }
}

impl Hub {
    /// The repository that `name` stands for, at the current commit of its revision (offline: the last known one).
    ///
    /// # Errors
    /// [`Exit::Config`](crate::runtime::error::Exit::Config): there is no such model or revision.
    /// [`Exit::Io`](crate::runtime::error::Exit::Io): no access, no network, or offline and not in the cache.
    /// [`Exit::Data`](crate::runtime::error::Exit::Data): the server names paths outside of its repository.
    pub fn model(&self, name: &ModelName) -> Result<ModelRepo> {
        let repo = Repo { kind: RepoKind::Model, name: &name.repo };
        let cache = RepoCache::new(&self.settings.cache, repo)?;
        let commit = self.commit(repo, name.revision.as_deref(), &cache)?;
        let dir = cache.snapshot(&commit)?;
        let tree = self.tree(repo, &commit, &cache)?;
        let is_listed = tree.is_some();
        let sizes: BTreeMap<String, u64> = match tree {
            Some(tree) => {
                self.record_revision(name.revision.as_deref(), &commit, &cache)?;
                without_odd_names(tree, &name.repo).into_iter().map(|(path, entry)| (path, entry.size)).collect()
            }
            // As Python's library leaves it, which may have stored no list.
            None => cached_files(&dir),
        };
        let files = sizes.into_iter().map(|(path, size)| {
            let file = RemoteFile::new(&cache, repo, &commit, &path, size)?;
            Ok((path, file))
        });
        let page = repo.page(&self.client.endpoint);
        Ok(ModelRepo { repo: name.repo.clone(), dir, page, is_listed, files: files.collect::<Result<_>>()?, commit })
    }

    /// Whether the cache has this file.
    pub fn has(&self, file: &RemoteFile) -> bool {
        let cache = RepoCache::new(&self.settings.cache, file.repository());
        let pointer = cache.and_then(|cache| cache.pointer(&file.commit, &file.path));
        pointer.is_ok_and(|pointer| length(&pointer) == Some(file.size))
    }

    /// The failure for a model of which the cache may lack a part, without a network.
    pub fn incomplete(&self, repo: &ModelRepo) -> Failure {
        self.offline(&repo.to_string())
    }
}

/// Names and sizes of the files directly in a snapshot.
fn cached_files(dir: &std::path::Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, length(&entry.path())?))).collect()
}
