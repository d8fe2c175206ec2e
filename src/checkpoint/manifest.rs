//! `manifest.json`: what a checkpoint consists of, so that damage is found before any of it is used.
//!
//! The last field, `checksum`, is the BLAKE3 of all the text before it. It is checked before the text is parsed, so that
//! a flipped bit is never mistaken for a checkpoint of a newer version, and it holds for versions yet to come.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::names;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{self, Digest, io_failure};

/// Version of the checkpoint layout that this program writes, and the newest it reads.
pub const VERSION: u64 = 1;

/// Far larger than any real manifest; bounds how much is read of a damaged one.
const MAX_BYTES: u64 = 1 << 20;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// A plain name in the checkpoint's own directory.
    pub name: String,
    pub size: u64,
    /// BLAKE3 of the content in lower-case hex.
    pub blake3: String,
}

/// The record of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u64,
    /// The last optimizer step the checkpoint contains.
    pub step: u64,
    /// Tokens consumed up to and including that step.
    pub tokens: u64,
    pub files: Vec<FileEntry>,
}

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// It is damaged: `kind` is one short word for a file name, `what` the finding.
    Bad { kind: &'static str, what: String },
    /// It may well be valid, but it cannot be read now, or not by this version. Never a reason to quarantine it.
    Other(anyhow::Error),
}

impl Fault {
    fn bad(kind: &'static str, what: impl Into<String>) -> Fault {
        Fault::Bad { kind, what: what.into() }
    }

    fn bad_manifest(what: &str) -> Fault {
        Fault::bad("manifest", format!("{}: {what}", names::MANIFEST))
    }

    /// The fault as the error of a command that was given the checkpoint `dir`.
    pub fn into_error(self, dir: &Path) -> anyhow::Error {
        match self {
            Fault::Bad { what, .. } => fail(Exit::Data, format!("the checkpoint {} is damaged: {what}", dir.display()))
                .hint("use another checkpoint; given its run directory, `resume` takes the newest good one")
                .into(),
            Fault::Other(error) => error,
        }
    }
}

impl Manifest {
    /// The text of the file.
    pub fn render(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.truncate(text.trim_end_matches(['\n', '}']).len());
        text.push_str(",\n");
        let checksum = blake3::hash(text.as_bytes()).to_hex();
        Ok(format!("{text}{CHECKSUM}{checksum}{END}"))
    }

    /// Parses the text of the file; every one of its bytes is covered by the checksum or has to be what it is.
    pub fn parse(text: &[u8]) -> Result<Manifest, Fault> {
        let tail_len = CHECKSUM.len() + 64 + END.len();
        let split = text.len().checked_sub(tail_len).ok_or_else(|| Fault::bad_manifest("it is cut short"))?;
        // The checksum stands last and covers all before it: nothing is parsed that was not verified.
        let (body, tail) = text.split_at(split);
        if tail != format!("{CHECKSUM}{}{END}", blake3::hash(body).to_hex()).as_bytes() {
            return Err(Fault::bad_manifest("its content does not match its checksum"));
        }
        let body = String::from_utf8_lossy(body);
        let body = format!("{}}}", body.trim_end_matches([',', '\n']));
        // Before the fields: a newer version may have others, which does not make it damaged.
        check_version(&body).map_err(Fault::Other)?;
        let manifest: Manifest =
            serde_json::from_str(&body).map_err(|e| Fault::bad_manifest(&format!("it is malformed: {e}")))?;
        manifest.check().map_err(|what| Fault::bad_manifest(&what))?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let mut total = 0_u64;
        for entry in &self.files {
            if !valid_name(&entry.name) || entry.name == names::MANIFEST {
                return Err(format!("it lists the file name {:?}, which is not allowed", entry.name));
            }
            if !seen.insert(&entry.name) {
                return Err(format!("it lists {} twice", entry.name));
            }
            total = total.checked_add(entry.size).ok_or("its sizes overflow")?;
        }
        Ok(())
    }

    /// The entry of the file `name`.
    pub fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    /// Total size of the files in bytes.
    pub fn total_size(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.size))
    }
}

const CHECKSUM: &str = "  \"checksum\": \"";
const END: &str = "\"\n}\n";

fn check_version(body: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    match serde_json::from_str::<Version>(body) {
        Ok(Version { version }) if version > VERSION => {
            let message = format!("the checkpoint has layout version {version}; this program knows up to {VERSION}");
            Err(fail(Exit::Data, message).hint("use the newer llama-lite that wrote it").into())
        }
        _ => Ok(()),
    }
}

/// Whether `name` is allowed in a manifest or a weight index: `[A-Za-z0-9._-]{1,128}` without a leading dot, which
/// leaves no way out of the directory.
pub fn valid_name(name: &str) -> bool {
    let allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    allowed && (1..=128).contains(&name.len()) && !name.starts_with('.')
}

