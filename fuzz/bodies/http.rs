//! Bytes at the door, over a socket pair, through hyper to a verdict: well-formed responses with known statuses,
//! or a connection that is handed over, or an end; the same for any split. Whatever happens, every hold on a
//! channel and every seat is given back, and nothing hangs.
//!
//! The input plays the client, this file the ingest. Input: a byte that chooses the splits, one for what the
//! ingest answers, then the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidegate::core::client::Socket as _;
use tidegate::core::event::Transport;
use tidegate::core::handover::{Command, HoldError, NewClient, Reply, Viewer};
use tidegate::core::mailbox::Mailbox;
use tidegate::core::stream::Scopes;
use tidegate::door::{Door, MemoryDirectory, Pages, Peer, Setup, Token, serve_one};
use tidegate::limits::Limits;
use tidegate::reactor::Socket;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::frames;

const HANG: Duration = Duration::from_secs(30);

/// The door's own clocks have no part in a verdict: a fuzzer may be stopped for a while.
const NEVER: Duration = Duration::from_secs(24 * 3600);

const STATUSES: &[u16] = &[100, 101, 200, 204, 400, 401, 404, 405, 408, 414, 426, 429, 431, 500, 503, 505];

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

pub fn run(data: &[u8]) {
    let Some((&[splits, answer], bytes)) = data.split_first_chunk::<2>() else { return };
    RUNTIME.with(|runtime| {
        let mut whole = runtime.block_on(visit(bytes, usize::MAX, answer));
        if splits > 0 {
            let mut split =
                runtime.block_on(visit(bytes, bytes.len() * usize::from(splits) / 256 + 1, answer));
            // hyper looks at a head that came in pieces only when it is whole, and knows HTTP/2's preface only in
            // one piece: a head that is wrong may be refused, or just end with the connection. One that is both too
            // long and wrong is refused for what shows first.
            let least = whole.statuses.len().min(split.statuses.len());
            for statuses in [&mut whole.statuses, &mut split.statuses] {
                if statuses.len() == least + 1 && statuses.last() >= Some(&400) {
                    statuses.pop();
                }
                if let Some(last @ 431) = statuses.last_mut() {
                    *last = 400;
                }
            }
            assert_eq!(whole, split, "depends on the split");
        }
    });
}

/// What came of a connection: the responses, how it was handed over, and the bytes that are a WebSocket's frames.
#[derive(PartialEq, Eq, Debug, Default)]
struct Verdict {
    statuses: Vec<u16>,
    handed_over: Option<(Transport, Vec<u8>)>,
}

async fn visit(bytes: &[u8], piece: usize, answer: u8) -> Verdict {
    let commands = Arc::new(Mailbox::new(|| {}));
    let clients: Arc<[AtomicUsize]> = [const { AtomicUsize::new(0) }; 1].into();
    let door = Door::new(Setup {
        limits: Limits {
            request_head_bytes_max: 2048,
            request_head_timeout: NEVER,
            keep_alive: NEVER,
            door_timeout: NEVER,
            ..Limits::default()
        },
        directory: Some(Arc::new(accounts())),
        trusted: Arc::new(|_| true),
        commands: Arc::clone(&commands),
        clients: Arc::clone(&clients),
        pages: Pages::default(),
        streams: true,
    });
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let served = tokio::spawn(serve_one(Arc::clone(&door), theirs, Peer::Unix));
    let mut client = Client { socket: ours, read: Vec::new() };
    let mut ingest =
        Ingest { commands, answer: answer % 6, held: Vec::new(), unanswered: Vec::new(), taken: None };

    for piece in bytes.chunks(piece) {
        // Who is refused may find the connection closed.
        let _ = client.socket.write_all(piece).await;
        settle(&mut client, &mut ingest).await;
    }
    let _ = client.socket.shutdown().await;
    let (mut turn, mut waited) = (Instant::now(), Duration::ZERO);
    while !served.is_finished() {
        settle(&mut client, &mut ingest).await;
        waited += std::mem::replace(&mut turn, Instant::now()).elapsed().min(Duration::from_millis(100));
        assert!(waited < HANG, "the door does not let go of a client that left");
    }
    served.await.expect("the door does not panic");
    settle(&mut client, &mut ingest).await;

    assert!(ingest.held.is_empty(), "held for nobody: {:?}", ingest.held);
    assert_eq!(door.coming(), 0, "a seat was not given back");
    let seated = clients.iter().map(|clients| clients.load(Ordering::Relaxed)).sum::<usize>();
    assert_eq!(seated, usize::from(ingest.taken.is_some()));
    let handed_over = ingest.taken.map(|client| handed_over(*client, bytes));
    Verdict { statuses: responses(&client.read), handed_over }
}

/// Lets everything happen that can.
async fn settle(client: &mut Client, ingest: &mut Ingest) {
    let mut quiet = 0;
    while quiet < 8 {
        tokio::task::yield_now().await;
        quiet = if client.read() | ingest.work() { 0 } else { quiet + 1 };
    }
}

