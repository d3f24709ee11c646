//! Client libraries as people use them, unchanged: npm ws, eventsource and masto, Python websockets and
//! Mastodon.py; and the pages for people in a real browser: the demo and the status page.
//!
//! `tests/run` installs them into `target/clients`; where that was not done these tests say what they left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::{clients, left_out, ours_alone, program, wait_for};
use support::posts::{message, text_message};
use support::server::{Env, Server};
use support::world::fresh_id;
use support::{Sse, World, posts};

/// Starting an interpreter on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client's process and the JSON lines that it prints.
struct Client {
    child: Child,
    lines: Receiver<Value>,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    /// Runs a script with the interpreter that its ending asks for; none where that or the packages are not
    /// there.
    fn run(script: &str, arguments: &[&str]) -> Option<Client> {
        let folder = clients();
        let interpreter = if script.ends_with(".py") {
            Some(folder.join("venv/bin/python")).filter(|path| path.exists())
        } else {
            program("node").filter(|_| folder.join("node_modules").exists())
        };
        let Some(interpreter) = interpreter else {
            left_out(&format!("what runs {script} is not installed (tests/run installs it)"));
            return None;
        };
        // Packages are looked for beside the script. Tests run at once: each writes a file of its own.
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
        let copy = folder.join(script);
        std::fs::copy(source, &copy).unwrap();
        let mut child = Command::new(interpreter)
            .arg(copy)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                let _ = sender.send(line);
            }
        });
        Some(Client { child, lines })
    }

    #[track_caller]
    fn next(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("the client prints a line")
    }
}

/// The same for every library: it subscribes to `user`, gets a status, a deletion and a notification in order,
/// and its connection ends when its token is revoked, which most libraries tell.
fn follows_a_user(script: &str, tells_the_end: bool) {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let base = format!("http://{}", world.server.address());
    let Some(client) = Client::run(script, &[&base, &viewer.token]) else { return };
    assert!(client.next()["open"] == true, "{script} opens its stream");
    wait_for("the client is subscribed", PATIENCE, || {
        viewer.user_channels().iter().all(|channel| world.redis.has_subscriber(channel)).then_some(())
    });
    // A subscription counts from its confirmation; the reactor has it when the metric says so.
    let kind = if world.server.metric("connected_clients", &[("type", "websocket")]) == Some(1.0) {
        "websocket"
    } else {
        "eventsource"
    };
    world.server.until_metric("connected_channels", &[("type", kind), ("channel", "user")], 1.0);

    let status = posts::status(fresh_id(), 1);
    let notification = json!({"id": fresh_id().to_string(), "type": "mention", "created_at":
        "2026-01-01T00:00:00.000Z", "account": status["account"], "status": status});
    let notifications = format!("timeline:{}:notifications", viewer.account);
    world.publish(&viewer.home(), &message("update", &status));
    world.publish(&viewer.home(), &text_message("delete", "109501234567890999"));
    world.publish(&notifications, &message("notification", &notification));

    let expected = [
        ("update", status["id"].as_str().unwrap()),
        ("delete", "109501234567890999"),
        ("notification", notification["id"].as_str().unwrap()),
    ];
    for (event, id) in expected {
        let got = client.next();
        assert_eq!((&got["stream"], &got["event"]), (&json!(["user"]), &json!(event)), "{script}: {got}");
        let payload = got["payload"].as_str().unwrap();
        let parsed: Value = serde_json::from_str(payload).unwrap();
        let found = if event == "delete" { payload } else { parsed["id"].as_str().unwrap() };
        assert_eq!(found, id, "{script}: {got}");
    }
    world.publish(&format!("timeline:access_token:{}", viewer.token_id), r#"{"event":"kill"}"#);
    if tells_the_end {
        let end = client.next();
        assert!(end.get("closed").is_some(), "{script}: {end}");
    }
    world.until_empty();
}

#[test]
fn npm_ws() {
    follows_a_user("ws.mjs", true);
}

#[test]
fn npm_eventsource() {
    follows_a_user("eventsource.mjs", true);
}

#[test]
fn npm_masto() {
    follows_a_user("masto.mjs", false);
}

#[test]
fn python_websockets() {
    follows_a_user("websockets_client.py", true);
}

#[test]
fn python_mastodon_py() {
    follows_a_user("mastodon_py.py", true);
}

/// A page for people in Chromium, as the script looks at it; none where one or the other is missing.
fn looks_at(script: &str, page: &str) -> Option<Client> {
    let Some(browser) = program("chromium") else {
        left_out("chromium is not installed");
        return None;
    };
    let options = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ];
    Client::run(script, &[&[page, browser.to_str().unwrap()][..], &options].concat())
}

#[test]
fn the_demo_page_shows_posts_arriving_on_both_transports() {
    if !ours_alone() {
        return;
    }
    let mut demo = Server::spawn_ours(&["demo", "--port", "0"], &Env::new());
    let listening = "Streaming API now listening on ";
    let address = wait_for("the demo listens", PATIENCE, || {
        assert!(demo.exit_status().is_none(), "{}", demo.output());
        let output = demo.output();
        let rest = output.split_once(listening)?.1;
        Some(rest.split_once(['\n', '"', ' '])?.0.to_owned())
    });
    let page = format!("http://{address}/");
    let Some(client) = looks_at("demo_page.mjs", &page) else { return };
    let seen = client.next();
    assert!(seen["ws"].as_u64() >= Some(3) && seen["sse"].as_u64() >= Some(3), "{seen}");
    assert_eq!(seen["faults"], json!([]), "{seen}");
}

#[test]
fn the_status_page_fits_a_phone_and_a_desktop_in_the_dark_and_in_the_light() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let _sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    let page = format!("http://{}/status/", world.server.address());
    let Some(client) = looks_at("status_page.mjs", &page) else { return };
    for ground in ["rgb(15, 21, 27)", "rgb(244, 246, 248)"] {
        let seen = client.next();
        let text = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
        assert!(text("state").starts_with("All is well"), "{seen}");
        assert!(text("tiles").contains("Connections 1 0 WebSocket, 1 SSE"), "{seen}");
        assert!(text("streams").contains("user 0 1"), "{seen}");
        assert_eq!((&seen["sticking"], &seen["beyond"]), (&json!([]), &json!(0)), "{seen}");
        assert_eq!((&seen["faults"], text("ground").as_str()), (&json!([]), ground), "{seen}");
    }
}
