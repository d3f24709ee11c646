//! What happens in the demo, step by step: new posts, edits, deletions, notifications, in a natural rhythm,
//! on the channels on which Rails publishes them. Pure: a seed and the time go in, messages come out.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use super::cast::{PEOPLE, POSTS};
use super::posts::{Status, id_of, notification};
use super::random::Random;
use crate::demo::directory::{ALICES_LIST, directory};

/// Statuses that may still be edited or deleted.
const RECENT_MAX: usize = 40;
const PAUSE_MEAN_MS: f64 = 1300.0;
const BURST_MEAN_MS: f64 = 110.0;
const PAUSE_MAX_MS: f64 = 6000.0;

/// A message to publish.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    /// The channel.
    pub channel: String,
    /// The message, as Rails writes it.
    pub body: String,
    /// Published only if one of these keys exists (personal channels: somebody listens); always, if empty.
    pub only_if: Vec<String>,
}

/// The demo's script.
pub struct Script {
    random: Random,
    recent: VecDeque<Status>,
    burst: usize,
    sequence: u16,
    last_post: usize,
}

impl Script {
    /// The script of that seed. It begins with a burst, so that there is something to see at once.
    pub fn new(seed: u64) -> Script {
        Script { random: Random::new(seed), recent: VecDeque::new(), burst: 8, sequence: 0, last_post: 0 }
    }

    /// How long to wait for the next step: mostly a second or so, now and then several in quick succession.
    pub fn pause(&mut self) -> Duration {
        if self.burst == 0 && self.random.percent(5) {
            self.burst = 4 + self.random.below(8);
        }
        let mean = if self.burst > 0 { BURST_MEAN_MS } else { PAUSE_MEAN_MS };
        self.burst = self.burst.saturating_sub(1);
        Duration::from_secs_f64(self.random.exponential(mean).clamp(20.0, PAUSE_MAX_MS) / 1000.0)
    }

    /// What happens now, in milliseconds since 1970.
    pub fn step(&mut self, now_ms: u64) -> Vec<Message> {
        let kind = self.random.below(100);
        match self.recent.len() {
            0..5 => self.post(now_ms),
            _ if kind < 72 => self.post(now_ms),
            _ if kind < 79 => self.edit(now_ms),
            _ if kind < 85 => self.delete(),
            _ => self.notify(now_ms),
        }
    }

    fn post(&mut self, now_ms: u64) -> Vec<Message> {
        // Not the same text twice in a row.
        self.last_post = (self.last_post + 1 + self.random.below(POSTS.len() - 1)) % POSTS.len();
        let post = &POSTS[self.last_post];
        let speaks = |index: &usize| PEOPLE[*index].language == post.language;
        let speakers: Vec<usize> = (0..PEOPLE.len()).filter(speaks).collect();
        let author = speakers.get(self.random.below(speakers.len())).copied().unwrap_or(0);
        self.sequence = self.sequence.wrapping_add(1);
        let status = Status::new(author, post, now_ms, self.sequence, &mut self.random);
        let messages = fan_out("update", &status, &status.json, &status.for_viewer());
        self.recent.push_back(status);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        messages
    }

    fn edit(&mut self, now_ms: u64) -> Vec<Message> {
        let index = self.random.below(self.recent.len());
        let Some(status) = self.recent.remove(index) else { return Vec::new() };
        let edited = status.edited(now_ms);
        fan_out("status.update", &edited, &edited.json, &edited.for_viewer())
    }

    fn delete(&mut self) -> Vec<Message> {
        let index = self.random.below(self.recent.len());
        let Some(status) = self.recent.remove(index) else { return Vec::new() };
        let id = Value::from(status.id.as_str());
        fan_out("delete", &status, &id, &id)
    }

    fn notify(&mut self, now_ms: u64) -> Vec<Message> {
        let accounts = directory().len();
        let to = self.random.below(accounts);
        let from = accounts + self.random.below(PEOPLE.len() - accounts);
        let own = self.recent.iter().rev().find(|status| status.author == to);
        let theirs = self.recent.iter().rev().find(|status| status.author == from);
        let (kind, status) = match (self.random.below(4), own, theirs) {
            (0 | 1, Some(own), _) => ("favourite", Some(own)),
            (2, Some(own), _) => ("reblog", Some(own)),
            (_, _, Some(theirs)) => ("mention", Some(theirs)),
            _ => ("follow", None),
        };
        let payload = notification(kind, from, status, now_ms);
        let account = id_of(to);
        let channels = [format!("timeline:{account}"), format!("timeline:{account}:notifications")];
        let only_if = channels.iter().map(|channel| format!("subscribed:{channel}")).collect();
        let [_, channel] = channels;
        vec![Message { channel, body: body("notification", &payload), only_if }]
    }
}

