//! How a user names data sets and models of the Hub.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::runtime::error::{Exit, Failure, fail};

/// The beginning of every name of the Hub.
const PREFIX: &str = "hub:";

/// Beginnings of revisions that contain slashes: these do not start a path.
const SPECIAL: [&str; 2] = ["refs/convert/", "refs/pr/"];

/// What a repository of the Hub holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepoKind {
    #[default]
    Dataset,
    Model,
}

impl RepoKind {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Dataset => "data set",
            Self::Model => "model",
        }
    }

    /// As the programming interface, the list of all of them and the cache call it.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Dataset => "datasets",
            Self::Model => "models",
        }
    }
}

/// A repository, which may not exist. Displayed as `OWNER/NAME`.
#[derive(Clone, Copy)]
pub(super) struct Repo<'a> {
    pub(super) kind: RepoKind,
    /// `OWNER/NAME`, as addresses of the Hub have it.
    pub(super) name: &'a str,
}

impl Repo<'_> {
    /// The address of its page, below which its files are.
    pub(super) fn page(self, endpoint: &str) -> String {
        match self.kind {
            RepoKind::Dataset => format!("{endpoint}/datasets/{self}"),
            RepoKind::Model => format!("{endpoint}/{self}"),
        }
    }

    /// Its address in the programming interface.
    pub(super) fn api(self, endpoint: &str) -> String {
        format!("{endpoint}/api/{}/{self}", self.kind.plural())
    }
}

impl fmt::Display for Repo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// `hub:OWNER/NAME[@REVISION]`, a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// `OWNER/NAME`, as addresses of the Hub have it.
    pub repo: String,
    /// Branch, tag or commit; the branch `main` if none.
    pub revision: Option<String>,
}

impl FromStr for ModelName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let parsed = HubName::parse(text).and_then(|name| match (&name.subset, &name.split, &name.path) {
            (None, None, None) => Ok(Self { repo: name.repo, revision: name.revision }),
            _ => Err("a model is named by its repository alone, without subset, split or file"),
        });
        parsed.map_err(|what| {
            fail(Exit::Config, format!("`{}`: {what}", text.escape_debug())).hint(
                "write hub:OWNER/NAME[@REVISION], for example hub:HuggingFaceTB/SmolLM-135M; a directory of such a name is ./hub:...",
            )
        })
    }
}

/// `hub:OWNER/NAME[@REVISION][:SUBSET[:SPLIT]]` or `hub:OWNER/NAME[@REVISION]/PATH-OR-GLOB`.
///
/// The revision is a branch, a tag or a commit; the only names with a slash that are understood are `refs/convert/…` and
/// `refs/pr/…`. An empty subset before a split (`hub:a/b::validation`) is the default one. The path of a directory stands for
/// all files in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/NAME`, as addresses of the Hub have it.
    pub repo: String,
    /// Branch, tag or commit; the branch `main` if none.
    pub revision: Option<String>,
    /// Subset, called `config_name` in the data set's card.
    pub subset: Option<String>,
    /// Split; `train` if none.
    pub split: Option<String>,
    /// File, directory or glob in the repository, instead of subset and split.
    pub path: Option<String>,
}

impl HubName {
    /// Whether `text` begins with `hub:`; the rest may still be malformed.
    pub fn is_hub(text: &str) -> bool {
        text.starts_with(PREFIX)
    }
}

impl FromStr for HubName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        Self::parse(text).map_err(|what| {
            fail(Exit::Config, format!("`{}`: {what}", text.escape_debug())).hint(
                "write hub:OWNER/NAME[@REVISION][:SUBSET[:SPLIT]] or hub:OWNER/NAME[@REVISION]/PATH, \
                 for example hub:HuggingFaceFW/fineweb-edu:sample-10BT",
            )
        })
    }
}

impl HubName {
    /// `Err` says what is wrong with `text`.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix(PREFIX).ok_or("a name of the Hub begins with `hub:`")?;
        let (owner, rest) = rest.split_once('/').ok_or("OWNER/NAME is missing")?;
        let (name, mut rest) = split_before(rest, "@:/");
        if !is_repo_part(owner) || !is_repo_part(name) {
            return Err("this is not an OWNER/NAME of the Hub");
        }
        let mut parsed =
            Self { repo: format!("{owner}/{name}"), revision: None, subset: None, split: None, path: None };
        if let Some(after) = rest.strip_prefix('@') {
            // These revisions contain slashes, which would otherwise begin a path.
            let special = SPECIAL.iter().find(|s| after.starts_with(**s)).map_or(0, |s| s.len());
            let length = special + split_before(&after[special..], ":/").0.len();
            let revision = &after[..length];
            if !is_revision(revision) {
                return Err("the revision after `@` is not a branch, tag or commit");
            }
            parsed.revision = Some(revision.to_owned());
            rest = &after[length..];
        }
        if let Some(after) = rest.strip_prefix(':') {
            let mut parts = after.split(':').map(|part| Some(part.to_owned()).filter(|part| !part.is_empty()));
            parsed.subset = parts.next().flatten();
            parsed.split = parts.next().flatten();
            let empty = parsed.subset.is_none() && parsed.split.is_none();
            if empty || after.ends_with(':') || parts.next().is_some() || after.contains('/') {
                return Err("after the name come at most :SUBSET:SPLIT");
            }
        } else if let Some(after) = rest.strip_prefix('/') {
            let path = after.strip_suffix('/').unwrap_or(after);
            if !is_safe_path(path) {
                return Err("this is not a path inside the repository");
            }
            parsed.path = Some(path.to_owned());
        }
        Ok(parsed)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match (&self.path, &self.subset, &self.split) {
            (Some(path), ..) => write!(f, "/{path}"),
            (None, None, None) => Ok(()),
            (None, Some(subset), None) => write!(f, ":{subset}"),
            (None, subset, Some(split)) => write!(f, ":{}:{split}", subset.as_deref().unwrap_or_default()),
        }
    }
}

