//! NCCL's library: like NVIDIA's others it may come from a Python package.

use super::abi::{Api, HINT};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::nvidia;
use std::path::PathBuf;

/// Files to try, best first; the name alone is left to the dynamic linker.
pub(super) fn candidates() -> Vec<PathBuf> {
    nvidia::candidates("libnccl.so.2", &["nccl"])
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
