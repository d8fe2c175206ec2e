//! The shared memory of ranks on one host, which MPICH gives a name until its orderly end.
//!
//! Ranks that are killed would leave it behind, a megabyte each: memory that no process has and that a container (64 MB of it, often)
//! soon lacks. Once all ranks have it mapped the name is of no use, and without one the system frees it with the last rank.

const PREFIX: &str = "/dev/shm/mpich_shm_";

/// Removes the names of MPICH's shared memory of this process. All ranks of this host must have it mapped.
pub(super) fn remove_names() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for name in names(&maps) {
        // Another rank may have done it; and a name that stays does no harm to this run.
        let _ = std::fs::remove_file(name);
    }
}

/// The names in `maps`, a text like that of /proc/self/maps, that still exist.
fn names(maps: &str) -> impl Iterator<Item = &str> {
    maps.lines().filter_map(|line| {
        let at = line.find(PREFIX)?;
        Some(&line[at..]).filter(|name| !name.contains(' '))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_exist_and_are_of_mpich_are_removed() {
        let maps = "7f00-7f01 rw-s 00000000 00:19 5  /dev/shm/mpich_shm_1a_0\n\
                    7f02-7f03 rw-s 00000000 00:19 6  /dev/shm/mpich_shm_2b_0 (deleted)\n\
                    7f04-7f05 rw-s 00000000 00:19 7  /dev/shm/other\n7f06-7f07 rw-p 00000000 00:00 0\n";
        assert_eq!(names(maps).collect::<Vec<_>>(), ["/dev/shm/mpich_shm_1a_0"]);
    }
}
