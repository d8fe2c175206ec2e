//! Data sets and models of the Hugging Face Hub: the only code of the program that uses the internet.
//!
//! A thin client over `ureq`. Why not the `hf-hub` crate: its version 1 brings an asynchronous runtime and a storage
//! protocol of its own, and starts an interrupted download from the beginning. 0.5 does resume, but appends a whole file to
//! a half one where a server ignores the range, verifies no hash, lists files without their sizes, and reports only the
//! status code of a refusal.
//!
//! | file | holds |
//! |---|---|
//! | `name.rs` | `hub:OWNER/NAME…` |
//! | `model.rs` | the files of a model |
//! | `settings.rs` | the environment variables of Hugging Face's programs |
//! | `client.rs`, `address.rs`, `refusal.rs` | requests, redirects, retries; URLs; what failures mean |
//! | `card.rs`, `select.rs` | subsets and splits, to files |
//! | `cache.rs`, `download.rs` | the cache shared with Python, and downloads into it |
//! | `splits.rs` | the split of a file, by its name |
//!
//! What a server says is not trusted: paths and hashes are checked before they name a file, answers are bounded, large
//! files are verified, and the token is sent only to the endpoint.

mod address;
mod cache;
mod card;
mod client;
mod download;
mod model;
mod name;
mod refusal;
mod select;
mod settings;
pub mod splits;
#[cfg(test)]
mod tests;

pub use cache::repository_of;
pub use model::ModelRepo;
pub use name::{HubName, ModelName, RepoKind};
pub use settings::{Settings, Token};

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::runtime::error::{Exit, Failure, fail, note};
use crate::runtime::files::read_bounded;
use address::encode;
use cache::{RepoCache, Tree, TreeEntry, length};
use client::Client;
use name::{Repo, is_commit};
use refusal::Subject;

const OFFICIAL: &str = "https://huggingface.co";
/// The revision that is meant when none is named.
const MAIN: &str = "main";
/// The split that is meant when none is named.
const TRAIN: &str = "train";
/// Largest card read; the longest known ones have some MB.
const CARD_MAX: u64 = 64 << 20;
/// More files than any repository may have.
const FILES_MAX: usize = 4_000_000;

/// A file of a repository at a commit: the same bytes for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    #[serde(default)]
    pub kind: RepoKind,
    /// `OWNER/NAME`.
    pub repo: String,
    pub commit: String,
    pub path: String,
    pub size: u64,
}

/// The Hub and its cache. May be used by several threads.
pub struct Hub {
    client: Client,
    settings: Settings,
}

impl Hub {
    /// The Hub that the environment names: see [`Settings::from_env`].
    ///
    /// # Errors
    /// [`Exit::Config`]: a variable makes no sense.
    pub fn from_env() -> Result<Self> {
        Self::new(Settings::from_env()?)
    }

