//! The memory that the process may use, in a real control group: the budgets are chosen by it, and `check` and the log
//! say which and why.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::machine::{PATIENCE, wait_for};
use support::posts::text_message;
use support::server::Env;
use support::{Server, Sse, World, left_out, ours_alone, wait_until};

/// A control group of the test's own, with a limit on its memory. Removed when it is empty.
struct Group(PathBuf);

impl Group {
    /// None where no group may be made.
    fn with(limit_bytes: usize) -> Option<Group> {
        // Version 1, then version 2.
        let tops = [("memory/", "memory.limit_in_bytes"), ("", "memory.max")];
        for (number, (top, file)) in tops.iter().enumerate() {
            let name = format!("{top}tidegate-test-{}-{limit_bytes}-{number}", std::process::id());
            let group = Group(Path::new("/sys/fs/cgroup").join(name));
            if std::fs::create_dir(&group.0).is_ok()
                && std::fs::write(group.0.join(file), limit_bytes.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        left_out("needs a control group for memory that this user may make");
        None
    }

    /// Runs the program in it.
    fn run(&self, arguments: &str, env: &Env) -> Server {
        let script = format!("echo $$ >{}/cgroup.procs && exec \"$0\" {arguments}", self.0.display());
        Server::spawn_by(&script, Stdio::null(), env)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was just killed may still be in it.
        for _ in 0..500 {
            match std::fs::remove_dir(&self.0) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::park_timeout(std::time::Duration::from_millis(2));
                }
                _ => return,
            }
        }
    }
}

fn with(env: &Env, more: &[(&str, &str)]) -> Env {
    let mut env = env.clone();
    env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

/// The high mark that is in force.
fn high_bytes(server: &Server) -> f64 {
    server.metric("tidegate_backlog_high_bytes", &[]).expect("a metric")
}

#[test]
fn small_memory_makes_small_budgets() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let Some(group) = Group::with(64 << 20) else { return };
    let mib = f64::from(1 << 20);
    assert_eq!(high_bytes(&world.server), 16.0 * mib);
    let chosen = "so BACKPRESSURE_HIGH_BYTES=12MiB and FILTER_CACHE_BYTES=12MiB are chosen";
    let name = group.0.file_name().unwrap().to_str().unwrap();

    let server = group.run("", &world.env).listening();
    server.until_output("this process may use 64MiB (memory.");
    server.until_output(&format!("of the control group /{name}), {chosen}"));
    assert_eq!(high_bytes(&server), 12.0 * mib);
    // Much for a client that does not read, and the process lives on.
    let viewer = world.viewer("read");
    let mut slow = Sse::open(&server, "/api/v1/streaming/user", &viewer.token);
    let long = text_message("delete", &"x".repeat(256 << 10));
    for _ in 0..400 {
        world.publish(&viewer.home(), &long);
    }
    slow.connection.until_closed();
    assert_eq!(server.get("/api/v1/streaming/health").text(), "OK");
    drop(server);

    // What is set stays, with a warning.
    let large = with(&world.env, &[("BACKPRESSURE_HIGH_BYTES", "40MiB"), ("PORT", "0")]);
    let server = group.run("", &large).listening();
    let warned = "WARN this process may use 64MiB";
    server.until_output(warned);
    server.until_output("needs up to 108MiB with BACKPRESSURE_HIGH_BYTES=40MiB and FILTER_CACHE_BYTES=12MiB");
    assert_eq!(high_bytes(&server), 40.0 * mib);
    drop(server);

    // `check` says the same.
    for (env, verdict, words) in
        [(&world.env, "ok    Memory: ", chosen), (&large, "warn  Memory: ", "needs up to 108MiB")]
    {
        let mut checking = group.run("check", env);
        checking.until_exit();
        let line = wait_for("the verdict", PATIENCE, || {
            checking.output().lines().find(|line| line.starts_with(verdict)).map(str::to_owned)
        });
        assert!(line.contains("64MiB") && line.contains(words), "{line}");
    }
}

#[test]
fn bound_on_addresses_is_a_limit_too() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let mut checking = Server::spawn_by("ulimit -v 131072; exec \"$0\" check", Stdio::null(), &world.env);
    checking.until_exit();
    wait_until("the verdict is printed", PATIENCE, || {
        let output = checking.output();
        let mut lines = output.lines().filter(|line| line.contains("Memory: "));
        lines.any(|line| line.contains("(RLIMIT_AS)") && line.contains("are chosen"))
    });
}