struct Client {
    socket: UnixStream,
    read: Vec<u8>,
}

impl Client {
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.socket.try_read(&mut buffer) {
            Ok(count @ 1..) => {
                self.read.extend_from_slice(&buffer[..count]);
                true
            }
            _ => false,
        }
    }
}

struct Ingest {
    commands: Arc<Mailbox<Command<Socket>>>,
    answer: u8,
    held: Vec<u64>,
    unanswered: Vec<Reply>,
    taken: Option<Box<NewClient<Socket>>>,
}

impl Ingest {
    fn work(&mut self) -> bool {
        let mut commands = Vec::new();
        self.commands.drain(&mut commands);
        let worked = !commands.is_empty();
        for command in commands {
            match command {
                Command::Hold { ticket, reply, channels } => {
                    assert!(!channels.is_empty() && channels.len() <= 4);
                    self.hold(ticket, reply);
                }
                Command::Attach { ticket, client, refused, .. } => {
                    self.release(ticket);
                    if self.answer == 3 {
                        refused(HoldError::Killed, client);
                        continue;
                    }
                    assert!(self.taken.is_none(), "one connection, two clients");
                    self.taken = Some(client);
                }
                Command::Cancel(ticket) => self.release(ticket),
                other => panic!("{other:?}"),
            }
        }
        worked
    }

    fn hold(&mut self, ticket: u64, reply: Reply) {
        self.held.push(ticket);
        match self.answer {
            1 => reply(Err(HoldError::RedisAway)),
            2 => reply(Err(HoldError::Refused)),
            // Redis is silent: the client will leave.
            4 => self.unanswered.push(reply),
            _ => reply(Ok(())),
        }
    }

    fn release(&mut self, ticket: u64) {
        let place = self.held.iter().position(|held| *held == ticket);
        self.held.swap_remove(place.expect("released is what was held, once"));
    }
}

/// The statuses of the responses in these bytes, which are checked line by line.
fn responses(mut bytes: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let (status, length, rest) = head(bytes);
        assert!(STATUSES.contains(&status), "{status}");
        // What answers a HEAD has a length and no body.
        let has_body = !rest.is_empty() && !rest.starts_with(b"HTTP/1.");
        bytes = if has_body { &rest[length..] } else { rest };
        statuses.push(status);
    }
    statuses
}

/// A response's status and the length of its body, and what follows its head.
fn head(bytes: &[u8]) -> (u16, usize, &[u8]) {
    let show = || bytes.escape_ascii().to_string();
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {}", show()));
    let text = bytes[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = text.collect::<Vec<_>>().into_iter();
    let first = lines
        .next()
        .and_then(|line| line.strip_prefix(b"HTTP/1.1 ").or(line.strip_prefix(b"HTTP/1.0 ")))
        .unwrap_or_else(|| panic!("{}", show()));
    let status = std::str::from_utf8(&first[..3]).expect("three digits").parse().expect("three digits");
    let mut length = 0;
    for line in lines {
        let colon =
            line.iter().position(|byte| *byte == b':').unwrap_or_else(|| panic!("no header: {}", show()));
        let (name, value) = line.split_at(colon);
        assert!(name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-'), "{}", show());
        assert!(
            value.starts_with(b": ") && !value.iter().any(|byte| *byte != b'\t' && byte.is_ascii_control())
        );
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(&value[2..]).expect("digits").parse().expect("a length");
        }
    }
    (status, length, &bytes[end + 4..])
}

/// What a reactor would write first, and what it would read.
fn handed_over(mut client: NewClient<Socket>, sent: &[u8]) -> (Transport, Vec<u8>) {
    let (status, _, rest) = head(&client.head);
    match client.transport {
        Transport::WebSocket => {
            assert_eq!(status, 101);
            for message in frames::websocket(rest) {
                let text = message.into_text().expect("an error is text");
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            }
        }
        Transport::SseChunked => assert_eq!((status, frames::one_chunk(rest)), (200, &b":)\n"[..])),
        Transport::SsePlain => assert_eq!((status, rest), (200, &b":)\n"[..])),
    }
    if client.transport != Transport::WebSocket {
        assert!(client.read_ahead.is_empty());
        return (client.transport, Vec::new());
    }
    // All that follows the request, whether it was read ahead or is still in the socket.
    let mut frames = client.read_ahead.to_vec();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = client.socket.read(&mut buffer) {
        frames.extend_from_slice(&buffer[..count]);
    }
    assert!(sent.ends_with(&frames), "not what was sent: {}", frames.escape_ascii());
    (client.transport, frames)
}

fn accounts() -> MemoryDirectory {
    let token =
        |account, scopes| Token { viewer: Viewer { account, token: 10 + account, scopes }, expires_at: None };
    MemoryDirectory {
        tokens: [
            ("alice".to_owned(), token(1, Scopes::READ)),
            ("notes".to_owned(), token(2, Scopes::READ_NOTIFICATIONS)),
        ]
        .into(),
        lists: [(1, 77)].into(),
    }
}
