use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

/// A request after which the connection is kept.
const KEPT: &str = "GET /api/v1/streaming/health HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let world = World::new();
    let long = format!("X-Long: {}\r\n", "x".repeat(17 << 10));
    let answer = world.ask(&request("GET", "/api/v1/streaming/health", &long)).await;
    assert_eq!(answer.status, "HTTP/1.1 431 Request Header Fields Too Large");
    let many = "A:\r\n".repeat(crate::limits::HEADER_LINES_MAX + 1);
    let answer = world.ask(&request("GET", "/api/v1/streaming/health", &many)).await;
    assert_eq!(answer.status, "HTTP/1.1 431 Request Header Fields Too Large");
    let fits = format!("X-Long: {}\r\n", "x".repeat(15 << 10));
    world.ask(&request("GET", "/api/v1/streaming/health", &fits)).await.is_web("200 OK");
    let answer = world.ask("nonsense\r\n\r\n").await;
    assert_eq!(answer.status, "HTTP/1.1 400 Bad Request");
}

#[tokio::test]
async fn a_head_must_be_whole_in_time() {
    let world = World::with(|setup| setup.limits.request_head_timeout = Duration::from_millis(20));
    let answer = world.ask("GET /api/v1/streaming/health HTTP/1.1\r\nHost:").await;
    assert_eq!(answer.status, "HTTP/1.1 408 Request Timeout");
    assert_eq!(world.door.counters().refused(Reason::HeadTime), 1);
    // Who sent nothing is just closed.
    let mut idle = world.connect().await;
    let mut bytes = Vec::new();
    idle.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"");
}

#[tokio::test]
async fn a_stream_must_be_confirmed_in_time() {
    let mut world = World::with(|setup| setup.limits.door_timeout = Duration::from_millis(1));
    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let answer = read_one(&mut stream).await;
    answer.is_web("503 Service Unavailable").has(&[("Retry-After", "5")]);
    let held = world.held().await;
    assert_eq!(world.cancelled().await, held.ticket);
    assert_eq!(world.door.counters().refused(Reason::Timeout), 1);
}

#[tokio::test]
async fn who_never_reads_does_not_stay() {
    let world = World::with(|setup| {
        setup.limits.door_timeout = Duration::from_millis(20);
        setup.pages.source = Some(one_page(Bytes::from("x".repeat(64 << 20))));
    });
    let stream = world.send(&get("/metrics")).await;
    // The kernel says so without a read.
    let ready = stream.ready(tokio::io::Interest::PRIORITY).await.unwrap();
    assert!(ready.is_read_closed());
}

#[tokio::test]
async fn a_full_server_still_answers_its_health_check() {
    let mut world = World::with(|setup| setup.limits.connections_max = 2);
    let mut streams = vec![world.send(&stream_request("/api/v1/streaming/user", "alice")).await];
    world.admitted().await;
    // One on a reactor, one on its way.
    streams.push(world.send(&stream_request("/api/v1/streaming/user", "alice")).await);
    let held = world.held().await;
    let answer = world.ask(&get("/api/v1/streaming/user?access_token=alice")).await;
    answer.is_web("503 Service Unavailable").has(&[("Retry-After", "5")]);
    assert_eq!(answer.body, "{\"error\":\"Too many clients are connected, try again later\"}");
    assert_eq!(world.door.counters().refused(Reason::Full), 1);
    world.ask(&get("/api/v1/streaming/health")).await.is_web("200 OK");
    // The seat of one who leaves is free again.
    streams.pop();
    assert_eq!(world.cancelled().await, held.ticket);
    let _stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    world.admitted().await;
}

#[tokio::test]
async fn an_address_has_only_so_many_clients() {
    let mut world = World::with(|setup| setup.limits.connections_per_address_max = 1);
    let from = |address: &str| {
        format!(
            "GET /api/v1/streaming/user HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Authorization: alice\r\nX-Forwarded-For: {address}\r\n\r\n"
        )
    };
    let _first = world.send(&from("198.51.100.1")).await;
    let client = world.admitted().await.client;
    let answer = world.ask(&from("198.51.100.1")).await;
    answer.is_web("429 Too Many Requests").has(&[("Retry-After", "5")]);
    let _second = world.send(&from("198.51.100.2")).await;
    world.admitted().await;
    drop(client);
    let _third = world.send(&from("198.51.100.1")).await;
    world.admitted().await;
}

#[tokio::test]
async fn the_longest_unidentified_makes_room() {
    let mut world = World::with(|setup| setup.limits.door_connections_max = 2);
    // One that has been answered is sent away …
    let mut idle = world.send(KEPT).await;
    read_one(&mut idle).await;
    // … but not one whose stream is on its way.
    let _waiting = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let held = world.held().await;
    world.ask(&get("/api/v1/streaming/health")).await.is_web("200 OK");
    let mut bytes = Vec::new();
    let _ = idle.read_to_end(&mut bytes).await;
    assert_eq!(bytes, b"");
    assert_eq!(world.door.counters().refused(Reason::Evicted), 1);
    (held.reply)(Ok(()));
    world.attached().await;
}

