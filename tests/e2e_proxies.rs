//! Behind nginx, HAProxy and Caddy, with the configurations of `dist/`: messages pass one by one, keepalives outlive
//! the proxies' timeouts, several servers share the clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
#[path = "e2e_proxies/versions.rs"]
mod versions;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use support::http::{Connection, Response, request};
use support::machine::{Folder, PATIENCE, Service, free_port, signal, wait_for};
use support::nginx::{frame, sbin};
use support::posts::text_message;
use support::sentinel::{Cluster, LONG, MASTER};
use support::{Server, Sse, Viewer, World, Ws, ours_alone, wait_until};
use tungstenite::Message;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Nginx,
    Haproxy,
    Caddy,
}

const ALL: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::Caddy];

struct Proxy {
    at: SocketAddr,
    _service: Service,
}

fn dist(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the configuration");
    text.replace(from, to)
}

impl Proxy {
    /// Starts one in front of these servers. `idle` is how long it lets a connection be silent.
    fn start(kind: Kind, servers: &[SocketAddr], idle: Duration) -> Option<Proxy> {
        Proxy::changed(kind, servers, idle, |text| text)
    }

    /// Likewise, with a changed configuration.
    fn changed(
        kind: Kind,
        servers: &[SocketAddr],
        idle: Duration,
        change: impl Fn(String) -> String,
    ) -> Option<Proxy> {
        let name = match kind {
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Caddy => "caddy",
        };
        let binary = sbin(name)?;
        for _ in 0..10 {
            let folder = Folder::new(name);
            let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let (text, options) = match kind {
                Kind::Nginx => (nginx(folder.path(), at, servers, idle), ["-e", "stderr", "-c"].as_slice()),
                Kind::Haproxy => (haproxy(at, servers, idle), ["-db", "-f"].as_slice()),
                Kind::Caddy => (
                    caddy(folder.path(), at, servers, idle),
                    ["run", "--adapter", "caddyfile", "--config"].as_slice(),
                ),
            };
            let file = folder.path().join("proxy.conf");
            std::fs::write(&file, change(text)).unwrap();
            // Caddy keeps what it is told in its home.
            let home = format!("XDG_CONFIG_HOME={}", folder.path().display());
            let mut command = vec!["env".to_owned(), home, binary.to_str().unwrap().to_owned()];
            command.extend(options.iter().map(|&option| option.to_owned()));
            command.push(file.to_str().unwrap().to_owned());
            let service = Service::start(folder, "TERM", &command);
            let mut listens = false;
            wait_until("the proxy listens or ends", PATIENCE, || {
                listens = TcpStream::connect(at).is_ok();
                listens || service.is_gone()
            });
            // Its port may have been taken by somebody else: then it has ended, or is about to.
            if listens && !service.is_gone() {
                return Some(Proxy { at, _service: service });
            }
            assert!(service.log().contains("in use"), "{name} does not start:\n{}", service.log());
        }
        panic!("{name} found no free port in ten attempts");
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut connection = Connection::tcp(self.at);
        connection.send(request("GET", path, headers).as_bytes());
        connection.response("GET")
    }

    fn sse(&self, path: &str, viewer: &Viewer) -> Sse {
        let mut connection = Connection::tcp(self.at);
        connection.send(request("GET", path, &[("Authorization", &viewer.bearer())]).as_bytes());
        let mut sse = Sse::read_head(connection).unwrap_or_else(|response| panic!("{response:?}"));
        sse.expect_bytes(b":)\n");
        sse
    }

    fn ws(&self, path: &str, viewer: &Viewer) -> Ws {
        Ws::try_open(self.at, path, &[("Sec-WebSocket-Protocol", &viewer.token)]).expect("a WebSocket")
    }
}

fn nginx(folder: &Path, at: SocketAddr, servers: &[SocketAddr], idle: Duration) -> String {
    let upstream: String =
        servers.iter().map(|server| format!("server {server} fail_timeout=0;\n")).collect();
    let http =
        replaced(&dist("nginx/tidegate-http.conf"), "server 127.0.0.1:4000 fail_timeout=0;", &upstream);
    let idle = format!("proxy_read_timeout {}ms;", idle.as_millis());
    let server = replaced(&dist("nginx/tidegate-server.conf"), "proxy_read_timeout 60s;", &idle);
    let server = format!("server {{\nlisten {at};\n{server}\nlocation / {{ return 404; }}\n}}\n");
    let settings = "keepalive_timeout 70; gzip on; gzip_proxied any;\n\
                    gzip_types text/plain application/json text/event-stream;";
    frame(folder, &format!("{settings}\n{http}\n{server}"))
}

