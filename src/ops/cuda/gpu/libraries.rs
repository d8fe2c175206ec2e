//! NVIDIA's libraries from Python packages, opened before they are first called: a library that is open already is found by its name, whoever
//! looks for it ([`stand_in.c`](../stand_in.c), cuDNN's shim).

#[cfg(feature = "cuda")]
use crate::runtime::nvidia::candidates;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};

/// The libraries that computing on a GPU needs, with the folders that they may have in Python packages, in the order of their dependence.
/// `major` is the version of CUDA that the program was built for.
#[cfg(feature = "cuda")]
pub(super) fn open_libraries(major: &str) {
    let cublas = ["libcublasLt.so.", "libcublas.so."].map(|name| (format!("{name}{major}"), "cublas"));
    let curand = ("libcurand.so.10".to_owned(), "curand");
    let cudnn = cfg!(feature = "cudnn").then(|| ("libcudnn.so.9".to_owned(), "cudnn"));
    for (name, package) in cublas.into_iter().chain([curand]).chain(cudnn) {
        // Since version 13 CUDA's libraries share a folder; cuDNN has its own.
        open_first(&candidates(&name, &[&format!("cu{major}"), package]));
    }
}

/// Opens the first of `candidates` that can be, and returns it. None is no error here: whoever calls the library says what is missing.
fn open_first(candidates: &[PathBuf]) -> Option<&Path> {
    let opened = candidates.iter().find(|path| {
        // SAFETY: the initialisers of NVIDIA's libraries have no conditions.
        match unsafe { Library::open(Some(path.as_path()), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // Never closed: functions of it are called until the process ends.
                std::mem::forget(library);
                true
            }
            Err(_) => false,
        }
    });
    opened.map(PathBuf::as_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_library_of_a_package_is_then_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let name = "libllama_lite_opened_first.so.7";
        let (source, file) = (dir.path().join("a.c"), dir.path().join("packaged.so"));
        std::fs::write(&source, "int answer(void) { return 42; }\n").unwrap();
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"]).arg(&file).arg(&source);
        assert!(command.status().unwrap().success());

        let by_name = [PathBuf::from(name)];
        assert_eq!(open_first(&by_name), None);
        let all = [by_name[0].clone(), dir.path().join("missing.so"), file.clone()];
        assert_eq!(open_first(&all), Some(file.as_path()));
        assert_eq!(open_first(&by_name), Some(by_name[0].as_path()), "the dynamic linker knows it now");
    }
}