    /// # Errors
    /// [`Exit::Config`]: the endpoint is no URL, or the file of authorities is wrong.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { client: Client::new(&settings)?, settings })
    }

    /// The files that `name` stands for, sorted by path, at the current commit of its revision (offline: the last known one).
    ///
    /// # Errors
    /// [`Exit::Config`]: there is no such data set, revision, subset, split or file. [`Exit::Io`]: no access, no
    /// network, or offline and not in the cache. [`Exit::Data`]: the server names paths outside of its repository.
    pub fn resolve(&self, name: &HubName) -> Result<Vec<RemoteFile>> {
        let repo = Repo { kind: RepoKind::Dataset, name: &name.repo };
        let cache = RepoCache::new(&self.settings.cache, repo)?;
        let commit = self.commit(repo, name.revision.as_deref(), &cache)?;
        let Some(tree) = self.tree(repo, &commit, &cache)? else {
            // A single file does not need the list; anything else could be incomplete.
            let cached = name.path.as_ref().and_then(|path| Some((path, length(&cache.pointer(&commit, path).ok()?)?)));
            return match cached {
                Some((path, size)) => Ok(vec![RemoteFile::new(&cache, repo, &commit, path, size)?]),
                None => Err(self.offline(&format!("{name}: its list of files")).into()),
            };
        };
        let tree = without_odd_names(tree, &name.repo);
        self.record_revision(name.revision.as_deref(), &commit, &cache)?;
        let chosen = match &name.path {
            Some(path) => select::by_path(&tree, name, path)?,
            None => {
                let subsets = match tree.get(CARD) {
                    Some(card) => {
                        let readme = RemoteFile::new(&cache, repo, &commit, CARD, card.size)?;
                        self.subsets(name, &readme, &cache)?
                    }
                    None => Vec::new(),
                };
                select::by_subset(&tree, name, &subsets)?
            }
        };
        let files = chosen.into_iter().map(|path| {
            let size = tree.get(path).map_or(0, |entry| entry.size);
            RemoteFile::new(&cache, repo, &commit, path, size)
        });
        files.collect()
    }

    /// The file's path in the cache; the file is downloaded first if it is not there. `progress` gets the number of bytes
    /// that are present. The number falls when a download starts again from the beginning.
    ///
    /// # Errors
    /// [`Exit::Io`]: no access, no network, a full disk, or offline and not in the cache. [`Exit::Data`]: the server
    /// does not send what it promised. [`Exit::Config`]: the file is gone.
    pub fn fetch(&self, file: &RemoteFile, progress: &(dyn Fn(u64) + Sync)) -> Result<PathBuf> {
        download::fetch(self, file, progress)
    }

    fn offline(&self, what: &str) -> Failure {
        let message =
            format!("{what} is not in the cache {}, and HF_HUB_OFFLINE is set", self.settings.cache.display());
        fail(Exit::Io, message).hint("unset HF_HUB_OFFLINE, or set HF_HUB_CACHE to the cache that holds it")
    }

    /// Remembers the commit of a revision, for a time without network.
    fn record_revision(&self, revision: Option<&str>, commit: &str, cache: &RepoCache) -> Result<()> {
        if self.settings.offline {
            return Ok(());
        }
        cache.write_reference(revision.unwrap_or(MAIN), commit)
    }

    /// The commit of a revision.
    fn commit(&self, repo: Repo, revision: Option<&str>, cache: &RepoCache) -> Result<String> {
        let revision = revision.unwrap_or(MAIN);
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        if self.settings.offline {
            return cache.commit(revision).ok_or_else(|| self.offline(&format!("{repo}@{revision}")).into());
        }
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let subject = Subject::Revision { repo, revision };
        // Without `expand` the answer holds the whole list of files.
        let url = format!("{}/revision/{}?expand=sha", repo.api(&self.client.endpoint), encode(revision, false));
        let (info, _): (Info, _) = self.client.json(&url, &subject)?;
        // Checks that it is a commit hash.
        cache.pointer(&info.sha, CARD)?;
        Ok(info.sha)
    }

    /// The files of a commit; none if they are not in the cache and there is no network.
    fn tree(&self, repo: Repo, commit: &str, cache: &RepoCache) -> Result<Option<Tree>> {
        match (cache.tree(commit), self.settings.offline) {
            (Some(tree), _) => Ok(Some(tree)),
            (None, false) => self.list(repo, commit, cache).map(Some),
            (None, true) => Ok(None),
        }
    }

    /// Lists the files of a commit, page by page, and stores the list in the cache.
    fn list(&self, repo: Repo, commit: &str, cache: &RepoCache) -> Result<Tree> {
        let subject = Subject::Listing { repo, commit };
        let mut page = Some(format!("{}/tree/{commit}?recursive=true", repo.api(&self.client.endpoint)));
        let mut tree = Tree::new();
        let mut before = None;
        while let Some(url) = page {
            let (items, next): (Vec<Item>, _) = self.client.json(&url, &subject)?;
            for item in items.into_iter().filter(|item| item.kind == "file") {
                // `pointer` refuses such a path: a server that sends one is not to be trusted with the others.
                if name::leads_out(&item.path) {
                    cache.pointer(commit, &item.path)?;
                }
                let lfs = item.lfs.map(|lfs| (lfs.oid, lfs.size));
                let entry = TreeEntry::new(item.size, item.oid, lfs, item.xet_hash.filter(|hash| is_sha256(hash)));
                tree.insert(item.path, entry);
            }
            // A server must not keep this loop running for ever: every page has to add files.
            if tree.len() > FILES_MAX || before == Some(tree.len()) && next.is_some() {
                let message = format!("{subject}: it has no end");
                return Err(fail(Exit::Io, message).hint("check HF_ENDPOINT").into());
            }
            (page, before) = (next, Some(tree.len()));
        }
        cache.write_tree(commit, &tree)?;
        Ok(tree)
    }

    /// The subsets in the data set's card, which is the head of `readme`.
    fn subsets(&self, name: &HubName, readme: &RemoteFile, cache: &RepoCache) -> Result<Vec<card::Subset>> {
        if let Some(configs) = self.configs(readme, cache)? {
            return card::subsets(configs).map_err(|problem| malformed_card(name, &problem).into());
        }
        let bytes = read_bounded(&self.fetch(readme, &|_| {})?, CARD_MAX, true)?;
        match (card::has_configs(&String::from_utf8_lossy(&bytes)), self.settings.offline) {
            (false, _) => Ok(Vec::new()),
            (true, true) => Err(self.offline(&format!("{name}: its list of subsets")).into()),
            (true, false) => Err(malformed_card(name, "the Hub cannot read it").into()),
        }
    }

    /// The field `configs` of the card as JSON, null if it has none; stored in the cache. `None` if the Hub could not read
    /// the card, or offline if it is not in the cache.
    fn configs(&self, readme: &RemoteFile, cache: &RepoCache) -> Result<Option<Value>> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(rename = "cardData")]
            card_data: Option<CardData>,
        }
        #[derive(Deserialize)]
        struct CardData {
            #[serde(default)]
            configs: Value,
        }
        let repo = readme.repository();
        let commit = readme.commit.as_str();
        let cached = cache.configs(commit);
        if cached.is_some() || self.settings.offline {
            return Ok(cached);
        }
        let subject = Subject::Revision { repo, revision: commit };
        let url = format!("{}/revision/{commit}?expand=cardData", repo.api(&self.client.endpoint));
        let (info, _): (Info, _) = self.client.json(&url, &subject)?;
        // Not stored: the Hub may be able to read the card later, and a stored null would mean that there are no subsets.
        let Some(card) = info.card_data else { return Ok(None) };
        cache.write_configs(commit, &card.configs)?;
        Ok(Some(card.configs))
    }
}

