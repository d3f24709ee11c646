//! A Debian with a real systemd as PID 1: what units, drop-ins, `systemctl` and packages do, tried for real.
//!
//! [`Booted::start`] boots a root folder by systemd-nspawn. debootstrap fills that folder once per machine (three
//! minutes, 800 MB in Cargo's target folder); it is then only read: each boot writes to an overlay in memory, so
//! every test begins with the same system, three seconds after it asked. The system has a network namespace of
//! its own with nothing but loopback. Its services therefore meet neither the host's nor another test's.
//!
//! - [`run`](Booted::run) and [`succeed`](Booted::succeed) run a script there, as root (`sudo -u` for others).
//! - [`put`](Booted::put) writes a file there; [`HOST`] shows a folder of the host, read-only.
//! - [`within`](Booted::within) runs a closure of the test in the system's network: what it connects stays
//!   connected. Clients such as [`Sse`](super::Sse) can so be held open across a reload of the service.
//!
//! To have one more Debian package in it, add it to [`PACKAGES`]: the root is made anew. Dropping a [`Booted`] powers
//! the system off and waits for it, by the id of its own process; so does the end of the test process.
//!
//! It needs root, debootstrap, systemd-nspawn and a Debian mirror, or says what is missing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::http::{Connection, Response, request};
use super::machine::{Folder, Service, left_out, program, wait_for};

const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,redis-server,postgresql,nodejs,curl,sudo,iproute2,procps";

/// Units that do not run there: variables of the kernel are the host's.
const MASKED: &str = "systemd-sysctl.service";

/// How long something on a busy host may take that takes seconds there.
pub const LONG: Duration = Duration::from_secs(90);

/// Where the system sees the folder that was given to [`Booted::start`].
pub const HOST: &str = "/srv/host";

/// A booted system.
pub struct Booted {
    service: Service,
    /// Its PID 1, as the host counts.
    init: u32,
}

/// What a script printed on both outputs, and how it ended.
pub struct Ran {
    pub status: i32,
    pub text: String,
}

impl Booted {
    /// Boots. `host` is a folder of the host that the system can read at [`HOST`].
    pub fn start(host: &Path) -> Option<Booted> {
        let root = root()?;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let words = [
            "systemd-nspawn".to_owned(),
            "--quiet".into(),
            format!("--directory={}", root.display()),
            format!("--machine=tidegate-{}-{count}", std::process::id()),
            "--hostname=mastodon".into(),
            "--boot".into(),
            // Nothing of the root folder is changed.
            "--volatile=overlay".into(),
            "--private-network".into(),
            format!("--bind-ro={}:{HOST}", host.display()),
            // The host itself need not run systemd.
            "--register=no".into(),
            "--keep-unit".into(),
            "--settings=no".into(),
            "--link-journal=no".into(),
            "--resolv-conf=off".into(),
            "--timezone=off".into(),
        ];
        let service = Service::start(Folder::new("booted"), "TERM", &words);
        let init = wait_for("the system has a PID 1", LONG, || {
            assert!(!service.is_gone(), "systemd-nspawn has ended:\n{}", service.log());
            let pid = service.pid();
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            // The first child is one that prepares the namespaces.
            children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child| is_init(*child))
        });
        let booted = Booted { service, init };
        let mut last = String::new();
        wait_for("the system has booted", LONG, || {
            last = booted.run("systemctl is-system-running --wait 2>&1").text;
            ["running", "degraded"].contains(&last.trim()).then_some(())
        });
        let failed = || booted.run("systemctl --failed; journalctl -p warning").text;
        assert_eq!(last.trim(), "running", "{}", failed());
        Some(booted)
    }

    /// Runs a script of bash as root.
    pub fn run(&self, script: &str) -> Ran {
        self.run_with(script, b"")
    }

    fn run_with(&self, script: &str, input: &[u8]) -> Ran {
        let mut child = Command::new("timeout")
            .arg(LONG.as_secs().to_string())
            .args(["nsenter", "--all", "--target", &self.init.to_string(), "bash", "-c"])
            .arg(format!("exec 2>&1; cd /root\n{script}"))
            .env_clear()
            .envs([
                ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                ("HOME", "/root"),
                ("LC_ALL", "C.UTF-8"),
                ("SYSTEMD_PAGER", "cat"),
                ("DEBIAN_FRONTEND", "noninteractive"),
            ])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter");
        // A script that does not read its input may have ended.
        let _ = child.stdin.take().unwrap().write_all(input);
        let mut bytes = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        let status = child.wait().unwrap().code().unwrap_or(-1);
        Ran { status, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    /// Runs a script that has to end with 0; what it printed.
    #[track_caller]
    pub fn succeed(&self, script: &str) -> String {
        let ran = self.run(script);
        assert_eq!(ran.status, 0, "{script}\n{}\n{}", ran.text, self.run("journalctl -n 30 -o short").text);
        ran.text
    }

    /// Writes a file.
    #[track_caller]
    pub fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let ran = self.run_with(&format!("cat >'{path}'"), content.as_ref());
        assert_eq!(ran.status, 0, "{path}: {}", ran.text);
    }

    /// Runs `action` on a thread that is in the system's network namespace.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        let run = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            action()
        };
        std::thread::scope(|threads| match threads.spawn(run).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A response of what listens on a port of 127.0.0.1 there; none if nothing does.
    pub fn get(&self, port: u16, path: &str) -> Option<Response> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.within(|| {
            let socket = std::net::TcpStream::connect(address).ok()?;
            let mut connection = Connection::over(socket);
            connection.try_send(request("GET", path, &[("Connection", "close")]).as_bytes()).ok()?;
            // Whatever is in the midst of its end may reset the connection.
            connection.read_more().ok().filter(|length| *length > 0)?;
            Some(connection.response("GET"))
        })
    }
}

/// Whether a process is PID 1 in a namespace of its own, and systemd already.
fn is_init(pid: u32) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let is_first = read("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
    is_first && read("comm").trim() == "systemd"
}

/// The root folder, made if there is none.
fn root() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        left_out("needs root");
        return None;
    }
    let sbin = |name: &str| program(name).is_some() || Path::new("/usr/sbin").join(name).is_file();
    for name in ["debootstrap", "systemd-nspawn"] {
        if !sbin(name) {
            left_out(&format!("needs {name}"));
            return None;
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("booted");
    std::fs::create_dir_all(&folder).unwrap();
    // One test at a time makes it.
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let (root, recipe) = (folder.join("root"), folder.join("recipe"));
    let wanted = format!("{SUITE} {PACKAGES} without {MASKED}\n");
    if std::fs::read_to_string(&recipe).is_ok_and(|found| found == wanted) {
        return Some(root);
    }
    let _ = std::fs::remove_file(&recipe);
    let _ = std::fs::remove_dir_all(&root);
    let output = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
        .arg(&root)
        .stdin(Stdio::null())
        .output()
        .expect("debootstrap");
    if !output.status.success() {
        left_out(&format!("debootstrap fails ({})", last_line(&output)));
        return None;
    }
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost mastodon\n").unwrap();
    std::fs::write(root.join("etc/hostname"), "mastodon\n").unwrap();
    std::os::unix::fs::symlink("/dev/null", root.join("etc/systemd/system").join(MASKED)).unwrap();
    std::fs::write(&recipe, wanted).unwrap();
    Some(root)
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().last().unwrap_or_default().to_owned()
}
