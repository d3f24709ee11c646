//! A Redis, a PostgreSQL full of accounts, and a server: what a load runs against.

use std::net::SocketAddr;

use crate::readers::{Framing, Plan};
use crate::stamp::{self, BASE, Stamped, now_ns};
use crate::support::http::request;
use crate::support::redis::{Client, encode};
use crate::support::world::Accounts;
use crate::support::ws::upgrade;
use crate::support::{World, peer, postgres, posts};
use crate::witness::Witness;

/// What clients open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// One channel that all share, one token for all.
    Shared,
    /// One channel that all share, by tokens of their own.
    SharedOwnTokens,
    /// `user`, each with an account of its own.
    User,
    /// Another channel that all share, by tokens of their own.
    OtherOwnTokens,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Shared | Stream::SharedOwnTokens => "public:local",
            Stream::OtherOwnTokens => "public:remote",
            Stream::User => "user",
        }
    }
}

/// See the module.
pub struct Town {
    pub world: World,
    accounts: Accounts,
    /// The number of the next message.
    pub number: u64,
    publisher: Client,
    message: Stamped,
}

impl Town {
    /// A server with `accounts` accounts that have a token each; messages of about `bytes` bytes.
    pub fn new(accounts: u64, bytes: usize, variables: &[(&str, &str)]) -> Town {
        let mut all = Vec::new();
        let connections = (accounts + 1000).max(20_000).to_string();
        if peer().is_none() {
            all.push(("MAX_CONNECTIONS", connections.as_str()));
        }
        all.extend_from_slice(variables);
        let world = World::with(&all).expect("redis-server and postgresql");
        let accounts = world.accounts(accounts);
        let publisher = world.redis.client();
        let message = message(accounts.id(1), bytes);
        Town { world, accounts, number: BASE, publisher, message }
    }

    pub fn address(&self) -> SocketAddr {
        self.world.server.address()
    }

    pub fn pid(&self) -> u32 {
        self.world.server.pid()
    }

    /// PostgreSQL's process.
    pub fn postgres_pid(&self) -> u32 {
        postgres::shared().expect("postgresql").service.pid()
    }

    /// Transactions that PostgreSQL counts in this database: one per query of the server. Counts arrive late;
    /// wait until they rest.
    pub fn transactions(&self) -> i64 {
        let sql =
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
        self.world.db.id(sql, &[])
    }

    /// The connection of the `n`-th account.
    pub fn plan(&self, n: u64, stream: Stream, framing: Framing) -> Plan {
        let number = if stream == Stream::Shared { 1 } else { n };
        let bearer = format!("Bearer {}", self.accounts.token(number));
        let name = stream.name();
        let request = if framing == Framing::WebSocket {
            upgrade(&format!("/api/v1/streaming?stream={name}"), &[("Authorization", &bearer)])
        } else {
            let path = format!("/api/v1/streaming/{}", name.replace(':', "/"));
            request("GET", &path, &[("Authorization", bearer.as_str())])
        };
        Plan { request: request.into(), framing, first: self.number }
    }

    /// A stream of that hashtag, by Server-Sent Events and the `n`-th account.
    pub fn hashtag_plan(&self, n: u64, tag: &str) -> Plan {
        let bearer = format!("Bearer {}", self.accounts.token(n));
        let path = format!("/api/v1/streaming/hashtag?tag={tag}");
        let request = request("GET", &path, &[("Authorization", bearer.as_str())]);
        Plan { request: request.into(), framing: Framing::Events, first: self.number }
    }

    /// The same for accounts `from..=to`.
    pub fn plans(&self, from: u64, to: u64, stream: Stream, framing: Framing) -> Vec<Plan> {
        (from..=to).map(|n| self.plan(n, stream, framing)).collect()
    }

    /// Publishes the next `count` messages on the stream's channel, not waiting for Redis.
    pub fn publish(&mut self, stream: Stream, count: u64) {
        let channel = format!("timeline:{}", stream.name());
        let mut commands = Vec::new();
        for _ in 0..count {
            commands.extend(publish_command(&channel, self.message.with(self.number, now_ns())));
            self.number += 1;
        }
        self.publisher.send(&commands);
        for _ in 0..count {
            self.publisher.reply().expect("Redis");
        }
    }

    /// Publishes the next message to each of so many accounts, on its own channel.
    pub fn publish_to_each(&mut self, accounts: u64) {
        let message = self.message.with(self.number, now_ns());
        self.number += 1;
        for from in (1..=accounts).step_by(500) {
            let mut commands = Vec::new();
            let part = from..=(from + 499).min(accounts);
            for n in part.clone() {
                commands.extend(publish_command(&self.accounts.home(n), message));
            }
            self.publisher.send(&commands);
            for _ in part {
                self.publisher.reply().expect("Redis");
            }
        }
    }

    /// Publishes a message to one account.
    pub fn publish_to(&mut self, n: u64, number: u64) {
        let command = publish_command(&self.accounts.home(n), self.message.with(number, now_ns()));
        self.publisher.send(&command);
        self.publisher.reply().expect("Redis");
    }

    /// A bare subscriber of the account's home timeline.
    pub fn witness(&self, n: u64) -> Witness {
        Witness::of(&self.accounts.home(n), self.world.redis.client())
    }

    /// Publishes on the account's system channel an event that no server knows.
    pub fn publish_ignored(&mut self, n: u64, count: u64, bytes: usize) {
        let channel = format!("timeline:system:{}", self.accounts.id(n));
        let message = format!("{{\"event\":\"unknown\",\"payload\":\"{}\"}}", "x".repeat(bytes - 34));
        let commands = encode(&["PUBLISH", &channel, &message]).repeat(50);
        for _ in 0..count / 50 {
            self.publisher.send(&commands);
            for _ in 0..50 {
                self.publisher.reply().expect("Redis");
            }
        }
    }

    /// One message's bytes as the server sends them to a WebSocket.
    pub fn frame(&mut self) -> Vec<u8> {
        use std::io::{Read, Write};
        let mut socket = std::net::TcpStream::connect(self.address()).unwrap();
        let plan = self.plan(1, Stream::Shared, Framing::WebSocket);
        socket.write_all(&plan.request).unwrap();
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
        self.publish(Stream::Shared, 1);
        let mut head = [0; 4];
        socket.read_exact(&mut head).unwrap();
        assert_eq!(head[1], 126, "a frame of 126 to 65,535 bytes");
        let mut frame = head.to_vec();
        frame.resize(4 + usize::from(u16::from_be_bytes([head[2], head[3]])), 0);
        socket.read_exact(&mut frame[4..]).unwrap();
        frame
    }
}

/// A status as Rails publishes it, of about so many bytes; the number is its id. The event is one that passes public
/// channels unasked: what audiences cost is the audience bench's matter.
fn message(author: u64, bytes: usize) -> Stamped {
    let mut status = posts::status(BASE, author);
    status["content"] = format!("<p>{}</p>", "x".repeat(bytes.saturating_sub(1100))).into();
    // The id comes first, as in Rails' own.
    let text = status.to_string().replacen(&format!("\"id\":\"{BASE}\","), "", 1);
    let message = format!("{{\"event\":\"announcement\",\"payload\":{{{}{}}}", stamp::members(), &text[1..]);
    Stamped::new(message.into_bytes())
}

fn publish_command(channel: &str, message: &[u8]) -> Vec<u8> {
    encode(&["PUBLISH", channel, std::str::from_utf8(message).unwrap()])
}
