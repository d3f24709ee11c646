//! A private redis-server, and a small blocking client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::machine::{Folder, PATIENCE, Service, free_port, peer, program, wait_for, wait_until};

/// The rule that is shipped, and the password that takes its placeholder's place here.
pub const ACL: &str = include_str!("../../dist/redis.acl");
pub const USER: &str = "tidegate";
pub const PASSWORD: &str = "redis-password-7Qm2xK";

/// A redis-server of one test's own.
pub struct Redis {
    pub port: u16,
    pub service: Service,
    client: Mutex<Client>,
}

impl Redis {
    /// Starts one, or says that it is not installed.
    pub fn start() -> Option<Redis> {
        Redis::start_on(None, &[])
    }

    /// Starts one on a given port, with further settings.
    pub fn start_on(port: Option<u16>, settings: &[&str]) -> Option<Redis> {
        let binary = program("redis-server").or_else(|| program("valkey-server"))?;
        for _ in 0..10 {
            let folder = Folder::new("redis");
            let try_port = port.unwrap_or_else(free_port);
            let dir = folder.path().to_str().unwrap().to_owned();
            let mut command = vec![binary.to_str().unwrap().to_owned()];
            let defaults = [
                ("--port", try_port.to_string()),
                ("--bind", "127.0.0.1".into()),
                ("--dir", dir.clone()),
                ("--save", String::new()),
                ("--appendonly", "no".into()),
                ("--maxclients", "20000".into()),
            ];
            command.extend(defaults.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
            command.extend(settings.iter().map(|&setting| setting.to_owned()));
            let service = Service::start(folder, "TERM", &command);
            // Somebody else may have taken the port meanwhile: only our own server counts.
            let mut client = None;
            wait_until("redis-server answers or ends", PATIENCE, || {
                client = Client::connect(try_port).ok().filter(|_| true).and_then(|mut client| {
                    let reply = client.try_command(&["CONFIG", "GET", "dir"])?;
                    (reply.strings().get(1).map(String::as_str) == Some(&dir)).then_some(client)
                });
                client.is_some() || service.is_gone()
            });
            if let Some(mut client) = client {
                let rule = ACL.replace("change-me", PASSWORD);
                let words: Vec<&str> = rule.split_whitespace().skip(1).collect();
                client.command(&[&["ACL", "SETUSER"], &words[..]].concat());
                return Some(Redis { port: try_port, service, client: Mutex::new(client) });
            }
            assert!(port.is_none(), "redis-server does not start on port {try_port}:\n{}", service.log());
        }
        panic!("redis-server found no free port in ten attempts");
    }

    /// Where the server under test finds it: ours as the user that may do the least.
    pub fn url(&self) -> String {
        let user = if peer().is_some() { String::new() } else { format!("{USER}:{PASSWORD}@") };
        format!("redis://{user}127.0.0.1:{}/0", self.port)
    }

    /// Another connection, for a thread of its own.
    pub fn client(&self) -> Client {
        Client::connect(self.port).expect("a connection to redis-server")
    }

    pub fn command(&self, words: &[&str]) -> Reply {
        self.client.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).command(words)
    }

    /// Connects anew, where the server has dropped its clients.
    pub fn reconnect(&self) {
        *self.client.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.client();
    }

    /// Publishes; gives the number of subscribers that Redis handed it to.
    pub fn publish(&self, channel: &str, message: &str) -> i64 {
        self.command(&["PUBLISH", channel, message]).integer()
    }

    /// The channels with at least one subscriber, sorted.
    pub fn channels(&self) -> Vec<String> {
        let mut channels = self.command(&["PUBSUB", "CHANNELS"]).strings();
        channels.sort();
        channels
    }

    pub fn has_subscriber(&self, channel: &str) -> bool {
        self.channels().iter().any(|name| name == channel)
    }

