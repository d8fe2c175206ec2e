//! Kills at, and failures of, chosen system calls, injected by strace into the program as it is shipped.
//!
//! The calls of one undisturbed command are recorded first. Those before the first that names a file of the run are the loader's and the
//! runtime's: they are left alone. strace counts the calls of each thread by itself, so that a number stands for one call of each.

use super::subject::{Ended, Running, Subject, copy_tree, cut_off, resume, set_aside};
use super::{count, figures, is_full};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

/// Calls that change, or open, files; those that this processor does not have are passed over.
const CALLS: [&str; 14] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "openat",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
];

/// Errors that storage and limits give, with their numbers.
const ERRORS: [(&str, i32, &[&str]); 5] = [
    ("ENOSPC", 28, &["write", "fsync", "renameat2", "rename", "openat", "mkdir"]),
    ("EDQUOT", 122, &["write", "mkdir"]),
    ("EIO", 5, &["write", "fsync", "rename", "renameat2", "openat", "unlinkat", "unlink", "ftruncate"]),
    ("EMFILE", 24, &["openat"]),
    ("EACCES", 13, &["openat", "mkdir", "rename", "renameat2", "unlinkat", "unlink"]),
];

/// `command` under strace. Only the calls of `trace` stop it.
fn strace(output: &Path, trace: &str, inject: Option<&str>, command: &Command) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-y", "-e", &format!("trace={trace}"), "-o"]).arg(output);
    if let Some(inject) = inject {
        traced.args(["-e", &format!("inject={inject}")]);
    }
    traced.arg(command.get_program()).args(command.get_args()).current_dir(crate::support::root());
    traced
}

/// Why calls cannot be injected here, if they cannot.
fn unable() -> Option<&'static str> {
    let mut probe = strace(Path::new("/dev/null"), "fsync", Some("fsync:error=EIO:when=1"), &Command::new("true"));
    match probe.output() {
        Err(_) => Some("not run: strace is not installed"),
        Ok(output) if !output.status.success() => Some("not run: tracing is not allowed here"),
        Ok(_) => None,
    }
}

/// Of each call, the numbers under which threads make it on the files of the torture.
fn numbers(subject: &Subject, command: &Command) -> BTreeMap<&'static str, RangeInclusive<usize>> {
    let (log, names) = (subject.path("calls"), CALLS.map(|call| format!("?{call}")).join(","));
    Running::start(&mut strace(&log, &names, None, command)).ends_well();
    let text = std::fs::read_to_string(&log).unwrap();
    let (ours, mut made) = (subject.path("").display().to_string(), BTreeMap::new());
    let mut ranges = BTreeMap::<&str, RangeInclusive<usize>>::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some(call) = CALLS.into_iter().find(|call| rest.trim_start().starts_with(&format!("{call}("))) else {
            continue;
        };
        let number = made.entry((thread.to_owned(), call)).or_insert(0);
        *number += 1;
        if rest.contains(&ours) {
            let known = ranges.entry(call).or_insert(*number..=*number);
            *known = (*number).min(*known.start())..=(*number).max(*known.end());
        }
    }
    ranges
}

/// At most `most` numbers of a range, spread evenly, both ends among them; a single one from its middle.
fn spread(range: &RangeInclusive<usize>, most: usize) -> Vec<usize> {
    let (first, last) = (*range.start(), *range.end());
    if last - first < most {
        return range.clone().collect();
    }
    if most == 1 {
        return vec![(first + last) / 2];
    }
    (0..most).map(|i| first + i * (last - first) / (most - 1)).collect()
}

/// One way into a run: what there is before it, and the command.
struct Scene<'a> {
    subject: &'a Subject,
    /// The directory that is copied first.
    template: Option<&'a Path>,
}

impl Scene<'_> {
    /// A fresh copy of the directory, and the command to be disturbed.
    fn set(&self) -> (std::path::PathBuf, Command) {
        let out = self.subject.path("run");
        let _ = std::fs::remove_dir_all(&out);
        match self.template {
            Some(template) => {
                copy_tree(template, &out);
                (out.clone(), resume(&out))
            }
            None => (out.clone(), self.subject.pretrain(&out)),
        }
    }

    /// Runs it with `fault` injected, shows how it ended, and has it finished afterwards.
    fn disturbed(&self, call: &str, fault: &str, judge: &mut dyn FnMut(&Ended)) {
        let (out, command) = self.set();
        let inject = format!("{call}:{fault}");
        eprintln!("{inject}");
        let ended = Running::start(&mut strace(Path::new("/dev/null"), call, Some(&inject), &command)).end();
        judge(&ended);
        self.subject.assert_checkpoints_intact(&out);
        self.subject.finish(&out);
        assert_eq!(set_aside(&out, ".bad-"), Vec::<String>::new(), "{inject}: a checkpoint was given up");
    }
}

