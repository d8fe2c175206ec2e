//! Where NCCL's library is. Like NVIDIA's other libraries it may be anywhere where the dynamic linker looks; Python packages put it beside
//! those, where the linker does not.

use super::abi::{Api, HINT};
use crate::runtime::error::{Exit, Failure, fail};
use std::path::{Path, PathBuf};

const NAME: &str = "libnccl.so.2";

/// Where it is below a folder `nvidia` of Python packages.
const IN_PACKAGES: &str = "nccl/lib/libnccl.so.2";

/// Files to try, best first; the name alone is left to the dynamic linker.
pub(super) fn candidates() -> Vec<PathBuf> {
    let opened = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    candidates_beside(&opened, environments)
}

/// `opened` has the libraries that this process has opened, at the ends of its lines.
fn candidates_beside(opened: &str, environments: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let beside = opened.lines().filter_map(|line| {
        let file = &line[line.find('/')?..];
        // CUDA's own libraries come from the same packages.
        let (packages, _) = file.split_once("/nvidia/").filter(|_| file.contains(".so"))?;
        Some(Path::new(packages).join("nvidia").join(IN_PACKAGES))
    });
    let of_python = environments.flat_map(|environment| {
        let pattern = environment.join("lib/python3*/site-packages/nvidia").join(IN_PACKAGES);
        glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten()
    });
    let mut found = vec![PathBuf::from(NAME)];
    for file in beside.chain(of_python) {
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
pub(super) fn open(candidates: &[PathBuf]) -> Result<Api, Failure> {
    let mut tried = Vec::new();
    for path in candidates {
        let is_file = path.components().count() > 1;
        if is_file && !path.exists() {
            tried.push(path.display().to_string());
            continue;
        }
        match Api::open(path) {
            Ok(api) => return api,
            // A file that is there says why it cannot be opened.
            Err(error) if is_file => tried.push(format!("{} ({error})", path.display())),
            Err(_) => tried.push(format!("{} where the system looks for libraries", path.display())),
        }
    }
    Err(fail(Exit::Config, format!("no NCCL library; looked for {}", tried.join(", "))).hint(HINT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_for_beside_cudas_libraries_and_in_python() {
        let dir = tempfile::tempdir().unwrap();
        let of_python = dir.path().join("lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2");
        std::fs::create_dir_all(of_python.parent().unwrap()).unwrap();
        std::fs::write(&of_python, "").unwrap();
        let opened = "7f0-7f1 r-xp 00000000 08:01 42      /opt/venv/nvidia/cu13/lib/libcublas.so.13\n\
                      7f1-7f2 r-xp 00000000 08:01 42      /opt/venv/nvidia/cu13/lib/libcublas.so.13\n\
                      7f2-7f3 r-xp 00000000 08:01 43      /usr/lib/libc.so.6\n7f3-7f4 rw-p 00000000 00:00 0\n";
        let found = candidates_beside(opened, [dir.path().to_owned(), "/no/such".into()].into_iter());
        assert_eq!(found, [NAME.into(), "/opt/venv/nvidia/nccl/lib/libnccl.so.2".into(), of_python]);
    }

    #[test]
    fn a_missing_library_is_named_with_every_place_and_a_package() {
        let refused = open(&["/no/such/libnccl.so.2".into(), "libnccl-missing.so".into()]).err().unwrap();
        assert_eq!(refused.exit, Exit::Config);
        for place in ["/no/such/libnccl.so.2", "libnccl-missing.so where the system"] {
            assert!(refused.message.contains(place), "{}", refused.message);
        }
        assert!(refused.hint.unwrap().contains("pip install nvidia-nccl-cu13"));
    }

    #[test]
    fn what_is_no_nccl_is_refused() {
        let refused = open(&["libc.so.6".into()]).err().unwrap();
        assert!(refused.exit == Exit::Config && refused.message.contains("too old"), "{}", refused.message);
    }
}
