//! A cgroup in which memory runs out early.

use std::fs;
use std::path::PathBuf;

use stowage_placement::Bytes;

pub struct MemoryCgroup {
    directory: PathBuf,
}

impl MemoryCgroup {
    /// Below the cgroup of this process, by whichever version limits memory here; `None` where it may not be made.
    pub fn new(limit: Bytes) -> Option<MemoryCgroup> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        let places = membership.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let path = path.trim_start_matches('/');
            match controllers {
                "" => Some((PathBuf::from("/sys/fs/cgroup").join(path), "memory.max")),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    Some((PathBuf::from("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"))
                }
                _ => None,
            }
        });
        places.into_iter().find_map(|(parent, limited_by)| {
            let cgroup = MemoryCgroup { directory: parent.join(format!("stowage-test-{}", std::process::id())) };
            fs::create_dir(&cgroup.directory).ok()?;
            let file = cgroup.directory.join(limited_by);
            // A file that is not there would be made where nothing limits anything.
            (file.exists() && fs::write(file, limit.0.to_string()).is_ok()).then_some(cgroup)
        })
    }

    pub fn take_in(&self, pid: u32) {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
    }
}
