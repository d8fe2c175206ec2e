//! Lines that were deleted or altered in a log of a run at or below a checkpoint. A resume does not repeat those steps, so nothing else
//! would notice. Every checkpoint therefore records a hash of its logs, and the commands that rely on both compare it.

use super::digest::{LogDigest, LogDigests, RunningDigest};
use super::jsonl::{LOG_FILES, each_line};
use anyhow::Result;
use std::path::Path;

/// A log whose beginning is not what a checkpoint has recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlteredLog {
    pub file: &'static str,
    /// What the checkpoint has recorded.
    pub recorded: LogDigest,
    /// What the file begins with now, as far as that is as long.
    pub found: LogDigest,
}

impl std::fmt::Display for AlteredLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, recorded, found } = self;
        if found.bytes == 0 {
            return write!(
                f,
                "{file}: the {} lines that were there when the checkpoint was saved are gone",
                recorded.lines
            );
        }
        if found.lines < recorded.lines {
            return write!(
                f,
                "{file}: {} lines are left of the {} that were there when the checkpoint was saved",
                found.lines, recorded.lines
            );
        }
        write!(
            f,
            "{file}: of the {} lines that were there when the checkpoint was saved, some were deleted or altered",
            recorded.lines
        )
    }
}

/// The logs of `run_dir` that do not begin with what `recorded` says; logs that it does not mention are not looked at.
///
/// # Errors
/// [`Exit::Io`](crate::runtime::error::Exit::Io) if a log cannot be read.
pub fn altered_logs(run_dir: &Path, recorded: &LogDigests) -> Result<Vec<AlteredLog>> {
    let mut altered = Vec::new();
    for file in LOG_FILES {
        let Some(recorded) = recorded.get(file) else { continue };
        let found = beginning(&run_dir.join(file), recorded.bytes)?;
        if found != *recorded {
            altered.push(AlteredLog { file, recorded: recorded.clone(), found });
        }
    }
    Ok(altered)
}

/// The digest of the first `bytes` bytes of `path`; of an empty file if there is none.
fn beginning(path: &Path, bytes: u64) -> Result<LogDigest> {
    let mut digest = RunningDigest::default();
    if path.symlink_metadata().is_err() {
        return Ok(digest.digest());
    }
    each_line(path, |line| {
        // Lines after the checkpoint were never part of what it recorded.
        let room = usize::try_from(bytes.saturating_sub(digest.bytes())).unwrap_or(usize::MAX);
        let part = &line[..line.len().min(room)];
        if !part.is_empty() {
            digest.push(part);
        }
        Ok(())
    })?;
    Ok(digest.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::train;
    use crate::metrics::{MetricsLog, Record};

    /// A log of 9 steps, its text, and what a checkpoint at step 6 records of it.
    fn logged(dir: &Path) -> (String, LogDigests) {
        let mut log = MetricsLog::open(dir, None).unwrap();
        (1..=6).for_each(|step| log.append(&Record::Train(train(step))).unwrap());
        let recorded = LogDigests::from([("metrics.jsonl".to_owned(), log.digest())]);
        (7..=9).for_each(|step| log.append(&Record::Train(train(step))).unwrap());
        (std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap(), recorded)
    }

    #[test]
    fn every_change_at_or_below_the_checkpoint_is_seen_and_none_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let (text, recorded) = logged(dir.path());
        let path = dir.path().join("metrics.jsonl");
        let altered = |text: &str| {
            std::fs::write(&path, text).unwrap();
            altered_logs(dir.path(), &recorded).unwrap().len()
        };
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (n, line) in lines.iter().enumerate() {
            let without = text.replace(line, "");
            let other = text.replace(line, &line.replace("\"loss\":", "\"loss\":1"));
            assert_ne!(other, text);
            assert_eq!((altered(&without), altered(&other)), (usize::from(n < 6), usize::from(n < 6)), "line {n}");
        }
        assert_eq!((altered(&text), altered(&lines[..6].concat()), altered("")), (0, 0, 1));
        std::fs::remove_file(&path).unwrap();
        let gone = altered_logs(dir.path(), &recorded).unwrap();
        assert!(gone[0].to_string().contains("6 lines") && gone[0].to_string().contains("gone"), "{}", gone[0]);
        assert_eq!(altered_logs(dir.path(), &LogDigests::new()).unwrap(), [], "what is not recorded is not missed");
    }

    /// The digest of a log that was cut and goes on is that of its file.
    #[test]
    fn a_reopened_log_goes_on_with_the_digest_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        logged(dir.path());
        let mut log = MetricsLog::open(dir.path(), Some(4)).unwrap();
        log.append(&Record::Train(train(5))).unwrap();
        let bytes = std::fs::read(dir.path().join("metrics.jsonl")).unwrap();
        let want = LogDigest { lines: 5, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() };
        assert_eq!(log.digest(), want);
    }
}
