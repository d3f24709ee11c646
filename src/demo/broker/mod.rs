//! A small broker that speaks what streaming needs of Redis's protocol, so that a first run needs no Redis
//! and `redis-cli` works against it: publish and subscribe, and keys that expire.
//!
//! One thread with a runtime of its own; `store` decides, this file moves bytes. Bounds: clients, bytes of an
//! unfinished command, bytes that a client leaves unread (then it is dropped, as by Redis), keys,
//! subscriptions. It listens on loopback only, and is no place for data.
//!
//! Tested with raw sockets, and with `redis-cli` where there is one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

mod store;

#[cfg(test)]
mod tests;

pub use store::OUTBOX_BYTES_MAX;
use store::{ClientId, Flow, Store};

/// Where it listens if nobody else does.
pub const PORT: u16 = 6380;

const CLIENTS_MAX: usize = 512;
const COMMAND_BYTES_MAX: usize = 16 << 20;
const ARGUMENTS_MAX: usize = 100_000;
const INLINE_BYTES_MAX: usize = 64 << 10;

/// A running broker. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker on that loopback port if it is free, else on any.
    pub fn start(port: u16) -> io::Result<Broker> {
        let bind = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = bind(port).or_else(|_| bind(0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("demo-broker".to_owned()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            let serving = local.run_until(async move {
                tokio::select! {
                    result = serve(listener) => if let Err(error) = result {
                        tracing::error!(%error, "the demo's broker ended");
                    },
                    _ = stopped => {}
                }
            });
            runtime.block_on(serving);
        })?;
        Ok(Broker { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the connections share; all of them live on one thread.
struct Shared {
    store: RefCell<Store>,
    wake: RefCell<HashMap<ClientId, Rc<Notify>>>,
    start: Instant,
}

impl Shared {
    fn wake_receivers(&self) {
        let woken = self.store.borrow_mut().take_woken();
        let wake = self.wake.borrow();
        for notify in woken.iter().filter_map(|id| wake.get(id)) {
            notify.notify_one();
        }
    }
}

async fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let shared =
        Rc::new(Shared { store: RefCell::default(), wake: RefCell::default(), start: Instant::now() });
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the demo's broker could not accept a connection");
                // Out of descriptors: they come back when clients leave.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        if shared.wake.borrow().len() >= CLIENTS_MAX {
            let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            continue;
        }
        let id = shared.store.borrow_mut().connect(peer.to_string());
        let notify = Rc::new(Notify::new());
        shared.wake.borrow_mut().insert(id, notify.clone());
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            // However it ends, the client is gone.
            let _ = converse(&shared, id, &stream, &notify).await;
            shared.store.borrow_mut().disconnect(id);
            shared.wake.borrow_mut().remove(&id);
        });
    }
}

