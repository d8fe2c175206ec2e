//! Names and files that lead astray: whatever a manifest calls its files and whatever stands under a good name, nothing outside the
//! directory is opened, nothing is waited for, and no output goes through a link.

use crate::support::{arg, checkpoint, fails, memory_dir, ok, pretrain, root};
use anyhow::{Error, Result};
use llama_lite::checkpoint::manifest::{FileEntry, Manifest, VERSION, verify};
use llama_lite::checkpoint::{Opened, names};
use llama_lite::corpus::shards::manifest::Split;
use llama_lite::corpus::shards::verify::tokenizer_beside;
use llama_lite::corpus::shards::{ShardSet, split_files, verify as shards};
use llama_lite::data::inspect;
use llama_lite::runtime::error::{Exit, Failure};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

/// What no file may be called. `decoy` is a file outside that would do, if it were opened.
fn hostile(decoy: &Path) -> Vec<String> {
    let outside = decoy.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let file = decoy.file_name().unwrap().to_str().unwrap();
    let mut names = vec![
        arg(decoy).to_owned(),
        format!("../{outside}/{file}"),
        format!("./../{outside}/{file}"),
        format!("x/../../{outside}/{file}"),
        format!("..\\{outside}\\{file}"),
        format!("/{}", arg(decoy)),
        format!("file://{}", arg(decoy)),
        format!("../{outside}/{file}\0.json"),
        "x".repeat(4096),
        "x".repeat(129),
        format!("{}x", "../".repeat(1000)),
    ];
    let words = r". .. ... / ./x a/b a/ //x /dev/zero /dev/stdin /proc/self/environ ~ ~/x $HOME/x %2e%2e%2fx C:\x a:b \\host\x
                  .hidden .tmp-x * naïve ａ.ｂ";
    names.extend(words.split_whitespace().map(String::from));
    let alike = ["\u{2024}\u{2024}\u{2215}x", "x\u{2044}y", "\u{202e}nosj.x", "x\u{200b}"];
    names.extend(["", " ", "a b", "a\n", "a\0b", "a\u{1b}[2J"].into_iter().chain(alike).map(String::from));
    assert_eq!(names.len(), 44);
    names
}

/// Sees files of a directory being opened.
struct Watch(rustix::fd::OwnedFd);

