//! A log that nobody reads, and a thread that does not turn: the one must hold nobody up, the other must show.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use support::http::{Connection, request};
use support::machine::{PATIENCE, signal, wait_for};
use support::{World, Ws, left_out, ours_alone, wait_until};

/// A pipe that can be filled up and never blocks the test.
struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Pipe {
    fn new() -> Pipe {
        let (reader, writer) = std::io::pipe().unwrap();
        Pipe { reader, writer }
    }

    fn end(&self) -> Stdio {
        self.writer.try_clone().unwrap().into()
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.writer.as_raw_fd())
    }

    /// Fills it to the last byte. By a description of its own, so that the server's end blocks as before.
    fn fill(&self) {
        let nonblocking = libc::O_NONBLOCK;
        let mut writer = OpenOptions::new().write(true).custom_flags(nonblocking).open(self.path()).unwrap();
        for size in [4096, 1] {
            while writer.write(&vec![b'\n'; size]).is_ok() {}
        }
    }

    /// What `JOURNAL_STREAM` would be if this were the journal.
    fn device_and_inode(&self) -> String {
        let it = std::fs::metadata(self.path()).unwrap();
        format!("{}:{}", it.dev(), it.ino())
    }

    /// Everything to the end.
    fn read_on(self) -> String {
        drop(self.writer);
        let mut text = String::new();
        BufReader::new(self.reader).read_to_string(&mut text).unwrap();
        text
    }
}

/// A server whose standard output is a pipe of the test's.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(world: &World, out: &Pipe, variables: &[(&str, &str)]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.env_clear().envs(&world.env).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(out.end()).stderr(Stdio::null());
        let child = command.spawn().expect("the server's program");
        let mut server = Server { child, address: ([127, 0, 0, 1], 0).into() };
        let mut lines = BufReader::with_capacity(1, out.reader.try_clone().unwrap());
        let mut line = String::new();
        while !line.contains("listening on ") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the server ended instead of listening");
        }
        let (_, address) = line.split_once("listening on ").unwrap();
        server.address = address.split(['"', '\n']).next().unwrap().parse().unwrap();
        server
    }

    fn open(&self, token: &str) -> Option<Ws> {
        Ws::try_open(self.address, "/?stream=user", &[("Sec-WebSocket-Protocol", token)]).ok()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut connection = Connection::tcp(self.address);
        connection.send(request("GET", path, &[]).as_bytes());
        let response = connection.response("GET");
        (response.status(), response.text())
    }

    fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const QUICK: [(&str, &str); 2] = [("GAP_CLOSE_SPREAD", "0"), ("DRAIN_SECONDS", "0")];

/// A disk is full under the journal, a container's log driver is stuck, somebody pressed Ctrl-S.
#[test]
fn log_that_nobody_reads_holds_up_neither_gap_nor_newcomer_nor_end() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let out = Pipe::new();
    let mut server = Server::start(&world, &out, &QUICK);
    let mut ws = wait_for("it serves", PATIENCE, || server.open(&viewer.token));
    world.redis.until_subscribed(&viewer.user_channels());
    out.fill();
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    // The loss of Redis is a line of the log, and the gap is announced all the same.
    assert_eq!(ws.until_close().map(|frame| u16::from(frame.code)), Some(1012));
    let mut again = wait_for("newcomers are served", PATIENCE, || server.open(&viewer.token));
    wait_until("it is ready", PATIENCE, || server.get("/ready").0 == 200);
    signal(server.child.id(), "TERM");
    assert_eq!(again.until_close().map(|frame| u16::from(frame.code)), Some(1001));
    let status = server.ended_within(PATIENCE).expect("the server ends though its log is stuck");
    assert!(status.success(), "{status}");
}

#[test]
fn lines_that_found_no_room_are_counted_and_those_kept_come_when_the_log_is_read_again() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let out = Pipe::new();
    let mut server = Server::start(&world, &out, &[("LOG_LEVEL", "debug"), ("DRAIN_SECONDS", "0")]);
    wait_for("it serves", PATIENCE, || server.open(&viewer.token));
    out.fill();
    let lost = || -> u64 {
        let page = server.get("/metrics").1;
        let line = page.lines().find_map(|line| line.strip_prefix("tidegate_log_lines_lost_total "));
        line.expect("a metric of lost lines").parse().unwrap()
    };
    wait_until("lines are lost", PATIENCE, || {
        (0..50).for_each(|_| drop(server.open(&viewer.token)));
        lost() > 0
    });
    assert!(server.get("/status").1.contains("lines lost"), "{}", server.get("/status").1);
    let reader = std::thread::spawn(move || out.read_on());
    // What is written from now on has room again.
    wait_until("nothing is lost any more", PATIENCE, || {
        let before = lost();
        drop(server.open(&viewer.token));
        lost() == before
    });
    signal(server.child.id(), "TERM");
    assert!(server.ended_within(PATIENCE).expect("the server ends").success());
    let text = reader.join().unwrap();
    let told: u64 = text.lines().filter_map(lines_lost).sum();
    assert!(told > 0, "the loss is told: {}", text.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
    let last = text.lines().rev().take(20).find(|line| line.contains("draining"));
    assert!(last.is_some(), "the last lines are flushed");
}

