//! Where it listens: sockets that systemd passes, both families of addresses.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use support::http::{Connection, request};
use support::machine::{Folder, PATIENCE, free_port, program};
use support::server::Env;
use support::{Server, Sse, World, left_out, ours_alone, wait_until};

const HEALTH: &str = "/api/v1/streaming/health";

/// Hands standard input on as descriptor 3, the way systemd does.
const PASS: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\"";

fn activated(socket: impl Into<OwnedFd>, env: &Env) -> Server {
    Server::spawn_by(PASS, Stdio::from(socket.into()), env)
}

/// BIND and PORT that cannot be used: a passed socket wins over them.
fn env_of(world: &World) -> Env {
    let mut env = world.env.clone();
    env.insert("BIND".into(), "192.0.2.1".into());
    env.insert("PORT".into(), "1".into());
    env
}

fn answers(mut connection: Connection) {
    connection.send(request("GET", HEALTH, &[]).as_bytes());
    assert_eq!(connection.response("GET").text(), "OK");
}

#[test]
fn a_passed_socket_is_listened_on_and_outlives_the_server() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let env = env_of(&world);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut first = activated(listener.try_clone().unwrap(), &env).listening();
    assert_eq!(first.address(), address);
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&first, "/api/v1/streaming/user", &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    sse.expect("delete", "1");

    // Over a restart nobody is refused: who comes meanwhile waits for the next server.
    first.signal("TERM");
    assert!(first.until_exit().success());
    let waiting = Connection::tcp(address);
    let second = activated(listener, &env).listening();
    answers(waiting);
    assert_eq!(second.address(), address);
}

#[test]
fn a_passed_unix_socket_keeps_its_file_and_its_rights() {
    use std::os::unix::fs::PermissionsExt;
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let folder = Folder::new("passed");
    let path = folder.path().join("streaming.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let mut server = activated(listener, &env_of(&world)).listening();
    assert_eq!(server.listening_on(), path.to_str().unwrap());
    answers(Connection::unix(&path));
    server.signal("TERM");
    assert!(server.until_exit().success());
    let mode = std::fs::metadata(&path).expect("systemd's file is left alone").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn what_cannot_be_listened_on_fails_the_start_with_what_the_unit_should_have() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let cases: [(OwnedFd, &str); 3] =
        [(connected.into(), "Accept=no"), (datagrams.into(), "ListenStream="), (file.into(), "is no socket")];
    for (socket, said) in cases {
        let mut server = activated(socket, &env_of(&world));
        assert!(!server.until_exit().success());
        server.until_output(said);
        assert!(server.output().contains("LISTEN_FDS"), "{}", server.output());
    }
    let script = "exec 3<&0 4<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\"";
    let mut two = Server::spawn_by(script, Stdio::from(OwnedFd::from(listener)), &env_of(&world));
    assert!(!two.until_exit().success());
    two.until_output("one socket too many");
    let mut none =
        Server::spawn_by("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" 3<&-", Stdio::null(), &env_of(&world));
    assert!(!none.until_exit().success());
    none.until_output("are not there");
}

#[test]
fn sockets_for_another_process_are_none_of_ours() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = listener.local_addr().unwrap();
    let script = "exec 3<&0 </dev/null; LISTEN_PID=1 LISTEN_FDS=1 exec \"$0\"";
    let server = Server::spawn_by(script, Stdio::from(OwnedFd::from(listener)), &world.env).listening();
    assert_ne!(server.address(), passed);
    answers(server.connect());
}

#[test]
fn systemd_starts_it_with_the_first_client() {
    if !ours_alone() {
        return;
    }
    let Some(activate) = program("systemd-socket-activate") else {
        return left_out("needs systemd-socket-activate");
    };
    let Some(world) = World::start() else { return };
    let (main, admin) = (free_port(), free_port());
    let mut command = Command::new(activate);
    command.args(["-l", &format!("127.0.0.1:{main}"), "-l", &format!("127.0.0.1:{admin}")]);
    command.arg("--fdname=main:admin");
    for (name, value) in env_of(&world) {
        command.arg("-E").arg(format!("{name}={value}"));
    }
    let script = format!("exec {} \"$0\"", shell_words(&command));
    let server = Server::spawn_by(&script, Stdio::null(), &Env::new());
    let client = |port: u16| {
        let mut connection = None;
        wait_until("systemd listens", PATIENCE, || {
            connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
            connection.is_some()
        });
        Connection::over(connection.unwrap())
    };
    answers(client(main));
    let mut pages = client(admin);
    pages.send(request("GET", "/metrics", &[]).as_bytes());
    assert_eq!(pages.response("GET").status(), 200);
    let mut pages = client(admin);
    pages.send(request("GET", "/api/v1/streaming/user", &[]).as_bytes());
    assert_eq!(pages.response("GET").status(), 404);
    assert!(server.output().contains("Streaming API now listening on"), "{}", server.output());
}

/// A command for a shell.
fn shell_words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

#[test]
fn all_addresses_are_those_of_both_families() {
    let Some(world) = World::start() else { return };
    if TcpListener::bind("[::1]:0").is_err() {
        return left_out("needs IPv6");
    }
    let at = |bind: &str| {
        let mut env = world.env.clone();
        env.insert("BIND".into(), bind.into());
        let server = Server::start(&env);
        let port: u16 = server.listening_on().rsplit(':').next().unwrap().parse().unwrap();
        (server, port)
    };
    let four = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let six = |port: u16| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    for all in ["", "::", "[::]"] {
        let (_server, port) = at(all);
        answers(Connection::tcp(four(port)));
        answers(Connection::tcp(six(port)));
    }
    let (_server, port) = at("::1");
    answers(Connection::tcp(six(port)));
    assert!(TcpStream::connect(four(port)).is_err());
    let (_server, port) = at("0.0.0.0");
    answers(Connection::tcp(four(port)));
    assert!(TcpStream::connect(six(port)).is_err());
}