/// `text` before the first of `ends`, and the rest.
fn split_before<'a>(text: &'a str, ends: &str) -> (&'a str, &'a str) {
    text.split_at(text.find(|c| ends.contains(c)).unwrap_or(text.len()))
}

/// Whether this is `OWNER/NAME`, safe as the name of a directory and in an address.
pub(super) fn is_repo(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_repo_part(owner) && is_repo_part(name))
}

/// The rules are those of the Hub; `--` stands for the slash in the cache.
fn is_repo_part(text: &str) -> bool {
    (1..=96).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether `text` can be a revision, and the name of its reference in the cache.
pub(super) fn is_revision(text: &str) -> bool {
    is_safe_path(text) && text.chars().all(|c| c.is_ascii_graphic() && !"~^:?*[".contains(c))
}

/// Whether this is a full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path from a server would lead out of the directory of its repository; no honest server sends one.
pub(super) fn leads_out(text: &str) -> bool {
    text.starts_with(['/', '\\']) || text.split(['/', '\\']).any(|part| matches!(part, "" | "." | ".."))
}

/// Whether a path that may come from a server stays inside the directory of its repository, on any system.
pub(super) fn is_safe_path(text: &str) -> bool {
    let are_parts_safe = text.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
    text.len() <= 2048 && !text.contains('\\') && !text.contains(char::is_control) && are_parts_safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(repo: &str, revision: &str, subset: &str, split: &str, path: &str) -> HubName {
        let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        let repo = repo.to_owned();
        HubName { repo, revision: some(revision), subset: some(subset), split: some(split), path: some(path) }
    }

    #[test]
    fn names_are_read_and_written_alike() {
        for (text, expected) in [
            ("hub:a/b", name("a/b", "", "", "", "")),
            ("hub:HuggingFaceFW/fineweb-edu:sample-10BT", name("HuggingFaceFW/fineweb-edu", "", "sample-10BT", "", "")),
            ("hub:a/b@v1.0:20231101.en:train", name("a/b", "v1.0", "20231101.en", "train", "")),
            ("hub:a/b::test", name("a/b", "", "", "test", "")),
            ("hub:a/b@main/data/*.parquet", name("a/b", "main", "", "", "data/*.parquet")),
            ("hub:a/b/x:y.txt", name("a/b", "", "", "", "x:y.txt")),
            ("hub:a/b@refs/convert/parquet/en/**", name("a/b", "refs/convert/parquet", "", "", "en/**")),
            ("hub:a/b@refs/pr/7:en", name("a/b", "refs/pr/7", "en", "", "")),
        ] {
            assert!(HubName::is_hub(text));
            assert_eq!(text.parse::<HubName>().unwrap(), expected, "{text}");
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("hub:a/b/dir/".parse::<HubName>().unwrap(), name("a/b", "", "", "", "dir"));
        assert!(!HubName::is_hub("data/hub:x"));
    }

    #[test]
    fn wrong_names_are_refused_with_the_right_form() {
        for text in [
            "a/b",
            "hub:a",
            "hub:/b",
            "hub:a/",
            "hub:../b",
            "hub:a/..",
            "hub:a/b--c",
            "hub:a b/c",
            "hub:a/b@",
            "hub:a/b@/x",
            "hub:a/b:",
            "hub:a/b::",
            "hub:a/b:x:",
            "hub:a/b:x:y:z",
            "hub:a/b:x/y",
            "hub:a/b/",
            "hub:a/b//x",
            "hub:a/b/../x",
            "hub:a/b/x\\y",
            "hub:a/b@..",
            "hub:a/b@refs/pr/",
            "hub:a/b@x y",
            "hub:a/b/\u{1}",
        ] {
            let failure = text.parse::<HubName>().unwrap_err();
            assert_eq!(failure.exit, Exit::Config, "{text}");
            assert!(failure.hint.unwrap().contains("hub:OWNER/NAME"), "{text}");
        }
    }

    #[test]
    fn a_model_is_a_repository_at_a_revision() {
        let read = |text: &str| text.parse::<ModelName>().map(|name| (name.repo, name.revision));
        assert_eq!(read("hub:a/b").unwrap(), ("a/b".to_owned(), None));
        assert_eq!(read("hub:a/b@refs/pr/7").unwrap(), ("a/b".to_owned(), Some("refs/pr/7".to_owned())));
        for text in ["hub:a", "hub:a/b:x", "hub:a/b::x", "hub:a/b/model.safetensors", "hub:a/b@", "a/b"] {
            let failure = read(text).unwrap_err();
            assert_eq!(failure.exit, Exit::Config, "{text}");
            assert!(failure.hint.unwrap().contains("hub:OWNER/NAME[@REVISION]"), "{text}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        assert!(is_safe_path("data/a b/é-[x].jsonl.gz"));
        let long = format!("{}/x", "a".repeat(256));
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", ".", "./a", "a\\b", "C:\\a", "a\0", "a\nb", &long]
        {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
    }
}
