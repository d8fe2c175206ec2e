//! Run directories that were removed, copied, altered or put on unusual file systems.
