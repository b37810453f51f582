//! Cores, instruction sets and memory, as Linux and the cgroup say.
//!
//! The memory that counts is the machine's, or where workers share the agent's cgroups, the tightest limit of those. Page cache is not use: it goes when
//! somebody needs the room.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stowage_placement::Bytes;

/// The host at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostReading {
    /// Physical cores that may be used, within affinity and the cgroup's quota.
    pub cores: u32,
    pub cpu: String,
    pub instruction_sets: Vec<String>,
    /// The machine's memory, or the cgroup's limit.
    pub memory: Bytes,
    /// Of it, what could not be had by reclaiming: by whomever it is held.
    pub unreclaimable: Bytes,
}

/// Instruction sets worth naming: those that kernels exist or are planned for. As `/proc/cpuinfo` and as we write them.
const INSTRUCTION_SETS: [(&str, &str); 13] = [
    ("avx", "avx"),
    ("f16c", "f16c"),
    ("fma", "fma"),
    ("avx2", "avx2"),
    ("avx_vnni", "avxvnni"),
    ("avx512f", "avx512f"),
    ("avx512bw", "avx512bw"),
    ("avx512_vnni", "avx512vnni"),
    ("avx512_bf16", "avx512bf16"),
    ("amx_int8", "amxint8"),
    ("asimd", "neon"),
    ("asimddp", "dotprod"),
    ("i8mm", "i8mm"),
];

/// Which memory counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// What this process may take, within the cgroups that it is in.
    Limit,
    /// All of the machine's.
    Machine,
}

/// Reads `/proc` and `/sys`, or copies of them in tests.
pub struct HostReader {
    memory: Memory,
    proc: PathBuf,
    cgroups: PathBuf,
    cpu: String,
    instruction_sets: Vec<String>,
}

impl HostReader {
    pub fn new(memory: Memory) -> HostReader {
        HostReader::at(Path::new("/"), memory)
    }

    fn at(root: &Path, memory: Memory) -> HostReader {
        let proc = root.join("proc");
        let (cpu, instruction_sets) = parse_cpuinfo(&text(&proc.join("cpuinfo")));
        HostReader { memory, proc, cgroups: root.join("sys/fs/cgroup"), cpu, instruction_sets }
    }

    pub fn read(&self) -> HostReading {
        let meminfo = text(&self.proc.join("meminfo"));
        let kib = |key: &str| field(&meminfo, key).map_or(Bytes::ZERO, |kib| Bytes(kib.saturating_mul(1024)));
        let (total, available) = (kib("MemTotal:"), kib("MemAvailable:"));
        let limit = (self.memory == Memory::Limit).then(|| self.tightest_cgroup(total)).flatten();
        let (memory, available) = match limit {
            // Inside the limit there may still be less than the machine has to give.
            Some(CgroupMemory { limit, used }) => (limit, limit.saturating_sub(used).min(available)),
            None => (total, available),
        };
        HostReading {
            // The engine takes as many threads where nobody says otherwise: one count, not two.
            cores: stowage_engine::default_threads(),
            cpu: self.cpu.clone(),
            instruction_sets: self.instruction_sets.clone(),
            memory,
            unreclaimable: memory.saturating_sub(available),
        }
    }

    /// The cgroup, of those that we are in, that leaves the least below `total`; `None` where none limits anything.
    fn tightest_cgroup(&self, total: Bytes) -> Option<CgroupMemory> {
        let membership = text(&self.proc.join("self/cgroup"));
        let limited = membership.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            match controllers {
                "" => Some((Hierarchy::V2, self.cgroups.clone(), path)),
                _ if controllers.split(',').any(|name| name == "memory") => Some((Hierarchy::V1, self.cgroups.join("memory"), path)),
                _ => None,
            }
        });
        limited
            .flat_map(|(hierarchy, root, path)| directories(&root, path).into_iter().map(move |directory| (hierarchy, directory)))
            .filter_map(|(hierarchy, directory)| hierarchy.memory(&directory))
            .filter(|memory| memory.limit < total)
            .min_by_key(|memory| memory.limit.saturating_sub(memory.used))
    }
}

/// `path` below `root` and all that contain it. In a container the path may be one that only the host sees: what is left is the root.
fn directories(root: &Path, path: &str) -> Vec<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    relative.ancestors().map(|part| root.join(part)).filter(|directory| directory.is_dir()).collect()
}

#[derive(Clone, Copy)]
enum Hierarchy {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct CgroupMemory {
    limit: Bytes,
    /// Without page cache.
    used: Bytes,
}

impl Hierarchy {
    fn memory(self, directory: &Path) -> Option<CgroupMemory> {
        let (limit, usage, caches) = match self {
            Hierarchy::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"]),
            Hierarchy::V2 => ("memory.max", "memory.current", ["inactive_file", "active_file"]),
        };
        let number = |name: &str| text(&directory.join(name)).trim().parse::<u64>().ok();
        let stat = text(&directory.join("memory.stat"));
        let cache: Bytes = caches.iter().filter_map(|key| field(&stat, key)).map(Bytes).sum();
        Some(CgroupMemory { limit: Bytes(number(limit)?), used: Bytes(number(usage)?).saturating_sub(cache) })
    }
}

/// What a process holds of memory that can't be reclaimed: anonymous pages and shared ones. The pages of mapped files are page cache.
pub fn process_memory(pid: u32) -> Option<Bytes> {
    Some(held(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?))
}

/// The same of this process, from a file that stays open: whatever the process may open later.
pub struct OwnMemory(File);

impl OwnMemory {
    pub fn open() -> Option<OwnMemory> {
        File::open("/proc/self/status").ok().map(OwnMemory)
    }

