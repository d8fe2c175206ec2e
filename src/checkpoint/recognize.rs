//! Whether a directory is a checkpoint of this program, decided by the content of its files: transformers' Trainer writes a
//! `trainer_state.json` of its own, and many tools a `manifest.json`.

use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::Result;

use super::names;
use crate::runtime::files::{io_failure, open_input};

/// The marks of both files stand within so many bytes of their beginning.
const HEAD: u64 = 64 << 10;

/// Keys of our manifest, with the white space that it is written with.
const MANIFEST_MARKS: [&str; 4] = ["\n  \"step\": ", "\n  \"tokens\": ", "\n  \"checksum\": \"", "\"blake3\": \""];

/// Keys of our trainer state that no other program's has.
const TRAINER_MARKS: [&str; 4] = ["\"next_sequence\": ", "\"chain\": \"", "\"updates\": ", "\"data_fingerprint\": \""];

/// A damaged file of ours keeps at least this many marks, and a foreign one does not have them by chance.
const ENOUGH_MARKS: usize = 2;

/// Whether `dir` holds a manifest or a trainer state of this program, valid or damaged.
///
/// # Errors
/// Those of reading the two files.
pub fn is_checkpoint(dir: &Path) -> Result<bool> {
    let files = [(dir.join(names::MANIFEST), MANIFEST_MARKS), (dir.join(names::TRAINER), TRAINER_MARKS)];
    // Links lead out of the directory, as they do in the Hub's cache: they are opened only where no file of its own decides.
    for links in [false, true] {
        for (path, marks) in &files {
            if path.is_symlink() == links && is_ours(path, *marks)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn is_ours(path: &Path, marks: [&str; 4]) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Ok(false),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(false),
        Err(e) => return Err(io_failure("read", path, &e).into()),
    }
    let mut head = Vec::new();
    let (file, _) = open_input(path, true)?;
    file.take(HEAD).read_to_end(&mut head).map_err(|e| io_failure("read", path, &e))?;
    let head = String::from_utf8_lossy(&head);
    let found = marks.into_iter().filter(|mark| head.contains(mark)).count();
    // A file that is no JSON at all is damaged and may be ours: it must not switch the verification off.
    Ok(found >= ENOUGH_MARKS || !looks_like_json(&head))
}

/// Only its ends are looked at: Python writes NaN and Infinity, which a parser would refuse.
fn looks_like_json(head: &str) -> bool {
    let text = head.trim_start_matches('\u{feff}').trim();
    text.starts_with(['{', '[']) && (text.ends_with(['}', ']']) || head.len() as u64 >= HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(file: &str, text: &[u8]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        is_checkpoint(dir.path()).unwrap()
    }

    #[test]
    fn files_of_other_programs_make_no_checkpoint() {
        // As transformers writes it: with NaN, which is no JSON.
        let trainer =
            r#"{"best_metric": null, "epoch": 1.0, "global_step": 500, "log_history": [{"loss": NaN, "step": 10}]}"#;
        for (file, text) in [
            ("trainer_state.json", trainer),
            ("manifest.json", r#"{"version": 1, "files": [{"name": "a", "blake3": "00"}], "checksum": "1"}"#),
            ("manifest.json", "\u{feff}[\"model.safetensors\"]"),
        ] {
            assert!(!recognised(file, text.as_bytes()), "{text}");
        }
        assert!(!is_checkpoint(tempfile::tempdir().unwrap().path()).unwrap());
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifest.json")).unwrap();
        assert!(!is_checkpoint(directory.path()).unwrap());
    }

    /// A flipped bit, a cut or zeros must not turn a checkpoint into a directory that is never verified.
    #[test]
    fn damage_to_ours_is_still_ours() {
        let manifest = super::super::Manifest {
            version: 1,
            step: 7,
            tokens: 99,
            files: vec![super::super::manifest::FileEntry { name: "a".into(), size: 3, blake3: "0".repeat(64) }],
        };
        let text = manifest.render().unwrap().into_bytes();
        assert!(recognised("manifest.json", &text));
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(recognised("manifest.json", &flipped), "byte {at}");
        }
        for cut in 0..text.len() {
            assert!(recognised("manifest.json", &text[..cut]), "cut at {cut}");
        }
        assert!(recognised("trainer_state.json", &[0; 100]));
    }
}
