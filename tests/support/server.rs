//! The server under test: started with an environment of its own, its output kept, ended by process id.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::http::{self, Connection, Response};
use super::machine::{Folder, PATIENCE, peer, signal, wait_for, wait_until};

/// What Mastodon's own test harness waits for.
const LISTENING: &str = "Streaming API now listening on ";

/// A server process. Dropping it ends it.
pub struct Server {
    child: Child,
    output: Arc<Mutex<String>>,
    address: Option<String>,
    _folder: Folder,
}

/// The environment of a server.
pub type Env = BTreeMap<String, String>;

impl Server {
    /// Starts the server and waits until it listens.
    #[track_caller]
    pub fn start(env: &Env) -> Server {
        Server::spawn(env).listening()
    }

    /// The same for our own binary with no more than so many file descriptors.
    #[track_caller]
    pub fn start_with_descriptors(count: u32, env: &Env) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {count}; exec \"$0\""), env!("CARGO_BIN_EXE_tidegate")]);
        Server::spawn_command(&mut shell, env, Folder::new("server"), Stdio::null()).listening()
    }

    /// The same for our own binary with a subcommand or options.
    #[track_caller]
    pub fn start_ours(arguments: &[&str], env: &Env) -> Server {
        Server::spawn_ours(arguments, env).listening()
    }

    /// Waits until it listens.
    #[track_caller]
    pub fn listening(mut self) -> Server {
        let address = wait_for("the server listens or ends", PATIENCE, || {
            let output = self.output();
            let listening =
                output.split_once(LISTENING).and_then(|(_, rest)| rest.split_once(['\n', '"', ' ']));
            match listening {
                Some((address, _)) => Some(Some(address.to_owned())),
                None => self.exit_status().map(|_| None),
            }
        });
        assert!(address.is_some(), "the server ended instead of listening:\n{}", self.output());
        self.address = address;
        self
    }

    /// Starts the server without waiting: for starts that ought to fail.
    pub fn spawn(env: &Env) -> Server {
        let folder = Folder::new("server");
        let mut command = match peer() {
            Some(peer) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("exec {peer}")]);
                shell
            }
            // Another build of ours, such as the static one.
            None => Command::new(
                std::env::var_os("TIDEGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tidegate").into()),
            ),
        };
        Server::spawn_command(&mut command, env, folder, Stdio::null())
    }

    /// Starts our own binary by `script` (which gets it as `$0`), whose standard input is that: for what only a
    /// parent process can give.
    pub fn spawn_by(script: &str, stdin: Stdio, env: &Env) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_tidegate")]);
        Server::spawn_command(&mut shell, env, Folder::new("server"), stdin)
    }

    /// Starts our own binary with a subcommand or options.
    pub fn spawn_ours(arguments: &[&str], env: &Env) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments);
        Server::spawn_command(&mut command, env, Folder::new("server"), Stdio::null())
    }

    fn spawn_command(command: &mut Command, env: &Env, folder: Folder, stdin: Stdio) -> Server {
        let kept = ["PATH", "HOME", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"];
        command
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| kept.contains(&name.as_str())))
            .envs(env);
        command.current_dir(folder.path()).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server's program");
        let output = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), &output);
        collect(child.stderr.take().unwrap(), &output);
        Server { child, output, address: None, _folder: folder }
    }

    /// Where it listens, as it said.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        let text = self.address.as_deref().expect("a server that listens");
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no address"))
    }

    /// The text after "listening on".
    pub fn listening_on(&self) -> &str {
        self.address.as_deref().unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far, both streams.
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    #[track_caller]
    pub fn until_output(&self, text: &str) {
        wait_until(&format!("the server says {text:?}"), PATIENCE, || self.output().contains(text));
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Its exit status, if it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    #[track_caller]
    pub fn until_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(Instant::now() < end, "the server does not end:\n{}", self.output());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    pub fn connect(&self) -> Connection {
        Connection::tcp(self.address())
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut connection = self.connect();
        connection.send(http::request(method, path, headers).as_bytes());
        connection.response(method)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[])
    }

    /// The value of a metric, by its name and labels as they stand in the text (`name{label="value"}`), labels
    /// in any order.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let page = self.get("/metrics").text();
        page.lines().find_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            let (found, rest) = key.split_once('{').unwrap_or((key, ""));
            let all = labels.iter().all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
            let count = rest.matches("=\"").count();
            (found == name && all && count == labels.len()).then(|| value.parse().ok())?
        })
    }

    #[track_caller]
    pub fn until_metric(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        let mut last = None;
        let end = Instant::now() + PATIENCE;
        while last != Some(expected) {
            last = self.metric(name, labels);
            assert!(Instant::now() < end, "{name}{labels:?} is {last:?}, not {expected}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Open file descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// The CPU time that the process has used, in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        let ticks: u64 = fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Resident memory of the process in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(30).collect();
            eprintln!("the server's last lines:");
            tail.iter().rev().for_each(|line| eprintln!("  {}", line.chars().take(400).collect::<String>()));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("TERM");
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Keeps what a stream says, without its colours, in a thread that ends with the stream.
fn collect(stream: impl std::io::Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = without_colours(&String::from_utf8_lossy(&line));
            output.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push_str(&text);
            line.clear();
        }
    });
}

fn without_colours(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    out
}
