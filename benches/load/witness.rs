//! A bare subscriber of Redis: what is left of a latency when there is no server.

use std::sync::{Arc, Mutex};

use crate::stamp::{self, now_ns};
use crate::support::redis::{Client, Reply};

/// Listens to one channel on a thread of its own, which ends with the connection.
pub struct Witness {
    latencies_us: Arc<Mutex<Vec<u32>>>,
}

impl Witness {
    pub fn of(channel: &str, mut redis: Client) -> Witness {
        redis.command(&["SUBSCRIBE", channel]);
        let latencies_us = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&latencies_us);
        let listening = move || {
            while let Some(Reply::Array(parts)) = redis.reply() {
                if let Some(Reply::Bulk(Some(message))) = parts.last()
                    && let Some((_, sent_ns)) = stamp::read(message)
                {
                    noted.lock().unwrap().push((now_ns().saturating_sub(sent_ns) / 1000) as u32);
                }
            }
        };
        std::thread::Builder::new().name("witness".into()).spawn(listening).unwrap();
        Witness { latencies_us }
    }

    /// The latencies since the last call, in microseconds, sorted.
    pub fn take_latencies(&self) -> Vec<u32> {
        let mut latencies = std::mem::take(&mut *self.latencies_us.lock().unwrap());
        latencies.sort_unstable();
        latencies
    }
}