async fn converse(shared: &Shared, id: ClientId, stream: &TcpStream, notify: &Notify) -> io::Result<()> {
    let mut input = BytesMut::new();
    let mut parser = Parser::default();
    let mut flow = Flow::Continue;
    let _ = stream.set_nodelay(true);
    loop {
        let pending = shared.store.borrow().outbox(id).is_some();
        if shared.store.borrow().is_dropped(id) || (flow == Flow::Close && !pending) {
            return Ok(());
        }
        tokio::select! {
            ready = stream.readable(), if flow == Flow::Continue => {
                ready?;
                match stream.try_read_buf(&mut input) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {
                        let store = &mut shared.store.borrow_mut();
                        flow = take_commands(store, id, &mut parser, &mut input, shared.start.elapsed());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                shared.wake_receivers();
            }
            ready = stream.writable(), if pending => {
                ready?;
                write(shared, id, stream)?;
            }
            () = notify.notified() => {}
        }
    }
}

fn take_commands(
    store: &mut Store,
    id: ClientId,
    parser: &mut Parser,
    input: &mut BytesMut,
    now: Duration,
) -> Flow {
    loop {
        match parser.next(input) {
            Ok(Some(command)) => {
                if store.execute(id, &command, now) == Flow::Close {
                    return Flow::Close;
                }
            }
            Ok(None) => return Flow::Continue,
            Err(problem) => {
                store.refuse(id, problem);
                return Flow::Close;
            }
        }
    }
}

/// The broker and its clients without sockets. Public for the fuzz target.
#[doc(hidden)]
#[derive(Default)]
pub struct Conversation {
    store: Store,
    inputs: HashMap<ClientId, (Parser, BytesMut)>,
}

#[doc(hidden)]
impl Conversation {
    /// A new client.
    pub fn connect(&mut self) -> u64 {
        let id = self.store.connect("127.0.0.1:1".to_owned());
        self.inputs.insert(id, (Parser::default(), BytesMut::new()));
        id
    }

    /// Takes a client's bytes; false when its connection is to be closed.
    pub fn send(&mut self, id: u64, bytes: &[u8]) -> bool {
        let Some((parser, input)) = self.inputs.get_mut(&id) else { return false };
        input.extend_from_slice(bytes);
        let flow = take_commands(&mut self.store, id, parser, input, Duration::ZERO);
        flow == Flow::Continue && !self.store.is_dropped(id)
    }

    /// All that waits for a client.
    pub fn take_output(&mut self, id: u64) -> Vec<u8> {
        let waiting = self.store.outbox(id).map(|pieces| pieces.iter().flatten().copied().collect());
        let bytes: Vec<u8> = waiting.unwrap_or_default();
        self.store.written(id, bytes.len());
        bytes
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conversation({} clients)", self.inputs.len())
    }
}

fn write(shared: &Shared, id: ClientId, stream: &TcpStream) -> io::Result<()> {
    let written = {
        let store = shared.store.borrow();
        let Some(outbox) = store.outbox(id) else { return Ok(()) };
        let slices: Vec<IoSlice<'_>> = outbox.iter().take(64).map(|piece| IoSlice::new(piece)).collect();
        stream.try_write_vectored(&slices)
    };
    match written {
        Ok(bytes) => shared.store.borrow_mut().written(id, bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Takes commands off a buffer: arrays of bulk strings, or lines of words (as typed into netcat). The library
/// decodes one argument at a time, so that it neither starts over on a long command nor nests.
#[derive(Default)]
struct Parser {
    missing: usize,
    command: Vec<Bytes>,
    bytes: usize,
}

impl Parser {
    fn next(&mut self, input: &mut BytesMut) -> Result<Option<Vec<Bytes>>, &'static str> {
        while self.missing == 0 {
            if input.first().is_some_and(|byte| *byte != b'*') {
                return inline(input);
            }
            let Some(line) = line(input)? else { return Ok(None) };
            let number =
                line.get(1..).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<i64>().ok());
            // Empty and null arrays are skipped.
            self.missing = match number.map(|number| usize::try_from(number).unwrap_or(0)) {
                Some(number) if number <= ARGUMENTS_MAX => number,
                _ => return Err("invalid multibulk length"),
            };
        }
        while self.missing > 0 {
            if input.first().is_some_and(|byte| *byte != b'$') {
                return Err("expected '$'");
            }
            match decode_range(input) {
                Ok(Some((RangeFrame::BulkString((start, end)), used))) => {
                    self.bytes += used;
                    self.command.push(input.split_to(used).freeze().slice(start..end));
                    self.missing -= 1;
                }
                Ok(None) if self.bytes + input.len() <= COMMAND_BYTES_MAX => return Ok(None),
                Ok(None) => return Err("command too long"),
                Ok(Some(_)) | Err(_) => return Err("invalid bulk length"),
            }
        }
        self.bytes = 0;
        Ok(Some(std::mem::take(&mut self.command)))
    }
}

fn line(input: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return if input.len() > INLINE_BYTES_MAX { Err("too big inline request") } else { Ok(None) };
    };
    let mut line = input.split_to(end).freeze();
    input.advance(1);
    if line.last() == Some(&b'\r') {
        line.truncate(line.len() - 1);
    }
    Ok(Some(line))
}

fn inline(input: &mut BytesMut) -> Result<Option<Vec<Bytes>>, &'static str> {
    let Some(line) = line(input)? else { return Ok(None) };
    let words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
}
