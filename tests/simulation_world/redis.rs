//! A model of Redis: executes subscriptions in order and sends what a subscriber gets, byte for byte.

use std::collections::{HashSet, VecDeque};

use tidegate::core::stream::Channel;

#[derive(Default)]
pub struct ModelRedis {
    channels: HashSet<Channel>,
    commands: VecDeque<(Channel, bool)>,
    out: VecDeque<u8>,
}

impl ModelRedis {
    /// A SUBSCRIBE (or UNSUBSCRIBE) that will be executed.
    pub fn command(&mut self, channel: Channel, subscribe: bool) {
        self.commands.push_back((channel, subscribe));
    }

    pub fn execute(&mut self, count: usize) {
        for _ in 0..count {
            let Some((channel, subscribe)) = self.commands.pop_front() else { return };
            let name = name(&channel);
            let word = if subscribe { "subscribe" } else { "unsubscribe" };
            if subscribe {
                self.channels.insert(channel);
            } else {
                self.channels.remove(&channel);
            }
            let count = self.channels.len();
            let reply =
                format!("*3\r\n${}\r\n{word}\r\n${}\r\n{name}\r\n:{count}\r\n", word.len(), name.len());
            self.out.extend(reply.as_bytes());
        }
    }

    /// Whether there is a subscriber, which gets it.
    pub fn publish(&mut self, channel: &Channel, message: &[u8]) -> bool {
        if !self.channels.contains(channel) {
            return false;
        }
        let name = name(channel);
        let head = format!("*3\r\n$7\r\nmessage\r\n${}\r\n{name}\r\n${}\r\n", name.len(), message.len());
        self.out.extend(head.as_bytes());
        self.out.extend(message);
        self.out.extend(b"\r\n");
        true
    }

    /// Fills `into` with what was sent, as far as there is something.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.out.len());
        for (byte, sent) in into.iter_mut().zip(self.out.drain(..count)) {
            *byte = sent;
        }
        count
    }

    pub fn subscribed(&self) -> usize {
        self.channels.len()
    }
}

fn name(channel: &Channel) -> String {
    let mut name = Vec::new();
    channel.write_name(&mut name);
    String::from_utf8(name).expect("names are text")
}

/// A message with its number and padding: a status if it is to be filtered, else something that passes.
pub fn message(number: u64, padding: usize, status: bool) -> Vec<u8> {
    let padding = "x".repeat(padding);
    if status {
        format!(
            r#"{{"event":"update","payload":{{"id":"{number}","content":"{padding}","account":{{"id":"77","username":"a","acct":"a"}},"mentions":[],"language":"en"}}}}"#
        )
    } else {
        format!(r#"{{"event":"some.event","payload":{{"id":"{number}","content":"{padding}"}}}}"#)
    }
    .into_bytes()
}
