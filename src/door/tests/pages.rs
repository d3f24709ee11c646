use super::*;

fn error(text: &str) -> String {
    format!("{{\"error\":\"{text}\"}}")
}

#[tokio::test]
async fn pages_answer_as_mastodons_server_does() {
    let world = World::new();
    let uncached = ("Cache-Control", "private, no-store");
    for path in ["/api/v1/streaming/health", "/api/v1/streaming/health/?probe=1", "/API/v1/streaming/health"]
    {
        let health = world.ask(&get(path)).await;
        health.is_web("200 OK").has(&[uncached, ("Content-Type", "text/plain"), ("Content-Length", "2")]);
        assert_eq!(health.body, "OK");
    }
    let head = world.ask(&request("HEAD", "/api/v1/streaming/health", "")).await;
    head.is_web("200 OK").has(&[uncached, ("Content-Length", "2")]);
    assert_eq!(head.body, "");

    let favicon = world.ask(&get("/favicon.ico")).await;
    favicon.is_web("404 Not Found");
    assert_eq!(favicon.body, "");

    for (method, path) in [
        ("GET", "/"),
        ("GET", "/api/v1/streaming"),
        ("GET", "/api/v1/streaming/"),
        ("GET", "/api/v1/streaming/user/"),
        ("GET", "/api/v1/streaming/User"),
        ("GET", "/api/v1/streaming/public/elsewhere"),
        ("GET", "//api/v1/streaming/user"),
        ("POST", "/api/v1/streaming/health"),
        ("DELETE", "/nothing"),
    ] {
        let unknown = world.ask(&request(method, path, "Authorization: Bearer alice\r\n")).await;
        unknown.is_web("400 Bad Request").has(&[("Content-Type", "application/json")]);
        assert_eq!(unknown.body, error("Unknown channel requested"), "{method} {path}");
    }
}

#[tokio::test]
async fn other_rooms_pages_come_after_the_fixed_ones() {
    let world = World::with(|setup| {
        let html = Bytes::from_static(b"<p>posts</p>");
        setup.pages.demo = Some(DemoPage { html, security_policy: "default-src 'self'" });
        setup.pages.source = Some(Arc::new(|request| {
            assert!(request.peer.is_local());
            let page =
                format!("{} {} {:?} {}", request.path, request.query, request.accept, request.forwarded);
            (request.path == "/status")
                .then(|| Box::pin(async { hyper::Response::new(Bytes::from(page).into()) }) as PageFuture)
        }));
    });
    let demo = world.ask(&get("/")).await;
    demo.is_web("200 OK").has(&[("Content-Type", "text/html; charset=utf-8")]);
    assert_eq!(demo.body, "<p>posts</p>");
    let status = world
        .ask(&request("GET", "/status?a=b", "Accept: application/json\r\nX-Forwarded-For: 1.2.3.4\r\n"))
        .await;
    status.is_web("200 OK");
    assert_eq!(status.body, "/status a=b Some(\"application/json\") true");
    world.ask(&get("/elsewhere")).await.is_web("400 Bad Request");
}

#[tokio::test]
async fn a_preflight_is_answered_on_any_path() {
    let world = World::new();
    for path in ["/api/v1/streaming/user", "/", "/anything/else"] {
        let preflight = world
            .ask(&request("OPTIONS", path, "Access-Control-Request-Headers: authorization,x-y\r\n"))
            .await;
        preflight.is_web("204 No Content").has(&[
            ("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE"),
            ("Access-Control-Allow-Headers", "authorization,x-y"),
            ("Vary", "Access-Control-Request-Headers"),
        ]);
        assert_eq!(preflight.body, "");
    }
    let plain = world.ask(&request("OPTIONS", "/", "")).await;
    assert!(plain.is_web("204 No Content").header("Access-Control-Allow-Headers").is_none());
}

#[tokio::test]
async fn a_stream_has_two_methods_whoever_asks() {
    let world = World::new();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let refused = world.ask(&request(method, "/api/v1/streaming/user", "")).await;
        refused
            .is_web("405 Method Not Allowed")
            .has(&[("Allow", "GET, HEAD, OPTIONS"), ("Content-Type", "application/json")]);
        assert_eq!(refused.body, error("Method not allowed"));
    }
    let head = world.ask(&request("HEAD", "/api/v1/streaming/user", "Authorization: Bearer alice\r\n")).await;
    head.is_web("200 OK")
        .has(&[("Content-Type", "text/event-stream"), ("Cache-Control", "private, no-store")]);
    assert_eq!(head.body, "");
    let head = world.ask(&request("HEAD", "/api/v1/streaming/user", "")).await;
    head.is_web("401 Unauthorized").has(&[("Content-Length", "32")]);
    assert_eq!(head.body, "");
}

