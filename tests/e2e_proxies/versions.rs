//! Other versions of HTTP than 1.1, on either side of a proxy: HTTP/2 clients, whose requests reach the server in chunks
//! that are none, and nginx's HTTP/1.0.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use super::*;
use crate::support::left_out;
use crate::support::machine::program;
use crate::support::ws::{RawWs, upgrade};

/// A program and the lines that it prints.
struct Client {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    fn start(command: &mut Command) -> Client {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Client { child, lines }
    }

    /// Node's HTTP/2 client.
    fn node(proxy: &Proxy, path: &str, viewer: &Viewer, protocol: &str) -> Option<Client> {
        let Some(node) = program("node") else {
            left_out("needs node");
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/http2.mjs");
        let base = format!("http://{}", proxy.at);
        Some(Client::start(Command::new(node).arg(script).args([&base, path, &viewer.token, protocol])))
    }

    /// curl, which "uploads" nothing.
    fn curl(proxy: &Proxy, path: &str, viewer: &Viewer) -> Option<Client> {
        let Some(curl) = program("curl") else {
            left_out("needs curl");
            return None;
        };
        let mut command = Command::new(curl);
        command.args(["-sSN", "--http2-prior-knowledge", "-X", "GET", "-T", "-", "-i", "-H"]);
        command.arg(format!("Authorization: {}", viewer.bearer()));
        Some(Client::start(command.arg(format!("http://{}{path}", proxy.at))))
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(LONG).expect("the client prints a line")
    }

    #[track_caller]
    fn json(&self) -> Value {
        let line = self.next();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("JSON, not {line:?}"))
    }

    /// Reads data until it contains `end`.
    #[track_caller]
    fn until_data(&self, end: &str) {
        let mut data = String::new();
        while !data.contains(end) {
            let line = self.json();
            data.push_str(line["data"].as_str().unwrap_or_else(|| panic!("{line} instead of data")));
        }
    }
}

/// A configuration whose clients speak HTTP/2 without TLS.
fn http2(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Nginx => {
            let listen = text.lines().find(|line| line.starts_with("listen ")).unwrap();
            let text = replaced(text, listen, &listen.replace(';', " http2;"));
            replaced(&text, "proxy_buffering off;", "proxy_buffering off;\nproxy_request_buffering off;")
        }
        Kind::Haproxy => {
            let bind = text.lines().find(|line| line.trim().starts_with("bind ")).unwrap();
            replaced(text, bind, &format!("{bind} proto h2"))
        }
        Kind::Caddy => replaced(text, "admin off", "admin off\nservers {\nprotocols h1 h2c\n}"),
    }
}

#[test]
fn streams_open_by_http_2() {
    // nginx notices that an HTTP/2 client left when it next writes.
    let Some(world) = World::with(&[("SSE_HEARTBEAT_SECONDS", "1")]) else { return };
    for kind in ALL {
        let change = |text: String| http2(kind, &text);
        let Some(proxy) = Proxy::changed(kind, &[world.server.address()], MINUTE, change) else { continue };
        let viewer = world.viewer("read");
        if let Some(client) = Client::node(&proxy, "/api/v1/streaming/user", &viewer, "") {
            assert_eq!(client.json(), json!({"status": 200}), "{kind:?}");
            assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1);
            client.until_data("event: delete\ndata: 1\n\n");
            drop(client);
            world.redis.until_channels(&[]);
        }
        if let Some(client) = Client::curl(&proxy, "/api/v1/streaming/user", &viewer) {
            assert_eq!(client.next().trim(), "HTTP/2 200", "{kind:?}");
            // The head's lines, the greeting, and the first event, with heartbeats between them.
            while client.next() != ":)" {}
            assert_eq!(world.publish(&viewer.home(), &text_message("delete", "2")), 1);
            while client.next() != "event: delete" {}
            assert_eq!(client.next(), "data: 2", "{kind:?}");
            drop(client);
            world.redis.until_channels(&[]);
        }
    }
}

