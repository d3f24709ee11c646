//! The machine the tests run on: what is installed, temporary folders, processes that end with us, waiting.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for anything that ought to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// The command of another server to test instead of ours.
pub fn peer() -> Option<String> {
    std::env::var("TIDEGATE_PEER_COMMAND").ok().filter(|command| !command.is_empty())
}

/// Whether a test of something only Tidegate promises should run; says so where it should not.
#[must_use]
pub fn ours_alone() -> bool {
    if peer().is_some() {
        left_out("the peer promises nothing here");
    }
    peer().is_none()
}

/// Tells the person at the terminal that the current test did not run, past the test harness's capture. A test that
/// did not run has not passed: where `CI` is set it fails, unless the run itself excludes it (a peer, PgBouncer).
#[track_caller]
pub fn left_out(why: &str) {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let excluded = peer().is_some() || is_set("TIDEGATE_PGBOUNCER");
    assert!(excluded || !is_set("CI"), "left out: {why}");
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // In one write, so that lines of tests beside this one do not mix with it.
    let _ = std::io::stderr().write_all(format!("left out: {why} ({test})\n").as_bytes());
}

/// Polls until `condition` holds; panics with `what` after `within`.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < end, "waited {within:?} in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Calls `attempt` until it gives something; panics with `what` after `within`.
#[track_caller]
pub fn wait_for<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut result = None;
    wait_until(what, within, || {
        result = attempt();
        result.is_some()
    });
    result.unwrap()
}

/// A program by name, in `PATH` or where Debian keeps PostgreSQL's own.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
        versions.sort();
        folders.extend(versions.into_iter().rev());
    }
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Where `tests/run` installs client libraries: `TIDEGATE_CLIENTS`, else `clients` in Cargo's target folder.
pub fn clients() -> PathBuf {
    let beside = || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients");
    std::env::var_os("TIDEGATE_CLIENTS").map_or_else(beside, PathBuf::from)
}

/// A folder that goes when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago, for servers that cannot ask the kernel themselves.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal, by name without SIG.
pub fn signal(pid: u32, name: &str) {
    let status =
        Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
    assert!(status.is_ok(), "the program kill is missing");
}

/// A service that ends when this is dropped, and also when the test process ends in any other way: a small
/// shell holds its process id and waits for the pipe from us to close.
pub struct Service {
    shell: Child,
    life: Option<ChildStdin>,
    folder: Folder,
}

impl Service {
    /// Starts `command` (program and arguments); output goes to `log` in `folder`. `stop` is the signal that
    /// ends it.
    pub fn start(folder: Folder, stop: &str, command: &[String]) -> Service {
        let script = r#"
            folder=$1 stop=$2; shift 2
            "$@" >"$folder/log" 2>&1 &
            pid=$!
            echo $pid >"$folder/pid.new" && mv "$folder/pid.new" "$folder/pid"
            cat >/dev/null
            kill -CONT $pid 2>/dev/null; kill -"$stop" $pid 2>/dev/null
            wait $pid
            rm -rf "$folder""#;
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(folder.path())
            .arg(stop)
            .args(command)
            .current_dir("/")
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh");
        let life = shell.stdin.take();
        Service { shell, life, folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The service's process id.
    pub fn pid(&self) -> u32 {
        let file = self.folder.path().join("pid");
        wait_for("the service has a process id", PATIENCE, || {
            std::fs::read_to_string(&file).ok()?.trim().parse().ok()
        })
    }

    /// Whether the process has ended.
    pub fn is_gone(&self) -> bool {
        !Path::new(&format!("/proc/{}/stat", self.pid())).exists() || is_zombie(self.pid())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.life.take());
        let _ = self.shell.wait();
    }
}

/// Whether a process has ended and only waits to be collected.
pub fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}