fn haproxy(at: SocketAddr, servers: &[SocketAddr], idle: Duration) -> String {
    let text = dist("haproxy.cfg");
    let text = replaced(&text, "bind 127.0.0.1:8080", &format!("bind {at}"));
    let backend: String = servers
        .iter()
        .enumerate()
        .map(|(number, server)| format!("    server tidegate{number} {server}\n"))
        .collect();
    let text = replaced(&text, "    server tidegate0 127.0.0.1:4000\n", &backend);
    let idle = format!("{}ms", idle.as_millis());
    let text = replaced(&text, "timeout client 60s", &format!("timeout client {idle}"));
    let text = replaced(&text, "timeout server 60s", &format!("timeout server {idle}"));
    replaced(&text, "timeout tunnel 1h", &format!("timeout tunnel {idle}"))
}

fn caddy(folder: &Path, at: SocketAddr, servers: &[SocketAddr], idle: Duration) -> String {
    let text = replaced(
        &dist("caddy/Caddyfile"),
        "social.example {",
        &format!("http://:{} {{\nbind {}", at.port(), at.ip()),
    );
    let upstreams: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let text = replaced(
        &text,
        "reverse_proxy 127.0.0.1:4000 {",
        &format!("reverse_proxy {} {{", upstreams.join(" ")),
    );
    let text = replaced(&text, "read_timeout 60s", &format!("read_timeout {}ms", idle.as_millis()));
    // Nothing of it outlives the test, and it listens nowhere else.
    let folder = folder.display();
    format!("{{\nadmin off\ngrace_period 1s\nauto_https off\nstorage file_system {folder}\n}}\n{text}")
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn messages_pass_one_by_one() {
    let Some(world) = World::start() else { return };
    for kind in ALL {
        let Some(proxy) = Proxy::start(kind, &[world.server.address()], MINUTE) else { continue };
        let viewer = world.viewer("read");
        let mut sse = proxy.sse("/api/v1/streaming/user", &viewer);
        // Clients use both forms of the path.
        let mut plain = proxy.ws("/api/v1/streaming?stream=user", &viewer);
        let mut slash = proxy.ws("/api/v1/streaming/?stream=user", &viewer);
        let echoed = slash.response.headers().get("sec-websocket-protocol").unwrap();
        assert_eq!(echoed.to_str().unwrap(), viewer.token);
        // Each is here before the next is sent, whatever its size: nothing gathers on the way.
        for n in 0..30usize {
            let payload = format!("{n}{}", "x".repeat(n * n * 40));
            let message = json!({"event": "delete", "payload": payload}).to_string();
            world.publish(&viewer.home(), &message);
            sse.expect("delete", &payload);
            for ws in [&mut plain, &mut slash] {
                ws.expect_event(&json!(["user"]), "delete", &payload);
            }
        }
        // And back: what a client says by WebSocket.
        plain.send_json(&json!({"type": "unsubscribe", "stream": "user"}));
        plain.send_json(&json!({"type": "subscribe", "stream": "nonsense"}));
        plain.expect_error(400, "Unknown stream type");
    }
}

#[test]
fn refusals_pass_as_they_are() {
    let Some(world) = World::start() else { return };
    for kind in ALL {
        let Some(proxy) = Proxy::start(kind, &[world.server.address()], MINUTE) else { continue };
        proxy.get("/api/v1/streaming/user", &[]).assert_error(401, "Missing access token");
        proxy.get("/api/v1/streaming/nonsense", &[]).assert_error(400, "Unknown channel requested");
        assert_eq!(proxy.get("/api/v1/streaming/health", &[]).text(), "OK");
        let refused = Ws::try_open(proxy.at, "/api/v1/streaming", &[("Sec-WebSocket-Protocol", "wrong")]);
        assert_eq!(refused.err(), Some((401, "Invalid access token".to_owned())), "{kind:?}");
        if ours_alone() {
            // The server's own pages stay inside, by whatever path.
            for path in ["/api/v1/streaming/status", "/api/v1/streaming/status/", "/api/v1/streaming/metrics"]
            {
                proxy.get(path, &[]).assert_error(400, "Unknown channel requested");
            }
        }
        // One connection of the client's for several requests, a stream the last.
        let viewer = world.viewer("read");
        let mut connection = Connection::tcp(proxy.at);
        for _ in 0..3 {
            connection.send(request("GET", "/api/v1/streaming/health", &[]).as_bytes());
            assert_eq!(connection.response("GET").text(), "OK");
        }
        let bearer = viewer.bearer();
        connection.send(request("GET", "/api/v1/streaming/user", &[("Authorization", &bearer)]).as_bytes());
        let mut sse = Sse::read_head(connection).unwrap();
        sse.expect_bytes(b":)\n");
    }
}

#[test]
fn keepalives_outlive_the_timeouts_of_proxies() {
    if !ours_alone() {
        return;
    }
    const IDLE: Duration = Duration::from_secs(5);
    let often = [("SSE_HEARTBEAT_SECONDS", "0.5"), ("WS_PING_SECONDS", "1")];
    let Some(world) = World::with(&often) else { return };
    let proxies = ALL.map(|kind| Proxy::start(kind, &[world.server.address()], IDLE));
    std::thread::scope(|scope| {
        for proxy in proxies.iter().flatten() {
            scope.spawn(|| {
                let viewer = world.viewer("read");
                let mut sse = proxy.sse("/api/v1/streaming/user", &viewer);
                // More than two timeouts of nothing else.
                for _ in 0..22 {
                    sse.expect_bytes(b":thump\n\n");
                }
                world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
                sse.expect("delete", "1");
            });
            scope.spawn(|| {
                let viewer = world.viewer("read");
                let mut ws = proxy.ws("/api/v1/streaming?stream=user", &viewer);
                for _ in 0..11 {
                    let message = ws.socket.read();
                    assert!(matches!(message, Ok(Message::Ping(_))), "{message:?}");
                }
                world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
                ws.expect_event(&json!(["user"]), "delete", "1");
            });
        }
    });
}

#[test]
fn proxies_do_cut_what_is_silent() {
    // Else the test above could not fail.
    let Some(world) = World::start() else { return };
    for kind in ALL {
        let Some(proxy) = Proxy::start(kind, &[world.server.address()], Duration::from_secs(1)) else {
            continue;
        };
        let viewer = world.viewer("read");
        let mut sse = proxy.sse("/api/v1/streaming/user", &viewer);
        if kind == Kind::Caddy {
            // It ends the response as if it were whole, and would keep the connection for another.
            sse.until_end();
        } else {
            sse.connection.until_closed();
        }
        assert_eq!(proxy.ws("/api/v1/streaming?stream=user", &viewer).try_next(), Err(None), "{kind:?}");
        // Whoever leaves through a proxy leaves nothing behind.
        world.until_empty();
    }
}

#[test]
fn three_servers_on_one_redis_share_the_clients() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("DB_POOL", "2")]) else { return };
    let (other, mut gone) = (Server::start(&world.env), Server::start(&world.env));
    let all = [world.server.address(), other.address(), gone.address()];
    let Some(proxy) = Proxy::start(Kind::Nginx, &all, MINUTE) else { return };
    let clients = |server: &Server| server.metric("connected_clients", &[("type", "websocket")]).unwrap();
    let viewers: Vec<Viewer> = (0..30).map(|_| world.viewer("read")).collect();
    let connect = |viewer: &Viewer| proxy.ws("/api/v1/streaming/?stream=user", viewer);
    let mut sockets: Vec<Ws> = viewers.iter().map(connect).collect();
    // least_conn, each asked after the one before was open: evenly.
    for server in [&world.server, &other, &gone] {
        server.until_metric("connected_clients", &[("type", "websocket")], 10.0);
    }
    let everybody = |sockets: &mut Vec<Ws>, text: &str| {
        for (viewer, ws) in viewers.iter().zip(sockets.iter_mut()) {
            let message = json!({"event": "delete", "payload": text}).to_string();
            assert_eq!(world.publish(&viewer.home(), &message), 1, "one server serves each");
            ws.expect_event(&json!(["user"]), "delete", text);
        }
    };
    everybody(&mut sockets, "1");

    // One is taken away: its clients are told, come back by the same address, and the others take them.
    gone.signal("TERM");
    assert!(gone.until_exit().success());
    let mut told = 0;
    for (viewer, ws) in viewers.iter().zip(&mut sockets) {
        ws.patience(Duration::from_millis(1));
        match ws.socket.read() {
            Ok(Message::Close(frame)) => {
                assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1001));
                told += 1;
                *ws = connect(viewer);
            }
            Err(tungstenite::Error::Io(_)) => ws.patience(PATIENCE),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, 10);
    everybody(&mut sockets, "2");
    let (one, two) = (clients(&world.server), clients(&other));
    assert_eq!(one + two, 30.0);
    assert!((one - two).abs() <= 2.0, "{one} and {two} clients");
}

