//! Where the MPI library is: it must be that of the launcher that has started this process, because only the two of them know how
//! ranks meet.

use super::abi::{Abi, HINT};
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The library's name with the version of its interface, and the one that developers link with.
const NAMES: [&str; 2] = ["libmpi_abi.so.1", "libmpi_abi.so"];

/// Programs of which a launcher consists: one of them is an ancestor of every rank.
const LAUNCHERS: [&str; 7] =
    ["hydra_pmi_proxy", "mpiexec", "mpiexec.hydra", "mpiexec.gforker", "mpirun", "prterun", "prted"];

/// Files to try, best first; a name without a folder is left to the system's loader.
pub(super) fn candidates() -> Vec<PathBuf> {
    let mut launchers = launchers_above();
    launchers.extend(on_path("mpiexec"));
    let mut found: Vec<PathBuf> = Vec::new();
    for file in launchers.iter().flat_map(|launcher| beside(launcher)).chain(NAMES.map(PathBuf::from)) {
        if !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// Opens the first of `candidates` that is there.
///
/// # Errors
/// None of them is there; one is too old.
pub(super) fn open(candidates: &[PathBuf]) -> Result<Abi> {
    let mut tried = Vec::new();
    for path in candidates {
        let is_file = path.components().count() > 1;
        if is_file && !path.exists() {
            tried.push(path.display().to_string());
            continue;
        }
        match Abi::open(path) {
            Ok(Ok(abi)) => return Ok(abi),
            Ok(Err(too_old)) => return Err(too_old.into()),
            // A file that is there says why it cannot be opened.
            Err(error) if is_file => tried.push(format!("{} ({error})", path.display())),
            Err(_) => tried.push(format!("{} where the system looks for libraries", path.display())),
        }
    }
    let what = format!("no MPI library with the interface of MPI 5; looked for {}", tried.join(", "));
    Err(fail(Exit::Config, what).hint(HINT).into())
}

/// The files that the library may be in the installation of `launcher`.
pub(super) fn beside(launcher: &Path) -> Vec<PathBuf> {
    let Some(prefix) = launcher.parent().and_then(Path::parent) else { return Vec::new() };
    let folders = ["lib", "lib64"].map(|folder| prefix.join(folder));
    folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name))).collect()
}

/// The ancestors of this process that are part of a launcher, from the nearest.
fn launchers_above() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut process = std::os::unix::process::parent_id();
    // The process 1 is the parent of itself, as far as one can see.
    while process > 1 {
        let executable = std::fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        let name = executable.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if LAUNCHERS.contains(&name.as_str()) {
            found.push(executable);
        }
        let Some(parent) = parent_of(process) else { break };
        process = parent;
    }
    found
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program stands in parentheses and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// The program `name` on PATH: as it is called, and where its links lead to.
fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let called = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    called.into_iter().flat_map(|file| [file.canonicalize().ok(), Some(file)]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::error::failure_in;

    #[test]
    fn a_missing_library_is_named_with_every_place_and_a_package() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = dir.path().join("bin/mpiexec");
        let candidates = [beside(&launcher), vec!["libmpi_abi-missing.so".into()]].concat();
        let error = open(&candidates).err().unwrap();
        let failure = failure_in(&error).unwrap();
        assert_eq!(failure.exit, Exit::Config);
        for place in ["lib/libmpi_abi.so.1", "lib64/libmpi_abi.so.1", "libmpi_abi-missing.so where the system"] {
            assert!(failure.message.contains(place), "{place}: {}", failure.message);
        }
        assert!(failure.hint.as_ref().unwrap().contains("pip install mpich"));
    }

    #[test]
    fn what_is_no_library_and_what_is_too_old_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        let file = dir.path().join("lib/libmpi_abi.so.1");
        std::fs::write(&file, "INPUT(libmpi_abi.so.1)").unwrap();
        let error = open(std::slice::from_ref(&file)).err().unwrap().to_string();
        assert!(error.contains("libmpi_abi.so.1 ("), "{error}");
        // A library without these functions, as those of older versions are.
        let error = open(&["libc.so.6".into()]).err().unwrap();
        assert!(error.to_string().contains("MPI library is too old"), "{error}");
        assert_eq!(failure_in(&error).unwrap().exit, Exit::Config);
    }

    #[test]
    fn ancestors_are_found_by_their_numbers() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!(parent_of(std::process::id()), Some(parent));
        assert_eq!(parent_of(u32::MAX), None);
    }
}