/// The number in the line that tells of a loss.
fn lines_lost(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" lines of the log were lost")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[test]
fn journal_gets_its_priorities_and_any_other_log_does_not() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for format in ["text", "json"] {
        for journal in [true, false] {
            let out = Pipe::new();
            let stream = if journal { out.device_and_inode() } else { "1:2".to_owned() };
            let mut server = Server::start(
                &world,
                &out,
                &[("JOURNAL_STREAM", &*stream), ("LOG_FORMAT", format), ("DRAIN_SECONDS", "0")],
            );
            let _ws = wait_for("it serves", PATIENCE, || server.open(&viewer.token));
            world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            wait_until("it was lost", PATIENCE, || {
                server.get("/metrics").1.contains("tidegate_redis_connections_lost_total 1")
            });
            signal(server.child.id(), "TERM");
            assert!(server.ended_within(PATIENCE).expect("the server ends").success());
            let text = out.read_on();
            let lost = text.lines().find(|line| line.contains("is lost")).unwrap();
            let drains = text.lines().find(|line| line.contains("draining")).unwrap();
            assert_eq!(lost.starts_with("<4>"), journal, "{lost}");
            assert_eq!(drains.starts_with("<6>"), journal, "{drains}");
            if format == "json" {
                let json = lost.strip_prefix("<4>").unwrap_or(lost);
                let line: serde_json::Value = serde_json::from_str(json).unwrap();
                assert_eq!(line["level"], "warn");
            }
        }
    }
}

#[test]
fn failed_start_ends_though_its_standard_error_is_stuck() {
    if !ours_alone() {
        return;
    }
    let err = Pipe::new();
    err.fill();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_clear().env("PORT", "none").stdin(Stdio::null()).stdout(Stdio::null()).stderr(err.end());
    let child = command.spawn().unwrap();
    let mut server = Server { child, address: ([127, 0, 0, 1], 0).into() };
    let status = server.ended_within(PATIENCE).expect("the server ends though nobody reads why");
    assert_eq!(status.code(), Some(1));
    let journal = Pipe::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_clear().envs([("PORT", "none"), ("JOURNAL_STREAM", &*journal.device_and_inode())]);
    let status = command.stdin(Stdio::null()).stderr(journal.end()).status().unwrap();
    drop(command);
    assert_eq!(status.code(), Some(1));
    let text = journal.read_on();
    assert!(text.starts_with("<3>tidegate: ") && text.contains("PORT"), "{text}");
}

/// Stops one thread of a process, until this is dropped. Needs ptrace.
struct Stopped(Child);

impl Stopped {
    fn thread(pid: u32, name: &str) -> Option<Stopped> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let thread = tasks.filter_map(Result::ok).find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        let thread = thread.unwrap_or_else(|| panic!("there is no thread {name}")).file_name();
        // PTRACE_SEIZE and PTRACE_INTERRUPT; the thread goes on when the tracer ends.
        let script = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
thread = int(sys.argv[1])
for what in (0x4206, 0x4207):
    if libc.ptrace(what, thread, None, None) != 0:
        print('no: ' + os.strerror(ctypes.get_errno()), flush=True); sys.exit()
os.waitpid(thread, 0x40000000)
print('stopped', flush=True)
sys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(thread).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        let stopped = Stopped(child);
        (line == "stopped\n").then_some(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Datagrams that a service sends to systemd.
struct Notified(std::os::unix::net::UnixDatagram);

impl Notified {
    /// Whether a sign of life comes within that time.
    fn sign_of_life(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        let mut buffer = [0; 256];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.0.set_read_timeout(Some(left)).unwrap();
            match self.0.recv(&mut buffer) {
                Ok(length) if buffer[..length].starts_with(b"WATCHDOG=1") => return true,
                _ => {}
            }
        }
        false
    }

    fn forget(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 256]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }
}

#[test]
fn thread_that_does_not_turn_is_not_ready_and_gets_no_sign_of_life() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let folder = support::machine::Folder::new("notify");
    let path = folder.path().join("socket");
    let notified = Notified(std::os::unix::net::UnixDatagram::bind(&path).unwrap());
    let out = Pipe::new();
    let variables =
        [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "3000000"), ("STREAMING_THREADS", "2")];
    let server = Server::start(&world, &out, &variables);
    wait_until("it is ready", PATIENCE, || server.get("/ready").0 == 200);
    for thread in ["ingest", "audience", "reactor-1"] {
        assert!(notified.sign_of_life(PATIENCE), "while {thread} turns");
        let Some(stopped) = Stopped::thread(server.child.id(), thread) else {
            return left_out("needs python3 and ptrace");
        };
        // An answer of a moment ago is given again.
        wait_until(&format!("{thread} shows on /ready"), PATIENCE, || {
            let (status, text) = server.get("/ready");
            status == 503 && text.contains(thread)
        });
        notified.forget();
        assert!(
            !notified.sign_of_life(Duration::from_secs(3)),
            "no sign of life while {thread} stands still"
        );
        drop(stopped);
        wait_until("it is ready again", PATIENCE, || server.get("/ready").0 == 200);
    }
}
