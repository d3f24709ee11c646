//! A first run without Redis or PostgreSQL: an embedded [`broker`], a [`publisher`] of made-up posts, a
//! [`directory`](mod@directory) of accounts in memory, a [`stage`] by which all of them see everything, and a
//! [`page`] that shows what arrives. The relay in between is the one that always runs; it reaches the broker
//! over loopback like any Redis.
//!
//! No data of anyone's is in it, and nothing it serves is a secret.

use std::io;
use std::net::SocketAddr;

pub mod broker;
pub mod directory;
pub mod page;
pub mod publisher;
pub mod stage;

pub use broker::Broker;
pub use directory::{DemoAccount, directory};
pub use publisher::Publisher;

/// The demo's own parts, running. Dropping it ends them.
#[derive(Debug)]
pub struct Demo {
    // In this order: the publisher ends before the broker does.
    _publisher: Publisher,
    broker: Broker,
}

impl Demo {
    /// Starts broker and publisher, the broker on [`broker::PORT`] if that is free.
    pub fn start() -> io::Result<Demo> {
        let broker = Broker::start(broker::PORT)?;
        Ok(Demo { _publisher: Publisher::start(broker.address())?, broker })
    }

    /// Where the broker listens: the relay's Redis.
    pub fn broker_address(&self) -> SocketAddr {
        self.broker.address()
    }
}

/// What to tell the person who started the demo, once it listens at `address` (`127.0.0.1:4000`).
pub fn banner(address: &str, broker: SocketAddr) -> String {
    let base = format!("http://{address}");
    let port = broker.port();
    format!(
        r#"
  Tidegate's demo is at {base}/

  Server-Sent Events (made-up posts of everyone, of a hashtag, of alice's home):
    curl -N '{base}/api/v1/streaming/public?access_token=demo-alice'
    curl -N '{base}/api/v1/streaming/hashtag?tag=tides&access_token=demo-alice'
    curl -N -H 'Authorization: Bearer demo-alice' {base}/api/v1/streaming/user

  Publish something yourself, if redis-cli is installed:
    redis-cli -p {port} PUBLISH timeline:public '{}'

  Ctrl-C stops it.
"#,
        r#"{"event":"update","payload":{"id":"1","content":"<p>Hello!</p>","language":"en","mentions":[],"account":{"id":"9","username":"me","acct":"me"}}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_both_addresses() {
        let text = banner("127.0.0.1:4000", ([127, 0, 0, 1], 6381).into());
        assert!(text.contains("http://127.0.0.1:4000/\n"));
        assert!(text.contains("redis-cli -p 6381 PUBLISH"));
    }
}
