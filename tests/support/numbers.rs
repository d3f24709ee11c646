//! Numbered messages: who stayed connected can prove that nothing is missing, twice or out of order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::posts::text_message;
use super::redis::Client;
use super::sse::Sse;
use super::ws::Ws;

/// The message with that number.
pub fn numbered(n: u64) -> String {
    text_message("update", &format!(r#"{{"id":"{n}"}}"#))
}

/// The same with so many bytes of padding.
pub fn numbered_long(n: u64, padding: usize) -> String {
    text_message("update", &format!(r#"{{"id":"{n}","content":"{}"}}"#, "x".repeat(padding)))
}

/// The number in a payload.
pub fn number(payload: &str) -> u64 {
    let payload: Value = serde_json::from_str(payload).expect("a payload in JSON");
    payload["id"].as_str().expect("a numbered message").parse().expect("a number")
}

/// The number in a message on a WebSocket.
#[track_caller]
pub fn number_of(text: &str) -> u64 {
    let message: Value = serde_json::from_str(text).expect("a message in JSON");
    assert_eq!(message["event"], json!("update"), "{text}");
    number(message["payload"].as_str().expect("a payload"))
}

/// Reads messages until the close; every message is the one after the last. The number after the last one,
/// and the close's code.
#[track_caller]
pub fn gapless_until_close(ws: &mut Ws, mut next: u64) -> (u64, Option<u16>) {
    let close = loop {
        match ws.try_next() {
            Ok(text) => {
                assert_eq!(number_of(&text), next, "no gap before the close");
                next += 1;
            }
            Err(close) => break close,
        }
    };
    (next, close)
}

/// Reads messages without a gap from one number up to the other.
#[track_caller]
pub fn gapless_until(ws: &mut Ws, next: u64, last: u64) {
    assert!(next <= last, "at least one message is awaited");
    for number in next..=last {
        assert_eq!(number_of(&ws.next()), number, "every message is the one after the last");
    }
}

/// What an open stream said until its end: the events' numbers, which follow each other from `next` on, and
/// the comment behind them. The number after the last.
#[track_caller]
pub fn gapless_until_end(sse: &mut Sse, mut next: u64) -> (u64, String) {
    let text = sse.until_end();
    let mut comment = String::new();
    for line in text.lines() {
        if let Some(data) = line.strip_prefix("data: {") {
            assert_eq!(number(&format!("{{{data}")), next, "no gap before the end");
            assert!(comment.is_empty(), "nothing comes behind the reason");
            next += 1;
        } else if line.starts_with(':') && line != ":thump" {
            comment = line.to_owned();
        }
    }
    (next, comment)
}

/// Publishes numbered messages on a channel in a thread of its own until it is stopped, as fast as Redis
/// answers, up to a rate. Whenever Redis is away it tries again; numbers that nobody got are used up.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    pub fn start(port: u16, channel: &str, every: Duration) -> Publisher {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter, channel) = (Arc::clone(&stop), Arc::clone(&next), channel.to_owned());
        let thread = std::thread::spawn(move || {
            let mut client = None;
            while !stopped.load(SeqCst) {
                let n = counter.load(SeqCst);
                client = client.or_else(|| Client::connect(port).ok());
                let published = client
                    .as_mut()
                    .and_then(|client: &mut Client| client.try_command(&["PUBLISH", &channel, &numbered(n)]));
                match published {
                    Some(_) => counter.store(n + 1, SeqCst),
                    // It may have been published all the same: its number is not used again.
                    None => {
                        if client.take().is_some() {
                            counter.store(n + 1, SeqCst);
                        }
                    }
                }
                std::thread::park_timeout(every);
            }
        });
        Publisher { stop, next, thread: Some(thread) }
    }

    /// How many messages were published by now.
    pub fn count(&self) -> u64 {
        self.next.load(SeqCst)
    }

    /// Ends it; the number of the next message.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.count()
    }

    fn end(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.end();
    }
}