/// Opens the file `name` of the checkpoint `dir`: a regular file, never through a symbolic link.
fn open_member(dir: &Path, name: &str) -> Result<(File, u64, PathBuf), Fault> {
    let path = dir.join(name);
    match path.symlink_metadata() {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(Fault::bad("irregular", format!("{name} is not a regular file"))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(Fault::bad("missing", format!("{name} is missing")));
        }
        Err(e) => return Err(Fault::Other(io_failure("read", &path, &e).into())),
    }
    let (file, size) = files::open_input(&path, false).map_err(Fault::Other)?;
    Ok((file, size, path))
}

/// Reads the manifest of `dir` and compares the size of every file with it: cheap, and enough to know a checkpoint's step.
pub fn check_sizes(dir: &Path) -> Result<Manifest, Fault> {
    let (_, size, path) = open_member(dir, names::MANIFEST)?;
    if size > MAX_BYTES {
        return Err(Fault::bad("manifest", format!("{} has {size} bytes", names::MANIFEST)));
    }
    let text = files::read_bounded(&path, MAX_BYTES, false).map_err(Fault::Other)?;
    let manifest = Manifest::parse(&text)?;
    for entry in &manifest.files {
        let (_, size, _) = open_member(dir, &entry.name)?;
        if size != entry.size {
            return Err(Fault::bad("size", format!("{} has {size} bytes instead of {}", entry.name, entry.size)));
        }
    }
    Ok(manifest)
}

/// Compares the content of the files for which `wanted` holds with their hashes.
pub fn check_hashes(dir: &Path, manifest: &Manifest, wanted: impl Fn(&str) -> bool) -> Result<(), Fault> {
    for entry in manifest.files.iter().filter(|entry| wanted(&entry.name)) {
        let (file, _, path) = open_member(dir, &entry.name)?;
        let found = files::hash_open_file(file, &path).map_err(Fault::Other)?;
        if found != (Digest { size: entry.size, blake3: entry.blake3.clone() }) {
            return Err(Fault::bad("hash", format!("the content of {} does not match its hash", entry.name)));
        }
    }
    Ok(())
}

/// Verifies the checkpoint `dir` completely: manifest, sizes, then the BLAKE3 of every file. Damage is exit 65.
pub fn verify(dir: &Path) -> Result<Manifest> {
    examine(dir).map_err(|fault| fault.into_error(dir))
}

/// [`verify`] for callers that tell damage from other failures.
pub fn examine(dir: &Path) -> Result<Manifest, Fault> {
    let manifest = check_sizes(dir)?;
    check_hashes(dir, &manifest, |_| true)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let entry = |name: &str, size| FileEntry { name: name.into(), size, blake3: "0".repeat(64) };
        Manifest {
            version: 1,
            step: 7,
            tokens: 99,
            files: vec![entry("config.json", 3), entry("model.safetensors", 5)],
        }
    }

    #[test]
    fn text_is_json_and_comes_back() {
        let text = sample().render().unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["step"], 7);
        assert_eq!(json["checksum"].as_str().unwrap().len(), 64);
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_flip_cut_and_addition_is_detected() {
        let text = sample().render().unwrap().into_bytes();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                // Never `Other`: a flip in the version must not pass for a newer program's checkpoint.
                assert!(matches!(Manifest::parse(&damaged), Err(Fault::Bad { .. })), "byte {at} bit {bit}");
            }
            assert!(matches!(Manifest::parse(&text[..at]), Err(Fault::Bad { .. })), "cut at {at}");
        }
        assert!(matches!(Manifest::parse(&[text.as_slice(), b" "].concat()), Err(Fault::Bad { .. })));
        assert!(matches!(Manifest::parse(&[text.as_slice(), text.as_slice()].concat()), Err(Fault::Bad { .. })));
    }

    #[test]
    fn newer_version_is_refused_not_called_damaged() {
        let mut newer = sample();
        newer.version = VERSION + 1;
        let Err(Fault::Other(error)) = Manifest::parse(newer.render().unwrap().as_bytes()) else { panic!("accepted") };
        assert!(error.to_string().contains("version 2"), "{error}");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for good in ["a", "model-00001-of-00002.safetensors", "A_z.9", &"x".repeat(128)] {
            assert!(valid_name(good), "{good}");
        }
        let long = "x".repeat(129);
        let bad = [
            "",
            ".",
            "..",
            ".hidden",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "a\0b",
            "a b",
            "a\n",
            "naïve",
            "ａ",
            "a:b",
            "~",
            "*",
            "x/../../y",
            &long,
            "a/",
            "\u{2024}\u{2024}",
            "%2e%2e",
            "-\u{200b}",
        ];
        for name in bad {
            assert!(!valid_name(name), "{name:?}");
            let mut manifest = sample();
            manifest.files[1].name = name.to_owned();
            assert!(
                matches!(Manifest::parse(manifest.render().unwrap().as_bytes()), Err(Fault::Bad { .. })),
                "{name:?}"
            );
        }
        let mut twice = sample();
        twice.files[1].name = "config.json".into();
        assert!(matches!(Manifest::parse(twice.render().unwrap().as_bytes()), Err(Fault::Bad { .. })));
    }
}
