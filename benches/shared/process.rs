//! What a process has used, read from proc(5).

use std::collections::HashSet;
use std::fs;

/// Processor seconds of all threads of a process that are still there.
pub fn cpu_seconds(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanoseconds: u64 = tasks
        .flatten()
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    nanoseconds as f64 / 1e9
}

/// The same, of a process and its children: PostgreSQL has one per connection.
pub fn family_cpu_seconds(parent: u32) -> f64 {
    let mut family = HashSet::from([parent]);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent_of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent_of == Some(parent) {
            family.insert(pid);
        }
    }
    family.into_iter().map(cpu_seconds).sum()
}

/// Memory of a process.
#[derive(Clone, Copy, Default, Debug)]
pub struct Memory {
    pub rss_kib: u64,
    pub pss_kib: u64,
    /// Of the resident memory, what is no file's.
    pub anonymous_kib: u64,
}

pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Memory {
        rss_kib: field("Rss:").unwrap_or(0),
        pss_kib: field("Pss:").unwrap_or(0),
        anonymous_kib: field("Anonymous:").unwrap_or(0),
    }
}

/// Starts counting the system calls of a process, if strace is there; the count is what `calls` returns.
pub struct SystemCalls(std::process::Child);

impl SystemCalls {
    pub fn count(pid: u32) -> Option<SystemCalls> {
        use std::io::{BufRead, BufReader};
        let mut strace = std::process::Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        // It says so when it is attached.
        let mut first = String::new();
        let mut lines = BufReader::new(strace.stderr.take()?);
        lines.read_line(&mut first).ok()?;
        strace.stderr = Some(lines.into_inner());
        Some(SystemCalls(strace))
    }

    pub fn calls(self) -> u64 {
        let _ = std::process::Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let Ok(output) = self.0.wait_with_output() else { return 0 };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let total = text.lines().find(|line| line.trim_end().ends_with(" total"));
        total.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}
