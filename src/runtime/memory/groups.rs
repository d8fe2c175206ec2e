//! Memory limits of control groups, versions 1 and 2. A process is bound by the limit of its own group and of every group above it, and
//! counts against all of them, together with every other process below them.

use std::path::{Component, Path, PathBuf};

/// A group that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The most memory that the group may hold, in bytes.
    pub(super) limit: u64,
    /// What it holds and cannot give back: without the page cache that is dropped when memory is needed.
    pub(super) used: u64,
}

/// The files of a version.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// The part of `memory.stat` that can be dropped.
    droppable: &'static str,
}

const V1: Files =
    Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", droppable: "total_inactive_file" };
const V2: Files = Files { limit: "memory.max", usage: "memory.current", droppable: "inactive_file" };

/// Where a hierarchy is mounted.
struct Mount<'t> {
    /// The group that is seen at the mount point: in a container usually its own.
    root: &'t Path,
    point: &'t Path,
    files: &'static Files,
}

/// The limited groups that this process is in, below the file system's root `root` (`/`; tests have others).
pub(super) fn groups(root: &Path) -> Vec<Group> {
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let members = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for mount in mounts.lines().filter_map(mount) {
        let Some(path) = members.lines().find_map(|line| membership(line, mount.files)) else { continue };
        let point = root.join(mount.point.strip_prefix("/").unwrap_or(mount.point));
        let own = point.join(below(path, mount.root));
        // Groups that are not seen from here, such as those above a container's, have no files.
        let ancestors = own.ancestors().take_while(|dir| dir.starts_with(&point));
        groups.extend(ancestors.filter_map(|dir| group(dir, mount.files)));
    }
    groups
}

/// A line of `mountinfo`: ID, parent, device, root, mount point, options, optional fields, `-`, type, source, options of the type.
fn mount(line: &str) -> Option<Mount<'_>> {
    let (place, kind) = line.split_once(" - ")?;
    let place: Vec<&str> = place.split(' ').collect();
    let kind: Vec<&str> = kind.split(' ').collect();
    let files = match *kind.first()? {
        "cgroup2" => &V2,
        "cgroup" if kind.get(2)?.split(',').any(|option| option == "memory") => &V1,
        _ => return None,
    };
    Some(Mount { root: Path::new(*place.get(3)?), point: Path::new(*place.get(4)?), files })
}

/// The path in a line of `/proc/self/cgroup`, `ID:controllers:path`, if that is the hierarchy with these files.
fn membership<'t>(line: &'t str, files: &Files) -> Option<&'t Path> {
    let mut parts = line.splitn(3, ':');
    let id = parts.next()?;
    let controllers = parts.next()?;
    let path = parts.next()?;
    let ours = match files.limit == V2.limit {
        true => id == "0" && controllers.is_empty(),
        false => controllers.split(',').any(|controller| controller == "memory"),
    };
    ours.then_some(Path::new(path))
}

/// Where the group `path` is below the mount point that shows the group `root`.
fn below(path: &Path, root: &Path) -> PathBuf {
    // Seen from a namespace, a group outside of it begins with `/..`.
    if path.components().any(|part| part == Component::ParentDir) {
        return PathBuf::new();
    }
    path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).unwrap_or(path).to_owned()
}

/// The group whose files are in `dir`, if it has a limit.
fn group(dir: &Path, files: &Files) -> Option<Group> {
    let limit = read_number(&dir.join(files.limit))?;
    let usage = read_number(&dir.join(files.usage)).unwrap_or(0);
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(files.droppable)?.trim().parse().ok());
    Some(Group { limit, used: usage.saturating_sub(droppable.unwrap_or(0)) })
}

fn read_number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                             36 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// A root directory with these mounts, memberships, and files with their numbers.
    fn root(mounts: &str, members: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/self/mountinfo", &format!("23 1 0:2 / / rw - overlay overlay rw\n{mounts}"));
        put("proc/self/cgroup", members);
        files.iter().for_each(|(file, text)| put(&format!("sys/fs/cgroup/{file}"), text));
        dir
    }

    fn limits(mounts: &str, members: &str, files: &[(&str, &str)]) -> Vec<u64> {
        groups(root(mounts, members, files).path()).iter().map(|group| group.limit).collect()
    }

    #[test]
    fn every_group_on_the_way_up_counts() {
        let files = [
            ("user/job/step/memory.max", "max\n"),
            ("user/job/memory.max", "3000\n"),
            ("user/memory.max", "2000\n"),
            ("other/memory.max", "5\n"),
        ];
        assert_eq!(limits(V2_MOUNT, "0::/user/job/step\n", &files), [3000, 2000]);
        let files = [
            ("memory/slurm/job/memory.limit_in_bytes", "700\n"),
            ("memory/slurm/memory.limit_in_bytes", "900\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpuset/slurm/job/memory.limit_in_bytes", "1\n"),
        ];
        let members = "9:name=systemd:/\n5:cpuset,cpu:/slurm/job\n4:memory:/slurm/job\n";
        assert_eq!(limits(V1_MOUNTS, members, &files), [700, 900, 9_223_372_036_854_771_712]);
    }

    /// A container sees its own group at the mount point, under whatever name the host knows it.
    #[test]
    fn groups_are_found_from_within_a_container() {
        let mount = "36 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let files = [("memory/memory.limit_in_bytes", "500"), ("memory/sub/memory.limit_in_bytes", "400")];
        assert_eq!(limits(mount, "4:memory:/docker/abc\n", &files), [500]);
        assert_eq!(limits(mount, "4:memory:/docker/abc/sub\n", &files), [400, 500]);
        // Without the root in mountinfo: the names do not exist, the mount point does.
        assert_eq!(limits(V1_MOUNTS, "4:memory:/docker/abc\n", &files), [500]);
        assert_eq!(limits(V2_MOUNT, "0::/../../x\n", &[("memory.max", "600")]), [600]);
    }

    #[test]
    fn what_is_used_counts_without_the_cache_that_can_be_dropped() {
        let files = [
            ("job/memory.max", "1000"),
            ("job/memory.current", "800\n"),
            ("job/memory.stat", "anon 100\nfile 600\ninactive_file 300\n"),
        ];
        let found = groups(root(V2_MOUNT, "0::/job\n", &files).path());
        assert_eq!(found, [Group { limit: 1000, used: 500 }]);
    }

    #[test]
    fn what_is_not_understood_limits_nothing() {
        assert!(limits("", "", &[]).is_empty());
        assert!(limits(V2_MOUNT, "garbage\n0::\n", &[("memory.max", "many")]).is_empty());
        assert!(limits("x - cgroup2\n - cgroup\n", "0::/a\n", &[("a/memory.max", "5")]).is_empty());
    }
}
