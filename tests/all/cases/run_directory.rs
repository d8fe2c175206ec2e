//! Run directories that were removed, copied, altered or put on unusual file systems.

#[cfg(target_os = "linux")]
mod abilities;
mod altered;
mod displaced;
#[cfg(target_os = "linux")]
mod memory;
