//! The program that starts ranks.

use super::protocol::SOCKET;
use crate::distributed::environment::VARIABLES;
use crate::distributed::mpi;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::io_failure;
use anyhow::Result;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The variable that names an mpiexec which is not on PATH.
const MPIEXEC: &str = "LLAMA_LITE_MPIEXEC";

const HINT: &str = "pip install mpich, which brings an mpiexec that works";

/// The mpiexec to use: the one that a variable names, or the first on PATH whose library the ranks can use.
///
/// # Errors
/// [`Exit::Config`] if there is none.
pub(super) fn find() -> Result<PathBuf, Failure> {
    find_in(std::env::var_os(MPIEXEC), &std::env::var_os("PATH").unwrap_or_default())
}

fn find_in(named: Option<OsString>, path: &OsString) -> Result<PathBuf, Failure> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        if !is_program(&named) {
            let what = format!("{MPIEXEC}: {} is no program", named.display());
            return Err(fail(Exit::Config, what).hint("give the path of an mpiexec, or unset the variable"));
        }
        return if has_library(&named) { Ok(named) } else { Err(without_library(&named)) };
    }
    let found: Vec<PathBuf> =
        std::env::split_paths(path).map(|folder| folder.join("mpiexec")).filter(|file| is_program(file)).collect();
    match (found.iter().find(|file| has_library(file)), found.first()) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(file)) => Err(without_library(file)),
        (None, None) => {
            let what = "--ranks needs an MPI launcher, and there is no mpiexec on PATH";
            Err(fail(Exit::Config, what).hint(HINT))
        }
    }
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn has_library(mpiexec: &Path) -> bool {
    let resolved = mpiexec.canonicalize().ok();
    let files = [Some(mpiexec), resolved.as_deref()];
    files.into_iter().flatten().any(|file| mpi::libraries_beside(file).iter().any(|library| library.exists()))
}

fn without_library(mpiexec: &Path) -> Failure {
    let what = format!("{} belongs to an MPI without the interface of MPI 5 (libmpi_abi.so.1)", mpiexec.display());
    fail(Exit::Config, what).hint(HINT)
}

/// The command that starts `ranks` supervisors on this machine, each with the arguments of this process.
///
/// # Errors
/// [`Exit::Io`] if the program does not know its own path.
pub(super) fn command(mpiexec: &Path, ranks: usize, socket: &Path) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| io_failure("find", Path::new("the program itself"), &e))?;
    let mut command = Command::new(mpiexec);
    command.arg("-n").arg(ranks.to_string()).arg(program).args(std::env::args_os().skip(1));
    command.stdin(Stdio::null()).env(SOCKET, socket);
    // What launchers around this process have left would be taken for the place of a rank.
    for name in VARIABLES {
        command.env_remove(name);
    }
    // MPICH's mpiexec would otherwise start ranks on all hosts of a Slurm allocation, and look up the name of this one.
    command.env("HYDRA_RMK", "user").env("HYDRA_LAUNCHER", "fork").env("HYDRA_USE_LOCALHOST", "1");
    command.env_remove("HYDRA_HOST_FILE");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prefix with an mpiexec, and with a library if `library` names one.
    fn prefix(dir: &Path, name: &str, library: Option<&str>) -> PathBuf {
        let bin = dir.join(name).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(dir.join(name).join("lib")).unwrap();
        std::fs::write(bin.join("mpiexec"), "").unwrap();
        std::fs::set_permissions(bin.join("mpiexec"), std::fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(library) = library {
            std::fs::write(dir.join(name).join("lib").join(library), "").unwrap();
        }
        bin
    }

    #[test]
    fn the_first_that_ranks_can_use_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let old = prefix(dir.path(), "old", None);
        let new = prefix(dir.path(), "new", Some("libmpi_abi.so.1"));
        let path = |folders: &[&PathBuf]| std::env::join_paths(folders).unwrap();
        assert_eq!(find_in(None, &path(&[&old, &new])).unwrap(), new.join("mpiexec"));
        assert_eq!(find_in(Some(new.join("mpiexec").into()), &path(&[&old])).unwrap(), new.join("mpiexec"));
        // A link, as package managers make them.
        let links = dir.path().join("links");
        std::fs::create_dir(&links).unwrap();
        std::os::unix::fs::symlink(new.join("mpiexec"), links.join("mpiexec")).unwrap();
        assert_eq!(find_in(Some("".into()), &path(&[&links])).unwrap(), links.join("mpiexec"));
        let refused = [
            (find_in(None, &path(&[&old])), "libmpi_abi.so.1"),
            (find_in(Some(old.join("mpiexec").into()), &path(&[&new])), "libmpi_abi.so.1"),
            (find_in(None, &path(&[&dir.path().to_owned()])), "no mpiexec on PATH"),
            (find_in(Some(dir.path().into()), &path(&[&new])), "is no program"),
        ];
        for (found, reason) in refused {
            let refused = found.unwrap_err();
            assert!(refused.exit == Exit::Config && refused.message.contains(reason), "{}", refused.message);
            assert!(refused.hint.is_some());
        }
    }
}