    pub fn read(&self) -> Option<Bytes> {
        let mut status = vec![0; 1 << 14];
        let length = self.0.read_at(&mut status, 0).ok()?;
        Some(held(&String::from_utf8_lossy(&status[..length])))
    }
}

fn held(status: &str) -> Bytes {
    let kib = ["RssAnon:", "RssShmem:"].iter().filter_map(|key| field(status, key));
    kib.map(|kib| Bytes(kib.saturating_mul(1024))).sum()
}

/// Processes that the kernel has ended since the machine started because memory ran out, be it the machine's or a cgroup's.
pub fn out_of_memory_kills() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/vmstat").ok()?, "oom_kill")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The number behind a key at a line's start.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
    })
}

fn parse_cpuinfo(cpuinfo: &str) -> (String, Vec<String>) {
    let value = |keys: [&str; 2]| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            keys.contains(&key.trim()).then(|| value.trim())
        })
    };
    let flags: Vec<&str> = value(["flags", "Features"]).unwrap_or_default().split_ascii_whitespace().collect();
    let sets = INSTRUCTION_SETS.iter().filter(|(flag, _)| flags.contains(flag)).map(|(_, name)| (*name).to_owned()).collect();
    (value(["model name", "Model"]).unwrap_or(std::env::consts::ARCH).to_owned(), sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A root with 64 GiB of memory, 48 of them to be had, and files below it.
    fn root(files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", format!("MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n", 64 << 20, 48 << 20));
        for (path, content) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    fn memory(files: &[(&str, String)]) -> (Bytes, Bytes) {
        let root = root(files);
        let reading = HostReader::at(root.path(), Memory::Limit).read();
        let machine = HostReader::at(root.path(), Memory::Machine).read();
        assert_eq!((machine.memory, machine.unreclaimable), (Bytes::gib(64), Bytes::gib(16)), "whatever the limits are");
        (reading.memory, reading.unreclaimable)
    }

    #[test]
    fn without_a_limit_it_is_the_machines_memory_and_what_is_not_available_of_it() {
        assert_eq!(memory(&[]), (Bytes::gib(64), Bytes::gib(16)));
    }

    #[test]
    fn a_limit_of_cgroup_v2_counts_wherever_above_us_it_is_set_and_page_cache_is_not_use() {
        let files = [
            ("proc/self/cgroup", "0::/pod/container\n".to_owned()),
            ("sys/fs/cgroup/pod/memory.max", format!("{}\n", 8 * GIB)),
            ("sys/fs/cgroup/pod/memory.current", format!("{}\n", 6 * GIB)),
            ("sys/fs/cgroup/pod/memory.stat", format!("anon 1\ninactive_file {}\nactive_file {}\n", 3 * GIB, GIB)),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n".to_owned()),
            ("sys/fs/cgroup/pod/container/memory.current", "17\n".to_owned()),
        ];
        assert_eq!(memory(&files), (Bytes::gib(8), Bytes::gib(2)));
    }

    #[test]
    fn a_limit_of_cgroup_v1_counts_and_its_way_of_saying_none_does_not() {
        let at = |limit: u64| {
            memory(&[
                ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n".to_owned()),
                ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", format!("{limit}\n")),
                ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", format!("{}\n", 5 * GIB)),
                ("sys/fs/cgroup/memory/box/memory.stat", format!("total_inactive_file {}\n", 2 * GIB)),
            ])
        };
        assert_eq!(at(10 * GIB), (Bytes::gib(10), Bytes::gib(3)));
        assert_eq!(at(9_223_372_036_854_771_712), (Bytes::gib(64), Bytes::gib(16)));
    }

    #[test]
    fn a_limit_that_the_machine_cannot_keep_offers_no_more_than_the_machine_has() {
        let files = [
            ("proc/self/cgroup", "0::/\n".to_owned()),
            ("sys/fs/cgroup/memory.max", format!("{}\n", 60 * GIB)),
            ("sys/fs/cgroup/memory.current", "0\n".to_owned()),
        ];
        assert_eq!(memory(&files), (Bytes::gib(60), Bytes::gib(12)));
    }

    #[test]
    fn instruction_sets_are_those_that_kernels_care_for() {
        let (cpu, sets) = parse_cpuinfo("processor: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse avx2 avx512_vnni avx512f\n");
        assert_eq!(cpu, "AMD EPYC");
        assert_eq!(sets, ["avx2", "avx512f", "avx512vnni"]);
    }

    #[test]
    fn this_process_holds_memory_on_a_machine_that_has_some() {
        let own = OwnMemory::open().unwrap();
        assert!(process_memory(std::process::id()).unwrap() > Bytes::ZERO);
        assert!(own.read().unwrap() > Bytes::ZERO && own.read().is_some(), "it can be read again");
        let host = HostReader::new(Memory::Limit).read();
        assert!(host.memory > host.unreclaimable && host.cores > 0, "{host:?}");
    }
}
