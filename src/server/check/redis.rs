//! Redis: whether it lets us in and do all that the server does there.

use std::io::{self, Read, Write};
use std::time::Instant;

use bytes::BytesMut;
use redis_protocol::resp2::types::OwnedFrame;

use super::{PATIENCE, Report};
use crate::config::{Config, Mode};
use crate::redis::Options;
use crate::redis::command::{decode_answer, encode};
use crate::redis::connect::{self, Role};
use crate::redis::headroom::{OutputLimits, find_omem};
use crate::redis::socket::BlockingSocket;

/// A channel of each kind, of no account: their names are made as the server makes them.
const CHANNELS: [&str; 8] = [
    "timeline:access_token:0",
    "timeline:system:0",
    "timeline:0",
    "timeline:0:notifications",
    "timeline:direct:0",
    "timeline:list:0",
    "timeline:public",
    "timeline:hashtag:tidegate:local",
];

const REPLY_BYTES_MAX: usize = 256 * 1024;

pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    if config.mode == Mode::Demo {
        return;
    }
    let about = format!("Redis ({})", config.redis.variable);
    let options = match crate::server::redis_options(config) {
        Ok(options) => options,
        Err(failure) => return report.fail(&about, failure),
    };
    let begun = Instant::now();
    let connection = connect::connect(&options, Role::Command, PATIENCE);
    let mut commands = match connection.map(|connected| Talk::new(connected.stream)) {
        Ok(talk) => talk,
        Err(error) => return report.fail(&about, error),
    };
    let took = begun.elapsed();
    let version = commands.version();
    report.ok(
        &about,
        format_args!(
            "connected to {} in {:.1} ms, database {}{}{}{}",
            options.address,
            took.as_secs_f64() * 1000.0,
            options.db,
            options.username.as_ref().map(|name| format!(", user {name}")).unwrap_or_default(),
            if options.password.is_some() { ", with a password" } else { "" },
            version.map(|version| format!(", version {version}")).unwrap_or_default(),
        ),
    );
    presence(report, &about, &options, &mut commands);
    subscriptions(report, &about, &options);
    headroom(report, &about, &mut commands);
}

/// The keys by which Rails sees that somebody listens. One of no account, for a second.
fn presence(report: &mut Report<'_>, about: &str, options: &Options, commands: &mut Talk) {
    let key = format!("{}subscribed:timeline:0", options.prefix());
    match commands.ask(&[b"SET", key.as_bytes(), b"1", b"EX", b"1"]) {
        Ok(OwnedFrame::Error(text)) => refused(report, about, options, &format!("SET {key}"), &text),
        Ok(_) => report.ok(about, "may set the keys that tell Rails who listens (subscribed:*)"),
        Err(error) => report.fail(about, format_args!("broke off at SET: {error}")),
    }
}

fn subscriptions(report: &mut Report<'_>, about: &str, options: &Options) {
    let mut subscriber = match connect::connect(options, Role::Subscriber, PATIENCE) {
        Ok(connected) => Talk::new(connected.stream),
        Err(error) => return report.fail(about, format_args!("a second connection failed: {error}")),
    };
    for channel in CHANNELS {
        let name = format!("{}{channel}", options.prefix());
        match subscriber.ask(&[b"SUBSCRIBE", name.as_bytes()]) {
            Ok(OwnedFrame::Error(text)) => {
                return refused(report, about, options, &format!("SUBSCRIBE {name}"), &text);
            }
            Ok(_) => {}
            Err(error) => return report.fail(about, format_args!("broke off at SUBSCRIBE: {error}")),
        }
    }
    for command in [&[b"PING".as_slice()][..], &[b"UNSUBSCRIBE", CHANNELS[0].as_bytes()]] {
        let name = String::from_utf8_lossy(command[0]);
        match subscriber.ask(command) {
            Ok(OwnedFrame::Error(text)) => return refused(report, about, options, &name, &text),
            Ok(_) => {}
            Err(error) => return report.fail(about, format_args!("broke off at {name}: {error}")),
        }
    }
    report.ok(about, "may subscribe to every kind of channel (timeline:*)");
}

/// What is asked while reading is paused. The server does without, but guesses then.
fn headroom(report: &mut Report<'_>, about: &str, commands: &mut Talk) {
    let limit = match commands.ask(&[b"CONFIG", b"GET", b"client-output-buffer-limit"]) {
        Ok(OwnedFrame::Array(pair)) => match pair.get(1) {
            Some(OwnedFrame::BulkString(value)) => OutputLimits::parse(&String::from_utf8_lossy(value)),
            _ => None,
        },
        _ => None,
    };
    match (lists_us(commands), limit) {
        (true, Some(_)) => report.ok(about, "tells how much it holds for us (CLIENT LIST, CONFIG GET)"),
        (true, None) => report.ok(
            about,
            "tells how much it holds for us (CLIENT LIST); its limit is taken to be Redis's default, as \
             config|get is not allowed",
        ),
        (false, _) => report.warn(
            about,
            "does not tell how much it holds for us, so its patience is estimated while reading is paused; \
             allow the user client|id and client|list to have it measured (dist/redis.acl)",
        ),
    }
}

/// Whether a list of clients has our own line with its buffer: a list may leave clients or fields out.
fn lists_us(commands: &mut Talk) -> bool {
    let Ok(OwnedFrame::Integer(id)) = commands.ask(&[b"CLIENT", b"ID"]) else { return false };
    let (id, text) = (u64::try_from(id).unwrap_or_default(), id.to_string());
    let by_id = commands.ask(&[b"CLIENT", b"LIST", b"ID", text.as_bytes()]);
    let list = match by_id {
        // Redis before 6.2.
        Ok(OwnedFrame::Error(_)) => commands.ask(&[b"CLIENT", b"LIST", b"TYPE", b"normal"]),
        answer => answer,
    };
    matches!(list, Ok(OwnedFrame::BulkString(list)) if find_omem(&String::from_utf8_lossy(&list), id).is_some())
}

fn refused(report: &mut Report<'_>, about: &str, options: &Options, what: &str, text: &str) {
    let text = connect::tell(options, text);
    report.fail(about, format_args!("refuses {what}: {text}; {}", connect::advice(&text)));
}

/// One question, one answer.
struct Talk {
    stream: BlockingSocket,
    input: BytesMut,
}

impl Talk {
    fn new(stream: BlockingSocket) -> Talk {
        Talk { stream, input: BytesMut::new() }
    }

    fn ask(&mut self, command: &[&[u8]]) -> io::Result<OwnedFrame> {
        self.stream.set_timeout(Some(PATIENCE))?;
        let mut out = BytesMut::new();
        encode(&mut out, command);
        self.stream.write_all(&out)?;
        let mut space = [0; 4096];
        loop {
            match decode_answer(&self.input) {
                Ok(Some((frame, used))) => {
                    let _ = self.input.split_to(used);
                    return Ok(frame);
                }
                Ok(None) if self.input.len() <= REPLY_BYTES_MAX => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            match self.stream.read(&mut space)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.input.extend_from_slice(space.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Not every user may ask.
    fn version(&mut self) -> Option<String> {
        let OwnedFrame::BulkString(info) = self.ask(&[b"INFO", b"server"]).ok()? else { return None };
        let info = String::from_utf8_lossy(&info).into_owned();
        let find = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        find("valkey_version:").or_else(|| find("redis_version:")).map(str::to_owned)
    }
}
