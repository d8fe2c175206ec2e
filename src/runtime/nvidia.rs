//! Where NVIDIA's libraries are. They may be anywhere where the dynamic linker looks; Python packages put them where it does not.

use std::path::{Path, PathBuf};

/// Files that may be the library `name`, such as `libcublas.so.13`, best first; the name alone is left to the dynamic linker. `packages` are the
/// folders that it may have below a folder `nvidia` of Python packages.
pub fn candidates(name: &str, packages: &[&str]) -> Vec<PathBuf> {
    let opened = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().ok();
    candidates_beside(&opened, environments(program.as_deref()), name, packages)
}

/// Folders of Python environments: those that are in use, and the one whose `bin` has `program`.
fn environments(program: Option<&Path>) -> Vec<PathBuf> {
    let in_use = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let own = program.and_then(|program| program.parent()?.parent()).map(Path::to_owned);
    in_use.chain(own).collect()
}

/// `opened` has the libraries that this process has opened, at the ends of its lines.
fn candidates_beside(opened: &str, environments: Vec<PathBuf>, name: &str, packages: &[&str]) -> Vec<PathBuf> {
    let places: Vec<PathBuf> = packages.iter().map(|package| Path::new(package).join("lib").join(name)).collect();
    let beside = opened.lines().filter_map(|line| {
        let file = &line[line.find('/')?..];
        // CUDA's own libraries come from the same packages.
        let (folder, _) = file.split_once("/nvidia/").filter(|_| file.contains(".so"))?;
        Some(Path::new(folder).join("nvidia"))
    });
    let of_python = environments.into_iter().flat_map(|environment| {
        let pattern = environment.join("lib/python3*/site-packages/nvidia");
        glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten()
    });
    let mut found = vec![PathBuf::from(name)];
    for folder in beside.chain(of_python) {
        for file in places.iter().map(|place| folder.join(place)) {
            if !found.contains(&file) {
                found.push(file);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_beside_cudas_and_in_python() {
        let dir = tempfile::tempdir().unwrap();
        let packages = dir.path().join("lib/python3.12/site-packages/nvidia");
        std::fs::create_dir_all(&packages).unwrap();
        let opened = "7f0-7f1 r-xp 00000000 08:01 42      /opt/venv/nvidia/cu13/lib/libcublas.so.13\n\
                      7f1-7f2 r-xp 00000000 08:01 42      /opt/venv/nvidia/cu13/lib/libcublas.so.13\n\
                      7f2-7f3 r-xp 00000000 08:01 43      /usr/lib/libc.so.6\n7f3-7f4 rw-p 00000000 00:00 0\n";
        let environments = || vec![dir.path().to_owned(), "/no/such".into()];
        let found = candidates_beside(opened, environments(), "libnccl.so.2", &["nccl"]);
        let of_python = packages.join("nccl/lib/libnccl.so.2");
        assert_eq!(found, ["libnccl.so.2".into(), "/opt/venv/nvidia/nccl/lib/libnccl.so.2".into(), of_python]);
        let found = candidates_beside("", environments(), "libcublas.so.13", &["cu13", "cublas"]);
        let of_python = ["cu13", "cublas"].map(|package| packages.join(package).join("lib/libcublas.so.13"));
        assert_eq!(found[1..], of_python);
    }

    #[test]
    fn the_environment_that_the_program_is_in_counts() {
        let found = environments(Some(Path::new("/opt/venv/bin/llama-lite")));
        assert_eq!(found.last(), Some(&PathBuf::from("/opt/venv")));
    }
}
