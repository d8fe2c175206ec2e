//! What a loss of power can leave on a disk, computed from a recording of file operations.
//!
//! Each file and directory has what is durable and what was done to it since it was last synced. Of the latter a disk
//! may have kept any part, which makes the states of a [`Policy`]. The model is harsher than most file systems: names
//! are kept without data and data without names, syncing a file says nothing about its name, changes of one directory
//! or file are kept in any selection, writes are torn. It relies on two things: what was synced stays, and a rename or
//! an exchange of names in one directory is one change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fault_injection::Recorded;
use crate::runtime::files::fault::Op;

mod tests;

/// Which of the changes since the last sync a disk has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Synced,
    All,
    NamesOnly,
    /// Names, and the lengths of files: zeros stand for data.
    Zeros,
    DataOnly,
    /// Names, and the first half of every write.
    Torn,
    /// Any names and any parts of writes, drawn from this seed.
    Random(u64),
}

/// The policies that are not drawn.
pub(crate) const FIXED: [Policy; 6] =
    [Policy::Synced, Policy::All, Policy::NamesOnly, Policy::Zeros, Policy::DataOnly, Policy::Torn];

/// The content of a directory: for each relative path the content of a file, or none for a directory.
pub(crate) type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

type Names = BTreeMap<String, usize>;

/// A disk, or the part of it below one directory that was durable from the beginning.
pub(crate) struct Disk {
    base: PathBuf,
    /// The first is `base`.
    nodes: Vec<Node>,
}

enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    now: Vec<u8>,
    since: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Default)]
struct Dir {
    durable: Names,
    now: Names,
    /// Each is kept whole or not at all.
    since: Vec<Vec<(String, Option<usize>)>>,
}

impl Disk {
    /// A disk with nothing in `base`.
    pub(crate) fn empty(base: &Path) -> Disk {
        Disk { base: base.to_owned(), nodes: vec![Node::Dir(Dir::default())] }
    }

    /// The operation as the changes it is made of: a tree is deleted one name after the other.
    pub(crate) fn split(&self, op: &Recorded) -> Vec<Recorded> {
        let Op::Remove(path) = op else { return vec![op.clone()] };
        let mut parts = Vec::new();
        self.split_removal(path, &mut parts);
        parts
    }

    fn split_removal(&self, path: &Path, parts: &mut Vec<Recorded>) {
        if let Some(Node::Dir(dir)) = self.find(path).map(|at| &self.nodes[at]) {
            dir.now.keys().for_each(|name| self.split_removal(&path.join(name), parts));
        }
        parts.push(Op::Remove(path.to_owned()));
    }

    /// Does what one part of an operation does.
    pub(crate) fn apply(&mut self, op: &Recorded) {
        match op {
            Op::Create(path) | Op::Mkdir(path) if self.find(path).is_some() => {}
            Op::Create(path) => self.make(path, Node::File(File::default())),
            Op::Mkdir(path) => self.make(path, Node::Dir(Dir::default())),
            Op::Write(path, bytes) | Op::Append(path, bytes) => {
                let file = self.file(path);
                file.change(Change::Write(file.now.len(), bytes.clone()));
            }
            Op::WriteAt(path, at, bytes) => self.file(path).change(Change::Write(*at as usize, bytes.clone())),
            Op::Truncate(path, len) => self.file(path).change(Change::Len(*len as usize)),
            Op::Fsync(path) => {
                let file = self.file(path);
                file.durable.clone_from(&file.now);
                file.since.clear();
            }
            Op::FsyncDir(path) => {
                let at = self.known(path);
                let dir = self.dir(at);
                dir.durable.clone_from(&dir.now);
                dir.since.clear();
            }
            Op::Rename(from, to) => self.rename(from, to, None),
            Op::Publish(from, to) => self.rename(from, to, self.find(to)),
            Op::Remove(path) => {
                let (dir, name) = self.place(path);
                self.dir(dir).change(vec![(name, None)]);
            }
            Op::Symlink(path) => panic!("symbolic links are not modelled: {}", path.display()),
        }
    }

    /// What the disk may hold if the power fails now.
    pub(crate) fn state(&self, policy: Policy) -> Tree {
        let mut rng = ChaCha8Rng::seed_from_u64(if let Policy::Random(seed) = policy { seed } else { 0 });
        let mut tree = Tree::new();
        self.collect(0, Path::new(""), policy, &mut rng, &mut tree);
        tree
    }

    fn collect(&self, at: usize, path: &Path, policy: Policy, rng: &mut ChaCha8Rng, tree: &mut Tree) {
        match &self.nodes[at] {
            Node::File(file) => drop(tree.insert(path.to_owned(), Some(file.kept(policy, rng)))),
            Node::Dir(dir) => {
                if at != 0 {
                    tree.insert(path.to_owned(), None);
                }
                for (name, node) in dir.kept(policy, rng) {
                    self.collect(node, &path.join(name), policy, rng, tree);
                }
            }
        }
    }

    fn make(&mut self, path: &Path, node: Node) {
        let ((dir, name), at) = (self.place(path), self.nodes.len());
        self.nodes.push(node);
        self.dir(dir).change(vec![(name, Some(at))]);
    }