#[test]
fn kills_at_system_calls() {
    if let Some(why) = unable() {
        return figures("atomic", "kills_at_system_calls", why);
    }
    let subject = Subject::new(12, 4, &[]);
    let template = cut_off(&subject, "template");
    let (mut kills, mut tried, mut calls) = (0, 0, BTreeMap::<&str, usize>::new());
    for template in [None, Some(template.as_path())] {
        let scene = Scene { subject: &subject, template };
        for (call, range) in numbers(&subject, &scene.set().1) {
            for number in spread(&range, count(1, 30)) {
                tried += 1;
                scene.disturbed(call, &format!("signal=KILL:when={number}"), &mut |ended| {
                    let killed = ended.code() == 128 + 9;
                    assert!(killed || ended.status.success(), "{call} {number}: {}", ended.stderr);
                    kills += usize::from(killed);
                    *calls.entry(call).or_default() += usize::from(killed);
                });
            }
        }
    }
    let calls: Vec<String> = calls.iter().map(|(call, kills)| format!("{call} {kills}")).collect();
    figures(
        "atomic",
        "kills_at_system_calls",
        &format!(
            "{kills} kills of {tried} tried in pretrain and resume ({}), all equal after resuming",
            calls.join(", ")
        ),
    );
    assert!(kills * 10 > tried * 9, "only {kills} of {tried} calls were met");
}

/// Demands that a failed call was survived, or ended the run as interfaces promise: exit 74, with the file and the system's words.
fn judge(ended: &Ended, error: i32, what: &str) -> bool {
    if ended.status.success() {
        return false;
    }
    assert_eq!(ended.code(), 74, "{what}: {}", ended.stderr);
    let named = ended.stderr.contains(&format!("os error {error}")) && ended.stderr.contains('/');
    assert!(named && ended.stderr.contains("hint:"), "{what}: {}", ended.stderr);
    true
}

/// Lets calls of each kind fail, one in each run; how many were tried, and how many ended the run.
fn fail_calls(subject: &Subject, templates: &[Option<&Path>]) -> (usize, usize) {
    let (mut tried, mut stopped) = (0, 0);
    for template in templates {
        let scene = Scene { subject, template: *template };
        let ranges = numbers(subject, &scene.set().1);
        for (name, error, calls) in ERRORS {
            for (call, range) in ranges.iter().filter(|(call, _)| calls.contains(*call)) {
                for number in spread(range, count(1, 12)) {
                    tried += 1;
                    let what = format!("{call} {number}: {name}");
                    scene.disturbed(call, &format!("error={name}:when={number}"), &mut |ended| {
                        stopped += usize::from(judge(ended, error, &what));
                    });
                }
            }
        }
    }
    (tried, stopped)
}

#[test]
fn failing_system_calls() {
    if let Some(why) = unable() {
        return figures("disk", "failing_system_calls", why);
    }
    let subject = Subject::new(12, 4, &[]);
    let template = cut_off(&subject, "template");
    let scenes = [None, Some(template.as_path())];
    let (tried, stopped) = fail_calls(&subject, &scenes[usize::from(!is_full())..]);
    figures(
        "disk",
        "failing_system_calls",
        &format!(
            "{tried} calls failed once each: {stopped} exits 74, the others finished; checkpoints intact, all equal in the end"
        ),
    );
    assert!(stopped * 2 > tried, "only {stopped} of {tried} failures were felt");
}

/// A run that began with the weights of another must begin with them again, or not at all.
#[test]
fn a_restart_that_cannot_read() {
    if let Some(why) = unable() {
        return figures("disk", "restart_that_cannot_read", why);
    }
    let other = Subject::new(4, 4, &["train.seed=2"]);
    let subject = Subject::with_weights(12, 4, &[], Some(&other.whole));
    let template = subject.path("template");
    copy_tree(&subject.whole, &template);
    std::fs::remove_dir_all(template.join("checkpoints")).unwrap();
    forget_saves(&template);
    let scene = Scene { subject: &subject, template: Some(&template) };
    let range = numbers(&subject, &scene.set().1).remove("openat").unwrap();
    let (mut tried, mut stopped) = (0, 0);
    for number in spread(&range, count(16, 80)) {
        tried += 1;
        scene.disturbed("openat", &format!("error=EMFILE:when={number}"), &mut |ended| {
            stopped += usize::from(judge(ended, 24, &format!("openat {number}")));
        });
    }
    figures(
        "disk",
        "restart_that_cannot_read",
        &format!("{tried} failures to open a file while a run begins again: {stopped} exits 74, all equal in the end"),
    );
    assert!(stopped > 0, "no failure was felt");
}

/// Takes the announcements of checkpoints out of the events: a run that was killed before its first.
fn forget_saves(run: &Path) {
    let path = run.join("events.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let first: String = text.split_inclusive('\n').filter(|line| line.contains("\"start\"")).collect();
    std::fs::write(path, first).unwrap();
}
