//! The demo, as a newcomer runs it: no Redis, no PostgreSQL, one command, and a page that shows posts arriving.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::machine::PATIENCE;
use support::redis::Client;
use support::server::Env;
use support::{Server, Sse, Ws, ours_alone, posts, wait_until};

/// A running demo, and the port of its broker as the demo prints it.
fn demo() -> (Server, u16) {
    let server =
        Server::start_ours(&["demo", "--port", "0"], &Env::from([("DRAIN_SECONDS".into(), "0".into())]));
    let mut port = None;
    wait_until("the demo tells how to publish", PATIENCE, || {
        let output = server.output();
        let line = output.split_once("redis-cli -p ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        port = line.split(' ').next().and_then(|text| text.parse().ok());
        port.is_some()
    });
    (server, port.unwrap())
}

/// The first token that the demo offers in a curl line.
fn token(server: &Server) -> String {
    let output = server.output();
    let (_, rest) = output.split_once("access_token=").expect("a curl line with a token");
    rest.chars().take_while(|&c| c.is_ascii_alphanumeric() || c == '-').collect()
}

#[test]
fn posts_arrive_over_both_transports_without_any_server() {
    if !ours_alone() {
        return;
    }
    let (server, _) = demo();
    let token = token(&server);
    let mut sse = Sse::open(&server, "/api/v1/streaming/public", &token);
    let mut ws = Ws::open(&server, "/api/v1/streaming?stream=public", &token);
    for _ in 0..3 {
        let post: Value = loop {
            let event = sse.next();
            if event.name == "update" {
                break serde_json::from_str(&event.data).unwrap();
            }
        };
        assert!(post["id"].is_string() && post["account"]["acct"].is_string(), "{post}");
        assert!(post["content"].as_str().is_some_and(|text| !text.is_empty()));
    }
    assert_eq!(ws.next_json()["stream"], json!(["public"]));
    let mut home = Sse::open(&server, "/api/v1/streaming/user", &token);
    home.next();
}

#[test]
fn the_broker_takes_what_redis_cli_publishes() {
    if !ours_alone() {
        return;
    }
    let (server, broker) = demo();
    let mut sse = Sse::open(&server, "/api/v1/streaming/public", &token(&server));
    let mut client = Client::connect(broker).unwrap();
    assert!(client.publish("timeline:public", &posts::text_message("delete", "by-hand")) >= 1);
    while sse.next().data != "by-hand" {}
}

#[test]
fn the_page_is_there_and_needs_nothing_from_elsewhere() {
    if !ours_alone() {
        return;
    }
    let (server, _) = demo();
    let page = server.get("/");
    assert_eq!(page.status(), 200);
    assert!(page.header("Content-Type").starts_with("text/html"));
    let text = page.text();
    for outside in ["src=\"http", "href=\"http", "@import", "url(http", "//cdn"] {
        assert!(!text.contains(outside), "{outside}");
    }
    server.get("/nonsense").assert_error(400, "Unknown channel requested");
}

#[test]
fn two_demos_can_run_at_once_and_end_when_told() {
    if !ours_alone() {
        return;
    }
    let (mut first, first_broker) = demo();
    let (second, second_broker) = demo();
    assert_ne!(first_broker, second_broker);
    first.signal("INT");
    assert_eq!(first.until_exit().code(), Some(0));
    assert_eq!(second.get("/").status(), 200);
}
