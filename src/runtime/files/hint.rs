//! What a user can do about a system error. Advice about space is for writes, advice about spelling for what should exist.

use std::io;

use rustix::io::Errno;

/// What was being done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading it, or finding out about it.
    Read,
    /// Creating, writing, renaming or deleting it.
    Write,
}

impl Access {
    /// What the infinitive that [`io_failure`](super::io_failure) is given needs: `read` or `write`.
    pub(super) fn to(what: &str) -> Self {
        const READS: [&str; 5] = ["open", "read", "list", "measure", "find"];
        let verb = what.split(' ').next().unwrap_or_default();
        if READS.contains(&verb) { Access::Read } else { Access::Write }
    }
}

/// The remedy for `error`.
pub fn io_hint(error: &io::Error, access: Access) -> &'static str {
    error
        .raw_os_error()
        .and_then(|code| by_errno(Errno::from_raw_os_error(code), access))
        .unwrap_or_else(|| by_kind(error.kind(), access))
}

fn by_errno(errno: Errno, access: Access) -> Option<&'static str> {
    let reading = access == Access::Read;
    Some(match errno {
        Errno::NOSPC => "free space (or inodes: `df -i`) on this disk, then run the command again",
        Errno::DQUOT => "delete files of yours or raise the quota, then run the command again",
        Errno::FBIG => "raise the file size limit (`ulimit -f`) or use another file system",
        Errno::ROFS => "the file system is mounted read-only: choose another directory",
        Errno::ACCESS | Errno::PERM if reading => "you may not read it: check owner and permissions (`ls -l`)",
        Errno::ACCESS | Errno::PERM => {
            "you may not write here: check owner and permissions of the directory (`ls -ld`)"
        }
        Errno::NOENT if reading => "check that the path is spelt right and that it exists",
        Errno::NOENT => "its directory does not exist, or was removed: create it first",
        Errno::EXIST | Errno::NOTEMPTY => "choose another name, or move the existing one away",
        Errno::ISDIR => "this is a directory: give the path of a file",
        Errno::NOTDIR => "check the path: a part of it is a file, not a directory",
        Errno::NAMETOOLONG => "the name is too long for this file system: choose a shorter one",
        Errno::LOOP => "symbolic links are not followed here: give the real path",
        Errno::IO if reading => "the device reports an error: see `dmesg`, and restore the file from a good copy",
        Errno::IO => "the device reports an error: see `dmesg`, and use another disk",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (`ulimit -n`)",
        Errno::NOMEM => "the system is out of memory: end other programs, then run the command again",
        Errno::STALE => "the file was removed or replaced on the server: check the path, then run the command again",
        Errno::NOTCONN | Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH => {
            "the server of this file system does not answer: mount it again"
        }
        Errno::BUSY | Errno::TXTBSY => "another program uses it: end that program, then run the command again",
        Errno::XDEV => "the two places are on different file systems: use one file system for both",
        _ => return None,
    })
}

fn by_kind(kind: io::ErrorKind, access: Access) -> &'static str {
    use io::ErrorKind as Kind;
    match (kind, access) {
        (Kind::UnexpectedEof, _) => "the file ends too early: restore it from a good copy",
        (Kind::InvalidData, _) => "the file is damaged or of another format: restore it from a good copy",
        (Kind::NotFound, _) => "check that the path is spelt right and that it exists",
        (Kind::PermissionDenied, _) => "check owner and permissions (`ls -l`)",
        (Kind::StorageFull, _) => "free space on this disk, then run the command again",
        (_, Access::Read) => "check that the file can be read (`cat FILE > /dev/null`)",
        (_, Access::Write) => "check that files can be written there (`touch DIRECTORY/test`)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::files::io_failure;
    use std::path::Path;

    fn hint(what: &str, errno: Errno) -> String {
        io_failure(what, Path::new("x"), &errno.into()).hint.unwrap()
    }

    #[test]
    fn only_a_full_disk_is_answered_with_space() {
        for errno in (1..=133).map(Errno::from_raw_os_error) {
            for what in ["read", "open", "list the directory", "write", "rename the finished file to", "sync"] {
                let about_space = hint(what, errno).contains("space");
                assert_eq!(about_space, errno == Errno::NOSPC, "{what} {errno:?}: {}", hint(what, errno));
            }
        }
    }

    #[test]
    fn reading_and_writing_have_hints_of_their_own() {
        for errno in [Errno::IO, Errno::ACCESS, Errno::NOENT, Errno::PROTO] {
            assert_ne!(hint("read", errno), hint("write", errno), "{errno:?}");
        }
        let distinct: std::collections::BTreeSet<_> =
            [Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::IO, Errno::NOENT, Errno::ISDIR, Errno::ROFS]
                .map(|errno| hint("write", errno))
                .into();
        assert_eq!(distinct.len(), 7);
    }
}