/// A viewer with a stream of each kind through the proxy.
struct Pair {
    viewer: Viewer,
    ws: Ws,
    sse: Sse,
}

#[test]
fn three_servers_behind_nginx_follow_redis_to_its_new_master() {
    if !ours_alone() {
        return;
    }
    let Some(cluster) = Cluster::start() else { return };
    let found = cluster.variables();
    let mut variables: Vec<(&str, &str)> = found.iter().map(|(name, value)| (*name, &**value)).collect();
    variables.push(("DB_POOL", "2"));
    // The master will hang, not die: without the sentinels' word nobody would notice for a quarter of an hour.
    variables.push(("REDIS_PING_SECONDS", "600"));
    let (new_master, _sentinels) = (cluster.replica, cluster.sentinels);
    let Some(world) = World::with_redis(cluster.master, &variables) else { return };
    let others = [Server::start(&world.env), Server::start(&world.env)];
    let servers = [&world.server, &others[0], &others[1]];
    let Some(proxy) = Proxy::start(Kind::Nginx, &servers.map(Server::address), MINUTE) else { return };
    let path = "/api/v1/streaming/?stream=user";
    // least_conn, each asked after the one before was open: two connections for each server.
    let mut pairs: Vec<Pair> = (0..3)
        .map(|_| {
            let viewer = world.viewer("read");
            let ws = proxy.ws(path, &viewer);
            let sse = proxy.sse("/api/v1/streaming/user", &viewer);
            Pair { viewer, ws, sse }
        })
        .collect();
    let clients = |server: &Server| {
        let of = |kind| server.metric("connected_clients", &[("type", kind)]).unwrap_or(0.0);
        of("websocket") + of("eventsource")
    };
    for server in servers {
        assert_eq!(clients(server), 2.0);
    }
    let arrives = |pairs: &mut [Pair], redis: &support::redis::Redis, text: &str| {
        for pair in pairs {
            let subscribers = redis.publish(&pair.viewer.home(), &text_message("update", text));
            assert!((1..=2).contains(&subscribers), "one or two servers serve a viewer, not {subscribers}");
            pair.ws.expect_event(&json!(["user"]), "update", text);
            pair.sse.expect("update", text);
        }
    };
    arrives(&mut pairs, &world.redis, r#"{"id":"1"}"#);

    signal(world.redis.service.pid(), "STOP");
    for pair in &mut pairs {
        // Through the proxy too the reason is told, and neither end looks like a broken connection.
        pair.ws.patience(LONG);
        assert_eq!(pair.ws.until_close().map(|frame| u16::from(frame.code)), Some(1012));
        pair.sse.connection.patience(LONG);
        let rest = pair.sse.until_end();
        assert!(rest.ends_with(":messages may have been missed\n\n"), "{rest:?}");
    }
    // A replica that is made the master drops its clients.
    new_master.reconnect();
    for server in servers {
        server.until_output(&format!("Redis at 127.0.0.1:{} (master {MASTER}) is back", new_master.port));
    }
    let bearer = |viewer: &Viewer| [("Authorization", viewer.bearer())];
    for pair in &mut pairs {
        let headers = bearer(&pair.viewer);
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        pair.ws = wait_for("a client comes back", LONG, || Ws::try_open(proxy.at, path, &headers).ok());
        pair.sse = proxy.sse("/api/v1/streaming/user", &pair.viewer);
        let ttl = new_master.ttl(&format!("subscribed:{}", pair.viewer.home()));
        assert!((1000..=1080).contains(&ttl), "the presence key is there: {ttl}");
    }
    assert_eq!(servers.map(clients).iter().sum::<f64>(), 6.0);
    arrives(&mut pairs, &new_master, r#"{"id":"2"}"#);

    // The old one wakes up, for a while as a master: nobody listens to it any more.
    signal(world.redis.service.pid(), "CONT");
    wait_until("the old master has no subscribers", PATIENCE, || {
        let homes = pairs.iter().map(|pair| pair.viewer.home());
        homes.map(|home| world.redis.publish(&home, &text_message("update", r#"{"id":"3"}"#))).sum::<i64>()
            == 0
    });
    arrives(&mut pairs, &new_master, r#"{"id":"4"}"#);
}
