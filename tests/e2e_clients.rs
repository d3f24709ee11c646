//! Client libraries that people use, unchanged, in their own languages: each receives events and comes back
//! after the server was restarted. `tests/run` installs them; without them this says what was left out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::json;
use support::machine::{PATIENCE, clients};
use support::posts::{message, status, text_message};
use support::{Server, World, left_out, peer};

/// A running script; what it prints comes line by line.
struct Script {
    child: Child,
    lines: Receiver<String>,
    /// All it has said, for when it fails.
    said: Vec<String>,
}

impl Script {
    /// Starts a script of `tests/clients` where its libraries are, or says what is missing.
    fn start(program: &Path, needs: &Path, name: &str, variables: &[(&str, String)]) -> Option<Script> {
        if !needs.exists() {
            left_out("needs client libraries, which tests/run installs");
            return None;
        }
        // Node.js looks for libraries beside the script.
        let script = clients().join(name);
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name), &script)
            .unwrap();
        let mut child = Command::new(program)
            .arg(&script)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        Some(Script { child, lines, said: Vec::new() })
    }

    #[track_caller]
    fn next(&mut self, within: Duration) -> Option<String> {
        let line = self.lines.recv_timeout(within).ok()?;
        self.said.push(line.clone());
        Some(line)
    }

    #[track_caller]
    fn until(&mut self, expected: &str) {
        let end = Instant::now() + PATIENCE * 2;
        while Instant::now() < end {
            if self.next(Duration::from_millis(100)).is_some_and(|line| line.starts_with(expected)) {
                return;
            }
        }
        panic!("{expected:?} did not come, but {:?}", self.said);
    }

    /// Publishes deletions until the script tells one: it is connected then. Later ones are read away.
    #[track_caller]
    fn until_live(&mut self, world: &World, channel: &str) {
        let end = Instant::now() + PATIENCE * 3;
        let mut n = 0;
        loop {
            n += 1;
            world.publish(channel, &text_message("delete", &format!("900{n}")));
            let line = self.next(Duration::from_millis(50));
            if line.is_some_and(|line| line.starts_with("delete 900")) {
                break;
            }
            assert!(Instant::now() < end, "it does not connect: {:?}", self.said);
        }
        world.publish(channel, &text_message("delete", "800"));
        self.until("delete 800");
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every library has to do. `tells_close`: whether it says when its connection has ended.
fn check(program: &Path, needs: &Path, name: &str, tells_close: bool) {
    let Some(mut world) = World::start() else { return };
    let viewer = world.viewer("read");
    let variables = |server: &Server| {
        [
            ("STREAMING_WS", format!("ws://{}", server.address())),
            ("STREAMING_HTTP", format!("http://{}", server.address())),
            ("TOKEN", viewer.token.clone()),
        ]
    };
    let Some(mut script) = Script::start(program, needs, name, &variables(&world.server)) else { return };
    let home = viewer.home();
    for round in 0..2 {
        script.until_live(&world, &home);
        let post = status(110_000_000_000_000_001 + round, 7);
        world.publish(&home, &message("update", &post));
        script.until(&format!("update {}", post["id"].as_str().unwrap()));
        world.publish(&home, &text_message("delete", "110000000000000001"));
        script.until("delete 110000000000000001");
        let notification = json!({
            "id": format!("{}", 5 + round), "type": "mention", "created_at": "2026-08-01T10:20:30.456Z",
            "account": post["account"], "status": post,
        });
        let channel = format!("timeline:{}:notifications", viewer.account);
        world.publish(&channel, &message("notification", &notification));
        script.until(&format!("notification {}", 5 + round));
        if round == 0 {
            world.env.insert("PORT".into(), world.server.address().port().to_string());
            world.server.signal("TERM");
            world.server.until_exit();
            if tells_close {
                script.until("closed");
            }
            world.server = Server::start(&world.env);
        }
    }
    drop(script);
    if peer().is_none() {
        world.until_empty();
    }
}

fn node(name: &str) {
    let Some(node) = support::machine::program("node") else { return left_out("needs Node.js") };
    check(&node, &clients().join("node_modules"), name, name != "masto.mjs");
}

fn python(name: &str, module: &str) {
    let venv = clients().join("venv/bin/python");
    if !venv.exists() {
        return left_out("needs a Python environment, which tests/run makes");
    }
    let found = Command::new(&venv).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return left_out("needs Python libraries, which tests/run installs");
    }
    // Mastodon.py says nothing of a response that ends as it should, and opens the next.
    check(&venv, &venv, name, module != "mastodon");
}

#[test]
fn npm_ws() {
    node("ws.mjs");
}

#[test]
fn npm_eventsource() {
    node("eventsource.mjs");
}

#[test]
fn masto_js() {
    node("masto.mjs");
}

#[test]
fn python_websockets() {
    python("websockets_client.py", "websockets");
}

#[test]
fn mastodon_py() {
    python("mastodon_client.py", "mastodon");
}
