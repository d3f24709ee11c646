//! The dialogue at the beginning of a connection to Redis: AUTH, SELECT, CLIENT SETNAME, for the subscriber its
//! own CLIENT ID, for a master that sentinels named its ROLE.
//!
//! One value without I/O. What Redis quotes of our commands never shows a password.
//!
//! Bound: replies are at most `REPLY_BYTES_MAX` long.

use std::collections::VecDeque;

use bytes::BytesMut;
use redis_protocol::resp2::types::OwnedFrame;

use crate::config::HostPort;
use crate::redis::Options;
use crate::redis::command::{decode_answer, encode};
use crate::redis::connect::ConnectError;

/// Longest reply to a command of the dialogue. They are one line each.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Longest part of an error text of Redis's that is repeated.
const ERROR_TEXT_MAX: usize = 200;

/// What the connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Subscriptions; wants to know its own number.
    Subscriber,
    /// Commands.
    Command,
    /// Questions to a sentinel.
    Sentinel,
}

/// The dialogue at the beginning of a connection: bytes to send at once, then one reply for each command.
#[derive(Debug)]
pub struct Greeting {
    expected: VecDeque<&'static str>,
    role: Role,
    client_id: Option<u64>,
    master: Option<HostPort>,
    epoch: Option<u64>,
}

impl Greeting {
    /// No commands yet, on a connection that has greeted.
    pub fn more(role: Role) -> Greeting {
        Greeting { expected: VecDeque::new(), role, client_id: None, master: None, epoch: None }
    }

    /// The commands for that role.
    pub fn new(options: &Options, role: Role) -> (BytesMut, Greeting) {
        let mut out = BytesMut::new();
        let mut expected = VecDeque::new();
        if let Some(password) = &options.password {
            let password = password.expose().as_bytes();
            match options.username.as_deref().filter(|name| !name.is_empty()) {
                Some(username) => encode(&mut out, &[b"AUTH", username.as_bytes(), password]),
                None => encode(&mut out, &[b"AUTH", password]),
            }
            expected.push_back("AUTH");
        }
        if options.db != 0 {
            encode(&mut out, &[b"SELECT", options.db.to_string().as_bytes()]);
            expected.push_back("SELECT");
        }
        encode(&mut out, &[b"CLIENT", b"SETNAME", options.client_name.as_bytes()]);
        expected.push_back("CLIENT SETNAME");
        if role == Role::Subscriber {
            encode(&mut out, &[b"CLIENT", b"ID"]);
            expected.push_back("CLIENT ID");
        }
        (out, Greeting { expected, role, client_id: None, master: None, epoch: None })
    }

    /// Asks besides whether it is the master; a replica is an error then.
    pub fn ask_for_role(&mut self, out: &mut BytesMut) {
        encode(out, &[b"ROLE"]);
        self.expected.push_back("ROLE");
    }

    /// Asks a sentinel besides who the master of that name is, and since which epoch.
    pub fn ask_for_master(&mut self, out: &mut BytesMut, name: &str) {
        encode(out, &[b"SENTINEL", b"get-master-addr-by-name", name.as_bytes()]);
        self.expected.push_back("SENTINEL");
        encode(out, &[b"SENTINEL", b"MASTER", name.as_bytes()]);
        self.expected.push_back("SENTINEL MASTER");
    }

    /// The connection's number in `CLIENT LIST`, if Redis told it.
    pub fn client_id(&self) -> Option<u64> {
        self.client_id
    }

    /// The number of the failover that made it the master, if the sentinel told: a higher one is newer.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Who the master is, if the sentinel knows.
    pub fn into_master(self) -> Option<HostPort> {
        self.master
    }

    /// Takes every whole reply out of `input`; true when all are there.
    pub fn take(&mut self, options: &Options, input: &mut BytesMut) -> Result<bool, ConnectError> {
        while !self.expected.is_empty() {
            let (frame, used) = match decode_answer(input) {
                Ok(Some(found)) => found,
                Ok(None) if input.len() <= REPLY_BYTES_MAX => return Ok(false),
                _ => return Err(ConnectError::NotRedis(options.address.clone())),
            };
            let _ = input.split_to(used);
            self.answer(options, frame)?;
        }
        Ok(true)
    }

