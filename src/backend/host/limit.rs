//! How much memory this process may use, and how much is left: cgroup limits, physical memory, memory available.
//!
//! Linux does not refuse memory, it kills; so an allocator on the host needs a limit by default. The parsing is pure, over
//! texts and a directory, and never panics: a file that is missing or unreadable says nothing. Knows no backend.

use std::path::{Path, PathBuf};

use crate::backend::Budget;
use crate::units::GIB;

/// What is assumed where the system does not tell its physical memory (Windows).
const ASSUMED_MEMORY: u64 = 8 * GIB;
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The default limit of a host allocator in bytes: the smallest cgroup limit above this process and no more than the
/// physical memory, less 5 %.
///
/// Cgroup limits are those of Linux, version 2 (`memory.max`, `memory.high`) and 1 (`memory.limit_in_bytes`), of the
/// process's own cgroup and all above it that can be seen. Elsewhere it is the physical memory as `sysconf` tells it;
/// where nobody tells (Windows), 8 GiB are assumed.
pub fn default_limit() -> u64 {
    let memory = physical_memory().unwrap_or(ASSUMED_MEMORY);
    less_a_margin(cgroup_limit().map_or(memory, |limit| limit.min(memory)))
}

/// [`default_limit`], and what of it nobody uses: the memory available, or what the tightest cgroup has room for, page
/// cache counted as room. `None` outside Linux.
pub fn budget() -> Option<Budget> {
    let available = meminfo(&read("/proc/meminfo")?, "MemAvailable")?;
    let total = [physical_memory(), cgroup_limit()].into_iter().flatten().min()?;
    let free = cgroup_room().map_or(available, |room| room.min(available));
    Some(Budget { total, free: free.min(total) })
}

/// Bytes of physical memory, where the system tells.
pub fn physical_memory() -> Option<u64> {
    read("/proc/meminfo").and_then(|text| meminfo(&text, "MemTotal")).or_else(system_memory)
}

#[cfg(unix)]
use super::mapping::physical_memory as system_memory;

#[cfg(not(unix))]
fn system_memory() -> Option<u64> {
    None
}

/// What of so many bytes an allocator takes at most: 5 % less.
pub(crate) fn less_a_margin(bytes: u64) -> u64 {
    bytes - bytes / 20
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn cgroup_limit() -> Option<u64> {
    smallest(Path::new(CGROUP_ROOT), &read("/proc/self/cgroup")?, limit_of)
}

fn cgroup_room() -> Option<u64> {
    smallest(Path::new(CGROUP_ROOT), &read("/proc/self/cgroup")?, room_of)
}

/// The names of what we read in a version of cgroups.
struct Files {
    mount: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    page_cache: &'static str,
}

const V2: Files =
    Files { mount: "", limits: &["memory.max", "memory.high"], used: "memory.current", page_cache: "inactive_file" };
const V1: Files = Files {
    mount: "memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    page_cache: "total_inactive_file",
};

/// The least of `measure` over the cgroups that `membership` (the text of `/proc/self/cgroup`) names and all above them,
/// as mounted at `root`.
fn smallest(root: &Path, membership: &str, measure: fn(&Path, &Files) -> Option<u64>) -> Option<u64> {
    let paths = membership_paths(membership);
    let v2 = paths.v2.into_iter().map(|path| (path, &V2));
    let v1 = paths.v1_memory.into_iter().map(|path| (path, &V1));
    v2.chain(v1)
        .flat_map(|(path, files)| upwards(path).into_iter().map(move |folder| (folder, files)))
        .filter_map(|(folder, files)| measure(&root.join(files.mount).join(folder), files))
        .min()
}

fn limit_of(folder: &Path, files: &Files) -> Option<u64> {
    files.limits.iter().filter_map(|name| limit(&read(folder.join(name))?)).min()
}

fn room_of(folder: &Path, files: &Files) -> Option<u64> {
    let limit = limit_of(folder, files)?;
    let used = self::limit(&read(folder.join(files.used))?)?;
    let cache = read(folder.join("memory.stat")).and_then(|text| stat(&text, files.page_cache)).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// The cgroups of a process that count memory, as paths from the root of their hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
struct Membership<'a> {
    v2: Option<&'a str>,
    v1_memory: Option<&'a str>,
}

/// Reads `/proc/self/cgroup`: lines of `hierarchy:controllers:path`.
fn membership_paths(text: &str) -> Membership<'_> {
    let mut found = Membership::default();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if hierarchy == "0" && controllers.is_empty() {
            found.v2 = Some(path);
        } else if controllers.split(',').any(|name| name == "memory") {
            found.v1_memory = Some(path);
        }
    }
    found
}

