use serde_json::Value;

use super::*;
use crate::core::stream::{Origin, Tag};
use crate::status::snapshot::DatabaseStats;
use crate::status::tests::{Asking, DIRECT, Fake, body};
use crate::status::{Listener, Options, Visitor};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
const OUTSIDE: Visitor = Visitor { peer_is_loopback: false, has_forwarded_headers: true, ..DIRECT };

async fn get(fake: Fake, path: &str, accept: Option<&str>) -> Answer {
    let (status, _) = fake.status(Options::default());
    status.respond(path, accept, DIRECT).await.unwrap_or_else(|| panic!("{path} is unknown"))
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_ref())
}

#[test]
fn accept_chooses_the_form() {
    let json = "application/json";
    for (accept, page) in [
        (None, Page::Status(Form::Text)),
        (Some("*/*"), Page::Status(Form::Text)),
        (Some(""), Page::Status(Form::Text)),
        (Some("image/png"), Page::Status(Form::Text)),
        (Some("text/plain"), Page::Status(Form::Text)),
        (Some("text/*"), Page::Status(Form::Text)),
        (Some(json), Page::Status(Form::Json)),
        (Some("Application/JSON; charset=utf-8"), Page::Status(Form::Json)),
        (Some("application/json, text/plain, */*"), Page::Status(Form::Json)),
        (Some("text/plain;q=0.5, application/json"), Page::Status(Form::Json)),
        (Some("application/json;q=0.5, text/plain"), Page::Status(Form::Text)),
        (Some("application/json;q=0, */*"), Page::Status(Form::Text)),
        (Some("text/html;q=0.1, */*;q=0.5"), Page::Status(Form::Text)),
        (Some(BROWSER), Page::ToPeople),
        (Some("text/html"), Page::ToPeople),
        (Some("application/json;q=nonsense;;,,"), Page::Status(Form::Text)),
    ] {
        assert_eq!(find("/status", accept, Listener::Main), Some(page), "{accept:?}");
    }
    assert_eq!(
        find("/status/per_timeline", Some(BROWSER), Listener::Main),
        Some(Page::PerTimeline(Form::Text))
    );
    assert_eq!(find("/status/per_timeline", Some(json), Listener::Main), Some(Page::PerTimeline(Form::Json)));
}

#[test]
fn pages_stand_where_they_may_be_seen() {
    let paths = ["/status", "/status/", "/status/stream", "/status/per_timeline", "/status/backpressure"];
    let paths = paths.into_iter().chain(["/status/backpresure"]);
    let (closed, _) = Fake::new().status(Options::default());
    let (open, _) = Fake::new().status(Options { status_public: true, ..Options::default() });
    let admin = Visitor { listener: Listener::Admin, ..OUTSIDE };
    for path in paths {
        let under_prefix = format!("/api/v1/streaming{path}");
        assert!(closed.find(path, None, DIRECT).is_some(), "{path}");
        assert!(closed.find(path, None, admin).is_some(), "{path}");
        assert!(closed.find(path, None, OUTSIDE).is_none(), "{path}");
        assert!(closed.find(&under_prefix, None, DIRECT).is_none(), "{path}");
        assert!(closed.find(&under_prefix, None, OUTSIDE).is_none(), "{path}");
        assert!(open.find(path, None, OUTSIDE).is_some(), "{path}");
        assert!(open.find(&under_prefix, None, OUTSIDE).is_some(), "{path}");
    }
    for path in ["/statu", "/status//", "/status/x", "/status/per_timeline/", "/api/v1/streaming", "/", ""] {
        assert_eq!(open.find(path, None, DIRECT), None, "{path}");
    }
    assert_eq!(open.find("/api/v1/streaming/metrics", None, DIRECT), None);
}

