//! A network between two programs of this machine, with weather: TCP on loopback that can be slow, cut into
//! single bytes, black or broken.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What happens to bytes on their way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Weather {
    /// They arrive.
    Clear,
    /// They arrive so much later.
    Delay(Duration),
    /// Each travels alone.
    ByteByByte,
    /// They do not arrive, and nobody is told; connections can still be made. When it clears up, what was held
    /// back arrives, as with TCP.
    BlackHole,
}

/// How long a thread here sleeps before it looks at the weather again.
const GLANCE: Duration = Duration::from_millis(5);

/// Pieces that are under way in one direction of a connection.
const UNDER_WAY: usize = 16;

/// A proxy to one address. Its connections break when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    weather: Mutex<Weather>,
    links: Mutex<Vec<Arc<Pair>>>,
    ended: AtomicBool,
}

/// The two sockets of a connection. The kernel resets both when the last thread lets go of a broken pair.
struct Pair {
    near: TcpStream,
    far: TcpStream,
    broken: AtomicBool,
    /// What comes is thrown away, for ever.
    forgotten: AtomicBool,
}

impl Pair {
    fn break_off(&self) {
        for socket in [&self.near, &self.far] {
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
            // Wakes who reads, and sends nothing.
            let _ = socket.shutdown(Shutdown::Read);
        }
        self.broken.store(true, SeqCst);
    }

    fn is_broken(&self) -> bool {
        self.broken.load(SeqCst)
    }
}

impl Proxy {
    /// A proxy in clear weather.
    pub fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            weather: Mutex::new(Weather::Clear),
            links: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || of_thread.accept(&listener));
        Proxy { address, shared }
    }

    pub fn to_port(port: u16) -> Proxy {
        Proxy::start(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Forgets connections, as a router does: what is sent on them arrives nowhere, and nobody is told. New ones are
    /// as good as ever. `which` chooses by the port that the server sees. Gives their number.
    pub fn forget(&self, which: impl Fn(u16) -> bool) -> usize {
        let links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = links.iter().filter(|pair| {
            let port = pair.far.local_addr().map_or(0, |address| address.port());
            !pair.is_broken() && which(port) && !pair.forgotten.swap(true, SeqCst)
        });
        chosen.count()
    }

    /// Resets every connection, both sides.
    pub fn reset(&self) {
        let links = std::mem::take(&mut *self.shared.links.lock().unwrap_or_else(PoisonError::into_inner));
        links.iter().for_each(|pair| pair.break_off());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        self.reset();
    }
}

impl Shared {
    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        for near in listener.incoming() {
            if self.ended.load(SeqCst) {
                return;
            }
            let Ok(near) = near else { continue };
            // Nobody there: the connection ends at once, as a refused one does through any proxy.
            let Ok(far) = TcpStream::connect(self.target) else { continue };
            for socket in [&near, &far] {
                socket.set_nodelay(true).unwrap();
                socket.set_write_timeout(Some(GLANCE)).unwrap();
            }
            let pair = Arc::new(Pair {
                near,
                far,
                broken: AtomicBool::new(false),
                forgotten: AtomicBool::new(false),
            });
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            // Only this list holds a pair whose threads have ended.
            links.retain(|pair| Arc::strong_count(pair) > 1);
            links.push(Arc::clone(&pair));
            for inward in [true, false] {
                let (sender, receiver) = sync_channel(UNDER_WAY);
                let (reading, shared) = (Arc::clone(&pair), Arc::clone(&self));
                std::thread::spawn(move || read(&reading, inward, &sender));
                let writing = Arc::clone(&pair);
                std::thread::spawn(move || shared.write(&writing, inward, &receiver));
            }
        }
    }

    fn write(&self, pair: &Pair, inward: bool, pieces: &Receiver<(Instant, Vec<u8>)>) {
        let to = if inward { &pair.far } else { &pair.near };
        loop {
            let (read_at, piece) = match pieces.recv_timeout(GLANCE) {
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) if pair.is_broken() => return,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    self.until_it_clears(pair);
                    if !pair.is_broken() {
                        let _ = to.shutdown(Shutdown::Write);
                    }
                    return;
                }
            };
            self.until_it_clears(pair);
            if pair.forgotten.load(SeqCst) {
                continue;
            }
            if let Weather::Delay(delay) = self.weather() {
                std::thread::sleep((read_at + delay).saturating_duration_since(Instant::now()));
            }
            let step = if self.weather() == Weather::ByteByByte { 1 } else { piece.len() };
            for part in piece.chunks(step.max(1)) {
                self.until_it_clears(pair);
                if write_all(pair, to, part).is_err() {
                    // The reader's side learns of it as well.
                    return pair.break_off();
                }
            }
        }
    }

    fn until_it_clears(&self, pair: &Pair) {
        while self.weather() == Weather::BlackHole && !pair.is_broken() {
            std::thread::sleep(GLANCE);
        }
    }
}

fn read(pair: &Pair, inward: bool, pieces: &SyncSender<(Instant, Vec<u8>)>) {
    let mut from = if inward { &pair.near } else { &pair.far };
    let mut buffer = [0; 16 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return pair.break_off(),
        };
        let mut piece = (Instant::now(), buffer[..count].to_vec());
        loop {
            match pieces.try_send(piece) {
                Ok(()) => break,
                Err(TrySendError::Full(_)) if pair.is_broken() => return,
                Err(TrySendError::Full(back)) => piece = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(GLANCE / 5);
        }
    }
}

fn write_all(pair: &Pair, mut to: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        if pair.is_broken() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
