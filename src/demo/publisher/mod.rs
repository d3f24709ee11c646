//! Plays the demo's script to a broker, as Rails would: one connection, PUBLISH, and EXISTS on the
//! presence keys before anything personal.
//!
//! One thread, which waits for the next step or to be stopped. If the broker goes away it connects again.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::encode::extend_encode;
use redis_protocol::resp2::types::BytesFrame;

mod cast;
mod posts;
mod random;
mod script;

pub use script::{Message, Script};

const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A running publisher. Dropping it ends it.
#[derive(Debug)]
pub struct Publisher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts publishing to the broker there.
    pub fn start(broker: SocketAddr) -> io::Result<Publisher> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("demo-publisher".to_owned()).spawn(move || {
            let mut script = Script::new(now_ms());
            while let Err(error) = play(broker, &mut script, &stopped) {
                tracing::warn!(%error, "the demo's publisher lost the broker and will connect again");
                if stopped.recv_timeout(RECONNECT_PAUSE) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })?;
        Ok(Publisher { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Publishes until it is stopped; an error is the connection's.
fn play(broker: SocketAddr, script: &mut Script, stopped: &Receiver<()>) -> io::Result<()> {
    let mut connection = Connection::open(broker)?;
    while stopped.recv_timeout(script.pause()) == Err(RecvTimeoutError::Timeout) {
        for message in script.step(now_ms()) {
            connection.publish(&message)?;
        }
    }
    Ok(())
}

/// A connection that publishes.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(broker: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&broker, REPLY_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Publishes a message; says how many received it, none if it was not to be published.
    pub fn publish(&mut self, message: &Message) -> io::Result<Option<u64>> {
        if !message.only_if.is_empty() {
            let keys = message.only_if.iter().map(String::as_str);
            let words: Vec<&str> = std::iter::once("EXISTS").chain(keys).collect();
            if self.ask(&words)? == 0 {
                return Ok(None);
            }
        }
        self.ask(&["PUBLISH", &message.channel, &message.body]).map(Some)
    }

    /// Sends a command whose reply is a number.
    fn ask(&mut self, words: &[&str]) -> io::Result<u64> {
        let words = words.iter().map(|word| BytesFrame::BulkString(Bytes::copy_from_slice(word.as_bytes())));
        let mut command = BytesMut::new();
        extend_encode(&mut command, &BytesFrame::Array(words.collect()), false).map_err(io::Error::other)?;
        self.stream.get_mut().write_all(&command)?;
        let mut reply = String::new();
        self.stream.read_line(&mut reply)?;
        let number = reply.strip_prefix(':').and_then(|number| number.trim_end().parse().ok());
        number.ok_or_else(|| io::Error::other(format!("the broker answered {:?}", reply.trim_end())))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::broker::Broker;

    #[test]
    fn personal_messages_are_published_only_while_somebody_listens() {
        let broker = Broker::start(0).unwrap();
        let mut publisher = Connection::open(broker.address()).unwrap();
        let mut listener = BufReader::new(TcpStream::connect(broker.address()).unwrap());
        listener
            .get_mut()
            .write_all(b"SET subscribed:timeline:1 1 EX 1080\r\nSUBSCRIBE timeline:1:notifications\r\n")
            .unwrap();
        let mut line = String::new();
        while line != ":1\r\n" {
            line.clear();
            listener.read_line(&mut line).unwrap();
        }
        let message = |keys: &[&str]| Message {
            channel: "timeline:1:notifications".into(),
            body: "{}".into(),
            only_if: keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        let keys = ["subscribed:timeline:1", "subscribed:timeline:1:notifications"];
        assert_eq!(publisher.publish(&message(&keys)).unwrap(), Some(1));
        assert_eq!(publisher.publish(&message(&keys[1..])).unwrap(), None);
        assert_eq!(publisher.publish(&message(&[])).unwrap(), Some(1));
    }

    #[test]
    fn it_publishes_and_can_be_stopped() {
        let broker = Broker::start(0).unwrap();
        let mut listener = TcpStream::connect(broker.address()).unwrap();
        listener.write_all(b"SUBSCRIBE timeline:public\r\n").unwrap();
        let publisher = Publisher::start(broker.address()).unwrap();
        let mut lines = BufReader::new(listener).lines();
        assert!(lines.any(|line| line.unwrap().contains("\"event\":\"update\"")));
        drop(publisher);
    }
}