impl Watch {
    fn of(dir: &Path) -> Self {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, dir, WatchFlags::OPEN).unwrap();
        Self(watch)
    }

    /// Openings since it was last asked.
    fn count(&self) -> usize {
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut count = 0;
        loop {
            match events.next() {
                Ok(_) => count += 1,
                Err(Errno::WOULDBLOCK) => return count,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// What `call` gives, which must come at once.
fn prompt<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(call()));
    receive.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn exit_of(error: &Error) -> Exit {
    error.chain().find_map(|e| e.downcast_ref::<Failure>()).unwrap_or_else(|| panic!("no class: {error:#}")).exit
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for path in files(from) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Makes a directory a checkpoint of ours: a manifest of all that is in it, as `change` leaves it.
fn seal(dir: &Path, change: impl FnOnce(&mut Manifest)) {
    let manifest = dir.join(names::MANIFEST);
    let _ = fs::remove_file(&manifest);
    let entry = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        FileEntry { name, size: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() }
    };
    let mut made = Manifest { version: VERSION, step: 1, tokens: 1, files: files(dir).iter().map(entry).collect() };
    change(&mut made);
    fs::write(manifest, made.render().unwrap()).unwrap();
}

/// A checkpoint in DIR/inside, sharded, and the same files in DIR/outside.
struct Twins {
    _dir: tempfile::TempDir,
    inside: PathBuf,
    outside: PathBuf,
}

fn twins() -> Twins {
    let dir = memory_dir();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    copy_all(&root().join("tests/fixtures/llama/gqa"), &inside);
    fs::remove_file(inside.join("expected.safetensors")).unwrap();
    seal(&inside, |_| ());
    copy_all(&inside, &outside);
    Twins { _dir: dir, inside, outside }
}

fn open(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    prompt("opening a model", move || Opened::open(&dir)?.read_weights(&mut |_, _, _| Ok(())))
}

#[test]
fn no_name_in_a_manifest_leads_out_of_the_checkpoint() {
    let Twins { inside, outside, _dir } = twins();
    let watch = Watch::of(&outside);
    open(&inside).unwrap();
    assert_eq!(watch.count(), 0);
    open(&outside).unwrap();
    assert!(watch.count() > 4, "the watch sees nothing");
    for name in hostile(&outside.join(names::GENERATION)) {
        seal(&inside, |manifest| {
            manifest.files.iter_mut().find(|e| e.name == names::GENERATION).unwrap().name = name.clone();
        });
        for error in [open(&inside).unwrap_err(), verify(&inside).unwrap_err()] {
            assert!(exit_of(&error) == Exit::Data && error.to_string().contains("not allowed"), "{name:?}: {error}");
        }
        assert_eq!(watch.count(), 0, "{name:?}");
    }
}

#[test]
fn no_name_in_a_weight_index_leads_out_of_the_model() {
    let Twins { inside, outside, _dir } = twins();
    let watch = Watch::of(&outside);
    let path = inside.join(names::INDEX);
    let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let last = "model-00003-of-00003.safetensors";
    for name in hostile(&outside.join(last)) {
        for name in [name.clone(), format!("{name}.safetensors")] {
            let mut index = whole.clone();
            for file in index["weight_map"].as_object_mut().unwrap().values_mut().filter(|file| *file == last) {
                *file = name.as_str().into();
            }
            fs::write(&path, index.to_string()).unwrap();
            // As a checkpoint of ours, and as a model of anybody.
            seal(&inside, |_| ());
            let ours = open(&inside).unwrap_err();
            fs::remove_file(inside.join(names::MANIFEST)).unwrap();
            for error in [ours, open(&inside).unwrap_err()] {
                assert!(exit_of(&error) == Exit::Data && error.to_string().contains(names::INDEX), "{name:?}: {error}");
            }
            assert_eq!(watch.count(), 0, "{name:?}");
        }
    }
}

/// Everything that reads a prepared directory; all results.
fn read_prepared(dir: &Path) -> Vec<Result<()>> {
    let dir = dir.to_owned();
    prompt("reading shards", move || {
        let tokens = || {
            let set = ShardSet::open(&split_files(&dir, Split::Train)?)?;
            set.read(0, &mut vec![0; set.total_tokens() as usize], 50257)
        };
        vec![
            tokens(),
            shards::verify(&dir).map(drop),
            inspect::inspect(&dir).map(drop),
            tokenizer_beside(&dir).map(drop),
        ]
    })
}

#[test]
fn no_name_in_shards_json_leads_out_of_the_directory() {
    let dir = memory_dir();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let decoy = outside.join("train-00000.npy");
    fs::write(&decoy, fs::read(root().join("tests/fixtures/npy/ok_u2.npy")).unwrap()).unwrap();
    let watch = Watch::of(&outside);
    let sample = fs::read(root().join("tests/fuzz/seeds/shards_manifest/small.json")).unwrap();
    for name in hostile(&decoy) {
        for name in [name.clone(), format!("{name}.npy")] {
            let mut manifest: Value = serde_json::from_slice(&sample).unwrap();
            manifest["shards"][0]["name"] = name.as_str().into();
            fs::write(inside.join("shards.json"), manifest.to_string()).unwrap();
            for error in read_prepared(&inside).drain(..3).map(Result::unwrap_err) {
                assert!(
                    exit_of(&error) == Exit::Data && error.to_string().contains("unsafe name"),
                    "{name:?}: {error}"
                );
            }
            assert_eq!(watch.count(), 0, "{name:?}");
        }
    }
}

/// Puts something under `path` that is no file of its own. `twin` is the same file elsewhere.
type Plant = fn(path: &Path, twin: &Path);

const PLANTS: [(&str, Plant); 9] = [
    ("a link to the same content", |path, twin| symlink(twin, path).unwrap()),
    ("a relative link", |path, twin| symlink(Path::new("../outside").join(twin.file_name().unwrap()), path).unwrap()),
    ("a link to nothing", |path, _| symlink("nothing", path).unwrap()),
    ("a link to itself", |path, _| symlink(path, path).unwrap()),
    ("a link to endless zeros", |path, _| symlink("/dev/zero", path).unwrap()),
    ("a pipe", |path, _| pipe(path)),
    ("a link to a pipe", |path, twin| {
        pipe(&twin.with_extension("pipe"));
        symlink(twin.with_extension("pipe"), path).unwrap();
    }),
    ("a directory", |path, _| fs::create_dir(path).unwrap()),
    ("a socket", |path, _| drop(UnixListener::bind(path).unwrap())),
];

fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
}

fn remove(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        fs::remove_dir(path).unwrap()
    } else {
        fs::remove_file(path).unwrap()
    }
}

