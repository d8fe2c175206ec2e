//! What the machine has: asked before a large allocation, because one that fails ends the process without a word.

use super::error::{Exit, Failure, fail};

/// Bytes of main memory, where the system tells.
pub fn total() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        Some(info.totalram as u64 * info.mem_unit as u64)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Bytes that can be taken without swapping, where the system tells.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib.saturating_mul(1024).min(limit().unwrap_or(u64::MAX)))
}

/// The most memory this process has held, where the system tells.
pub fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The control group's limit of this process, if it has one.
fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let text = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?;
    text.trim().parse().ok()
}

/// Refuses what cannot fit into the machine's memory.
///
/// # Errors
/// [`Exit::Memory`] with both numbers.
pub fn check(bytes: u64, what: &str, hint: &str) -> Result<(), Failure> {
    match total().map(|total| total.min(limit().unwrap_or(u64::MAX))) {
        Some(total) if bytes > total => {
            let gb = |n: u64| n as f64 / 1e9;
            Err(fail(Exit::Memory, format!("{what} takes {:.1} GB; this machine has {:.1} GB", gb(bytes), gb(total)))
                .hint(hint))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let Some(total) = total() else { return };
        assert!(available().is_none_or(|free| free > 0 && free <= total));
        assert!(check(total / 2, "half", "-").is_ok());
        let refused = check(total.saturating_mul(2), "the model", "make it smaller").unwrap_err();
        assert_eq!(refused.exit, Exit::Memory);
        assert!(refused.message.starts_with("the model takes"), "{}", refused.message);
    }
}
