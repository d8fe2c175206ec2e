//! Facts about the machine by which two attempts of a run can differ: a fixed list, and nothing of the environment.

use std::path::Path;
use std::sync::OnceLock;

/// The processor's name, where the system gives it; read once.
pub fn cpu() -> Option<&'static str> {
    static CPU: OnceLock<Option<String>> = OnceLock::new();
    CPU.get_or_init(read_cpu_name).as_deref()
}

fn read_cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
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

/// How many processors the process `pid` may use (a number, or `self`), where the system says.
pub fn processors(pid: &str) -> Option<usize> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
    Some(mask.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit.count_ones() as usize).sum())
}

/// The process that has started this one, or that has taken it over since.
pub fn parent() -> u32 {
    std::os::unix::process::parent_id()
}

/// One line per thread of this process: its name, its state and the system call it is in.
pub fn threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut lines: Vec<String> = tasks.flatten().map(|task| describe_thread(&task.path())).collect();
    lines.sort();
    lines
}

/// The line of the thread whose directory in `/proc` is `task`, which is named by its number.
fn describe_thread(task: &Path) -> String {
    let [status, name, wait, call] =
        ["status", "comm", "wchan", "syscall"].map(|file| std::fs::read_to_string(task.join(file)).unwrap_or_default());
    let number = task.file_name().unwrap_or_default().display();
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default().trim();
    let call = call.split(' ').next().unwrap_or_default().trim();
    format!("{number} {}: {state}, system call {call}, waits in {wait}", name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_name_and_this_thread_is_seen() {
        assert!(!host().is_empty() && kernel().contains(' '));
        if cfg!(target_os = "linux") {
            assert!(threads().iter().any(|line| line.contains("running")), "{:?}", threads());
            assert!(processors("self").is_some_and(|own| own > 0) && processors(&parent().to_string()).is_some());
            assert!(!ignores(signal_hook::consts::SIGTERM) && !ignores(0) && !ignores(65));
        }
    }
}