#[tokio::test]
async fn errors_over_http_are_json() {
    let world = World::new();
    let cases = [
        ("user", None, "401 Unauthorized", "Missing access token"),
        ("user", Some("nobody"), "401 Unauthorized", "Invalid access token"),
        ("user", Some("notifications"), "401 Unauthorized", "Access token does not have the required scopes"),
        (
            "public",
            Some("notifications"),
            "401 Unauthorized",
            "Access token does not have the required scopes",
        ),
        (
            "user/notification",
            Some("statuses"),
            "401 Unauthorized",
            "Access token does not have the required scopes",
        ),
        ("user", Some("nothing"), "401 Unauthorized", "Access token does not have the required scopes"),
        ("hashtag", Some("alice"), "400 Bad Request", "Missing tag name parameter"),
        ("hashtag/local?tag=", Some("alice"), "400 Bad Request", "Missing tag name parameter"),
        ("list", Some("alice"), "400 Bad Request", "Missing list name parameter"),
        ("list?list=78", Some("alice"), "401 Unauthorized", "Not authorized to stream this list"),
        ("list?list=x", Some("alice"), "401 Unauthorized", "Not authorized to stream this list"),
        ("list?list=77", Some("statuses"), "401 Unauthorized", "Not authorized to stream this list"),
        // The scope is looked at before the parameters.
        ("list", Some("nothing"), "401 Unauthorized", "Access token does not have the required scopes"),
    ];
    for (path, token, status, text) in cases {
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let answer = world.ask(&request("GET", &format!("/api/v1/streaming/{path}"), &authorization)).await;
        answer.is_web(status).has(&[("Content-Type", "application/json")]);
        assert_eq!(answer.body, error(text), "{path} {token:?}");
    }
    let twice = world.ask(&get("/api/v1/streaming/user?access_token=alice&access_token=alice")).await;
    assert_eq!(twice.is_web("401 Unauthorized").body, error("Invalid access token"));

    world.directory.is_down.store(true, Ordering::Relaxed);
    let down = world.ask(&get("/api/v1/streaming/user?access_token=alice")).await;
    assert_eq!(
        down.is_web("503 Service Unavailable").body,
        error("The database is not available, try again later")
    );
    assert_eq!(world.door.counters().refused(Reason::Database), 1);
    assert_eq!(world.door.coming(), 0);
}

#[tokio::test]
async fn a_failed_upgrade_has_no_body() {
    let world = World::new();
    let cases = [
        (upgrade("/", ""), "401 Unauthorized", "Missing access token"),
        (upgrade("/", "Sec-WebSocket-Protocol: nobody\r\n"), "401 Unauthorized", "Invalid access token"),
        (upgrade("/", "Sec-WebSocket-Protocol: alice, b\r\n"), "401 Unauthorized", "Invalid access token"),
        (
            upgrade("/", "Authorization: bearer alice\r\nSec-WebSocket-Protocol: alice\r\n"),
            "401 Unauthorized",
            "Invalid access token",
        ),
        (
            upgrade("/?access_token=alice", "").replace("Version: 13", "Version: 12"),
            "426 Upgrade Required",
            "Missing or unsupported Sec-WebSocket-Version header",
        ),
        (
            upgrade("/?access_token=alice", "").replace("Sec-WebSocket-Key", "X-Key"),
            "400 Bad Request",
            "Missing or invalid Sec-WebSocket-Key header",
        ),
        (
            upgrade("/?access_token=alice", "").replace("GET", "POST"),
            "405 Method Not Allowed",
            "Method not allowed",
        ),
    ];
    for (request, status, text) in cases {
        world.ask(&request).await.is_upgrade_error(status, text);
    }
    world
        .ask(&(upgrade("/?access_token=alice", "Content-Length: 2\r\n") + "{}"))
        .await
        .is_upgrade_error("400 Bad Request", "A request for a stream must not have a body");
}

#[tokio::test]
async fn another_upgrade_is_ignored() {
    let world = World::new();
    let request = "GET /api/v1/streaming/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let mut stream = world.send(request).await;
    let health = read_one(&mut stream).await;
    assert_eq!(health.is_web("200 OK").body, "OK");
}

#[tokio::test]
async fn a_client_that_ended_its_half_is_still_answered() {
    let world = World::new();
    let mut stream = world.connect().await;
    stream.write_all(get("/api/v1/streaming/health").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await.is_web("200 OK").body, "OK");
}

#[tokio::test]
async fn connections_are_kept_for_more_requests() {
    let world = World::new();
    let mut stream = world.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /api/v1/streaming/health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let health = read_one(&mut stream).await;
        health.is_web("200 OK").has(&[("Connection", "keep-alive"), ("Keep-Alive", "timeout=5")]);
    }
}