#[test]
fn websockets_open_by_http_2() {
    let Some(world) = World::start() else { return };
    // The others of Debian 12 do not know RFC 8441.
    let change = |text: String| http2(Kind::Haproxy, &text);
    let Some(proxy) = Proxy::changed(Kind::Haproxy, &[world.server.address()], MINUTE, change) else {
        return;
    };
    let viewer = world.viewer("read");
    let Some(client) = Client::node(&proxy, "/api/v1/streaming?stream=user", &viewer, "websocket") else {
        return;
    };
    assert_eq!(client.json(), json!({"status": 200}));
    assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1);
    client.until_data(r#"{"stream":["user"],"event":"delete","payload":"1"}"#);
}

#[test]
fn request_in_chunks_passes_nginx_without_buffering() {
    let Some(world) = World::start() else { return };
    let change = |text: String| {
        replaced(&text, "proxy_buffering off;", "proxy_buffering off;\nproxy_request_buffering off;")
    };
    let Some(proxy) = Proxy::changed(Kind::Nginx, &[world.server.address()], MINUTE, change) else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let headers = [("Authorization", bearer.as_str()), ("Transfer-Encoding", "chunked")];
    // The end at once, and after what came before it has arrived at the server.
    for late in [false, true] {
        let mut connection = Connection::tcp(proxy.at);
        let text = request("GET", "/api/v1/streaming/user", &headers);
        if late {
            let requests = || world.server.metric("tidegate_requests_total", &[]).unwrap_or(0.0);
            let before = requests();
            connection.send(text.as_bytes());
            // The request for the metric is one of them.
            let mut asked = 0.0;
            wait_until("the request is at the server", PATIENCE, || {
                asked += 1.0;
                !ours_alone() || requests() > before + asked
            });
            connection.send(b"0\r\n\r\n");
        } else {
            connection.send(format!("{text}0\r\n\r\n").as_bytes());
        }
        let mut sse = Sse::read_head(connection).unwrap_or_else(|response| panic!("{response:?}"));
        sse.expect_bytes(b":)\n");
        assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1);
        sse.expect("delete", "1");
        drop(sse);
        world.redis.until_channels(&[]);

        let mut connection = Connection::tcp(proxy.at);
        let text = upgrade("/api/v1/streaming/?stream=user", &headers);
        connection.send(format!("{text}0\r\n\r\n").as_bytes());
        let mut ws = RawWs { head: connection.head(), connection };
        assert_eq!(ws.head.status, 101, "{:?}", ws.head);
        assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1);
        assert_eq!(ws.next_text(), r#"{"stream":["user"],"event":"delete","payload":"1"}"#);
        drop(ws);
        world.redis.until_channels(&[]);
    }
}

#[test]
fn streams_pass_nginx_by_http_1_0() {
    let Some(world) = World::start() else { return };
    let change = |text: String| replaced(&text, "proxy_http_version 1.1;", "");
    let Some(proxy) = Proxy::changed(Kind::Nginx, &[world.server.address()], MINUTE, change) else { return };
    let viewer = world.viewer("read");
    let mut ws = proxy.ws("/api/v1/streaming/?stream=user", &viewer);
    let mut sse = proxy.sse("/api/v1/streaming/user", &viewer);
    assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1);
    ws.expect_event(&json!(["user"]), "delete", "1");
    sse.expect("delete", "1");
    ws.send_json(&json!({"type": "subscribe", "stream": "nonsense"}));
    ws.expect_error(400, "Unknown stream type");
    let refused = Ws::try_open(proxy.at, "/api/v1/streaming", &[("Sec-WebSocket-Protocol", "wrong")]);
    assert_eq!(refused.err(), Some((401, "Invalid access token".to_owned())));
    drop((ws, sse));
    world.until_empty();
}
