//! What the broker knows and decides: clients, channels, keys, and the answer to each command. Pure: no
//! sockets, no clock. Replies and messages are put into the clients' outboxes; the edge writes them out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::encode::extend_encode;
use redis_protocol::resp2::types::BytesFrame as Frame;

/// What a client may leave unread, in bytes; over it the client is dropped, as Redis does with its default
/// `client-output-buffer-limit` for subscribers.
pub const OUTBOX_BYTES_MAX: usize = 32 << 20;
/// Keys and their values together, in bytes.
const KEYS_BYTES_MAX: usize = 64 << 20;
/// Subscriptions of all clients together.
const SUBSCRIPTIONS_MAX: usize = 500_000;

const OUTPUT_LIMIT: &str = "normal 33554432 0 0 slave 0 0 0 pubsub 33554432 0 0";

/// A client's number, from 1.
pub type ClientId = u64;

#[derive(Default)]
pub struct Store {
    clients: BTreeMap<ClientId, Client>,
    channels: HashMap<Bytes, BTreeSet<ClientId>>,
    keys: HashMap<Bytes, Key>,
    keys_bytes: usize,
    subscriptions: usize,
    last_client: ClientId,
    woken: Vec<ClientId>,
}

struct Client {
    address: String,
    name: Bytes,
    channels: BTreeSet<Bytes>,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    dropped: bool,
}

struct Key {
    value: Bytes,
    expires: Option<Duration>,
}

/// Whether a connection goes on after a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Continue,
    /// Close when everything is written.
    Close,
}

impl Store {
    /// A new client from that address.
    pub fn connect(&mut self, address: String) -> ClientId {
        self.last_client += 1;
        let client = Client {
            address,
            name: Bytes::new(),
            channels: BTreeSet::new(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            dropped: false,
        };
        self.clients.insert(self.last_client, client);
        self.last_client
    }

    /// The client is gone.
    pub fn disconnect(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else { return };
        for channel in &client.channels {
            self.leave(id, channel);
        }
    }

    /// What is to be written to a client, its first piece first.
    pub fn outbox(&self, id: ClientId) -> Option<&VecDeque<Bytes>> {
        self.clients.get(&id).map(|client| &client.outbox).filter(|outbox| !outbox.is_empty())
    }

    /// That many bytes of the outbox were written.
    pub fn written(&mut self, id: ClientId, mut bytes: usize) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.outbox_bytes = client.outbox_bytes.saturating_sub(bytes);
        while let Some(first) = client.outbox.front_mut() {
            if bytes < first.len() {
                let _ = first.split_to(bytes);
                return;
            }
            bytes -= first.len();
            client.outbox.pop_front();
        }
    }

