//! The door over real sockets. The tests play the ingest: they read its mailbox and answer.

mod clients;
mod limits;
mod pages;
mod subscriptions;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::core::handover::{HoldError, NewClient, Reply, Ticket, Viewer};
use crate::core::stream::{Channel, Scopes};

/// A client's socket as a reactor would hold it.
#[derive(Debug)]
enum Fake {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl From<std::net::TcpStream> for Fake {
    fn from(socket: std::net::TcpStream) -> Fake {
        Fake::Tcp(socket)
    }
}

impl From<std::os::unix::net::UnixStream> for Fake {
    fn from(socket: std::os::unix::net::UnixStream) -> Fake {
        Fake::Unix(socket)
    }
}

impl Write for Fake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Fake::Tcp(socket) => socket.write(bytes),
            Fake::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A directory whose answers can fail or never come.
struct TestDirectory {
    memory: Mutex<MemoryDirectory>,
    is_down: AtomicBool,
    /// Look-ups that are answered before they begin to hang.
    answers: AtomicUsize,
    /// Told when a look-up begins to hang, and when it is given up.
    hanging: mpsc::UnboundedSender<&'static str>,
}

struct TellWhenGivenUp(mpsc::UnboundedSender<&'static str>);

impl Drop for TellWhenGivenUp {
    fn drop(&mut self) {
        let _ = self.0.send("given up");
    }
}

impl Directory for TestDirectory {
    fn look_up<'a>(&'a self, token: &'a str) -> Answer<'a, Option<Token>> {
        Box::pin(async move {
            if self.is_down.load(Ordering::Relaxed) {
                return Err("PostgreSQL is away".into());
            }
            if self.answers.load(Ordering::Relaxed) == 0 {
                let _ = self.hanging.send("began");
                let _tell = TellWhenGivenUp(self.hanging.clone());
                std::future::pending::<()>().await;
            }
            self.answers.fetch_sub(1, Ordering::Relaxed);
            Ok(self.memory.lock().unwrap().tokens.get(token).copied())
        })
    }

    fn owns_list(&self, account: u64, list: u64) -> Answer<'_, bool> {
        Box::pin(async move {
            if self.is_down.load(Ordering::Relaxed) {
                return Err("PostgreSQL is away".into());
            }
            Ok(self.memory.lock().unwrap().lists.contains(&(account, list)))
        })
    }
}

/// A door with its surroundings.
struct World {
    door: Arc<Door<Fake>>,
    directory: Arc<TestDirectory>,
    hanging: mpsc::UnboundedReceiver<&'static str>,
    address: SocketAddr,
    clients: Arc<[AtomicUsize]>,
    mailbox: Arc<Mailbox<Command<Fake>>>,
    woken: Arc<Notify>,
    commands: VecDeque<Command<Fake>>,
    shutdown: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

struct Held {
    ticket: Ticket,
    channels: Vec<Channel>,
    reply: Reply,
}

type Refused = Box<dyn FnOnce(HoldError, Box<NewClient<Fake>>) + Send>;

struct Attached {
    ticket: Ticket,
    reactor: u16,
    client: Box<NewClient<Fake>>,
    refused: Refused,
}

impl World {
    fn new() -> World {
        World::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Setup<Fake>)) -> World {
        let (hanging_in, hanging) = mpsc::unbounded_channel();
        let directory = Arc::new(TestDirectory {
            memory: Mutex::new(accounts()),
            is_down: AtomicBool::new(false),
            answers: AtomicUsize::new(usize::MAX),
            hanging: hanging_in,
        });
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        let mailbox = Arc::new(Mailbox::new(move || wake.notify_one()));
        let clients: Arc<[AtomicUsize]> = [const { AtomicUsize::new(0) }; 2].into();
        let mut setup = Setup {
            limits: Limits::default(),
            directory: Some(Arc::clone(&directory) as Arc<dyn Directory>),
            trusted: Arc::new(|address| address.is_loopback()),
            commands: Arc::clone(&mailbox),
            clients: Arc::clone(&clients),
            pages: Pages::default(),
            streams: true,
        };
        change(&mut setup);
        let door = Door::new(setup);
        let listener = Listener::bind(&Address::Tcp("127.0.0.1".into(), 0)).unwrap();
        let address = listener.address().parse().unwrap();
        let (shutdown, down) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(Arc::clone(&door), listener, async {
            let _ = down.await;
        }));
        World {
            door,
            directory,
            hanging,
            address,
            clients,
            mailbox,
            woken,
            commands: VecDeque::new(),
            shutdown: Some(shutdown),
            served,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The whole answer to a request after which the connection is closed.
    async fn ask(&self, request: &str) -> Response {
        read_all(&mut self.send(request).await).await
    }

    /// What the door asks of the ingest next.
    async fn command(&mut self) -> Command<Fake> {
        loop {
            if let Some(command) = self.commands.pop_front() {
                return command;
            }
            let mut drained = Vec::new();
            self.mailbox.drain(&mut drained);
            if drained.is_empty() {
                self.woken.notified().await;
            }
            self.commands.extend(drained);
        }
    }

    async fn held(&mut self) -> Held {
        match self.command().await {
            Command::Hold { ticket, channels, reply } => Held { ticket, channels: channels.to_vec(), reply },
            other => panic!("{other:?} instead of a hold"),
        }
    }

    async fn attached(&mut self) -> Attached {
        match self.command().await {
            Command::Attach { ticket, reactor, client, refused } => {
                Attached { ticket, reactor, client, refused }
            }
            other => panic!("{other:?} instead of an attachment"),
        }
    }

    async fn cancelled(&mut self) -> Ticket {
        match self.command().await {
            Command::Cancel(ticket) => ticket,
            other => panic!("{other:?} instead of a cancellation"),
        }
    }

    /// A client's way when nothing goes wrong.
    async fn admitted(&mut self) -> Attached {
        let held = self.held().await;
        (held.reply)(Ok(()));
        let attached = self.attached().await;
        assert_eq!(attached.ticket, held.ticket);
        attached
    }
}

const ALICE: Viewer = Viewer { account: 1, token: 11, scopes: Scopes::READ };

fn accounts() -> MemoryDirectory {
    let token = |viewer, expires_at| Token { viewer, expires_at };
    let statuses = Viewer { account: 2, token: 12, scopes: Scopes::READ_STATUSES };
    let notifications = Viewer { account: 3, token: 13, scopes: Scopes::READ_NOTIFICATIONS };
    let nothing = Viewer { account: 4, token: 14, scopes: Scopes::default() };
    MemoryDirectory {
        tokens: HashMap::from([
            ("alice".into(), token(ALICE, Some(4_000_000_000))),
            ("statuses".into(), token(statuses, None)),
            ("notifications".into(), token(notifications, None)),
            ("nothing".into(), token(nothing, None)),
        ]),
        lists: [(1, 77)].into(),
    }
}

/// A response as it came over the wire.
#[derive(Debug, PartialEq)]
struct Response {
    status: String,
    headers: HashMap<String, String>,
    body: String,
}

impl Response {
    fn parse(bytes: &[u8]) -> Response {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        });
        Response { status, headers: headers.collect(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn has(&self, headers: &[(&str, &str)]) -> &Response {
        for (name, value) in headers {
            assert_eq!(self.header(name), Some(*value), "{name} in {self:?}");
        }
        self
    }

    /// What every web response carries.
    fn is_web(&self, status: &str) -> &Response {
        assert_eq!(self.status, format!("HTTP/1.1 {status}"), "{self:?}");
        assert!(self.header("X-Powered-By").is_none());
        assert_eq!(uuid::Uuid::parse_str(self.header("X-Request-Id").unwrap()).unwrap().get_version_num(), 4);
        self.has(&[("Access-Control-Allow-Origin", "*")])
    }

    /// A failed upgrade, with that text.
    fn is_upgrade_error(&self, status: &str, text: &str) {
        assert_eq!(self.status, format!("HTTP/1.1 {status}"), "{self:?}");
        assert!(self.header("X-Request-Id").is_some());
        assert_eq!(self.body, "");
        let connection = if status.starts_with("426") { "close, Upgrade" } else { "close" };
        self.has(&[
            ("Connection", connection),
            ("Content-Type", "text/plain"),
            ("Content-Length", "0"),
            ("X-Error-Message", text),
        ]);
    }
}

async fn read_all(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    Response::parse(&bytes)
}

/// One response of a connection that stays open.
async fn read_one(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    loop {
        bytes.push(stream.read_u8().await.unwrap());
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let mut response = Response::parse(&bytes);
    let length = response.header("Content-Length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    response.body = String::from_utf8(body).unwrap();
    response
}

fn get(target: &str) -> String {
    request("GET", target, "")
}

fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
}

fn stream_request(target: &str, token: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
}

fn upgrade(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// A page, the same on any path.
fn one_page(body: Bytes) -> PageSource {
    Arc::new(move |_| {
        let response = hyper::Response::new(body.clone().into());
        Some(Box::pin(async { response }) as PageFuture)
    })
}
