//! The physical limit: a bare loop of `send` of the same bytes to as many sockets, in a process of its own.
//!
//! No epoll, no tables: each thread has its share of the sockets and sends the given bytes to one after the other,
//! then waits for the next command, as a server waits for the next message.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier, RwLock};

use super::readers::{BASE, DIGITS, Framing, Plan, Readers};

/// The floor's process, its sockets connected to readers.
pub struct Floor {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Floor {
    /// Starts one with this many sockets, all read by `readers`. `frame` is one message's bytes on the wire;
    /// the number in it, at `number_at`, is written anew for each message.
    pub fn start(
        readers: &mut Readers,
        clients: usize,
        threads: usize,
        frame: &[u8],
        number_at: usize,
    ) -> Floor {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["floor-process", &clients.to_string(), &threads.to_string()])
            .args([frame.len().to_string(), number_at.to_string()])
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
        writeln!(self.input, "{first} {coalesced}").unwrap();
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
    let [clients, threads, length, number_at] = numbers[..] else { panic!("four numbers") };
    let mut input = BufReader::new(std::io::stdin());
    let mut frame = vec![0; length];
    input.read_exact(&mut frame).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let mut sockets: Vec<TcpStream> = (0..clients).map(|_| listener.accept().unwrap().0).collect();
    for socket in &sockets {
        socket.set_nodelay(true).unwrap();
    }
    let bytes = Arc::new(RwLock::new(Vec::new()));
    let (begin, end) = (Arc::new(Barrier::new(threads)), Arc::new(Barrier::new(threads)));
    let share = clients.div_ceil(threads);
    let mut shares: Vec<Vec<TcpStream>> = Vec::new();
    while !sockets.is_empty() {
        shares.push(sockets.drain(..share.min(sockets.len())).collect());
    }
    let mut own = shares.pop().unwrap();
    for mut sockets in shares {
        let (bytes, begin, end) = (Arc::clone(&bytes), Arc::clone(&begin), Arc::clone(&end));
        std::thread::spawn(move || {
            loop {
                begin.wait();
                pass(&mut sockets, &bytes.read().unwrap());
                end.wait();
            }
        });
    }
    println!("done");
    for line in input.lines() {
        let line = line.unwrap();
        let (first, coalesced) = line.split_once(' ').unwrap();
        let (first, coalesced): (u64, u64) = (first.parse().unwrap(), coalesced.parse().unwrap());
        {
            let mut bytes = bytes.write().unwrap();
            bytes.clear();
            for number in first..first + coalesced {
                frame[number_at..number_at + DIGITS].copy_from_slice(number.to_string().as_bytes());
                bytes.extend_from_slice(&frame);
            }
        }
        begin.wait();
        pass(&mut own, &bytes.read().unwrap());
        end.wait();
        println!("done");
    }
}

fn pass(sockets: &mut [TcpStream], bytes: &[u8]) {
    for socket in sockets {
        // One `send`, unless the socket is full, which readers that keep up do not let happen.
        let mut left = bytes;
        while !left.is_empty() {
            match socket.write(left) {
                Ok(taken) => left = &left[taken..],
                Err(_) => break,
            }
        }
    }
}
