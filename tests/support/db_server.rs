//! A private PostgreSQL for tests: its own data directory and unix socket in a temporary folder, no TCP,
//! ended when the test's process ends in whatever way.
//!
//! PostgreSQL refuses to run as root; as root it runs as `postgres` (or `nobody`). A shell supervises it: the
//! test holds the write end of the shell's standard input, and its end means the end of the server and of
//! the folder. Where PostgreSQL is not installed, [`Postgres::start`] says so and gives none.

#![allow(dead_code, clippy::expect_used, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tidegate::db::{Host, Options};

/// The tables that the server reads.
pub const SCHEMA: &str = include_str!("../schema.sql");

/// A running server, ended when dropped.
pub struct Postgres {
    supervisor: Child,
    stdin: Option<ChildStdin>,
    /// Holds the data directory and the socket.
    pub dir: PathBuf,
    bin: PathBuf,
    user: Option<&'static str>,
    databases: AtomicU32,
}

/// Where Debian or the PATH has the server's programs, the newest version first.
pub fn find_binaries() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return Some(bin);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}

fn known(user: &str) -> bool {
    Command::new("id").arg("-u").arg(user).output().is_ok_and(|output| output.status.success())
}

/// A command that runs as `user`, if one is given.
fn command_as(user: Option<&str>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    let group = String::from_utf8(Command::new("id").arg("-g").arg(user).output().expect("id runs").stdout);
    command.arg("--reuid").arg(user).arg("--regid").arg(group.expect("a number").trim());
    command.arg("--clear-groups").arg("--").arg(program);
    command
}

impl Postgres {
    /// Starts a server, or says on standard error why the calling test is left out.
    pub fn start() -> Option<Postgres> {
        Self::start_with(&[])
    }

    /// Starts a server with more settings (`name=value`).
    pub fn start_with(settings: &[&str]) -> Option<Postgres> {
        let Some(bin) = find_binaries() else {
            eprintln!("LEFT OUT: this test needs PostgreSQL (Debian: apt-get install postgresql)");
            return None;
        };
        let user = if is_root() {
            let user = ["postgres", "nobody"].into_iter().find(|user| known(user));
            if user.is_none() {
                eprintln!("LEFT OUT: PostgreSQL does not run as root, and there is no user to run it as");
                return None;
            }
            user
        } else {
            None
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-pg-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        if let Some(user) = user {
            assert!(Command::new("chown").arg(user).arg(&dir).status().expect("chown runs").success());
        }
        let data = dir.join("data");
        let output = command_as(user, &bin.join("initdb"))
            .current_dir(&dir)
            .args(["--no-sync", "--auth=trust", "--username=mastodon", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut conf = String::from("listen_addresses = ''\nfsync = off\nmax_connections = 60\n");
        conf.push_str(&format!("unix_socket_directories = '{}'\n", dir.display()));
        for setting in settings {
            let (name, value) = setting.split_once('=').expect("name=value");
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        let mut file =
            std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("its conf");
        file.write_all(conf.as_bytes()).expect("its conf");
        let (supervisor, stdin) = Self::launch(user, &bin, &dir);
        let server =
            Postgres { supervisor, stdin: Some(stdin), dir, bin, user, databases: AtomicU32::new(0) };
        Some(server)
    }

    fn launch(user: Option<&'static str>, bin: &Path, dir: &Path) -> (Child, ChildStdin) {
        let script = "\"$1\" -D \"$2\" </dev/null & pid=$!; read line; \
                      case $line in keep-crash) kill -QUIT $pid;; *) kill -INT $pid;; esac; wait $pid; \
                      case $line in keep*) ;; *) rm -rf \"$3\";; esac";
        let mut supervisor = command_as(user, Path::new("/bin/sh"))
            .current_dir(dir)
            .args(["-c", script, "sh"])
            .arg(bin.join("postgres"))
            .arg(dir.join("data"))
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the supervising shell runs");
        let stdin = supervisor.stdin.take().expect("piped");
        let mut log = BufReader::new(supervisor.stderr.take().expect("piped"));
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let mut seen = String::new();
            loop {
                let before = seen.len();
                match log.read_line(&mut seen) {
                    Ok(0) | Err(_) => {
                        let _ = ready.send(Err(seen));
                        return;
                    }
                    Ok(_) if seen[before..].contains("ready to accept connections") => break,
                    Ok(_) => {}
                }
            }
            let _ = ready.send(Ok(()));
            let _ = log.read_to_string(&mut String::new());
        });
        match is_ready.recv_timeout(Duration::from_secs(60)) {
            Ok(Ok(())) => {}
            Ok(Err(log)) => panic!("PostgreSQL did not start: {log}"),
            Err(_) => panic!("PostgreSQL did not start within a minute"),
        }
        (supervisor, stdin)
    }

    /// Stops the server: connections are ended, data stays. `crash` ends it without a goodbye.
    pub fn stop(&mut self, crash: bool) {
        let mut stdin = self.stdin.take().expect("it runs");
        stdin.write_all(if crash { b"keep-crash\n" } else { b"keep\n" }).expect("the shell listens");
        drop(stdin);
        self.supervisor.wait().expect("it ends");
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn start_again(&mut self) {
        let (supervisor, stdin) = Self::launch(self.user, &self.bin, &self.dir);
        (self.supervisor, self.stdin) = (supervisor, Some(stdin));
    }

    /// How to connect to that database.
    pub fn options(&self, dbname: &str) -> Options {
        Options {
            host: Host::Unix(self.dir.clone()),
            user: "mastodon".into(),
            dbname: dbname.into(),
            ..Options::default()
        }
    }

    /// A fresh database with the tables and nothing in them; its name.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        self.psql(&name, SCHEMA);
        name
    }

    /// Runs SQL through `psql`, in one session, and gives what it printed (unaligned, no headings).
    pub fn psql(&self, dbname: &str, sql: &str) -> String {
        let mut child = Command::new(self.bin.join("psql"))
            .args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "mastodon", "-d", dbname, "-h"])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql runs");
        let mut stdin = child.stdin.take().expect("piped");
        let sql = sql.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(sql.as_bytes()));
        let output = child.wait_with_output().expect("psql ends");
        let _ = writer.join();
        assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            drop(stdin);
            let _ = self.supervisor.wait();
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
