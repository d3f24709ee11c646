//! Who gets in: the three ways to hand over a token, what makes a token good, scopes, lists; what is said to
//! those who don't get in.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::http::Response;
use support::ws::{ACCEPT, RawWs, upgrade};
use support::{Sse, Viewer, World, Ws, ours_alone, peer, streams};

const USER: &str = "/api/v1/streaming/user";
const MISSING: &str = "Missing access token";
const INVALID: &str = "Invalid access token";
const SCOPE: &str = "Access token does not have the required scopes";

/// Asks for a stream by SSE with these headers; the refusal, or `None` for a stream.
#[track_caller]
fn refusal(world: &World, path: &str, headers: &[(&str, &str)]) -> Option<Response> {
    let mut connection = world.server.connect();
    connection.send(support::http::request("GET", path, headers).as_bytes());
    Sse::read_head(connection).err()
}

#[track_caller]
fn assert_refused(world: &World, path: &str, headers: &[(&str, &str)], status: u16, text: &str) {
    refusal(world, path, headers).unwrap_or_else(|| panic!("a stream at {path}")).assert_error(status, text);
}

#[track_caller]
fn ws_refusal(world: &World, path: &str, headers: &[(&str, &str)]) -> Option<(u16, String)> {
    Ws::try_open(world.server.address(), path, headers).err()
}

#[test]
fn sse_takes_the_token_from_header_or_query() {
    let Some(world) = World::start() else { return };
    let token = world.viewer("read").token;
    let bearer = format!("Bearer {token}");
    let in_query = format!("{USER}?access_token={token}");
    assert!(refusal(&world, USER, &[("Authorization", &bearer)]).is_none());
    assert!(refusal(&world, USER, &[("authorization", &token)]).is_none(), "a bare token");
    assert!(refusal(&world, &in_query, &[]).is_none());
    assert!(refusal(&world, &format!("{USER}?a=b&access_token={token}&c"), &[]).is_none());
    assert!(refusal(&world, USER, &[("Sec-WebSocket-Protocol", &token)]).is_none());
    assert!(refusal(&world, &in_query, &[("Authorization", "")]).is_none(), "an empty header is none");

    assert_refused(&world, USER, &[], 401, MISSING);
    assert_refused(&world, &format!("{USER}?access_token="), &[], 401, MISSING);
    assert_refused(&world, USER, &[("Authorization", "Bearer wrong")], 401, INVALID);
    assert_refused(&world, USER, &[("Authorization", &format!("bearer {token}"))], 401, INVALID);
    assert_refused(&world, USER, &[("Authorization", &format!("Bearer  {token}"))], 401, INVALID);
    assert_refused(&world, USER, &[("Authorization", &format!("Basic {token}"))], 401, INVALID);
    let twice = format!("{USER}?access_token={token}&access_token={token}");
    assert_refused(&world, &twice, &[], 401, INVALID);
    // The header wins, even when it is wrong.
    assert_refused(&world, &in_query, &[("Authorization", "Bearer wrong")], 401, INVALID);
    let wrong_query = format!("{USER}?access_token=wrong");
    assert!(refusal(&world, &wrong_query, &[("Authorization", &bearer)]).is_none());
    assert_refused(&world, &wrong_query, &[("Sec-WebSocket-Protocol", &token)], 401, INVALID);
}

#[test]
fn a_websocket_takes_the_token_from_header_query_or_subprotocol() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let (token, bearer) = (viewer.token.as_str(), viewer.bearer());
    let path = "/api/v1/streaming";
    let in_query = format!("{path}?access_token={token}");
    assert_eq!(ws_refusal(&world, path, &[("Authorization", &bearer)]), None);
    assert_eq!(ws_refusal(&world, path, &[("Authorization", token)]), None);
    assert_eq!(ws_refusal(&world, &in_query, &[]), None);
    assert_eq!(ws_refusal(&world, path, &[("Sec-WebSocket-Protocol", token)]), None);

    let missing = Some((401, MISSING.to_owned()));
    let invalid = Some((401, INVALID.to_owned()));
    assert_eq!(ws_refusal(&world, path, &[]), missing);
    assert_eq!(ws_refusal(&world, path, &[("Authorization", "Bearer wrong")]), invalid);
    assert_eq!(ws_refusal(&world, path, &[("Authorization", &format!("bearer {token}"))]), invalid);
    assert_eq!(ws_refusal(&world, &in_query, &[("Authorization", "Bearer wrong")]), invalid);
    assert_eq!(ws_refusal(&world, path, &[("Sec-WebSocket-Protocol", "wrong")]), invalid);
    let two = format!("{token}, other");
    assert_eq!(ws_refusal(&world, path, &[("Sec-WebSocket-Protocol", &two)]), invalid);
    let twice = format!("{path}?access_token={token}&access_token={token}");
    assert_eq!(ws_refusal(&world, &twice, &[]), invalid);
}