#[test]
fn the_files_of_a_checkpoint_are_its_own() {
    let Twins { inside, outside, _dir } = twins();
    // A checkpoint has a trainer state: it identifies the directory when the manifest is replaced.
    let state =
        "{\n  \"next_sequence\": 1,\n  \"chain\": \"00\",\n  \"updates\": 1,\n  \"data_fingerprint\": \"00\"\n}\n";
    for dir in [&inside, &outside] {
        fs::write(dir.join(names::TRAINER), state).unwrap();
        seal(dir, |_| ());
    }
    let watch = Watch::of(&outside);
    for path in files(&inside) {
        let name = path.file_name().unwrap();
        let twin = outside.join(name);
        let whole = fs::read(&path).unwrap();
        for (what, plant) in PLANTS {
            remove(&path);
            plant(&path, &twin);
            watch.count();
            let error = open(&inside).expect_err(what);
            assert!(
                exit_of(&error) == Exit::Data && error.to_string().contains(name.to_str().unwrap()),
                "{what}: {error}"
            );
            assert_eq!(watch.count(), 0, "{what} for {name:?} was followed");
            remove(&path);
            fs::write(&path, &whole).unwrap();
        }
        // A second name of the same content is as good as a copy; of another content it is damage.
        fs::remove_file(&path).unwrap();
        fs::hard_link(&twin, &path).unwrap();
        open(&inside).unwrap();
        fs::remove_file(&path).unwrap();
        let other = outside.join("other");
        fs::write(&other, [&whole[..whole.len() - 1], &[whole[whole.len() - 1] ^ 1]].concat()).unwrap();
        fs::hard_link(&other, &path).unwrap();
        assert_eq!(exit_of(&open(&inside).unwrap_err()), Exit::Data, "{name:?}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, &whole).unwrap();
    }
    open(&inside).unwrap();
}

#[test]
fn nothing_under_the_name_of_a_shard_is_waited_for() {
    let dir = memory_dir();
    let (text, inside, outside) = (dir.path().join("a.txt"), dir.path().join("inside"), dir.path().join("outside"));
    fs::write(&text, "One day a dog ran. ".repeat(50)).unwrap();
    let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", "gpt2", "--out", arg(&inside)];
    ok(&[&args[..], &["--val-fraction", "0"]].concat());
    copy_all(&inside, &outside);
    assert!(read_prepared(&inside).into_iter().all(|result| result.is_ok()));
    for name in ["train-00000.npy", "train-00000.docs", "shards.json", "tokenizer.json"] {
        let (path, twin) = (inside.join(name), outside.join(name));
        let whole = fs::read(&path).unwrap();
        // Shards may be links: a corpus can lie on several disks, and its hashes say whether it is the right one.
        for (what, plant) in PLANTS.iter().skip(2) {
            remove(&path);
            plant(&path, &twin);
            let results = read_prepared(&inside);
            assert!(results.iter().any(Result::is_err), "{what} for {name}");
            for error in results.into_iter().filter_map(Result::err) {
                assert!([Exit::Data, Exit::Io].contains(&exit_of(&error)), "{what} for {name}: {error}");
            }
            remove(&path);
            fs::write(&path, &whole).unwrap();
        }
    }
    let shard = inside.join("train-00000.npy");
    let mut other = fs::read(&shard).unwrap();
    *other.last_mut().unwrap() ^= 1;
    fs::write(outside.join("other.npy"), other).unwrap();
    fs::remove_file(&shard).unwrap();
    symlink(outside.join("other.npy"), &shard).unwrap();
    let results = read_prepared(&inside);
    assert!(results[..2].iter().all(|result| result.as_ref().is_err_and(|e| exit_of(e) == Exit::Data)), "{results:?}");
}

#[test]
fn no_output_of_a_run_goes_through_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4", "sample.every=2"]);
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["metrics.jsonl", "samples.jsonl", "events.jsonl", "config.toml", "run.lock"] {
        let (path, target) = (run.join(name), outside.join(name));
        let whole = fs::read(&path).unwrap();
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let argument = arg(&run).to_owned();
        let message = prompt(name, move || fails(&["resume", "--ckpt", &argument, "--set", "train.steps=6"], 74));
        assert!(message.contains(name), "{message}");
        assert!(fs::read(&target).unwrap() == whole, "{name} was written to through a link");
        fs::remove_file(&path).unwrap();
        fs::rename(&target, &path).unwrap();
    }
    for name in ["metrics.jsonl", "samples.jsonl"] {
        let path = run.join(name);
        let whole = fs::read(&path).unwrap();
        pipe(&path);
        let argument = arg(&run).to_owned();
        prompt(name, move || fails(&["resume", "--ckpt", &argument, "--set", "train.steps=6"], 74));
        fs::remove_file(&path).unwrap();
        fs::write(&path, whole).unwrap();
    }
    ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=6"]);
    assert!(checkpoint(&run, 6).exists());
}