    /// Whether the client must be cut: it left too much unread.
    pub fn is_dropped(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.dropped)
    }

    /// The clients whose outbox got something (or that were dropped) since the last call.
    pub fn take_woken(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.woken)
    }

    /// Answers bytes that are no command.
    pub fn refuse(&mut self, id: ClientId, problem: &str) {
        self.reply(id, &error(format!("ERR Protocol error: {problem}")));
    }

    /// Executes a command: its name and arguments. `now` is the time since the broker's start.
    pub fn execute(&mut self, id: ClientId, command: &[Bytes], now: Duration) -> Flow {
        let Some((name, arguments)) = command.split_first() else { return Flow::Continue };
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        let subscribed = self.clients.get(&id).is_some_and(|client| !client.channels.is_empty());
        if subscribed && !matches!(name.as_str(), "SUBSCRIBE" | "UNSUBSCRIBE" | "PING" | "QUIT" | "RESET") {
            let text = format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                name.to_lowercase()
            );
            self.reply(id, &error(text));
            return Flow::Continue;
        }
        let reply = match (name.as_str(), arguments) {
            ("SUBSCRIBE", [_, ..]) => return self.subscribe(id, arguments),
            ("UNSUBSCRIBE", _) => return self.unsubscribe(id, arguments),
            ("PING", _) if subscribed => Frame::Array(vec![
                bulk("pong"),
                Frame::BulkString(arguments.first().cloned().unwrap_or_default()),
            ]),
            ("PING", []) => simple("PONG"),
            ("PING" | "ECHO", [text]) => Frame::BulkString(text.clone()),
            ("PUBLISH", [channel, message]) => Frame::Integer(self.publish(channel, message)),
            ("AUTH", [_] | [_, _]) => simple("OK"),
            ("SELECT", [number]) => match number_of(number) {
                Some(0..16) => simple("OK"),
                _ => error("ERR DB index is out of range"),
            },
            ("HELLO", [version, ..]) if version.as_ref() != b"2" => {
                error("NOPROTO unsupported protocol version")
            }
            ("HELLO", _) => hello(id),
            ("CLIENT", [sub, rest @ ..]) => self.client(id, sub, rest),
            ("CONFIG", [sub, patterns @ ..]) if sub.eq_ignore_ascii_case(b"GET") => config(patterns),
            ("SET", [key, value, options @ ..]) => self.set(key, value, options, now),
            ("GET", [key]) => match self.key(key, now) {
                Some(found) => Frame::BulkString(found.value.clone()),
                None => Frame::Null,
            },
            ("EXISTS", keys @ [_, ..]) => {
                Frame::Integer(count(keys.iter().filter(|key| self.key(key, now).is_some())))
            }
            ("DEL", keys @ [_, ..]) => Frame::Integer(count(keys.iter().filter(|key| self.remove(key, now)))),
            ("TTL", [key]) => Frame::Integer(match self.key(key, now).map(|found| found.expires) {
                None => -2,
                Some(None) => -1,
                Some(Some(at)) => i64::try_from((at - now).as_millis().div_ceil(1000)).unwrap_or(i64::MAX),
            }),
            ("PUBSUB", [sub, rest @ ..]) => self.pubsub(sub, rest),
            ("INFO", _) => Frame::BulkString(self.info(now).into()),
            ("COMMAND", _) => Frame::Array(Vec::new()),
            ("RESET", []) => {
                self.unsubscribe_all(id);
                simple("RESET")
            }
            ("QUIT", _) => {
                self.reply(id, &simple("OK"));
                return Flow::Close;
            }
            // A browser that was talked into sending HTTP here, as Redis answers it.
            ("POST" | "HOST:", _) => return Flow::Close,
            (
                "SUBSCRIBE" | "PUBLISH" | "SET" | "GET" | "EXISTS" | "DEL" | "TTL" | "AUTH" | "SELECT"
                | "CLIENT" | "PUBSUB",
                _,
            ) => error(format!("ERR wrong number of arguments for '{}' command", name.to_lowercase())),
            _ => error("ERR unknown command: the demo's broker knows only what streaming needs"),
        };
        self.reply(id, &reply);
        Flow::Continue
    }

    fn subscribe(&mut self, id: ClientId, channels: &[Bytes]) -> Flow {
        for channel in channels {
            if self.subscriptions >= SUBSCRIPTIONS_MAX {
                self.reply(id, &error("ERR too many subscriptions"));
                continue;
            }
            // A copy, so that it does not keep the whole read buffer alive.
            let channel = Bytes::copy_from_slice(channel);
            let Some(client) = self.clients.get_mut(&id) else { break };
            if client.channels.insert(channel.clone()) {
                self.subscriptions += 1;
                self.channels.entry(channel.clone()).or_default().insert(id);
            }
            self.confirm(id, "subscribe", Frame::BulkString(channel));
        }
        Flow::Continue
    }

    fn unsubscribe(&mut self, id: ClientId, channels: &[Bytes]) -> Flow {
        let all: Vec<Bytes> = match self.clients.get(&id) {
            Some(client) if channels.is_empty() => client.channels.iter().cloned().collect(),
            _ => channels.to_vec(),
        };
        if all.is_empty() {
            self.confirm(id, "unsubscribe", Frame::Null);
        }
        for channel in all {
            if self.clients.get_mut(&id).is_some_and(|client| client.channels.remove(&channel)) {
                self.leave(id, &channel);
            }
            self.confirm(id, "unsubscribe", Frame::BulkString(channel));
        }
        Flow::Continue
    }

    fn unsubscribe_all(&mut self, id: ClientId) {
        let channels = self.clients.get_mut(&id).map(|client| std::mem::take(&mut client.channels));
        for channel in channels.unwrap_or_default() {
            self.leave(id, &channel);
        }
    }

    fn confirm(&mut self, id: ClientId, what: &'static str, channel: Frame) {
        let left = self.clients.get(&id).map_or(0, |client| count(client.channels.iter()));
        self.reply(id, &Frame::Array(vec![bulk(what), channel, Frame::Integer(left)]));
    }

    /// The client no longer counts as the channel's subscriber.
    fn leave(&mut self, id: ClientId, channel: &Bytes) {
        self.subscriptions = self.subscriptions.saturating_sub(1);
        if let Some(members) = self.channels.get_mut(channel) {
            members.remove(&id);
            if members.is_empty() {
                self.channels.remove(channel);
            }
        }
    }

    /// Encoded once, shared by all who get it.
    fn publish(&mut self, channel: &Bytes, message: &Bytes) -> i64 {
        let Some(members) = self.channels.get(channel) else { return 0 };
        let members: Vec<ClientId> = members.iter().copied().collect();
        let frame = [bulk("message"), Frame::BulkString(channel.clone()), Frame::BulkString(message.clone())];
        let encoded = encode(&Frame::Array(frame.into()));
        for id in &members {
            self.push(*id, encoded.clone());
        }
        count(members.iter())
    }

    fn client(&mut self, id: ClientId, sub: &Bytes, rest: &[Bytes]) -> Frame {
        match (String::from_utf8_lossy(sub).to_ascii_uppercase().as_str(), rest) {
            ("ID", []) => Frame::Integer(i64::try_from(id).unwrap_or(i64::MAX)),
            ("SETNAME", [name]) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.name = Bytes::copy_from_slice(name.get(..name.len().min(256)).unwrap_or_default());
                }
                simple("OK")
            }
            ("GETNAME", []) => {
                Frame::BulkString(self.clients.get(&id).map_or(Bytes::new(), |c| c.name.clone()))
            }
            ("SETINFO", [_, _]) => simple("OK"),
            ("LIST", []) => self.client_list(|_, _| true),
            ("LIST", [by, kind]) if by.eq_ignore_ascii_case(b"TYPE") => {
                let pubsub = kind.eq_ignore_ascii_case(b"PUBSUB");
                self.client_list(|_, client| client.channels.is_empty() != pubsub)
            }
            ("LIST", [by, ids @ ..]) if by.eq_ignore_ascii_case(b"ID") => {
                let ids: BTreeSet<u64> = ids.iter().filter_map(|id| number_of(id)).collect();
                self.client_list(|id, _| ids.contains(&id))
            }
            _ => error("ERR unknown subcommand or wrong number of arguments for 'client'"),
        }
    }

    fn client_list(&self, wanted: impl Fn(ClientId, &Client) -> bool) -> Frame {
        let mut lines = String::new();
        for (id, client) in self.clients.iter().filter(|(id, client)| wanted(**id, client)) {
            let flags = if client.channels.is_empty() { "N" } else { "P" };
            lines += &format!(
                "id={id} addr={} name={} flags={flags} db=0 sub={} psub=0 oll={} omem={} user=default resp=2\n",
                client.address,
                String::from_utf8_lossy(&client.name),
                client.channels.len(),
                client.outbox.len(),
                client.outbox_bytes,
            );
        }
        Frame::BulkString(lines.into())
    }

    fn pubsub(&self, sub: &Bytes, rest: &[Bytes]) -> Frame {
        match (String::from_utf8_lossy(sub).to_ascii_uppercase().as_str(), rest) {
            ("CHANNELS", [] | [_]) => {
                let prefix = rest.first().map(|pattern| pattern.as_ref());
                let mut names: Vec<&Bytes> =
                    self.channels.keys().filter(|name| matches(prefix, name)).collect();
                names.sort();
                Frame::Array(names.into_iter().cloned().map(Frame::BulkString).collect())
            }
            ("NUMSUB", channels) => {
                let members =
                    |name: &Bytes| self.channels.get(name).map_or(0, |members| count(members.iter()));
                let pair = |name: &Bytes| [Frame::BulkString(name.clone()), Frame::Integer(members(name))];
                Frame::Array(channels.iter().flat_map(pair).collect())
            }
            ("NUMPAT", []) => Frame::Integer(0),
            _ => error("ERR unknown subcommand or wrong number of arguments for 'pubsub'"),
        }
    }

    fn set(&mut self, key: &Bytes, value: &Bytes, options: &[Bytes], now: Duration) -> Frame {
        let number = |text: &Bytes| number_of(text).filter(|number| (1..=1 << 40).contains(number));
        let (options, is_only_for_present) = match options {
            [options @ .., last] if last.eq_ignore_ascii_case(b"XX") => (options, true),
            options => (options, false),
        };
        let expires = match options {
            [] => None,
            [unit, text] if unit.eq_ignore_ascii_case(b"EX") => match number(text) {
                Some(seconds) => Some(now + Duration::from_secs(seconds)),
                None => return error("ERR invalid expire time in 'set' command"),
            },
            [unit, text] if unit.eq_ignore_ascii_case(b"PX") => match number(text) {
                Some(milliseconds) => Some(now + Duration::from_millis(milliseconds)),
                None => return error("ERR invalid expire time in 'set' command"),
            },
            _ => return error("ERR syntax error"),
        };
        if is_only_for_present && self.key(key, now).is_none() {
            return Frame::Null;
        }
        self.remove(key, now);
        let bytes = key.len() + value.len();
        if self.keys_bytes + bytes > KEYS_BYTES_MAX {
            let expired: Vec<Bytes> =
                self.keys.iter().filter(|(_, key)| key.is_expired(now)).map(|k| k.0.clone()).collect();
            for key in expired {
                self.remove(&key, now);
            }
            if self.keys_bytes + bytes > KEYS_BYTES_MAX {
                return error("OOM command not allowed when used memory > 'maxmemory'.");
            }
        }
        self.keys_bytes += bytes;
        let value = Bytes::copy_from_slice(value);
        self.keys.insert(Bytes::copy_from_slice(key), Key { value, expires });
        simple("OK")
    }

    fn key(&self, key: &Bytes, now: Duration) -> Option<&Key> {
        self.keys.get(key).filter(|found| !found.is_expired(now))
    }

    /// Removes a key; says whether it was there and not expired.
    fn remove(&mut self, key: &Bytes, now: Duration) -> bool {
        let Some(removed) = self.keys.remove(key) else { return false };
        self.keys_bytes = self.keys_bytes.saturating_sub(key.len() + removed.value.len());
        !removed.is_expired(now)
    }

    fn info(&self, now: Duration) -> String {
        format!(
            "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\ntidegate_demo_broker:1\r\nuptime_in_seconds:{}\r\n\r\n\
             # Clients\r\nconnected_clients:{}\r\n\r\n# Persistence\r\nloading:0\r\n\r\n# Stats\r\npubsub_channels:{}\r\n\r\n\
             # Replication\r\nrole:master\r\n\r\n# Keyspace\r\ndb0:keys={}\r\n",
            now.as_secs(),
            self.clients.len(),
            self.channels.len(),
            self.keys.len()
        )
    }

    fn reply(&mut self, id: ClientId, frame: &Frame) {
        self.push(id, encode(frame));
    }

    fn push(&mut self, id: ClientId, bytes: Bytes) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.dropped {
            return;
        }
        client.outbox_bytes += bytes.len();
        client.outbox.push_back(bytes);
        if client.outbox_bytes > OUTBOX_BYTES_MAX {
            client.dropped = true;
            client.outbox.clear();
        }
        self.woken.push(id);
    }
}

