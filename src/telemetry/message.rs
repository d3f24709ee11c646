//! A message as a span: from the read on Redis's connection to its last write, by whichever reactor, with a child
//! for the time in which PostgreSQL said who may see it.
//!
//! Which channel it was on is said by its kind alone: tags are what people write, ids are theirs.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::Times;
use crate::clock::Clock;
use crate::core::event::Event;
use crate::core::stream::{Channel, Origin};
use crate::core::trail::{Step, Trail, Trails};

/// What follows that share of the messages.
pub(super) fn trails(tracer: SdkTracer, clock: Clock, ratio: f64) -> Trails {
    let chance = Chance::new(ratio);
    Box::new(move |event, reactors| {
        if !chance.takes() {
            return None;
        }
        let times = Times::since(clock.now().saturating_sub(event.position().read_at));
        let span = begin(&tracer, event, reactors, &times);
        let as_parent = Context::new().with_remote_span_context(span.span_context().clone());
        let state = State { span: Some(span), reactors, deliveries: 0 };
        Some(Box::new(Followed { tracer: tracer.clone(), times, as_parent, state: Mutex::new(state) }))
    })
}

fn begin(tracer: &SdkTracer, event: &Event, reactors: u32, times: &Times) -> Span {
    let kind = kind(event.channel());
    tracer
        .span_builder(format!("relay {kind}"))
        .with_kind(SpanKind::Consumer)
        .with_start_time(times.begin())
        .with_attributes([
            KeyValue::new("messaging.system", "redis"),
            KeyValue::new("messaging.operation.name", "relay"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.message.body.size", event.payload().len() as i64),
            KeyValue::new("tidegate.channel", kind),
            KeyValue::new("tidegate.event", name(event)),
            KeyValue::new("tidegate.reactors", i64::from(reactors)),
        ])
        .start_with_context(tracer, &Context::new())
}

fn kind(channel: &Channel) -> &'static str {
    match channel {
        Channel::Public { origin: Origin::Any, .. } => "public",
        Channel::Public { origin: Origin::Local, .. } => "public:local",
        Channel::Public { origin: Origin::Remote, .. } => "public:remote",
        Channel::Hashtag { local: false, .. } => "hashtag",
        Channel::Hashtag { local: true, .. } => "hashtag:local",
        Channel::Account(_) => "user",
        Channel::Notifications(_) => "user:notification",
        Channel::Direct(_) => "direct",
        Channel::List(_) => "list",
        Channel::AccessToken(_) | Channel::System(_) => "system",
    }
}

/// The event's name where it looks like one of Mastodon's.
fn name(event: &Event) -> String {
    let name = event.name().strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\""));
    let is_plain = |name: &&[u8]| {
        (1..=40).contains(&name.len())
            && name.iter().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_'))
    };
    let plain = name.filter(is_plain).map(|name| String::from_utf8_lossy(name).into_owned());
    plain.unwrap_or_else(|| "other".to_owned())
}

/// Takes one in so many, at random, for the cost of an addition and three multiplications: every message is asked
/// about. (SplitMix64.)
struct Chance {
    state: AtomicU64,
    below: u64,
    all: bool,
}

impl Chance {
    fn new(ratio: f64) -> Chance {
        let seed = RandomState::new().hash_one(0);
        // Saturates at both ends.
        Chance { state: AtomicU64::new(seed), below: (ratio * u64::MAX as f64) as u64, all: ratio >= 1.0 }
    }

    fn takes(&self) -> bool {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.all || (mixed ^ (mixed >> 31)) < self.below
    }
}

struct Followed {
    tracer: SdkTracer,
    times: Times,
    as_parent: Context,
    state: Mutex<State>,
}

struct State {
    /// Until it has ended.
    span: Option<Span>,
    /// Those that are not done with it.
    reactors: u32,
    deliveries: i64,
}

impl State {
    fn end(&mut self, times: &Times) {
        let Some(mut span) = self.span.take() else { return };
        span.set_attribute(KeyValue::new("tidegate.deliveries", self.deliveries));
        span.end_with_timestamp(times.now());
    }
}

impl Trail for Followed {
    fn mark(&self, step: Step) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::AudienceKnown { is_withheld } => {
                let mut asked = self
                    .tracer
                    .span_builder("find audience")
                    .with_kind(SpanKind::Internal)
                    .with_start_time(self.times.begin())
                    .start_with_context(&self.tracer, &self.as_parent);
                if is_withheld {
                    asked.set_status(Status::error("withheld from everybody"));
                    if let Some(span) = &mut state.span {
                        span.set_status(Status::error("withheld from everybody"));
                    }
                }
                asked.end_with_timestamp(self.times.now());
            }
            Step::Owed(subscriptions) => state.deliveries += i64::from(subscriptions),
            // The stage may keep the message for a while after its last write.
            Step::Done => {
                state.reactors = state.reactors.saturating_sub(1);
                if state.reactors == 0 {
                    state.end(&self.times);
                }
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.end(&self.times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_takes_the_share_that_it_is_asked_for() {
        for (ratio, allowed) in
            [(0.0, 0..=0), (0.001, 50..=170), (0.5, 49_000..=51_000), (1.0, 100_000..=100_000)]
        {
            let chance = Chance::new(ratio);
            let taken = (0..100_000).filter(|_| chance.takes()).count();
            assert!(allowed.contains(&taken), "{taken} of 100,000 at {ratio}");
        }
    }
}
