//! What the machine is: facts that tell two attempts of a run apart. From a fixed list, never the environment.

use std::sync::OnceLock;

/// The processor's name, where the system tells; asked once.
pub fn cpu() -> Option<&'static str> {
    static CPU: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    CPU.get_or_init(ask).as_deref()
}

pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Name and release of the kernel.
pub fn kernel() -> String {
    let uname = rustix::system::uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

/// Whether this process was started with `signal` ignored, as `nohup` does with SIGHUP: it then stays so.
pub fn ignores(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 1
}

/// One line per thread of this process: its name, its state and the system call it is in.
pub fn threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut lines: Vec<String> = tasks
        .flatten()
        .map(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let state = read("status").lines().find_map(|l| l.strip_prefix("State:").map(|s| s.trim().to_owned()));
            let (name, wait) = (read("comm"), read("wchan"));
            let call = read("syscall").split(' ').next().unwrap_or_default().trim().to_owned();
            let state = state.unwrap_or_default();
            format!("{} {}: {state}, system call {call}, waits in {wait}", task.file_name().display(), name.trim())
        })
        .collect();
    lines.sort();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_name_and_this_thread_is_seen() {
        assert!(!host().is_empty() && kernel().contains(' '));
        if cfg!(target_os = "linux") {
            assert!(threads().iter().any(|line| line.contains("running")), "{:?}", threads());
            assert!(!ignores(signal_hook::consts::SIGTERM) && !ignores(0) && !ignores(65));
        }
    }
}