#[test]
fn the_subprotocol_comes_back_and_no_extension_does() {
    let Some(world) = World::start() else { return };
    let token = world.viewer("read").token;
    let deflate = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits");
    let ws = Ws::try_open(
        world.server.address(),
        "/api/v1/streaming/",
        &[("Sec-WebSocket-Protocol", &token), deflate],
    );
    let ws = ws.unwrap();
    assert_eq!(ws.response.headers().get("sec-websocket-protocol").unwrap(), token.as_str());
    assert!(ws.response.headers().get("sec-websocket-extensions").is_none());
    let raw = RawWs::open(&world.server, "/", &token);
    assert_eq!(raw.head.header("Sec-WebSocket-Protocol"), None);
    assert_eq!(raw.head.header("Sec-WebSocket-Accept"), Some(ACCEPT));
    assert_eq!(raw.head.header("Upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    assert!(raw.head.header("X-Request-Id").is_some_and(|id| id.len() == 36));
}

#[test]
fn a_subprotocol_that_is_not_the_token_is_echoed_too() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let headers = [("Authorization", viewer.bearer()), ("Sec-WebSocket-Protocol", "mastodon".to_owned())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let ws = Ws::try_open(world.server.address(), "/api/v1/streaming", &headers).unwrap();
    assert_eq!(ws.response.headers().get("sec-websocket-protocol").unwrap(), "mastodon");
}

#[test]
fn a_websocket_opens_on_any_path() {
    let Some(world) = World::start() else { return };
    let token = world.viewer("read").token;
    let paths = ["/", "/api/v1/streaming", "/api/v1/streaming/", "/api/v1/streaming/user", "/x/y?z=1"];
    for path in paths.into_iter().chain(["/api/v1/streaming/health", "/metrics"]) {
        assert_eq!(ws_refusal(&world, path, &[("Sec-WebSocket-Protocol", &token)]), None, "{path}");
    }
    // What is in the path does not subscribe.
    let mut ws = Ws::open(&world.server, "/api/v1/streaming/public", &token);
    ws.subscribe(&world.redis, json!({"stream": "public:local"}), &["timeline:public:local"]);
    assert!(!world.redis.has_subscriber("timeline:public"));
}

#[test]
fn a_refused_upgrade_is_a_bare_head_with_the_reason() {
    let Some(world) = World::start() else { return };
    for (headers, text) in [(vec![], MISSING), (vec![("Authorization", "Bearer wrong")], INVALID)] {
        let mut connection = world.server.connect();
        connection.send(upgrade("/api/v1/streaming", &headers).as_bytes());
        let head = connection.head();
        assert_eq!((head.status, head.reason.as_str()), (401, "Unauthorized"));
        assert_eq!(head.header("Connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
        assert_eq!(head.header("Content-Type"), Some("text/plain"));
        assert_eq!(head.header("Content-Length"), Some("0"));
        assert_eq!(head.header("X-Error-Message"), Some(text));
        assert!(head.header("X-Request-Id").is_some_and(|id| id.len() == 36));
        connection.expect_closed();
    }
}

#[test]
fn a_token_is_good_while_its_row_user_and_account_are() {
    let Some(world) = World::start() else { return };
    type Change = fn(&Viewer) -> String;
    let table: [(&str, Change); 7] = [
        ("", |_| String::new()),
        ("", |v| format!("UPDATE users SET approved = false, confirmed_at = NULL WHERE id = {}", v.user)),
        ("", |v| format!("UPDATE accounts SET silenced_at = now() WHERE id = {}", v.account)),
        (INVALID, |v| format!("UPDATE oauth_access_tokens SET revoked_at = now() WHERE id = {}", v.token_id)),
        (INVALID, |v| format!("UPDATE users SET disabled = true WHERE id = {}", v.user)),
        (INVALID, |v| format!("UPDATE accounts SET suspended_at = now() WHERE id = {}", v.account)),
        // An application's token without a user.
        (INVALID, |v| {
            format!("UPDATE oauth_access_tokens SET resource_owner_id = NULL WHERE id = {}", v.token_id)
        }),
    ];
    for (text, change) in table {
        let viewer = world.viewer("read");
        let sql = change(&viewer);
        viewer.sql(&sql);
        let headers = [("Authorization", viewer.bearer())];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match (text, refusal(&world, USER, &headers)) {
            ("", refused) => assert!(refused.is_none(), "{sql}: {refused:?}"),
            (text, refused) => refused.unwrap_or_else(|| panic!("{sql}: a stream")).assert_error(401, text),
        }
        let expected = (!text.is_empty()).then(|| (401, text.to_owned()));
        assert_eq!(ws_refusal(&world, "/api/v1/streaming", &headers), expected, "{sql}");
    }
}

#[test]
fn a_token_past_its_expiry_is_refused_like_a_revoked_one() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let expire = |viewer: &Viewer, seconds: &str| {
        viewer.sql(&format!(
            "UPDATE oauth_access_tokens SET expires_in = 7200, created_at = now() at time zone 'utc' + interval '{seconds}'
             WHERE id = {}",
            viewer.token_id
        ));
    };
    let (past, fresh) = (world.viewer("read"), world.viewer("read"));
    expire(&past, "-7201 seconds");
    expire(&fresh, "-7100 seconds");
    assert_refused(&world, USER, &[("Authorization", &past.bearer())], 401, INVALID);
    let refused = ws_refusal(&world, "/", &[("Authorization", &past.bearer())]);
    assert_eq!(refused, Some((401, INVALID.into())));
    assert!(refusal(&world, USER, &[("Authorization", &fresh.bearer())]).is_none());
    assert_eq!(ws_refusal(&world, "/", &[("Authorization", &fresh.bearer())]), None);
}

#[test]
fn an_open_stream_ends_when_its_token_expires() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    viewer.sql(&format!(
        "UPDATE oauth_access_tokens SET expires_in = 3, created_at = now() at time zone 'utc' WHERE id = {}",
        viewer.token_id
    ));
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.until_close();
    sse.until_end();
    world.until_empty();
}

#[test]
fn junk_in_a_token_is_an_invalid_token() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let junk = ["%00", "a%00b", "%ff%fe", "%F0%9F%8C%8A", "'%20OR%201=1--", "%0d%0aX-A:%20b"];
    let long = "x".repeat(8000);
    for token in junk.into_iter().chain([long.as_str()]) {
        assert_refused(&world, &format!("{USER}?access_token={token}"), &[], 401, INVALID);
        let refused = ws_refusal(&world, &format!("/?access_token={token}"), &[]);
        assert_eq!(refused, Some((401, INVALID.into())));
    }
    let viewer = world.viewer("read");
    viewer.sql(&format!("UPDATE oauth_access_tokens SET scopes = NULL WHERE id = {}", viewer.token_id));
    let response = refusal(&world, USER, &[("Authorization", &viewer.bearer())]).unwrap();
    assert_eq!(response.status(), 401, "a token without scopes");
}

/// For every stream and every scope: whether it opens. `user` further down needs a look at its channels.
#[test]
fn scopes_decide_which_streams_open() {
    let Some(world) = World::start() else { return };
    let table = [
        ("read", true, true),
        ("read write follow push", true, true),
        ("read:statuses", true, false),
        ("read:notifications", false, true),
        ("read:statuses read:notifications", true, true),
        ("write", false, false),
        ("read:accounts read:lists", false, false),
        ("readwrite", false, false),
        ("profile", false, false),
    ];
    for (scopes, statuses, notifications) in table {
        let viewer = world.viewer(scopes);
        let mut ws = Ws::open(&world.server, "/api/v1/streaming", &viewer.token);
        for stream in streams::all(&viewer) {
            let opens = if stream.name == "user:notification" { notifications } else { statuses };
            if let Some(path) = &stream.path {
                match refusal(&world, path, &[("Authorization", &viewer.bearer())]) {
                    Some(response) => {
                        assert!(!opens, "{scopes}: {} is refused", stream.name);
                        response.assert_error(401, SCOPE);
                    }
                    None => assert!(opens, "{scopes}: {} opens", stream.name),
                }
            }
            let mut message = stream.request.clone();
            message["type"] = json!("subscribe");
            if !opens {
                ws.send_json(&message);
                ws.expect_error(401, SCOPE);
            } else if !(stream.name == "user" && scopes == "read:statuses") {
                let mut ws = Ws::open(&world.server, "/api/v1/streaming", &viewer.token);
                ws.subscribe(&world.redis, stream.request, &stream.channels);
            }
        }
    }
}

#[test]
fn user_carries_notifications_only_if_the_token_may_read_them() {
    let Some(world) = World::start() else { return };
    for (scopes, both) in
        [("read", true), ("read:statuses", false), ("read:statuses read:notifications", true)]
    {
        let viewer = world.viewer(scopes);
        let mut sse = Sse::open(&world.server, USER, &viewer.token);
        world.redis.until_subscribed(&[viewer.home()]);
        let [home, notifications] = viewer.user_channels().try_into().unwrap();
        if both {
            world.redis.until_subscribed(&[&notifications]);
        }
        world.publish(&notifications, r#"{"event":"notification","payload":{"id":"1"}}"#);
        world.publish(&home, r#"{"event":"marker","payload":"end"}"#);
        if both {
            sse.expect("notification", r#"{"id":"1"}"#);
        }
        sse.expect_marker("end");
    }
}

#[test]
fn a_list_opens_only_to_its_owner() {
    let Some(world) = World::start() else { return };
    let (owner, other) = (world.viewer("read"), world.viewer("read"));
    let list = owner.list();
    let text = "Not authorized to stream this list";
    let bearer = other.bearer();
    let not_there = i64::MAX.to_string();
    let foreign = list.to_string();
    for id in [foreign.as_str(), &not_there, "abc", "1e3", "-1", "99999999999999999999999", "1;drop", "%00"] {
        let path = format!("/api/v1/streaming/list?list={id}");
        assert_refused(&world, &path, &[("Authorization", &bearer)], 401, text);
    }
    let mut ws = Ws::open(&world.server, "/", &other.token);
    for id in [json!(foreign), json!(list), json!("abc"), json!("1.5"), json!(not_there)] {
        ws.send_json(&json!({"type": "subscribe", "stream": "list", "list": id}));
        ws.expect_error(401, text);
    }
    let sse = Sse::open(&world.server, &format!("/api/v1/streaming/list?list={list}"), &owner.token);
    drop(sse);
    let mut ws = Ws::open(&world.server, "/", &owner.token);
    ws.subscribe(
        &world.redis,
        json!({"stream": "list", "list": foreign}),
        &[format!("timeline:list:{list}")],
    );
}

#[test]
fn missing_and_wrong_parameters_have_their_texts() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let header = [("Authorization", bearer.as_str())];
    for (path, text) in [
        ("hashtag", "Missing tag name parameter"),
        ("hashtag?tag=", "Missing tag name parameter"),
        ("hashtag/local", "Missing tag name parameter"),
        ("list", "Missing list name parameter"),
        ("list?list=", "Missing list name parameter"),
    ] {
        assert_refused(&world, &format!("/api/v1/streaming/{path}"), &header, 400, text);
    }
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    for (message, text) in [
        (json!({}), "Unknown stream type"),
        (json!({"stream": "nonsense"}), "Unknown stream type"),
        (json!({"stream": ""}), "Unknown stream type"),
        (json!({"stream": null}), "Unknown stream type"),
        (json!({"stream": 5}), "Unknown stream type"),
        (json!({"stream": []}), "Unknown stream type"),
        (json!({"stream": ["nonsense", "user"]}), "Unknown stream type"),
        (json!({"stream": "User"}), "Unknown stream type"),
        (json!({"stream": "system"}), "Unknown stream type"),
        (json!({"stream": "hashtag"}), "Missing tag name parameter"),
        (json!({"stream": "hashtag", "tag": ""}), "Missing tag name parameter"),
        (json!({"stream": "hashtag:local", "tag": null}), "Missing tag name parameter"),
        (json!({"stream": "list"}), "Missing list name parameter"),
        (json!({"stream": "list", "list": ""}), "Missing list name parameter"),
    ] {
        let mut message = message;
        message["type"] = json!("subscribe");
        ws.send_json(&message);
        ws.expect_error(400, text);
        message["type"] = json!("unsubscribe");
        ws.send_json(&message);
        ws.expect(r#"{"error":"Error unsubscribing from channel"}"#);
    }
    let mut ws = Ws::open(&world.server, "/?stream=nonsense", &viewer.token);
    ws.expect_error(400, "Unknown stream type");
    let mut ws = Ws::open(&world.server, "/?stream=hashtag", &viewer.token);
    ws.expect_error(400, "Missing tag name parameter");
}

#[test]
fn repeated_or_mistyped_parameters_are_the_clients_mistake() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let list = viewer.list();
    let bearer = viewer.bearer();
    let long = "a".repeat(513);
    for query in [
        "hashtag?tag=a&tag=b".to_owned(),
        format!("list?list={list}&list={list}"),
        format!("hashtag?tag={long}"),
        format!("hashtag/local?tag={long}"),
    ] {
        let path = format!("/api/v1/streaming/{query}");
        let response = refusal(&world, &path, &[("Authorization", &bearer)]).expect("a refusal");
        assert_eq!(response.status(), 400, "{query}");
        assert!(response.text().starts_with("{\"error\":\""), "{}", response.text());
    }
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    for message in [
        json!({"stream": "hashtag", "tag": ["a"]}),
        json!({"stream": "hashtag", "tag": {"a": 1}}),
        json!({"stream": "hashtag", "tag": true}),
        json!({"stream": "list", "list": [list]}),
        json!({"stream": "list", "list": {}}),
        json!({"stream": "hashtag", "tag": long}),
    ] {
        let mut message = message;
        message["type"] = json!("subscribe");
        ws.send_json(&message);
        let answer = ws.next_json();
        assert_eq!(answer["status"], 400, "{message}: {answer}");
        assert!(answer["error"].is_string());
    }
}

/// The scope and stream checks come first, but their failure is a frame on an open socket.
#[test]
fn a_query_that_fails_is_a_frame_after_the_101() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read:notifications");
    let mut ws = Ws::open(&world.server, "/api/v1/streaming?stream=user", &viewer.token);
    ws.expect_error(401, SCOPE);
    ws.subscribe(
        &world.redis,
        json!({"stream": "user:notification"}),
        &[format!("timeline:{}:notifications", viewer.account)],
    );
    let list = world.viewer("read").list();
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, &format!("/?stream=list&list={list}"), &viewer.token);
    ws.expect_error(401, "Not authorized to stream this list");
}

#[test]
fn a_lost_database_is_an_error_and_not_the_end() {
    let Some(mut world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    if peer().is_some() {
        return support::left_out("the peer ends when its database does");
    }
    // The database refuses newcomers and drops who is there, as in a restart.
    let name = world.db.name.clone();
    let admin = support::postgres::shared().unwrap().open("postgres");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        &[&name],
    );
    let response = refusal(&world, USER, &[("Authorization", &viewer.bearer())]).expect("no stream");
    assert!(matches!(response.status(), 500 | 503), "{response:?}");
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    sse.expect("delete", "1");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    support::wait_until("newcomers are served again", support::machine::PATIENCE, || {
        refusal(&world, USER, &[("Authorization", &viewer.bearer())]).is_none()
    });
    assert!(world.server.exit_status().is_none());
}
