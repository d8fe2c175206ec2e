//! The memory of the machine: checked before a large allocation, because one that fails ends the process.

mod groups;

use super::error::{Exit, Failure, fail};
use std::path::Path;

/// Bytes of main memory; none where the system does not say.
pub fn total() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        Some(info.totalram as u64 * info.mem_unit as u64)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The most memory that this process can have, by the machine, its control groups and `ulimit`; none where the system does not say.
pub fn usable() -> Option<u64> {
    bound().map(|bound| bound.bytes)
}

/// Bytes that can be taken without swapping; none where the system does not say.
pub fn available() -> Option<u64> {
    let groups = groups::groups(Path::new("/"));
    let rooms = groups.iter().map(|group| group.limit.saturating_sub(group.used));
    let own = address_space().map(|limit| limit.saturating_sub(own_status("VmSize:").unwrap_or(0)));
    own_kib("/proc/meminfo", "MemAvailable:").map(|free| rooms.chain(own).fold(free, u64::min))
}

/// The most memory that this process has held so far; none where the system does not say.
pub fn peak() -> Option<u64> {
    own_status("VmHWM:")
}

fn own_status(field: &str) -> Option<u64> {
    own_kib("/proc/self/status", field)
}

/// The field of a file of `/proc`, which is in KiB, in bytes.
fn own_kib(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The limit of `ulimit -v`, if there is one.
fn address_space() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What bounds the memory of this process.
struct Bound {
    bytes: u64,
    whose: &'static str,
}

fn bound() -> Option<Bound> {
    let machine = total().map(|bytes| Bound { bytes, whose: "this machine has" });
    let groups = groups::groups(Path::new("/")).into_iter();
    let groups = groups.map(|group| Bound { bytes: group.limit, whose: "the control group of this process may use" });
    let own = address_space().map(|bytes| Bound { bytes, whose: "`ulimit -v` allows" });
    machine.into_iter().chain(groups).chain(own).min_by_key(|bound| bound.bytes)
}

/// Refuses what cannot fit into the memory that this process can have.
///
/// # Errors
/// [`Exit::Memory`] with both numbers.
pub fn check(bytes: u64, what: &str, hint: impl FnOnce() -> String) -> Result<(), Failure> {
    match bound() {
        Some(bound) if bytes > bound.bytes => {
            let needed = bytes as f64 / 1e9;
            let limit = bound.bytes as f64 / 1e9;
            let message = format!("{what} takes {needed:.1} GB; {} {limit:.1} GB", bound.whose);
            Err(fail(Exit::Memory, message).hint(hint()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let (Some(total), Some(usable)) = (total(), usable()) else { return };
        assert!(usable <= total && available().is_none_or(|free| free > 0 && free <= usable));
        assert!(check(usable / 2, "half", String::new).is_ok());
        let refused = check(total.saturating_mul(2), "the model", || "make it smaller".to_owned()).unwrap_err();
        assert_eq!(refused.exit, Exit::Memory);
        assert!(refused.message.starts_with("the model takes"), "{}", refused.message);
    }
}