    #[track_caller]
    pub fn until_subscribed(&self, channels: &[impl AsRef<str>]) {
        let names: Vec<&str> = channels.iter().map(AsRef::as_ref).collect();
        wait_until(&format!("{names:?} are subscribed to"), PATIENCE, || {
            let now = self.channels();
            names.iter().all(|name| now.iter().any(|channel| channel == name))
        });
    }

    /// Waits until exactly these channels are subscribed to.
    #[track_caller]
    pub fn until_channels(&self, expected: &[&str]) {
        let mut expected: Vec<String> = expected.iter().map(|&name| name.to_owned()).collect();
        expected.sort();
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.channels();
            if now == expected {
                return;
            }
            assert!(Instant::now() < end, "the channels are {now:?}, not {expected:?}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// The port from which the server's command connection comes: the one without subscriptions.
    #[track_caller]
    pub fn command_port(&self) -> u16 {
        let list = self.command(&["CLIENT", "LIST"]).text();
        let mut ports = list
            .lines()
            .filter(|line| line.contains(" name=tidegate ") && line.contains(" sub=0 "))
            .filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("addr=")))
            .filter_map(|address| address.rsplit_once(':')?.1.parse().ok());
        let port = ports.next().expect("a command connection");
        assert_eq!(ports.next(), None, "{list}");
        port
    }

    /// A key's remaining life in seconds: -2 without such a key, -1 without an end.
    pub fn ttl(&self, key: &str) -> i64 {
        self.command(&["TTL", key]).integer()
    }
}

/// What Redis answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl Reply {
    #[track_caller]
    pub fn integer(&self) -> i64 {
        match self {
            Reply::Integer(value) => *value,
            other => panic!("expected a number from Redis, got {other:?}"),
        }
    }

    #[track_caller]
    pub fn strings(&self) -> Vec<String> {
        match self {
            Reply::Array(items) => items.iter().map(Reply::text).collect(),
            other => panic!("expected a list from Redis, got {other:?}"),
        }
    }

    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Reply::Bulk(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Bulk(None) => String::new(),
            Reply::Status(text) => text.clone(),
            other => panic!("expected text from Redis, got {other:?}"),
        }
    }
}

/// A blocking connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> std::io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Client { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends without waiting for the reply.
    pub fn send(&mut self, commands: &[u8]) {
        self.stream.get_mut().write_all(commands).expect("a write to redis-server");
    }

    #[track_caller]
    pub fn command(&mut self, words: &[&str]) -> Reply {
        match self.try_command(words) {
            Some(Reply::Error(error)) => panic!("Redis refuses {:?}: {error}", words.first()),
            Some(reply) => reply,
            None => panic!("the connection to redis-server broke"),
        }
    }

    pub fn publish(&mut self, channel: &str, message: &str) -> i64 {
        self.command(&["PUBLISH", channel, message]).integer()
    }

    /// `None` when the connection breaks.
    pub fn try_command(&mut self, words: &[&str]) -> Option<Reply> {
        self.stream.get_mut().write_all(&encode(words)).ok()?;
        self.reply()
    }

    pub fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        let line = line.strip_suffix("\r\n")?;
        let (kind, rest) = line.split_at_checked(1)?;
        Some(match kind {
            "+" => Reply::Status(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Integer(rest.parse().ok()?),
            "$" if rest == "-1" => Reply::Bulk(None),
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().ok()? + 2];
                self.stream.read_exact(&mut bytes).ok()?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(Some(bytes))
            }
            "*" => Reply::Array((0..rest.parse::<i64>().ok()?).map(|_| self.reply()).collect::<Option<_>>()?),
            _ => return None,
        })
    }
}

/// A command as Redis reads it.
pub fn encode(words: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    out
}

/// Waits for a number that a command gives.
#[track_caller]
pub fn wait_for_reply(redis: &Redis, words: &[&str], expected: i64) {
    wait_for(&format!("{words:?} gives {expected}"), PATIENCE, || {
        (redis.command(words).integer() == expected).then_some(())
    });
}