/// A status event on all its channels: public ones (`anonymous`), and the homes and lists of those who follow
/// the author (`personal`).
fn fan_out(event: &str, status: &Status, anonymous: &Value, personal: &Value) -> Vec<Message> {
    let anonymous = body(event, anonymous);
    let personal = body(event, personal);
    let origin = if status.local { "local" } else { "remote" };
    let mut public = vec!["timeline:public".to_owned(), format!("timeline:public:{origin}")];
    if status.media {
        public.extend(["timeline:public:media".to_owned(), format!("timeline:public:{origin}:media")]);
    }
    for tag in &status.tags {
        public.push(format!("timeline:hashtag:{tag}"));
        if status.local {
            public.push(format!("timeline:hashtag:{tag}:local"));
        }
    }
    let mut own: Vec<String> = (0..directory().len())
        .filter(|follower| follows(*follower, status.author))
        .map(|follower| format!("timeline:{}", id_of(follower)))
        .collect();
    if !status.local {
        own.push(format!("timeline:list:{ALICES_LIST}"));
    }
    let own = own.into_iter().map(|channel| Message {
        body: personal.clone(),
        only_if: if event == "delete" { Vec::new() } else { vec![format!("subscribed:{channel}")] },
        channel,
    });
    let public =
        public.into_iter().map(|channel| Message { channel, body: anonymous.clone(), only_if: Vec::new() });
    own.chain(public).collect()
}

/// Everyone follows themselves and roughly half of the others.
fn follows(follower: usize, author: usize) -> bool {
    follower == author || (follower + author).is_multiple_of(2) || (author + 2 * follower).is_multiple_of(5)
}

fn body(event: &str, payload: &Value) -> String {
    json!({"event": event, "payload": payload}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_script_is_its_seed_and_shows_everything_that_streams_carry() {
        const STEPS: u64 = 500;
        let play = |seed| {
            let mut script = Script::new(seed);
            let mut seen: BTreeMap<String, usize> = BTreeMap::new();
            let (mut messages, mut paused) = (Vec::new(), Duration::ZERO);
            for step in 0..STEPS {
                paused += script.pause();
                messages.extend(script.step(1_785_529_845_123 + step * 1000));
            }
            for message in &messages {
                let json: Value = serde_json::from_str(&message.body).unwrap();
                let event = json["event"].as_str().unwrap();
                let personal = message.channel.split(':').nth(1).unwrap();
                assert_eq!(
                    message.only_if.is_empty(),
                    event == "delete"
                        || !personal.starts_with(|c: char| c.is_ascii_digit()) && personal != "list"
                );
                let channel = if personal.starts_with("115") {
                    message.channel.replace(personal, "ID")
                } else {
                    message.channel.clone()
                };
                *seen.entry(format!("{event} {channel}")).or_default() += 1;
                assert!(message.body.len() < 16 << 10);
            }
            (seen, messages, paused)
        };
        let (seen, messages, paused) = play(7);
        for expected in [
            "update timeline:public",
            "update timeline:public:local",
            "update timeline:public:remote:media",
            "update timeline:hashtag:tides",
            "update timeline:hashtag:tides:local",
            "update timeline:hashtag:समुदर",
            "update timeline:ID",
            "update timeline:list:1",
            "status.update timeline:public",
            "status.update timeline:ID",
            "delete timeline:public",
            "delete timeline:ID",
            "notification timeline:ID:notifications",
        ] {
            assert!(seen.contains_key(expected), "{expected} not in {seen:?}");
        }
        assert_eq!(play(7).1, messages);
        assert_ne!(play(8).1, messages);
        let mean = paused / STEPS as u32;
        assert!(mean > Duration::from_millis(400) && mean < Duration::from_millis(1400), "{mean:?}");
    }

    #[test]
    fn a_status_is_not_changed_after_it_was_deleted() {
        let mut script = Script::new(3);
        let mut gone = std::collections::BTreeSet::new();
        for step in 0..400 {
            for message in script.step(1_785_529_845_123 + step) {
                let json: Value = serde_json::from_str(&message.body).unwrap();
                match json["event"].as_str().unwrap() {
                    "delete" => drop(gone.insert(json["payload"].as_str().unwrap().to_owned())),
                    "notification" => {}
                    _ => assert!(!gone.contains(json["payload"]["id"].as_str().unwrap())),
                }
            }
        }
        assert!(!gone.is_empty());
    }
}