#[tokio::test]
async fn the_first_lines_are_those_of_stub_status() {
    let answer = get(Fake::new(), "/status", None).await;
    assert_eq!((answer.status, answer.content_type), (200, "text/plain; charset=utf-8"));
    assert_eq!(header(&answer, "cache-control"), Some("private, no-store"));
    assert_eq!(header(&answer, "vary"), Some("accept"));
    assert!(!answer.cross_origin, "scripts of other sites have no business here");
    let text = body(&answer);
    assert!(
        text.starts_with(
            "Active connections: 5 \nserver accepts handled requests\n 107 106 110 \n\
             Reading: 2 Writing: 1 Waiting: 2 \n\nTidegate "
        ),
        "{text}"
    );
    for line in [
        "Clients: 3 (websocket 2, eventsource 1)",
        "  streams over WebSocket: user 2, system 4",
        "Closed, by reason: too_slow 1",
        "Refused, by reason: token 5",
        "Messages: 24 received; 24 owed = 14 delivered + 1 filtered + 0 unsubscribed + 6 closed + 3 pending",
        "Redis: connected; 9 channels, connection 1, 0 lost, gaps: none",
        "Gate: CLOSED for 1.2 s; 12.0 MiB of 16.0 MiB held (75.0 %), opens again at 8.0 MiB",
        "  closed 2 times, 3.5 s in all",
        "  Redis holds 1.0 MiB of 32.0 MiB for us",
        "PostgreSQL: connected; 5 connections, 4 of them idle, 0 requests waiting",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("FAULT"));
}

#[tokio::test]
async fn a_broken_identity_is_said_aloud() {
    let fake = Fake::new();
    crate::core::counters::add(&fake.reactors[1].owed, 2);
    let answer = get(fake, "/status", None).await;
    assert!(body(&answer).contains("FAULT: this does not add up, by 2"), "{}", body(&answer));
}

#[tokio::test]
async fn json_has_the_same_figures() {
    let answer = get(Fake::new(), "/status", Some("application/json")).await;
    assert_eq!(answer.content_type, "application/json; charset=utf-8");
    let json: Value = serde_json::from_str(body(&answer)).unwrap();
    for (pointer, value) in [
        ("/connections/total", 3),
        ("/connections/clients/websocket", 2),
        ("/connections/websocket_streams/user", 2),
        ("/messages/ledger/owed", 24),
        ("/messages/difference", 0),
        ("/latency/count", 14),
        ("/gate/closed_for_ms", 1234),
        ("/redis/channels", 9),
        ("/redis_headroom/limit_bytes", 32 << 20),
        ("/database/idle", 4),
        ("/closes/too_slow", 1),
        ("/closes/gap", 0),
        ("/slowest/0/bytes", 9000),
        ("/reactors/1/clients", 1),
    ] {
        assert_eq!(json.pointer(pointer), Some(&Value::from(value)), "{pointer}");
    }
    assert_eq!(json.pointer("/messages/exact"), Some(&Value::Bool(true)));
    let latency = json.pointer("/latency/counts").unwrap().as_array().unwrap().len();
    assert_eq!(json.pointer("/latency/bounds_us").unwrap().as_array().unwrap().len() + 1, latency);
}

#[tokio::test]
async fn without_a_database_the_pages_say_so() {
    let text = get(Fake { database: None, ..Fake::new() }, "/status", None).await;
    assert!(body(&text).contains("PostgreSQL: not used\n"));
    let away = Fake { database: Some(DatabaseStats::default()), redis_connected: false, ..Fake::new() };
    let text = get(away, "/status", None).await;
    assert!(body(&text).contains("PostgreSQL: AWAY;") && body(&text).contains("Redis: AWAY;"));
}

#[tokio::test]
async fn backpressure_shows_the_slowest_by_either_spelling() {
    let text = get(Fake::new(), "/status/backpresure", None).await;
    let row = body(&text).lines().find(|line| line.starts_with("0-12-3")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, ["0-12-3", "websocket", "3", "9000", "1500", "ms", "700", "ms"]);
    assert!(body(&text).contains("Ring: 17 of 8192 bytes unread\n"));
    let json = get(Fake::new(), "/status/backpressure", Some("application/json")).await;
    let json: Value = serde_json::from_str(body(&json)).unwrap();
    assert_eq!(json["gate"]["closed"], true);
    assert_eq!(json["log_bytes"], 9000);
    assert_eq!(json["slowest"][0]["progress_ms"], 700);
    assert_eq!(json["slowest"][0].as_object().unwrap().len(), 6, "nothing that names a person");
    let text = get(Fake { asking: [Asking::Drop; 2], ..Fake::new() }, "/status/backpressure", None).await;
    assert!(body(&text).contains("2 reactors did not answer"));
}

