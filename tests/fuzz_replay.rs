//! What the fuzz targets do, on stable Rust: every seed and every input that once failed, through the same
//! bodies as `cargo fuzz run`. A finding is kept as `fuzz/corpus/TARGET/regression-NAME`.

use std::fs;
use std::path::Path;

#[path = "../fuzz/bodies/lib.rs"]
#[allow(dead_code)]
mod bodies;

use bodies::{
    accept, broker, client_list, der, env, event, filter, hashtag, html_text, http, pg_rows, query, resp,
    ring, sentinel, ws_decode, ws_session,
};

/// Runs `body` on every file of the target's corpus, and on every prefix of the small ones.
fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        let input = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        eprintln!("{}", path.display());
        body(&input);
        if input.len() <= 512 {
            (0..input.len()).for_each(|end| body(&input[..end]));
        }
        inputs += 1;
    }
    assert!(inputs > 0, "{} has no seeds", folder.display());
}

#[test]
fn accept_corpus() {
    replay("accept", accept::run);
}

#[test]
fn broker_corpus() {
    replay("broker", broker::run);
}

#[test]
fn client_list_corpus() {
    replay("client_list", client_list::run);
}

#[test]
fn der_corpus() {
    replay("der", der::run);
}

#[test]
fn env_corpus() {
    replay("env", env::run);
}

#[test]
fn event_corpus() {
    replay("event", event::run);
}

#[test]
fn filter_corpus() {
    replay("filter", filter::run);
}

#[test]
fn hashtag_corpus() {
    replay("hashtag", hashtag::run);
}

#[test]
fn html_text_corpus() {
    replay("html_text", html_text::run);
}

#[test]
fn http_corpus() {
    replay("http", http::run);
}

#[test]
fn pg_rows_corpus() {
    replay("pg_rows", pg_rows::run);
}

#[test]
fn query_corpus() {
    replay("query", query::run);
}

#[test]
fn resp_corpus() {
    replay("resp", resp::run);
}

#[test]
fn ring_corpus() {
    replay("ring", ring::run);
}

#[test]
fn sentinel_corpus() {
    replay("sentinel", sentinel::run);
}

#[test]
fn ws_decode_corpus() {
    replay("ws_decode", ws_decode::run);
}

#[test]
fn ws_session_corpus() {
    replay("ws_session", ws_session::run);
}
