//! What the kernel says about this process: memory, file descriptors, processor time.
//!
//! Read from `/proc/self` (proc(5)); what is not there, as on other systems, stays 0. Nothing here grows
//! with the number of clients, except counting descriptors on kernels before 6.2, which is then done at
//! most every ten seconds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

/// The kernel counts processor time in hundredths of a second for all that read `/proc`, on every
/// architecture that Rust's standard library runs on.
const TICKS_PER_SECOND: f64 = 100.0;

const FD_COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Figures of this process.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct ProcessStats {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Data segment: what was allocated, resident or not.
    pub heap_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// RLIMIT_NOFILE, the soft limit.
    pub max_fds: u64,
    /// Processor time in user mode.
    pub cpu_user_seconds: f64,
    /// Processor time in the kernel.
    pub cpu_system_seconds: f64,
}

/// Reads [`ProcessStats`] and knows when the process began.
#[derive(Debug)]
pub struct Process {
    started: SystemTime,
    fds: Mutex<Option<(Instant, u64)>>,
}

impl Process {
    /// To be made at the start: now is when the process began.
    pub fn starting() -> Process {
        Process { started: SystemTime::now(), fds: Mutex::new(None) }
    }

    /// When the process began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The figures now.
    pub fn read(&self) -> ProcessStats {
        let mut stats = ProcessStats::default();
        let file = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        read_status(&file("status"), &mut stats);
        read_stat(&file("stat"), &mut stats);
        stats.max_fds = read_max_fds(&file("limits"));
        stats.open_fds = self.open_fds();
        stats
    }

    fn open_fds(&self) -> u64 {
        // Since Linux 6.2 the directory's size is the number of entries.
        let size = std::fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
        if size > 0 {
            return size;
        }
        let mut counted = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, count)) = *counted
            && at.elapsed() < FD_COUNT_INTERVAL
        {
            return count;
        }
        // One of them is the directory that is being read.
        let count = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
        *counted = Some((Instant::now(), count as u64));
        count as u64
    }
}

fn read_status(text: &str, stats: &mut ProcessStats) {
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let number = value.split_whitespace().next().and_then(|digits| digits.parse::<u64>().ok());
        let number = number.unwrap_or(0);
        match name {
            "VmRSS" => stats.resident_bytes = number * 1024,
            "VmSize" => stats.virtual_bytes = number * 1024,
            "VmData" => stats.heap_bytes = number * 1024,
            "Threads" => stats.threads = number,
            _ => {}
        }
    }
}

fn read_stat(text: &str, stats: &mut ProcessStats) {
    // The second field is the command in parentheses and may contain anything; utime and stime are the
    // 14th and 15th.
    let Some((_, fields)) = text.rsplit_once(')') else { return };
    let mut ticks = fields.split_whitespace().skip(11).map(|field| field.parse::<f64>().unwrap_or(0.0));
    stats.cpu_user_seconds = ticks.next().unwrap_or(0.0) / TICKS_PER_SECOND;
    stats.cpu_system_seconds = ticks.next().unwrap_or(0.0) / TICKS_PER_SECOND;
}

fn read_max_fds(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let mut stats = ProcessStats::default();
        read_status(
            "Name:\ttidegate\nVmSize:\t  212340 kB\nVmRSS:\t   10240 kB\nVmData:\t 4096 kB\nThreads:\t7\n",
            &mut stats,
        );
        read_stat(
            "4711 (odd ) name) S 1 4711 4711 0 -1 4194560 1500 0 3 0 250 50 0 0 20 0 7 0 99 1 2",
            &mut stats,
        );
        assert_eq!(
            stats,
            ProcessStats {
                resident_bytes: 10 << 20,
                virtual_bytes: 212_340 << 10,
                heap_bytes: 4 << 20,
                threads: 7,
                cpu_user_seconds: 2.5,
                cpu_system_seconds: 0.5,
                ..ProcessStats::default()
            }
        );
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024   524288   files\n";
        assert_eq!(read_max_fds(limits), 1024);
    }

    #[test]
    fn survives_what_it_does_not_know() {
        let mut stats = ProcessStats::default();
        for text in ["", ")", "1 (x) S", "VmRSS: kB\n:\n", "VmRSS:\tmany kB"] {
            read_status(text, &mut stats);
            read_stat(text, &mut stats);
            assert_eq!(read_max_fds(text), 0);
        }
        assert_eq!(stats, ProcessStats::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::starting();
        let before = process.read();
        assert!(before.resident_bytes > 0 && before.max_fds > 0);
        assert!(before.open_fds >= 3, "{}", before.open_fds);
        assert!(before.threads >= 1);
    }
}