#[tokio::test]
async fn timelines_are_listed_and_accounts_are_not() {
    let tag = |text: &str| Channel::Hashtag { tag: Tag::from_normalised(text), local: false };
    let channels = vec![
        (Channel::Account(4711), 3),
        (Channel::List(9), 1),
        (tag("cats"), 5),
        (Channel::Public { origin: Origin::Local, media: false }, 8),
        (Channel::System(4711), 3),
    ];
    let answer = get(Fake { channels: channels.clone(), ..Fake::new() }, "/status/per_timeline", None).await;
    let text = body(&answer);
    // Both reactors have the same channels.
    assert!(text.contains("Clients by kind of channel: user 6, list 2, public 16, hashtag 10, system 6\n"));
    assert!(text.ends_with("     16  timeline:public:local\n     10  timeline:hashtag:cats\n"), "{text}");
    assert!(!text.contains("4711"));
    let json = get(Fake { channels, ..Fake::new() }, "/status/per_timeline", Some("application/json")).await;
    let json: Value = serde_json::from_str(body(&json)).unwrap();
    assert_eq!(json["timelines"][1]["channel"], "timeline:hashtag:cats");
    assert_eq!(json["timelines"][1]["clients"], 10);
    assert_eq!(json["groups"]["user"], 6);
    assert_eq!(json["more"], false);
}

#[tokio::test]
async fn browsers_are_led_to_the_page_for_people() {
    let answer = get(Fake::new(), "/status", Some(BROWSER)).await;
    assert_eq!((answer.status, header(&answer, "location")), (303, Some("status/")));
    assert_eq!(header(&answer, "vary"), Some("accept"));
    let page = get(Fake::new(), "/status/", Some(BROWSER)).await;
    assert_eq!((page.status, page.content_type), (200, "text/html; charset=utf-8"));
    assert!(header(&page, "content-security-policy").unwrap().starts_with("default-src 'none';"));
    let html = body(&page);
    assert!(html.starts_with("<!doctype html>"));
    for outside in ["src=\"http", "href=\"http", "url(", "@import", "//cdn"] {
        assert!(!html.contains(outside), "the page loads something: {outside}");
    }
}

#[tokio::test]
async fn a_live_view_sends_the_state_until_the_server_ends() {
    let (status, fake) = Fake::new().status(Options::default());
    let answer = status.respond("/status/stream", Some("text/event-stream"), DIRECT).await.unwrap();
    assert_eq!((answer.status, answer.content_type), (200, "text/event-stream"));
    assert_eq!(header(&answer, "x-accel-buffering"), Some("no"));
    let Body::Stream(mut live) = answer.body else { panic!("no stream") };
    let event = live.next().await.unwrap();
    let text = std::str::from_utf8(&event).unwrap();
    let data = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    assert!(!data.contains('\n'));
    let json: Value = serde_json::from_str(data).unwrap();
    assert_eq!(json["connections"]["total"], 3);
    assert_eq!(json["slowest"][0]["client"], "0-12-3");
    drop(fake);

    let (status, _) = Fake { draining: true, ..Fake::new() }.status(Options::default());
    let Body::Stream(mut live) = status.answer(Page::Live(Listener::Main)).await.body else {
        panic!("no stream")
    };
    assert_eq!(live.next().await, None);
}

#[tokio::test]
async fn live_views_are_bounded() {
    let (status, _) = Fake::new().status(Options::default());
    let mut views = Vec::new();
    for _ in 0..LIVE_VIEWS_MAX {
        let answer = status.answer(Page::Live(Listener::Main)).await;
        assert_eq!(answer.status, 200);
        views.push(answer);
    }
    let refused = status.answer(Page::Live(Listener::Main)).await;
    assert_eq!((refused.status, header(&refused, "retry-after")), (503, Some("10")));
    assert_eq!(status.answer(Page::Live(Listener::Admin)).await.status, 200, "the operator's are others");
    views.pop();
    assert_eq!(status.answer(Page::Live(Listener::Main)).await.status, 200, "a closed view makes room");
}

#[test]
fn sizes_and_times_are_for_people() {
    assert_eq!(bytes(1023), "1023 B");
    assert_eq!(bytes(1536), "1.5 KiB");
    assert_eq!(bytes(16 << 20), "16.0 MiB");
    assert_eq!(bytes(3 << 30), "3.00 GiB");
    assert_eq!(duration(1900), "1.9 s");
    assert_eq!(duration(61_000), "1 min 1 s");
    assert_eq!(duration(7_260_000), "2 h 1 min");
    assert_eq!(duration(90_000_000), "1 d 1 h 0 min");
    assert_eq!(micros(250.4), "250 µs");
    assert_eq!(micros(2500.0), "2.5 ms");
}