/// A cgroup's folder and all above it, relative to the mount, the root (an empty path) last. Of a path that leads out of
/// what we can see (`/../other`, from outside our namespace), the root only.
fn upwards(path: &str) -> Vec<PathBuf> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let depth = if parts.contains(&"..") { 0 } else { parts.len() };
    (0..=depth).rev().map(|keep| parts[..keep].iter().collect()).collect()
}

/// Reads a limit or a usage: bytes, or `max` for none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Reads a line `key value` of `memory.stat`, in bytes.
fn stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Reads a line `key: value kB` of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;

    #[test]
    fn reads_membership_of_both_versions() {
        let hybrid = "9:name=systemd:/\n4:memory:/box/3f41\n2:cpu,memory,cpuacct:/both\n0::/user.slice/a:b\n";
        assert_eq!(membership_paths(hybrid), Membership { v2: Some("/user.slice/a:b"), v1_memory: Some("/both") });
        assert_eq!(membership_paths("0::/\n"), Membership { v2: Some("/"), v1_memory: None });
        for text in ["", "0", "0:", ":::", "4:memory", "\u{0}\n::\n", "1:name=memory:/x", "0:cpu:/x"] {
            assert_eq!(membership_paths(text), Membership::default(), "{text:?}");
        }
    }

    #[test]
    fn goes_up_to_the_root_and_never_out_of_it() {
        let paths = |path| upwards(path).iter().map(|p| p.to_string_lossy().replace('\\', "/")).collect::<Vec<_>>();
        assert_eq!(paths("/a/b/c"), ["a/b/c", "a/b", "a", ""]);
        assert_eq!(paths("/"), [""]);
        assert_eq!(paths(""), [""]);
        assert_eq!(paths("//a//./b/"), ["a/b", "a", ""]);
        assert_eq!(paths("/../../etc"), [""]);
    }

    #[test]
    fn reads_numbers_and_nothing_else() {
        assert_eq!(limit("104857600\n"), Some(100 * MIB));
        assert_eq!(limit("9223372036854771712\n"), Some(9223372036854771712));
        for text in ["max\n", "", "-1", "12k", "99999999999999999999", "1 2"] {
            assert_eq!(limit(text), None, "{text:?}");
        }
        let text = "MemTotal:       24689504 kB\nMemAvailable:   24000000 kB\nHugePages_Total:       3\nBroken: kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24689504 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(24000000 * 1024));
        for key in ["Mem", "HugePages_Total", "Broken", "Missing", ""] {
            assert_eq!(meminfo(text, key), None, "{key:?}");
        }
        assert_eq!(meminfo("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
        let text = "inactive_file_x 1\ninactive_file 4096\ntotal_inactive_file oops\n";
        assert_eq!((stat(text, "inactive_file"), stat(text, "total_inactive_file")), (Some(4096), None));
    }

    /// A tree of files under a fresh folder of the system's temporary folder, gone when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Tree {
            let root = std::env::temp_dir().join(format!("larder-limit-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Tree(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn the_tightest_cgroup_above_counts() {
        let tree = Tree::new(
            "v2",
            &[
                ("a/b/memory.max", "max\n"),
                ("a/b/memory.high", "max\n"),
                ("a/memory.max", "1000000\n"),
                ("a/memory.high", "800000\n"),
                ("a/memory.current", "700000\n"),
                ("a/memory.stat", "anon 1\ninactive_file 50000\n"),
                ("other/memory.max", "1\n"),
            ],
        );
        assert_eq!(smallest(&tree.0, "0::/a/b\n", limit_of), Some(800000));
        assert_eq!(smallest(&tree.0, "0::/a/b\n", room_of), Some(150000));
        assert_eq!(smallest(&tree.0, "0::/a/b/not/mounted\n", limit_of), Some(800000));
        assert_eq!(smallest(&tree.0, "0::/\n", limit_of), None);
        assert_eq!(smallest(&tree.0, "nonsense", limit_of), None);
    }

    #[test]
    fn version_1_is_read_at_its_own_mount() {
        let tree = Tree::new(
            "v1",
            &[
                ("memory/box/memory.limit_in_bytes", "5000\n"),
                ("memory/box/memory.usage_in_bytes", "9000\n"),
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        let membership = "4:memory:/box\n0::/\n";
        assert_eq!(smallest(&tree.0, membership, limit_of), Some(5000));
        assert_eq!(smallest(&tree.0, membership, room_of), Some(0), "no room below zero");
    }

    #[test]
    fn this_machine_has_a_sane_limit() {
        let limit = default_limit();
        let memory = physical_memory().unwrap_or(ASSUMED_MEMORY);
        assert!(limit <= less_a_margin(memory), "{limit} of {memory}");
        assert!(budget().is_none_or(|budget| budget.free <= budget.total));
        assert_eq!((less_a_margin(0), less_a_margin(100), less_a_margin(u64::MAX) < u64::MAX), (0, 95, true));
    }
}
