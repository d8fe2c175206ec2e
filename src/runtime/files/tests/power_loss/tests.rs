//! The simulator of power losses is itself held to the system it simulates.

use super::*;
use crate::runtime::files::tests::fault_injection::record;
use crate::runtime::files::*;

/// A disk after `ops`.
fn after(base: &Path, ops: &[Recorded]) -> Disk {
    let mut disk = Disk::empty(base);
    for op in ops {
        disk.split(op).iter().for_each(|part| disk.apply(part));
    }
    disk
}

/// The content of `name` in each of the fixed states after `ops`, none where it is missing; and in drawn ones, sorted.
fn states(base: &Path, ops: &[Recorded], name: &str) -> (Vec<Option<String>>, Vec<Option<String>>) {
    let disk = after(base, ops);
    let content = |policy| {
        let bytes = disk.state(policy).remove(Path::new(name))?;
        Some(String::from_utf8(bytes.unwrap_or_default()).unwrap())
    };
    let mut drawn: Vec<_> = (0..4000).map(|seed| content(Policy::Random(seed))).collect();
    drawn.sort();
    drawn.dedup();
    (FIXED.map(content).to_vec(), drawn)
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn what_is_not_synced_may_be_lost_in_every_way() {
    let base = PathBuf::from("/base");
    let own = |name: &str| base.join(name);
    let mut ops = vec![Op::Create(own("a")), Op::Write(own("a"), b"word".to_vec())];
    let (fixed, drawn) = states(&base, &ops, "a");
    // Synced, All, NamesOnly, Zeros, DataOnly, Torn.
    assert_eq!(fixed, [None, some("word"), some(""), some("\0\0\0\0"), None, some("wo")]);
    let all = ["", "\0\0\0\0", "w", "w\0\0\0", "wo", "wo\0\0", "wor", "wor\0", "word"];
    assert_eq!(drawn[0], None);
    assert_eq!(drawn[1..], all.map(some));
    // The name says nothing about the content, nor the content about the name.
    let (named, data) = (Op::FsyncDir(base.clone()), Op::Fsync(own("a")));
    let with = |more: &Recorded| states(&base, &[&ops[..], std::slice::from_ref(more)].concat(), "a").0;
    assert_eq!(with(&named)[..2], [some(""), some("word")]);
    assert_eq!(with(&data)[..3], [None, some("word"), some("word")]);
    ops.extend([named, data]);
    assert_eq!(states(&base, &ops, "a").1, [some("word")]);
    // Of a cut and the line that then took its place, either may be lost.
    ops.extend([Op::Truncate(own("a"), 1), Op::Append(own("a"), b"!".to_vec())]);
    let drawn = states(&base, &ops, "a").1;
    for state in ["word", "w", "w!", "w!rd", "w\0", "w\0rd"] {
        assert!(drawn.contains(&some(state)), "{state:?} is not in {drawn:?}");
    }
}

#[test]
fn names_trade_places_at_once_and_trees_go_name_by_name() {
    let base = PathBuf::from("/base");
    let own = |name: &str| base.join(name);
    let mut ops = Vec::new();
    for name in ["new", "old"] {
        let file = own(&format!("{name}/file"));
        ops.extend([Op::Mkdir(own(name)), Op::Create(file.clone()), Op::Write(file.clone(), name.into())]);
        ops.extend([Op::Fsync(file), Op::FsyncDir(own(name)), Op::FsyncDir(base.clone())]);
    }
    let before = after(&base, &ops).state(Policy::Synced);
    ops.push(Op::Publish(own("new"), own("old")));
    let mut disk = after(&base, &ops);
    let content = |tree: &Tree, name: &str| String::from_utf8(tree[Path::new(name)].clone().unwrap()).unwrap();
    let drawn = (0..20).map(|seed| disk.state(Policy::Random(seed)));
    let mut seen: Vec<_> = drawn.map(|tree| ["new/file", "old/file"].map(|name| content(&tree, name))).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, [["new", "old"], ["old", "new"]]);
    let parts = disk.split(&Op::Remove(own("new")));
    assert_eq!(parts, [Op::Remove(own("new/file")), Op::Remove(own("new"))]);
    disk.apply(&parts[0]);
    assert_eq!(disk.state(Policy::Synced), before);
    assert_eq!(disk.state(Policy::All).len(), 3);
    disk.apply(&parts[1]);
    assert_eq!(disk.state(Policy::All).len(), 2);
}

/// Everything that the file layer can do.
fn act(base: &Path) -> Result<()> {
    create_dirs(&base.join("x/y"))?;
    write_atomic(&base.join("x/file"), b"one")?;
    write_atomic(&base.join("x/file"), b"two")?;
    let mut log = append_log(&base.join("x/log"))?;
    (0..9).try_for_each(|n| log.line(&format!("line {n}")))?;
    log.sync()?;
    write_atomic(&base.join("x/torn"), b"whole\nto")?;
    append_log(&base.join("x/torn"))?.line("rn")?;
    for content in ["old", "new"] {
        let txn = DirTxn::create(&base.join("x/dir"), "1")?;
        txn.write("file", content.as_bytes())?;
        txn.commit()?;
    }
    rename_durable(&base.join("x/dir"), &base.join("x/moved"))?;
    let mut file = Growing::open(&base.join("part"), 0)?;
    file.write_all(b"HEAD and more")?;
    file.sync()?;
    let mut file = Growing::open(&base.join("part"), 6)?;
    file.write_all(b"body")?;
    file.overwrite(0, b"head")?;
    file.publish(&base.join("whole"))?;
    DirTxn::create(&base.join("x/unfinished"), "2")?.write("file", b"")?;
    remove_tree(&base.join("x/y"))
}

/// The simulator does to its trees what the system does to the real one.
#[test]
fn all_that_was_done_is_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (done, ops) = record(|| act(dir.path()));
    done.unwrap();
    let real = read_tree(dir.path());
    assert_eq!(after(dir.path(), &ops).state(Policy::All), real);
    assert_eq!(real.len(), 7, "{real:?}");
    assert_eq!(real[Path::new("whole")].as_deref(), Some(&b"head abody"[..]));
    let copy = dir.path().join("copy");
    materialise(&real, &copy);
    assert_eq!(read_tree(&copy), real);
    let mut other = real.clone();
    assert_eq!(fingerprint(&other), fingerprint(&real));
    other.insert("x/file".into(), Some(b"twO".to_vec()));
    assert_ne!(fingerprint(&other), fingerprint(&real));
}
