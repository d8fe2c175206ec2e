//! Every operation of a run fails once with each error that disks and systems give: the run ends with an error that
//! says so, older checkpoints and the logs are as they were, nothing is left behind, and the next run goes on.

use std::path::Path;

use rustix::io::Errno;

use super::story::{Story, check};
use super::thorough;
use crate::checkpoint::tests::{exit_of, quick_dir};
use crate::runtime::error::Exit;
use crate::runtime::files::fault::Op;
use crate::runtime::files::tests::fault_injection::{Mode, Recorded, record, trace};
use crate::runtime::files::tests::power_loss::read_tree;

const ERRORS: [Errno; 5] = [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::MFILE, Errno::ACCESS];

/// Which operations are worth a try: of the many writes to one file the first, unless thoroughness was asked for.
fn chosen(ops: &[Recorded]) -> Vec<usize> {
    let repeats = |n: usize| match &ops[n.saturating_sub(1)..=n] {
        [Op::Write(before, _), Op::Write(path, _)] => before == path,
        _ => false,
    };
    (0..ops.len()).filter(|&n| thorough() || !repeats(n)).collect()
}

/// The name of the file that a temporary name stands for.
fn lasting_name(path: &Path) -> &str {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.strip_prefix(".tmp-").map_or(name, |rest| rest.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-'))
}

fn temporary_names(base: &Path) -> Vec<String> {
    let names = read_tree(base).into_keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with(".tmp-")).collect()
}

/// Whether what fails is the deletion of something, of which the rest then stays until the next save: the deletion
/// itself, or the sync of the temporary name that the old thing has taken before.
fn is_deletion(ops: &[Recorded], n: usize) -> bool {
    match &ops[n.saturating_sub(1)..=n] {
        [.., Op::Remove(_)] => true,
        [Op::Rename(_, to), Op::FsyncDir(_)] => to.file_name().unwrap().to_string_lossy().starts_with(".tmp-"),
        [Op::Publish(_, to), Op::FsyncDir(_)] => {
            ops[..n - 1].iter().any(|op| matches!(op, Op::Publish(_, before) if before == to))
        }
        _ => false,
    }
}

#[test]
fn no_failing_operation_costs_anything_or_goes_unnoticed() {
    let ops = {
        let base = quick_dir();
        let mut story = Story::new(base.path());
        let (played, ops) = record(|| story.play_short());
        played.unwrap();
        ops
    };
    let chosen = chosen(&ops);
    println!("{} operations, {} tried with {} errors each", ops.len(), chosen.len(), ERRORS.len());
    assert!(chosen.len() > 250, "{}", chosen.len());
    for (&n, errno) in chosen.iter().flat_map(|n| ERRORS.map(|errno| (n, errno))) {
        let base = quick_dir();
        let mut story = Story::new(base.path());
        let (played, log) = trace(Some((n, Mode::Fails(errno))), || story.play_short());
        let place = format!("operation {n}, {:?}, fails with {errno:?}", log[n]);
        let Err(error) = played else { panic!("{place}, which nobody notices") };
        let (text, path) = (error.to_string(), &log[n].1);
        assert_eq!(exit_of(&error), Exit::Io, "{place}: {text}");
        assert!(text.contains(&format!("os error {}", errno.raw_os_error())), "{place}: {text}");
        assert!(text.contains(lasting_name(path)), "{place}: {text}");
        // A second fsync of a file would succeed without the data that the first has lost.
        assert!(log[n].0 != "fsync" || !log[n + 1..].contains(&log[n]), "{place}, and is tried again");
        let left = temporary_names(base.path());
        assert!(left.is_empty() || is_deletion(&ops, n), "{place} and leaves {left:?}");
        let claim = story.claims.last().unwrap();
        check(&story.run, claim, &story.kinds).unwrap_or_else(|error| panic!("{place}: {error:#}"));
        let left = temporary_names(base.path());
        assert!(left.is_empty(), "{place}: the next save leaves {left:?}");
    }
}
