//! How much memory this process may use: the machine's, its cgroup's if that is less, or a device's.
//!
//! Reads /proc and /sys once. Both versions of cgroups; a limit anywhere above us counts.

use std::fs;
use std::path::{Path, PathBuf};

use pagoda_kernels::device::DeviceMemory;

/// Bytes that the process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// The smaller of the machine's memory and every cgroup limit above this process.
    pub limit: u64,
    /// What is still free of it.
    pub available: u64,
}

/// A device with memory of its own.
impl From<DeviceMemory> for MachineMemory {
    fn from(memory: DeviceMemory) -> Self {
        MachineMemory { limit: memory.total, available: memory.free }
    }
}

impl MachineMemory {
    /// This machine, now. Where nothing can be read, nothing is limited but by what is asked for.
    pub fn read() -> Self {
        let proc =
            |name: &str| fs::read_to_string(Path::new("/proc").join(name)).unwrap_or_default();
        Self::from_files(&proc("meminfo"), &proc("self/cgroup"), Path::new("/sys/fs/cgroup"))
    }

    /// Bytes of this process that are in memory and are no file's.
    pub(super) fn resident_bytes() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        meminfo_bytes(&status, "RssAnon:").unwrap_or(0)
    }

    fn from_files(meminfo: &str, cgroup: &str, root: &Path) -> Self {
        let field = |name: &str| meminfo_bytes(meminfo, name);
        let total = field("MemTotal:").unwrap_or(u64::MAX);
        let available = field("MemAvailable:").unwrap_or(total);
        let mut memory = MachineMemory { limit: total, available };
        for (folder, files) in cgroup_folders(cgroup, root) {
            let number = |name: &str| read_number(&folder.join(name));
            let Some(limit) = number(files.limit).filter(|limit| *limit < memory.limit) else {
                continue;
            };
            let stat = folder.join("memory.stat");
            let reclaimable: u64 =
                files.reclaimable.iter().map(|name| stat_field(&stat, name)).sum();
            let used = number(files.usage).unwrap_or(0).saturating_sub(reclaimable);
            memory.limit = limit;
            memory.available = memory.available.min(limit.saturating_sub(used));
        }
        memory
    }
}

/// What a version of cgroups calls its files.
#[derive(Clone, Copy)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Fields of memory.stat: file pages, which go when memory is needed. Used ones count too: those
    /// of a checkpoint that was just loaded are such.
    reclaimable: [&'static str; 2],
}

const V2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["active_file", "inactive_file"],
};
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_active_file", "total_inactive_file"],
};

/// Every folder that may hold a limit for us: our cgroup and those above it, down from the root.
fn cgroup_folders(cgroup: &str, root: &Path) -> Vec<(PathBuf, Names)> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (base, names) = match controllers {
            "" => (root.to_path_buf(), V2),
            list if list.split(',').any(|name| name == "memory") => (root.join("memory"), V1),
            _ => continue,
        };
        folders.push((base.clone(), names));
        let mut folder = base;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
            folder.push(part);
            folders.push((folder.clone(), names));
        }
    }
    folders
}

/// `MemTotal:  24000000 kB`.
fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A file of one number; `max` is none.
fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn stat_field(path: &Path, name: &str) -> u64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n";
    const GIB: u64 = 1 << 30;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_smallest_limit_above_us_counts() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("memory.max", "max\n"),
                ("a/memory.max", "4294967296\n"),
                ("a/memory.current", "3221225472\n"),
                ("a/memory.stat", "anon 5\ninactive_file 1073741824\n"),
                ("a/b/memory.max", "8589934592\n"),
            ],
        );
        let memory = MachineMemory::from_files(MEMINFO, "0::/a/b\n", root.path());
        assert_eq!(memory, MachineMemory { limit: 4 * GIB, available: 2 * GIB });
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("memory/memory.limit_in_bytes", "9223372036854771712"),
                ("memory/x/memory.limit_in_bytes", "2147483648"),
                ("memory/x/memory.usage_in_bytes", "1073741824"),
            ],
        );
        let memory =
            MachineMemory::from_files(MEMINFO, "5:cpu:/y\n4:hugetlb,memory:/x\n", root.path());
        assert_eq!(memory, MachineMemory { limit: 2 * GIB, available: GIB });
    }

    #[test]
    fn without_cgroups_the_machine_counts() {
        let nowhere = Path::new("/no/such/folder");
        let memory = MachineMemory::from_files(MEMINFO, "0::/../x\n", nowhere);
        assert_eq!(memory, MachineMemory { limit: 16 * GIB, available: 8 * GIB });
        assert!(MachineMemory::read().limit > 0);
        assert!(MachineMemory::resident_bytes() > 0);
    }
}