#[tokio::test]
async fn a_full_door_keeps_nobody_who_was_answered() {
    let world = World::with(|setup| setup.limits.door_connections_max = 2);
    let mut first = world.send(KEPT).await;
    assert_eq!(read_one(&mut first).await.header("Connection"), Some("keep-alive"));
    let mut second = world.connect().await;
    while world.door.counters().at_door.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    for stream in [&mut first, &mut second] {
        stream.write_all(KEPT.as_bytes()).await.unwrap();
        let answer = read_all(stream).await;
        answer.is_web("200 OK").has(&[("Connection", "close")]);
    }
}

#[tokio::test]
async fn the_door_is_as_full_as_the_clients_leave_descriptors() {
    let world = World::with(|setup| setup.limits.sockets_max = 100);
    assert_eq!(world.door.room(), 100);
    world.clients[0].store(40, Ordering::Relaxed);
    assert_eq!(world.door.room(), 60);
    world.clients[1].store(60, Ordering::Relaxed);
    assert_eq!(world.door.room(), crate::limits::DOOR_CONNECTIONS_MIN, "whoever asks how it is finds room");
}

#[tokio::test]
async fn nobody_makes_room_before_a_second_has_passed() {
    let world = World::with(|setup| setup.limits.door_connections_max = 1);
    let began = Instant::now();
    let mut idle = world.connect().await;
    // The newcomer's turn comes when the other's second is over, whose request might have been on its way.
    world.ask(&get("/api/v1/streaming/health")).await.is_web("200 OK");
    assert!(began.elapsed() >= crate::limits::DOOR_GRACE, "{:?}", began.elapsed());
    assert_eq!(idle.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn shutdown_closes_the_listener_and_releases_who_waits() {
    let mut world = World::new();
    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let held = world.held().await;
    world.shutdown.take();
    assert_eq!(world.cancelled().await, held.ticket);
    (&mut world.served).await.unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    assert_eq!(bytes, b"");
    let successor = Listener::bind(&Address::Tcp("127.0.0.1".into(), world.address.port())).unwrap();
    assert_eq!(successor.address(), world.address.to_string());
}

#[tokio::test]
async fn a_clients_socket_is_tuned() {
    let mut world = World::new();
    let _stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let client = world.admitted().await.client;
    let Fake::Tcp(socket) = &client.socket else { panic!("a unix socket") };
    let socket = socket2::SockRef::from(socket);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert!(socket.nonblocking().unwrap());
    // The kernel books twice what was asked for.
    assert_eq!(socket.send_buffer_size().unwrap(), 2 * crate::limits::SOCKET_SEND_BYTES as usize);
    #[cfg(target_os = "linux")]
    {
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), crate::limits::SOCKET_NOTSENT_BYTES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(crate::limits::SOCKET_DEAD_AFTER));
    }
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_says_what_to_do() {
    let first = Listener::bind(&Address::Tcp("127.0.0.1".into(), 0)).unwrap();
    let address: SocketAddr = first.address().parse().unwrap();
    let error = Listener::bind(&Address::Tcp("127.0.0.1".into(), address.port())).unwrap_err();
    assert!(matches!(error, ListenError::PortInUse(..)));
    assert!(error.to_string().contains("BIND and PORT"), "{error}");
    let error = Listener::bind(&Address::Tcp("no.such.name.invalid".into(), 1)).unwrap_err();
    assert!(matches!(error, ListenError::NoAddress(..)), "{error}");
}

/// A directory of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("tidegate-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_unix_socket_is_for_everybody_and_replaces_only_a_stale_one() {
    let folder = Folder::new();
    let path = folder.0.join("streaming.sock");
    let address = Address::Unix(path.clone());
    // Left over: bound by one who is gone.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&address).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(listener.address(), path.to_str().unwrap());
    let error = Listener::bind(&address).unwrap_err();
    assert!(matches!(error, ListenError::SocketInUse(_)), "{error}");

    let mut world = World::new();
    tokio::spawn(serve(Arc::clone(&world.door), listener, std::future::pending()));
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(stream_request("/api/v1/streaming/user", "alice").as_bytes()).await.unwrap();
    let mut client = world.admitted().await.client;
    assert!(matches!(client.socket, Fake::Unix(_)));
    client.socket.write_all(b"!").unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'!');

    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(stream_request("/api/v1/streaming/user", "alice").as_bytes()).await.unwrap();
    let held = world.held().await;
    drop(stream);
    assert_eq!(world.cancelled().await, held.ticket);
}

#[tokio::test]
async fn a_listener_removes_its_own_file_only() {
    let folder = Folder::new();
    let path = folder.0.join("streaming.sock");
    drop(Listener::bind(&Address::Unix(path.clone())).unwrap());
    assert!(!path.exists());
    let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    std::fs::rename(&path, folder.0.join("elsewhere")).unwrap();
    std::fs::write(&path, "mine").unwrap();
    drop(listener);
    assert!(path.exists());
    let error = Listener::bind(&Address::Unix(path)).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
}
