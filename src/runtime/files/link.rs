//! Symbolic links, made in one step.
//!
//! Only the download cache needs them: its layout, shared with other programs, names each content once and links to it.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;

use super::fault::{Op, step};
use super::{io_failure, parent_of, remove_temp, sync_dir, temp_beside};
use crate::runtime::error::{Exit, fail};

/// Makes `path` a symbolic link that says `target` (kept as it is: a relative one is read from `path`'s directory,
/// which must exist). A link or regular file of that name is replaced in one step; a directory is refused.
///
/// # Errors
/// [`Exit::Io`], also where the file system knows no links.
pub fn link(target: &Path, path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        let failure = fail(Exit::Io, format!("cannot make the link {}: it is a directory", path.display()));
        return Err(failure.hint("move the directory away").into());
    }
    // A system call that makes links replaces nothing; a rename does.
    let temp = temp_beside(path)?;
    let made = step(Op::Symlink(&temp)).and_then(|()| symlink(target, &temp));
    made.map_err(|e| unmade(path, &e))?;
    let renamed = step(Op::Rename(&temp, path)).and_then(|()| std::fs::rename(&temp, path));
    renamed.and_then(|()| sync_dir(parent_of(path))).map_err(|e| {
        remove_temp(&temp);
        io_failure("make the link", path, &e).into()
    })
}

fn unmade(path: &Path, error: &io::Error) -> anyhow::Error {
    let failure = io_failure("make the link", path, error);
    match error.kind() {
        // What Linux and macOS say of exFAT and the like.
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
            failure.hint("use a directory you may write to, on a file system with symbolic links").into()
        }
        _ => failure.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_replaced_whole_and_directories_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("one"), "1").unwrap();
        std::fs::write(dir.path().join("two"), "2").unwrap();
        let path = dir.path().join("sub/link");
        for (target, content) in [("../one", "1"), ("../two", "2")] {
            link(Path::new(target), &path).unwrap();
            assert_eq!(std::fs::read_link(&path).unwrap(), Path::new(target));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).unwrap().count(), 1, "no temporary link is left");
        let error = link(Path::new("one"), &dir.path().join("sub/../sub")).unwrap_err();
        assert!(error.to_string().contains("directory"), "{error}");
        assert!(link(Path::new("x"), &dir.path().join("none/link")).is_err());
    }
}