    fn answer(&mut self, options: &Options, frame: OwnedFrame) -> Result<(), ConnectError> {
        let command = self.expected.pop_front().unwrap_or_default();
        match frame {
            OwnedFrame::Integer(id) if command == "CLIENT ID" => self.client_id = u64::try_from(id).ok(),
            OwnedFrame::Array(parts) if command == "SENTINEL" => self.master = host_and_port(&parts),
            OwnedFrame::Array(parts) if command == "SENTINEL MASTER" => self.epoch = config_epoch(&parts),
            OwnedFrame::Array(parts) if command == "ROLE" && is_replica(&parts) => {
                return Err(ConnectError::NotMaster(options.address.clone()));
            }
            OwnedFrame::Error(text) => {
                let code = text.split(' ').next().unwrap_or_default();
                let text = tell(options, &text);
                // No password is wanted: then the one that was given is not needed, as other clients see it.
                let no_password =
                    text.contains("without any password") || text.contains("no password is set");
                // Whoever may not ask for the role has to believe the sentinels.
                let optional =
                    (command.starts_with("CLIENT") || command == "ROLE" || command == "SENTINEL MASTER")
                        && !matches!(code, "NOAUTH" | "DENIED")
                        && !text.contains("max number of clients");
                if command == "AUTH" && no_password {
                    // A sentinel gets the master's password where it has none of its own.
                    if self.role != Role::Sentinel {
                        tracing::warn!(
                            "Redis at {} wants no password, but one is configured",
                            options.address
                        );
                    }
                } else if !optional {
                    let advice = advice(&text);
                    return Err(ConnectError::Refused {
                        address: options.address.clone(),
                        command,
                        text,
                        advice,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a ROLE's answer begins as that of a server other than a master does. An answer that names no role says
/// nothing.
fn is_replica(parts: &[OwnedFrame]) -> bool {
    let role = match parts.first() {
        Some(OwnedFrame::BulkString(role) | OwnedFrame::SimpleString(role)) => role.as_slice(),
        _ => return false,
    };
    [&b"slave"[..], b"replica", b"sentinel"].contains(&role)
}

/// Where that name and port are, as a sentinel writes them.
fn host_and_port(parts: &[OwnedFrame]) -> Option<HostPort> {
    let [OwnedFrame::BulkString(host), OwnedFrame::BulkString(port)] = parts else { return None };
    let port = std::str::from_utf8(port).ok()?.parse().ok()?;
    Some(HostPort { host: String::from_utf8(host.clone()).ok()?, port })
}

/// The value of `config-epoch` among names and values.
fn config_epoch(parts: &[OwnedFrame]) -> Option<u64> {
    parts.chunks_exact(2).find_map(|pair| match pair {
        [OwnedFrame::BulkString(name), OwnedFrame::BulkString(value)] if name == b"config-epoch" => {
            std::str::from_utf8(value).ok()?.parse().ok()
        }
        _ => None,
    })
}

/// What to do about an error that Redis answered.
pub fn advice(text: &str) -> &'static str {
    let code = text.split([' ', ':']).next().unwrap_or_default();
    match code {
        "WRONGPASS" => "check REDIS_USER and REDIS_PASSWORD, or those in REDIS_URL",
        "NOAUTH" => "it wants a password: set REDIS_PASSWORD, or put it into REDIS_URL",
        "NOPERM" => {
            "the Redis user needs the commands subscribe, unsubscribe, ping, select, client, set, the channels \
             timeline:* and the keys subscribed:*"
        }
        "LOADING" => "it is reading its data and will be back by itself",
        "MASTERDOWN" => "it is a replica that has lost its master",
        "READONLY" => "it is a replica: the address has to be the master's",
        "OOM" => "its memory is full: raise maxmemory",
        "MISCONF" => "it cannot save its data and refuses writes: look into Redis's own log",
        "DENIED" => "it is in protected mode: give it a password or let it listen on loopback",
        _ if text.contains("invalid password") => "check REDIS_PASSWORD, or the one in REDIS_URL",
        _ if text.contains("DB index") => "check REDIS_DB, or the number in REDIS_URL",
        _ if text.contains("max number of clients") => "raise maxclients in Redis",
        _ => "see Redis's own log",
    }
}

/// A refusal for everybody to read: its code and what to do, without names and addresses.
pub fn refusal(what: &str, text: &str) -> String {
    let code = text.split([' ', ':']).next().unwrap_or_default();
    format!("Redis refuses {what} ({code}): {}", advice(text))
}

/// The first words of an error text, without any secret in them.
pub fn tell(options: &Options, text: &str) -> String {
    // An unknown command's arguments are repeated behind these words.
    let text = text.split(", with args").next().unwrap_or_default();
    let mut told: String = text.chars().filter(|c| !c.is_control()).take(ERROR_TEXT_MAX).collect();
    if let Some(password) = options.password.as_ref().map(|password| password.expose())
        && !password.is_empty()
    {
        told = told.replace(password, "***");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn options() -> Options {
        Options {
            username: Some("streaming".to_owned()),
            password: Some(Secret::new("hunter2")),
            db: 3,
            ..Options::default()
        }
    }

    fn greet(options: &Options, replies: &str) -> Result<Option<u64>, ConnectError> {
        let (_, mut greeting) = Greeting::new(options, Role::Subscriber);
        let mut input = BytesMut::new();
        let mut done = false;
        for byte in replies.bytes() {
            assert!(!done, "the replies are longer than the dialogue");
            input.extend_from_slice(&[byte]);
            done = greeting.take(options, &mut input)?;
        }
        assert!(done, "the replies are shorter than the dialogue");
        Ok(greeting.client_id)
    }

    #[test]
    fn a_connection_authenticates_selects_and_says_its_name() {
        let (out, _) = Greeting::new(&options(), Role::Subscriber);
        assert_eq!(
            &out[..],
            b"*3\r\n$4\r\nAUTH\r\n$9\r\nstreaming\r\n$7\r\nhunter2\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n\
              *3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$8\r\ntidegate\r\n*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n"
        );
        let plain = Options::default();
        let (out, _) = Greeting::new(&plain, Role::Command);
        assert_eq!(&out[..], b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$8\r\ntidegate\r\n");
    }

    #[test]
    fn replies_may_be_split_anywhere_and_only_what_matters_must_succeed() {
        assert_eq!(greet(&options(), "+OK\r\n+OK\r\n+OK\r\n:17\r\n").unwrap(), Some(17));
        let denied = "+OK\r\n+OK\r\n-NOPERM no client|setname\r\n-ERR unknown command\r\n";
        assert_eq!(greet(&options(), denied).unwrap(), None);
        let not_needed =
            "-ERR AUTH <password> called without any password configured\r\n+OK\r\n+OK\r\n:1\r\n";
        assert_eq!(greet(&options(), not_needed).unwrap(), Some(1));
    }

    #[test]
    fn errors_say_what_to_do_and_never_a_password() {
        let cases = [
            ("-WRONGPASS invalid username-password pair or user is disabled.\r\n", "REDIS_PASSWORD"),
            ("+OK\r\n-ERR DB index is out of range\r\n", "REDIS_DB"),
            ("+OK\r\n-LOADING Redis is loading the dataset in memory\r\n", "by itself"),
            ("-ERR unknown command 'AUTH', with args beginning with: 'streaming' 'hunter2'\r\n", "AUTH"),
            ("-ERR you said hunter2\r\n", "***"),
            ("-ERR max number of clients reached\r\n", "maxclients"),
            ("HTTP/1.1 400 Bad Request\r\n", "does not speak"),
        ];
        for (replies, expected) in cases {
            let error = greet(&options(), replies).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", options()).contains("hunter2"));
        let error = greet(&Options::default(), "-NOAUTH Authentication required.\r\n").unwrap_err();
        assert!(error.to_string().contains("set REDIS_PASSWORD"), "{error}");
    }
}