    /// `replaced` takes the old name.
    fn rename(&mut self, from: &Path, to: &Path, replaced: Option<usize>) {
        let (moved, (dir, old), (other, new)) = (self.known(from), self.place(from), self.place(to));
        assert_eq!(dir, other, "renames across directories are not modelled");
        self.dir(dir).change(vec![(old, replaced), (new, Some(moved))]);
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let inside = path.strip_prefix(&self.base).unwrap_or_else(|_| panic!("{} is elsewhere", path.display()));
        inside.components().try_fold(0, |at, part| match &self.nodes[at] {
            Node::Dir(dir) => dir.now.get(part.as_os_str().to_str()?).copied(),
            Node::File(_) => None,
        })
    }

    fn known(&self, path: &Path) -> usize {
        self.find(path).unwrap_or_else(|| panic!("{} does not exist", path.display()))
    }

    /// The directory that holds the name of `path`, and that name.
    fn place(&self, path: &Path) -> (usize, String) {
        let (parent, name) = (path.parent().unwrap(), path.file_name().unwrap());
        (self.known(parent), name.to_str().unwrap().to_owned())
    }

    fn file(&mut self, path: &Path) -> &mut File {
        let at = self.known(path);
        match &mut self.nodes[at] {
            Node::File(file) => file,
            Node::Dir(_) => panic!("{} is a directory", path.display()),
        }
    }

    fn dir(&mut self, at: usize) -> &mut Dir {
        match &mut self.nodes[at] {
            Node::Dir(dir) => dir,
            Node::File(_) => panic!("a file is used as a directory"),
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.since.push(change);
    }

    fn kept(&self, policy: Policy, rng: &mut ChaCha8Rng) -> Vec<u8> {
        match policy {
            Policy::Synced | Policy::NamesOnly => return self.durable.clone(),
            Policy::All | Policy::DataOnly => return self.now.clone(),
            _ if self.since.is_empty() => return self.now.clone(),
            Policy::Zeros | Policy::Torn | Policy::Random(_) => {}
        }
        let mut bytes = self.durable.clone();
        self.since.iter().filter_map(|change| change.part(policy, rng)).for_each(|part| part.apply(&mut bytes));
        // The length is kept apart from the data.
        if matches!(policy, Policy::Random(_)) && rng.random_ratio(1, 4) {
            bytes.resize(self.now.len(), 0);
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Len(len) => bytes.resize(*len, 0),
            Change::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }

    /// What is kept of it, if anything.
    fn part(&self, policy: Policy, rng: &mut ChaCha8Rng) -> Option<Change> {
        let drawn = matches!(policy, Policy::Random(_));
        match self {
            Change::Len(len) => (!drawn || rng.random()).then_some(Change::Len(*len)),
            Change::Write(at, data) => {
                let zeros = vec![0; data.len()];
                let kept: &[u8] = match policy {
                    Policy::Zeros => &zeros,
                    Policy::Torn => &data[..data.len() / 2],
                    _ => match rng.random_range(0..4) {
                        0 => return None,
                        1 => &zeros,
                        2 => &data[..rng.random_range(0..=data.len())],
                        _ => data,
                    },
                };
                Some(Change::Write(*at, kept.to_vec()))
            }
        }
    }
}

impl Dir {
    fn change(&mut self, change: Vec<(String, Option<usize>)>) {
        apply(&change, &mut self.now);
        self.since.push(change);
    }

    fn kept(&self, policy: Policy, rng: &mut ChaCha8Rng) -> Names {
        match policy {
            Policy::Synced | Policy::DataOnly => self.durable.clone(),
            Policy::All | Policy::NamesOnly | Policy::Zeros | Policy::Torn => self.now.clone(),
            Policy::Random(_) => {
                let mut names = self.durable.clone();
                self.since.iter().filter(|_| rng.random()).for_each(|change| apply(change, &mut names));
                names
            }
        }
    }
}

fn apply(change: &[(String, Option<usize>)], names: &mut Names) {
    for (name, node) in change {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

pub(crate) fn fingerprint(tree: &Tree) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (path, content) in tree {
        let path = path.to_str().unwrap();
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path.as_bytes());
        hasher.update(&content.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        hasher.update(content.as_deref().unwrap_or_default());
    }
    hasher.finalize().into()
}

/// Makes `tree` in `place`, which must not exist.
pub(crate) fn materialise(tree: &Tree, place: &Path) {
    std::fs::create_dir(place).unwrap();
    for (path, content) in tree {
        match content {
            Some(bytes) => std::fs::write(place.join(path), bytes).unwrap(),
            None => std::fs::create_dir(place.join(path)).unwrap(),
        }
    }
}

/// What there is in `place`.
pub(crate) fn read_tree(place: &Path) -> Tree {
    fn walk(dir: &Path, below: &Path, tree: &mut Tree) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let (entry, path) = entry.map(|entry| (entry.path(), below.join(entry.file_name()))).unwrap();
            if entry.is_dir() {
                walk(&entry, &path, tree);
                tree.insert(path, None);
            } else {
                tree.insert(path, Some(std::fs::read(entry).unwrap()));
            }
        }
    }
    let mut tree = Tree::new();
    walk(place, Path::new(""), &mut tree);
    tree
}