impl Key {
    fn is_expired(&self, now: Duration) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

fn hello(id: ClientId) -> Frame {
    Frame::Array(vec![
        bulk("server"),
        bulk("redis"),
        bulk("version"),
        bulk("7.0.0"),
        bulk("proto"),
        Frame::Integer(2),
        bulk("id"),
        Frame::Integer(i64::try_from(id).unwrap_or(i64::MAX)),
        bulk("mode"),
        bulk("standalone"),
        bulk("role"),
        bulk("master"),
        bulk("modules"),
        Frame::Array(Vec::new()),
    ])
}

fn config(patterns: &[Bytes]) -> Frame {
    let wanted = |name: &str| patterns.iter().any(|pattern| matches(Some(pattern), name.as_bytes()));
    let known = [("client-output-buffer-limit", OUTPUT_LIMIT), ("maxmemory", "0")];
    let pairs = known.into_iter().filter(|(name, _)| wanted(name));
    Frame::Array(pairs.flat_map(|(name, value)| [bulk(name), bulk(value)]).collect())
}

/// Whether a name is the pattern, or begins with what stands before the pattern's `*`.
fn matches(pattern: Option<&[u8]>, name: &[u8]) -> bool {
    match pattern.map(|pattern| pattern.split(|byte| *byte == b'*').next().unwrap_or_default()) {
        None => true,
        Some(prefix) if pattern.is_some_and(|pattern| pattern.len() > prefix.len()) => {
            name.starts_with(prefix)
        }
        Some(exact) => name.eq_ignore_ascii_case(exact),
    }
}

fn bulk(text: &'static str) -> Frame {
    Frame::BulkString(Bytes::from_static(text.as_bytes()))
}

fn simple(text: &'static str) -> Frame {
    Frame::SimpleString(Bytes::from_static(text.as_bytes()))
}

fn error(text: impl Into<String>) -> Frame {
    // A line end would end the reply.
    Frame::Error(text.into().replace(['\r', '\n'], " ").into())
}

fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    // Growing buffers take everything.
    let _ = extend_encode(&mut out, frame, false);
    out.freeze()
}

fn number_of(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn count<T>(items: impl Iterator<Item = T>) -> i64 {
    i64::try_from(items.count()).unwrap_or(i64::MAX)
}
