//! A server that speaks Redis's protocol and leaves out of its optional answers what it likes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::core::handover::Delivery;
use tidegate::redis::headroom::Held;
use tidegate::redis::{Address, Options};

use super::machine::{PATIENCE, wait_until};
use super::world::{Plan, World, message};
use super::{HOME, Limits};

/// Answers to what a server may leave out, as they stand on the wire.
#[derive(Clone, Copy)]
struct Answers {
    client_id: &'static str,
    client_list: &'static str,
    config_get: &'static str,
}

struct StandIn {
    port: u16,
    lists: Arc<AtomicU64>,
    subscriber: Arc<Mutex<Option<TcpStream>>>,
}

impl StandIn {
    fn start(answers: Answers) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (lists, subscriber) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Option<TcpStream>>>::default());
        let stand_in = StandIn { port, lists: Arc::clone(&lists), subscriber: Arc::clone(&subscriber) };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (lists, subscriber) = (Arc::clone(&lists), Arc::clone(&subscriber));
                std::thread::spawn(move || converse(stream, answers, &lists, &subscriber));
            }
        });
        stand_in
    }

    fn publish(&self, channel: &str, text: &str) {
        let message = format!(
            "*3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n{text}\r\n",
            channel.len(),
            text.len()
        );
        self.subscriber.lock().unwrap().as_ref().unwrap().write_all(message.as_bytes()).unwrap();
    }
}

fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut number = |mark: char| -> Option<(usize, String)> {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let count = line.trim_end().strip_prefix(mark)?.parse().ok()?;
        if mark == '*' {
            return Some((count, String::new()));
        }
        let mut text = vec![0; count + 2];
        stream.read_exact(&mut text).ok()?;
        text.truncate(count);
        Some((count, String::from_utf8(text).unwrap()))
    };
    let (count, _) = number('*')?;
    (0..count).map(|_| number('$').map(|(_, text)| text)).collect()
}

fn converse(stream: TcpStream, answers: Answers, lists: &AtomicU64, subscriber: &Mutex<Option<TcpStream>>) {
    let mut out = stream.try_clone().unwrap();
    let mut input = BufReader::new(stream);
    while let Some(words) = command(&mut input) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["CLIENT", "ID", ..] => {
                *subscriber.lock().unwrap() = Some(out.try_clone().unwrap());
                answers.client_id.to_owned()
            }
            ["CLIENT", "LIST", ..] => {
                lists.fetch_add(1, SeqCst);
                answers.client_list.to_owned()
            }
            ["CONFIG", ..] => answers.config_get.to_owned(),
            ["PING"] => "+PONG\r\n".to_owned(),
            [verb @ ("SUBSCRIBE" | "UNSUBSCRIBE"), channels @ ..] => channels
                .iter()
                .map(|channel| {
                    let verb = verb.to_lowercase();
                    format!("*3\r\n${}\r\n{verb}\r\n${}\r\n{channel}\r\n:1\r\n", verb.len(), channel.len())
                })
                .collect(),
            _ => "+OK\r\n".to_owned(),
        };
        if out.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn what_an_optional_answer_leaves_out_is_not_known() {
    const NOT: &str = "-ERR unknown subcommand\r\n";
    let full = Answers { client_id: ":7\r\n", client_list: "$0\r\n\r\n", config_get: "*0\r\n" };
    // "id=7 addr=127.0.0.1:1 name=tidegate" and nothing of buffers; others alone.
    let without = "$35\r\nid=7 addr=127.0.0.1:1 name=tidegate\r\n";
    let others = "$12\r\nid=70 omem=1\r\n";
    let cases = [
        full,
        Answers { client_list: without, ..full },
        Answers { client_list: others, ..full },
        Answers { client_list: "$-1\r\n", ..full },
        Answers { client_list: "*0\r\n", ..full },
        Answers { client_list: NOT, config_get: NOT, ..full },
        Answers { client_id: NOT, ..full },
        Answers { client_id: "$-1\r\n", config_get: "$-1\r\n", ..full },
        Answers { client_id: "+\r\n", config_get: "*2\r\n$1\r\nx\r\n$14\r\npubsub 32mb 8m\r\n", ..full },
    ];
    for (number, answers) in cases.into_iter().enumerate() {
        let stand_in = StandIn::start(answers);
        let address = Address::Tcp { host: "127.0.0.1".into(), port: stand_in.port };
        let options = Options { address, ..Options::default() };
        let mut world =
            World::start(Plan { options, limits: Limits::default(), budget: 50_000, stage: false });
        world.client(&[HOME]);
        // More than the budget, which the test holds.
        for n in 0..8 {
            stand_in.publish("timeline:1", &message(&format!("{n} {}", "x".repeat(10_000))));
        }
        wait_until("the gate is closed", PATIENCE, || world.gate.is_closed());
        let asked = stand_in.lists.load(SeqCst);
        let pause = || world.stats.pause(world.clock.now());
        wait_until("it was asked, or cannot be", PATIENCE, || {
            let paused = pause().is_some_and(|pause| pause > Duration::from_millis(300));
            paused && (world.headroom.read().held == Held::Denied || stand_in.lists.load(SeqCst) > asked + 2)
        });
        let reading = world.headroom.read();
        assert_eq!(reading.held, Held::Denied, "case {number}");
        let now = world.clock.now();
        assert!(!reading.is_half_used(now, pause().unwrap(), 1000), "case {number}: {reading:?}");
        assert!(matches!(world.inbox.next(), Delivery::Event(_)));
        assert_eq!(world.stats.epoch.load(SeqCst), 1, "case {number}");
    }
}
