//! How much memory the process may use: the least of the machine's memory, the limits of its control groups
//! (version 1 and 2, and of all that contain them), and RLIMIT_AS.
//!
//! What cannot be read sets no limit. Tested on folders that stand in for `/`, and in a real control group by
//! `tests/e2e_memory.rs`.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::config::MemoryLimit;

/// Values from here on mean no limit in version 1.
const UNLIMITED: u64 = 1 << 62;

/// The limit of this process.
pub(super) fn own() -> Option<MemoryLimit> {
    let root = Path::new("/");
    machine(root).into_iter().chain(groups(root)).chain(address_space(root)).min_by_key(|limit| limit.bytes)
}

/// The limit of a process that a unit starts, as far as the machine and these limits of the unit set it.
pub(super) fn of_unit(limits: impl IntoIterator<Item = MemoryLimit>) -> Option<MemoryLimit> {
    machine(Path::new("/")).into_iter().chain(limits).min_by_key(|limit| limit.bytes)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The bytes in a line such as `MemTotal:   24683688 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let kib = text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"))?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn machine(root: &Path) -> Option<MemoryLimit> {
    let bytes = field(&read(&root.join("proc/meminfo")), "MemTotal:")?;
    Some(MemoryLimit { bytes, source: "the machine's memory".to_owned() })
}

/// The bound on addresses, less those that are reserved and hold no memory.
fn address_space(root: &Path) -> Option<MemoryLimit> {
    let bound = getrlimit(Resource::As).current?;
    let status = read(&root.join("proc/self/status"));
    let empty = field(&status, "VmSize:")?.saturating_sub(field(&status, "VmRSS:")?);
    Some(MemoryLimit { bytes: bound.saturating_sub(empty), source: "RLIMIT_AS".to_owned() })
}

/// The limits of the process's control groups and of all that contain them.
fn groups(root: &Path) -> Vec<MemoryLimit> {
    let (mounts, groups) = (read(&root.join("proc/self/mountinfo")), read(&root.join("proc/self/cgroup")));
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (is_version_2, files): (_, &[&str]) = match (number, controllers) {
            ("0", "") => (true, &["memory.max", "memory.high"]),
            _ if controllers.split(',').any(|name| name == "memory") => (false, &["memory.limit_in_bytes"]),
            _ => continue,
        };
        let Some((mounted, at)) = mounts.lines().find_map(|line| mount(line, is_version_2)) else { continue };
        // In a container the mount may begin further down than the process's own path says, or elsewhere.
        let below = Path::new(group).strip_prefix(mounted).unwrap_or(Path::new(""));
        let top = root.join(at.trim_start_matches('/'));
        for folder in below.ancestors() {
            for file in files {
                let text = read(&top.join(folder).join(file));
                let Some(bytes) = text.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED) else {
                    continue;
                };
                let group = Path::new(mounted).join(folder);
                let source = format!("{file} of the control group {}", group.display());
                found.push(MemoryLimit { bytes, source });
            }
        }
    }
    found
}

/// Of a line of mountinfo (proc(5)), if it mounts the groups that limit memory: what is mounted, and where.
fn mount(line: &str, is_version_2: bool) -> Option<(&str, &str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (mounted, at) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (file_system, options) = (kind.next()?, kind.nth(1)?);
    let is_right = if is_version_2 {
        file_system == "cgroup2"
    } else {
        file_system == "cgroup" && options.split(',').any(|option| option == "memory")
    };
    is_right.then_some((mounted, at))
}

/// For a unit's property of that name and value, as systemctl(1) shows it.
pub(super) fn of_property(name: &str, value: &str, unit: &str) -> Option<MemoryLimit> {
    let bytes = value.parse().ok().filter(|bytes| *bytes < UNLIMITED)?;
    Some(MemoryLimit { bytes, source: format!("{name} of {unit}") })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder that stands in for `/`.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Root {
            let root = std::env::temp_dir().join(format!("tidegate-memory-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Root(root)
        }

        /// The least limit.
        fn least(&self) -> Option<(u64, String)> {
            let least = groups(&self.0).into_iter().min_by_key(|limit| limit.bytes)?;
            Some((least.bytes, least.source))
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const V2: &str = "25 1 0:22 / /proc rw - proc proc rw\n\
                      31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_counts_every_group_up_to_the_top() {
        let at = "sys/fs/cgroup/system.slice/tidegate.service";
        let root = Root::new(
            "v2",
            &[
                ("proc/self/mountinfo", V2),
                ("proc/self/cgroup", "0::/system.slice/tidegate.service\n"),
                (&format!("{at}/memory.max"), "max\n"),
                (&format!("{at}/memory.high"), "134217728\n"),
                ("sys/fs/cgroup/system.slice/memory.max", "67108864\n"),
                ("sys/fs/cgroup/system.slice/memory.high", "max\n"),
            ],
        );
        let source = "memory.max of the control group /system.slice";
        assert_eq!(root.least(), Some((64 << 20, source.to_owned())));
        let limits = groups(&root.0);
        assert!(limits.iter().any(|limit| limit.bytes == 128 << 20), "{limits:?}");
    }

    #[test]
    fn version_1_has_a_mount_of_its_own() {
        let root = Root::new(
            "v1",
            &[
                ("proc/self/mountinfo", V1),
                ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/a/b\n0::/\n"),
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "33554432\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        let source = "memory.limit_in_bytes of the control group /a";
        assert_eq!(root.least(), Some((32 << 20, source.to_owned())));
    }

    #[test]
    fn containers_mount_their_own_group_alone() {
        let mounted = V1.replace("0:32 / /sys/fs/cgroup/memory", "0:32 /docker/1f /sys/fs/cgroup/memory");
        for own in ["/docker/1f", "/docker/1f/child", "/elsewhere"] {
            let root = Root::new(
                &format!("container{}", own.replace('/', "-")),
                &[
                    ("proc/self/mountinfo", &mounted),
                    ("proc/self/cgroup", &format!("4:memory:{own}\n")),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"),
                ],
            );
            assert_eq!(root.least().map(|least| least.0), Some(64 << 20), "{own}");
        }
    }

    #[test]
    fn nothing_that_is_missing_or_odd_sets_a_limit() {
        let root =
            Root::new("odd", &[("proc/self/mountinfo", "x - y\n - \n"), ("proc/self/cgroup", "a\n0::\n:")]);
        assert_eq!(root.least(), None);
        assert_eq!(machine(&root.0), None);
        let root = Root::new("total", &[("proc/meminfo", "MemFree: 1 kB\nMemTotal:       65536 kB\n")]);
        assert_eq!(machine(&root.0).map(|limit| limit.bytes), Some(64 << 20));
        // This machine has some.
        assert!(own().is_some_and(|limit| limit.bytes > 1 << 20));
        assert_eq!(of_property("MemoryMax", "infinity", "x.service"), None);
        assert_eq!(of_property("MemoryMax", "18446744073709551615", "x.service"), None);
    }
}
