//! The physical limit: a bare loop of `send` of the same bytes to as many sockets, in a process of its own.
//!
//! No epoll, no tables: each thread has its share of the sockets and sends the given bytes to one after the other,
//! then waits for the next command, as a server waits for the next message.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier, RwLock};

use super::readers::{Framing, Plan, Readers};
use super::stamp::{BASE, Stamped, now_ns};

/// Whose bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// The same for all sockets.
    Shared,
    /// Each socket has its own, as messages to one account each are: the sender finds them cold.
    Own,
}

/// The floor's process, its sockets connected to readers.
pub struct Floor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts one with this many sockets, all read by `readers`. `frame` is one message's bytes on the wire;
    /// number and time in it are written anew for each message.
    pub fn start(readers: &mut Readers, clients: usize, threads: usize, bytes: Bytes, frame: &[u8]) -> Floor {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["floor-process", &clients.to_string(), &threads.to_string()])
            .args([frame.len().to_string(), u8::from(bytes == Bytes::Own).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        input.write_all(frame).unwrap();
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().expect("the floor's port");
        // The first message stands for the response head, which the floor has not.
        let plans =
            (0..clients).map(|_| Plan { request: Vec::new(), framing: Framing::Bare, first: BASE }).collect();
        readers.begin(([127, 0, 0, 1], port).into(), plans);
        let mut floor = Floor { child, input, output };
        floor.done();
        floor
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends messages from `first` on, so many in one `send`.
    pub fn send(&mut self, first: u64, coalesced: usize) {
        writeln!(self.input, "{first} {coalesced} {}", now_ns()).unwrap();
    }

    /// Waits until the last `send` has returned.
    pub fn done(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself.
pub fn process(arguments: &[String]) {
    let numbers: Vec<usize> = arguments.iter().map(|text| text.parse().unwrap()).collect();
    let [clients, threads, length, own] = numbers[..] else { panic!("four numbers") };
    let mut input = BufReader::new(std::io::stdin());
    let mut frame = vec![0; length];
    input.read_exact(&mut frame).unwrap();
    let mut frame = Stamped::new(frame);
    let listener = listener();
    println!("{}", listener.local_addr().unwrap().port());
    let mut sockets: Vec<Socket> = (0..clients)
        .map(|_| Socket { stream: listener.accept().unwrap().0, own: (own == 1).then(|| frame.clone()) })
        .collect();
    for socket in &sockets {
        socket.stream.set_nodelay(true).unwrap();
    }
    let order = Arc::new(RwLock::new(Order::default()));
    let (begin, end) = (Arc::new(Barrier::new(threads)), Arc::new(Barrier::new(threads)));
    let share = clients.div_ceil(threads);
    let mut shares: Vec<Vec<Socket>> = Vec::new();
    while !sockets.is_empty() {
        shares.push(sockets.drain(..share.min(sockets.len())).collect());
    }
    let mut mine = shares.pop().unwrap();
    for mut sockets in shares {
        let (order, begin, end) = (Arc::clone(&order), Arc::clone(&begin), Arc::clone(&end));
        std::thread::spawn(move || {
            loop {
                begin.wait();
                pass(&mut sockets, &order.read().unwrap());
                end.wait();
            }
        });
    }
    println!("done");
    for line in input.lines() {
        let numbers: Vec<u64> = line.unwrap().split(' ').map(|text| text.parse().unwrap()).collect();
        let [first, coalesced, sent_ns] = numbers[..] else { panic!("three numbers") };
        {
            let mut order = order.write().unwrap();
            (order.first, order.sent_ns) = (first, sent_ns);
            order.bytes.clear();
            for number in first..first + coalesced {
                order.bytes.extend_from_slice(frame.with(number, sent_ns));
            }
        }
        begin.wait();
        pass(&mut mine, &order.read().unwrap());
        end.wait();
        println!("done");
    }
}

/// With a long queue: clients that the kernel takes but has no room for are lost, as they have nothing to say.
fn listener() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

struct Socket {
    stream: TcpStream,
    own: Option<Stamped>,
}

/// What all are to send.
#[derive(Default)]
struct Order {
    bytes: Vec<u8>,
    first: u64,
    sent_ns: u64,
}

fn pass(sockets: &mut [Socket], order: &Order) {
    for socket in sockets {
        // One `send`, unless the socket is full, which readers that keep up do not let happen.
        let mut left = match &mut socket.own {
            Some(own) => own.with(order.first, order.sent_ns),
            None => &order.bytes,
        };
        while !left.is_empty() {
            match socket.stream.write(left) {
                Ok(taken) => left = &left[taken..],
                Err(_) => break,
            }
        }
    }
}