#[test]
fn a_configuration_is_a_file_of_modest_size() {
    let dir = memory_dir();
    let (path, out) = (dir.path().join("x.toml"), dir.path().join("run"));
    for (what, code, plant) in [
        ("a pipe", 74, pipe as fn(&Path)),
        ("endless zeros", 74, |path| symlink("/dev/zero", path).unwrap()),
        ("a directory", 74, |path| fs::create_dir(path).unwrap()),
        ("too much", 65, |path| fs::write(path, " ".repeat((1 << 20) + 1)).unwrap()),
    ] {
        plant(&path);
        let [config, run] = [arg(&path), arg(&out)].map(str::to_owned);
        let message = prompt(what, move || fails(&["pretrain", "--config", &config, "--out", &run], code));
        assert!(message.contains("x.toml") && !out.exists(), "{message}");
        remove(&path);
    }
}

#[test]
fn what_a_file_says_does_not_steer_the_terminal() {
    let Twins { inside, _dir, .. } = twins();
    fs::remove_file(inside.join(names::MANIFEST)).unwrap();
    for (name, text) in [
        (names::INDEX, r#"{"weight_map": {"\u001b[2J\u0007": "../x"}}"#),
        (names::CONFIG, r#"{"model_type": "\u001b]0;x\u0007"}"#),
        (names::CONFIG, "{\"\u{1b}[2J\""),
    ] {
        let path = inside.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let output = crate::support::run(&["sample", "--ckpt", arg(&inside), "--prompt", "a"]);
        assert!(!output.status.success() && output.stderr.len() > 50);
        assert!(!output.stderr.iter().any(|b| b.is_ascii_control() && *b != b'\n'), "{name}: {text}");
        fs::write(&path, whole).unwrap();
    }
    // A tensor that is not asked for is named as it is.
    let tensors = inside.join("model-00003-of-00003.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    let renamed = header.replacen("model.norm.weight", "\\u001b[31m", 1);
    assert_ne!(header, renamed);
    let data = &bytes[8 + header.len()..];
    fs::write(&tensors, [&(renamed.len() as u64).to_le_bytes(), renamed.as_bytes(), data].concat()).unwrap();
    let message = fails(&["sample", "--ckpt", arg(&inside), "--prompt", "a"], 65);
    assert!(message.contains("[31m") && !message.contains('\u{1b}'), "{message}");
}
