use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

struct Client(TcpStream);

impl Client {
    fn connect(broker: &Broker) -> Client {
        let stream = TcpStream::connect(broker.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(stream)
    }

    fn send(&mut self, words: &[&str]) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.write_all(text.as_bytes()).unwrap();
    }

    fn expect(&mut self, text: &str) {
        let mut found = vec![0; text.len()];
        let read = self.0.read_exact(&mut found);
        assert!(
            read.is_ok() && found == text.as_bytes(),
            "{:?}, not {text:?}",
            String::from_utf8_lossy(&found)
        );
    }

    fn ask(&mut self, words: &[&str], reply: &str) {
        self.send(words);
        self.expect(reply);
    }

    fn ends(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest);
        rest
    }
}

#[test]
fn messages_reach_those_who_subscribed_and_their_number_is_the_reply() {
    let broker = Broker::start(0).unwrap();
    let (mut one, mut two, mut publisher) =
        (Client::connect(&broker), Client::connect(&broker), Client::connect(&broker));
    one.ask(
        &["SUBSCRIBE", "a", "b"],
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n",
    );
    two.ask(&["subscribe", "a"], "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    publisher.ask(&["PUBLISH", "a", "hi\r\n"], ":2\r\n");
    publisher.ask(&["PUBLISH", "b", "x"], ":1\r\n");
    publisher.ask(&["PUBLISH", "c", "x"], ":0\r\n");
    one.expect(
        "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\nhi\r\n\r\n*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\nx\r\n",
    );
    two.expect("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\nhi\r\n\r\n");
    publisher.ask(&["PUBSUB", "NUMSUB", "a", "c"], "*4\r\n$1\r\na\r\n:2\r\n$1\r\nc\r\n:0\r\n");
    publisher.ask(&["PUBSUB", "CHANNELS"], "*2\r\n$1\r\na\r\n$1\r\nb\r\n");
    one.ask(&["PING"], "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    one.send(&["GET", "x"]);
    one.expect("-ERR Can't execute 'get'");
    // A client that leaves is no subscriber any more.
    one.send(&["QUIT"]);
    one.ends();
    publisher.ask(&["PUBSUB", "NUMSUB", "b"], "*2\r\n$1\r\nb\r\n:0\r\n");
    two.ask(&["UNSUBSCRIBE"], "*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n");
    two.ask(&["UNSUBSCRIBE"], "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
    two.ask(&["PING"], "+PONG\r\n");
    publisher.ask(&["PUBSUB", "CHANNELS"], "*0\r\n");
}

#[test]
fn what_a_connecting_client_says() {
    let broker = Broker::start(0).unwrap();
    let mut client = Client::connect(&broker);
    client.ask(&["AUTH", "default", "x"], "+OK\r\n");
    client.ask(&["SELECT", "3"], "+OK\r\n");
    client.ask(&["SELECT", "16"], "-ERR DB index is out of range\r\n");
    client.ask(&["CLIENT", "SETNAME", "tidegate"], "+OK\r\n");
    client.ask(&["CLIENT", "ID"], ":1\r\n");
    client.ask(&["HELLO", "3"], "-NOPROTO unsupported protocol version\r\n");
    client.send(&["CLIENT", "LIST", "ID", "1"]);
    client.expect("$");
    let port = client.0.local_addr().unwrap().port();
    let line = format!(
        "id=1 addr=127.0.0.1:{port} name=tidegate flags=N db=0 sub=0 psub=0 oll=0 omem=0 user=default resp=2\n"
    );
    client.expect(&format!("{}\r\n{line}\r\n", line.len()));
    client.ask(
        &["CONFIG", "GET", "client-output-buffer-limit"],
        "*2\r\n$26\r\nclient-output-buffer-limit\r\n$51\r\n",
    );
    client.expect("normal 33554432 0 0 slave 0 0 0 pubsub 33554432 0 0\r\n");
    client.ask(&["CONFIG", "GET", "save"], "*0\r\n");
    client.ask(&["COMMAND", "DOCS"], "*0\r\n");
    client.ask(&["FLUSHALL"], "-ERR unknown command");
    client.ask(
        &["CLIENT", "NONSENSE"],
        ": the demo's broker knows only what streaming needs\r\n-ERR unknown subcommand",
    );
}

#[test]
fn typed_lines_work_and_what_is_no_command_ends_the_connection() {
    let broker = Broker::start(0).unwrap();
    let mut client = Client::connect(&broker);
    client.0.write_all(b"\r\nPING\r\n*0\r\n*-1\r\nECHO  a\n").unwrap();
    client.expect("+PONG\r\n$1\r\na\r\n");
    for wrong in ["*1\r\n*1\r\n", "*x\r\n", "*1000000\r\n", "*1\r\n$x\r\n", "*1\r\n$-1\r\n", "*1\r\n:1\r\n"] {
        let mut client = Client::connect(&broker);
        client.0.write_all(wrong.as_bytes()).unwrap();
        client.expect("-ERR Protocol error: ");
        client.ends();
    }
    let mut client = Client::connect(&broker);
    client.0.write_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(client.ends(), b"");
}

#[test]
fn keys_expire() {
    let mut store = Store::default();
    let id = store.connect("here".into());
    let mut ask = |words: &str, seconds| {
        let words: Vec<Bytes> =
            words.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        store.execute(id, &words, Duration::from_secs(seconds));
        let reply = store.outbox(id).unwrap()[0].clone();
        store.written(id, reply.len());
        String::from_utf8(reply.to_vec()).unwrap()
    };
    assert_eq!(ask("SET k v EX 1080", 10), "+OK\r\n");
    assert_eq!(ask("GET k", 1000), "$1\r\nv\r\n");
    assert_eq!(ask("TTL k", 11), ":1079\r\n");
    assert_eq!(ask("EXISTS k none k", 1000), ":2\r\n");
    assert_eq!(ask("GET k", 1090), "$-1\r\n");
    assert_eq!(ask("TTL k", 1090), ":-2\r\n");
    assert_eq!(ask("DEL k", 1090), ":0\r\n");
    assert_eq!(ask("SET k w", 0), "+OK\r\n");
    assert_eq!(ask("TTL k", 0), ":-1\r\n");
    assert_eq!(ask("DEL k", 0), ":1\r\n");
    assert_eq!(ask("SET k w EX 0", 0), "-ERR invalid expire time in 'set' command\r\n");
    assert_eq!(ask("SET k w NX", 0), "-ERR syntax error\r\n");
    assert_eq!(ask("SET k", 0), "-ERR wrong number of arguments for 'set' command\r\n");
}

#[test]
fn a_subscriber_that_does_not_read_is_dropped_and_nobody_else() {
    let broker = Broker::start(0).unwrap();
    let (mut deaf, mut listener, mut publisher) =
        (Client::connect(&broker), Client::connect(&broker), Client::connect(&broker));
    deaf.ask(&["SUBSCRIBE", "a"], "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    listener.ask(&["SUBSCRIBE", "a"], "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    let message = "x".repeat(1 << 20);
    let received = format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n{message}\r\n", message.len());
    // Its share of the kernel's buffers and of the broker's, and then some.
    let mut dropped = false;
    for _ in 0..OUTBOX_BYTES_MAX >> 19 {
        publisher.send(&["PUBLISH", "a", &message]);
        let mut reply = [0; 4];
        publisher.0.read_exact(&mut reply).unwrap();
        listener.expect(&received);
        dropped |= &reply == b":1\r\n";
    }
    assert!(dropped);
    publisher.ask(&["PUBSUB", "NUMSUB", "a"], "*2\r\n$1\r\na\r\n:1\r\n");
    assert!(deaf.ends().len() <= OUTBOX_BYTES_MAX);
}

#[test]
fn a_taken_port_is_avoided() {
    let first = Broker::start(0).unwrap();
    let second = Broker::start(first.address().port()).unwrap();
    assert_ne!(first.address(), second.address());
}

#[test]
fn redis_cli_understands_it() {
    let broker = Broker::start(0).unwrap();
    let port = broker.address().port().to_string();
    let cli = |words: &[&str]| {
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(pong) = cli(&["PING"]) else {
        eprintln!("left out: redis-cli is not installed");
        return;
    };
    assert_eq!(pong, "PONG\n");
    assert_eq!(cli(&["PUBLISH", "timeline:public", "x"]).unwrap(), "0\n");
    assert_eq!(cli(&["SET", "a", "b", "EX", "100"]).unwrap(), "OK\n");
    assert_eq!(cli(&["GET", "a"]).unwrap(), "b\n");
    assert!(cli(&["INFO"]).unwrap().contains("redis_version:7.0.0"));
    assert!(cli(&["CLIENT", "LIST"]).unwrap().starts_with("id="));
}

proptest! {
    /// However a command is split on its way, it is the same command.
    #[test]
    fn splits_do_not_matter(
        commands in prop::collection::vec(prop::collection::vec("[a-z\\r\\n*$:0-9]{0,12}", 1..5), 1..5),
        piece in 1usize..20,
    ) {
        let mut wire = Vec::new();
        for command in &commands {
            wire.extend(format!("*{}\r\n", command.len()).into_bytes());
            for word in command {
                wire.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
            }
        }
        let (mut parser, mut input, mut found) = (Parser::default(), BytesMut::new(), Vec::new());
        for bytes in wire.chunks(piece) {
            input.extend_from_slice(bytes);
            while let Some(command) = parser.next(&mut input).unwrap() {
                found.push(command);
            }
        }
        let expected: Vec<Vec<Bytes>> =
            commands.into_iter().map(|command| command.into_iter().map(Bytes::from).collect()).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_are_commands_or_a_problem(wire in "([*$]-?[0-9]{0,3}\r\n|[a-z]{0,3}|\r\n|\u{0}|PING|SET|EX|CLIENT|LIST| ){0,30}") {
        let (mut parser, mut input) = (Parser::default(), BytesMut::from(wire.as_bytes()));
        let mut store = Store::default();
        let id = store.connect("here".into());
        while let Ok(Some(command)) = parser.next(&mut input) {
            store.execute(id, &command, Duration::ZERO);
        }
    }
}