impl RemoteFile {
    /// The file `path` of `commit`; both may come from a server.
    ///
    /// # Errors
    /// [`Exit::Data`]: they cannot be those of a file in the repository.
    fn new(cache: &RepoCache, repo: Repo, commit: &str, path: &str, size: u64) -> Result<Self> {
        cache.pointer(commit, path)?;
        let path = path.to_owned();
        Ok(Self { kind: repo.kind, repo: repo.name.to_owned(), commit: commit.to_owned(), path, size })
    }

    fn repository(&self) -> Repo<'_> {
        Repo { kind: self.kind, name: &self.repo }
    }
}

fn malformed_card(name: &HubName, problem: &str) -> Failure {
    fail(Exit::Data, format!("{name}: the head of its README.md is not understood: {problem}"))
        .hint(format!("name the files yourself: hub:{}/PATH-OR-GLOB", name.repo))
}

/// The files whose names can be stored on any system. A note says how many others there are: one odd name among thousands is
/// no reason to refuse them all.
fn without_odd_names(mut tree: Tree, repo: &str) -> Tree {
    let odd: Vec<String> = tree.keys().filter(|path| !name::is_safe_path(path)).cloned().collect();
    if let Some(first) = odd.first() {
        let shown: String = first.chars().take(100).collect();
        note(&format!(
            "{repo}: left out for names that cannot be stored on every system: {} of {} files, the first `{}`",
            odd.len(),
            tree.len(),
            shown.escape_debug()
        ));
    }
    odd.iter().for_each(|path| drop(tree.remove(path)));
    tree
}

/// The file that holds a data set's card.
const CARD: &str = "README.md";

/// An entry of a listing.
#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// Whether `text` has the form of a SHA-256 in hex.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
