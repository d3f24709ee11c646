//! What clients say: WebSocket messages, subscriptions by message, control frames.
//!
//! Subscribe and unsubscribe messages of one client take effect in the order they were sent: while one is
//! at the door (a list's owner is looked up, Redis confirms a channel), later ones wait. How many may wait is
//! bounded by the rate limit's burst, their text by [`SUBSCRIPTION_TEXT_BYTES`], and each keeps only what its answer
//! depends on.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::timers::{Timer, timer_key};
use super::{Relay, Socket, talkers, wire};
use crate::core::client::{Flags, Phase};
use crate::core::counters::{CloseReason, add};
use crate::core::handover::{ClientId, NewSubscription, SessionRequest, Want};
use crate::core::session::{ClientMessage, RequestError, StreamRequest};
use crate::core::stream::{Channel, Param, Stream, StreamKind};
use crate::limits::{ANSWERS_WAITING_MAX, Limits, SUBSCRIPTION_TEXT_BYTES};
use crate::proto::ws::Incoming;

/// A decoded message, owned, so that the decoder's borrow ends before anything is decided.
enum Heard {
    Text(String),
    Binary,
    Ping(SmallVec<[u8; 16]>),
    Pong,
    Close(Option<u16>),
}

/// Messages handled per read at most before their effects; the rest of the read follows.
type Batch = SmallVec<[Heard; 4]>;

impl<S: Socket> Relay<S> {
    /// Bytes that a WebSocket client sent.
    pub(super) fn decode(&mut self, index: u32, bytes: &mut [u8], now: Duration) {
        let mut heard = Batch::new();
        let limit = self.limits.client_message_bytes_max;
        let verdict = self.talkers.feed(index, bytes, limit, now, &mut |message| {
            heard.push(match message {
                Incoming::Text(text) => Heard::Text(text.to_owned()),
                Incoming::Binary => Heard::Binary,
                Incoming::Ping(payload) => Heard::Ping(payload.into()),
                Incoming::Pong(_) => Heard::Pong,
                Incoming::Close(close) => Heard::Close(close.map(|(code, _)| code)),
            });
            match heard.last() {
                Some(Heard::Close(_) | Heard::Binary) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        self.watch_talkers(now);
        // Whoever broke the protocol goes for that.
        let frames = verdict.map_or(1, |fed| fed.frames);
        if !self.talkers.pay(index, frames, &self.limits, now) && verdict.is_ok() {
            return self.close(index, CloseReason::RateLimited, now);
        }
        if self.reads_no_answers(index) && verdict.is_ok() {
            return self.close(index, CloseReason::TooSlow, now);
        }
        for message in heard {
            self.hear(index, message, now);
        }
        if let Err(error) = verdict {
            let reason = match error.code() {
                wire::MESSAGE_TOO_BIG => CloseReason::TooBig,
                _ => CloseReason::ProtocolError,
            };
            self.close_with(index, reason, wire::close_frame(Some((error.code(), &error.to_string()))), now);
        }
        let share = self.limits.unfinished_bytes_max / self.limits.reactors.max(1);
        for hoarder in self.talkers.heaviest(share, now) {
            self.close(hoarder, CloseReason::Unfinished, now);
        }
    }

    /// Whether so much was said to the client already that it does not take that no more is to be asked.
    fn reads_no_answers(&self, index: u32) -> bool {
        self.clients.get(index as usize).is_some_and(|client| {
            let waiting = client.extra.as_ref().map_or(0, |extra| extra.out.len());
            client.flags.has(Flags::BLOCKED) && waiting > ANSWERS_WAITING_MAX
        })
    }

    /// Bytes that mean nothing: an SSE client's after its request, a closing one's. They cost a read as well.
    pub(super) fn ignore(&mut self, index: u32, now: Duration) {
        let Some(client) = self.clients.get(index as usize) else { return };
        let ends = matches!(client.phase, Phase::Closing | Phase::Lingering);
        if !self.talkers.pay(index, 1, &self.limits, now) {
            if ends {
                return self.remove(index, CloseReason::RateLimited);
            }
            return self.close(index, CloseReason::RateLimited, now);
        }
        self.watch_talkers(now);
    }

    /// One timer for all: an unfinished message has to be whole in time, however slowly its bytes come, and
    /// what the silent had in use is given back.
    fn watch_talkers(&mut self, now: Duration) {
        if !self.watches_talkers && !self.talkers.is_empty() {
            self.watches_talkers = true;
            let after = self.limits.every(talkers::LOOK_AFTER).min(self.limits.unfinished_timeout / 4);
            self.wheel.insert(now + after, timer_key(Timer::Talkers, 0, 0));
        }
    }

    pub(super) fn look_after_talkers(&mut self, now: Duration) {
        self.watches_talkers = false;
        for late in self.talkers.tidy(&self.limits, now) {
            self.close(late, CloseReason::Unfinished, now);
        }
        self.watch_talkers(now);
    }

    fn hear(&mut self, index: u32, message: Heard, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if matches!(client.phase, Phase::Closing | Phase::Lingering) {
            return;
        }
        match message {
            Heard::Text(text) => self.text(index, &text, now),
            Heard::Binary => {
                let last = wire::close_frame(Some((wire::UNSUPPORTED_DATA, wire::BINARY)));
                self.close_with(index, CloseReason::Binary, last, now);
            }
            Heard::Ping(payload) => self.pong(index, &payload),
            Heard::Pong => client.flags.clear(Flags::AWAITS_PONG),
            Heard::Close(code) => {
                let answer = wire::close_frame(code.map(|code| (code, "")));
                self.close_with(index, CloseReason::ClientLeft, answer, now);
            }
        }
    }

    /// Answers a ping. While an earlier pong still waits for the socket, only the newest ping is answered
    /// (RFC 6455, 5.5.3), so a flood of pings piles nothing up.
    fn pong(&mut self, index: u32, payload: &[u8]) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let frame = wire::pong(payload);
        if let Some(extra) = &mut client.extra
            && client.flags.has(Flags::BLOCKED)
            && extra.out.len() > 1
            && extra.out.back().is_some_and(|last| wire::is_pong(last))
        {
            return extra.out.replace_back(frame);
        }
        self.send(index, frame);
    }

    fn text(&mut self, index: u32, text: &str, now: Duration) {
        let (subscribe, request) = match ClientMessage::parse(text) {
            ClientMessage::Ignored => return,
            ClientMessage::Subscribe(request) => (true, request),
            ClientMessage::Unsubscribe(request) => (false, request),
        };
        if !self.talkers.pay_request(index, &self.limits, now) {
            return self.close(index, CloseReason::RateLimited, now);
        }
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.extra.as_ref().is_some_and(|extra| extra.in_flight) {
            let extra = client.extra();
            let waiting_max = self.limits.subscribe_burst as usize;
            let request = request.shortened(self.limits.param_bytes_max);
            let bytes = extra.waiting_bytes + request.text_bytes();
            let too_much = !extra.waiting.is_empty() && bytes > text_bytes_max(waiting_max);
            if too_much || extra.waiting.len() >= waiting_max {
                return self.close(index, CloseReason::RateLimited, now);
            }
            extra.waiting_bytes = bytes;
            extra.waiting.push_back((subscribe, request));
            return;
        }
        self.request(index, subscribe, request);
    }

    fn request(&mut self, index: u32, subscribe: bool, request: StreamRequest) {
        if subscribe {
            if let Err(error) = self.subscribe(index, &request) {
                add(&self.counters.subscribe_refused[error as usize], 1);
                self.send(index, error_frame(error.text(), Some(error.status())));
            }
        } else if !self.unsubscribe(index, &request) {
            self.send(index, error_frame(UNSUBSCRIBE_ERROR, None));
        }
    }

    fn subscribe(&mut self, index: u32, request: &StreamRequest) -> Result<(), RequestError> {
        let Some(client) = self.clients.get_mut(index as usize) else { return Ok(()) };
        if client.phase != Phase::Open {
            return Ok(());
        }
        // As in Node the scope comes first: an unknown stream needs what most streams need.
        if !client.scopes.allow(request.kind().unwrap_or(StreamKind::Public)) {
            return Err(RequestError::Scope);
        }
        let stream = request.resolve(self.limits.param_bytes_max, self.limits.local_only_on_public)?;
        let channels = stream.channels(client.account, client.scopes.notifications());
        if client.account == 0 && !channels.iter().all(|channel| channel.is_filtered()) {
            return Err(RequestError::NoAccount);
        }
        if find(client, &channels, stream.kind).is_some() {
            return Ok(());
        }
        if client.subs.len() >= self.limits.subscriptions_max || !has_room_for(client, &stream, &self.limits)
        {
            return Err(RequestError::TooMany);
        }
        let want = Want::Subscribe(stream);
        let request =
            SessionRequest { client: client.id(self.reactor, index), viewer: client.viewer(), want };
        client.extra().in_flight = true;
        self.effects.requests.push(request);
        Ok(())
    }

    /// Ends a subscription. False where Node answers with an error: what is named is no stream.
    fn unsubscribe(&mut self, index: u32, request: &StreamRequest) -> bool {
        let Ok(stream) = request.resolve(self.limits.param_bytes_max, self.limits.local_only_on_public)
        else {
            return false;
        };
        let Some(client) = self.clients.get_mut(index as usize) else { return true };
        let channels = stream.channels(client.account, client.scopes.notifications());
        match (find(client, &channels, stream.kind), &stream.param) {
            (Some(sub), _) => {
                self.abandon_subscription(index, sub);
                self.leave(index, sub);
            }
            (None, Param::List(list)) => {
                let want = Want::UnsubscribeList(*list);
                let request =
                    SessionRequest { client: client.id(self.reactor, index), viewer: client.viewer(), want };
                client.extra().in_flight = true;
                self.effects.requests.push(request);
            }
            (None, _) => {}
        }
        true
    }

    /// A subscription that the door arranged. Its confirmation, or its refusal, is yet to come.
    pub(super) fn subscribed(&mut self, id: ClientId, new: NewSubscription, seq: u64) {
        let open = self.get(id).is_some_and(|client| client.phase == Phase::Open);
        if !open {
            // It left meanwhile, or is about to. The references are the ingest's again; the account of a
            // filtered channel is told so that the audience forgets it too.
            return self.release_all(&new);
        }
        self.join(id.index, new, seq);
    }

    /// The door could not arrange that subscription: it ends, if it was begun.
    pub(super) fn refused(&mut self, id: ClientId, stream: &Stream, answer: Bytes) {
        let Some(client) = self.get(id).filter(|client| client.phase == Phase::Open) else { return };
        let channels = stream.channels(client.account, client.scopes.notifications());
        if let Some(sub) = find(client, &channels, stream.kind) {
            self.abandon_subscription(id.index, sub);
            self.leave(id.index, sub);
        }
        self.answered(id, Some(answer));
    }

    /// The door's answer: the next request may go.
    pub(super) fn answered(&mut self, id: ClientId, answer: Option<Bytes>) {
        let Some(client) = self.get(id) else { return };
        if client.phase != Phase::Open {
            return;
        }
        client.extra().in_flight = false;
        if let Some(json) = answer {
            self.send(id.index, wire::text(&json));
        }
        while let Some(client) = self.get(id)
            && let Some(extra) = client.extra.as_mut()
            && !extra.in_flight
            && let Some((subscribe, request)) = extra.waiting.pop_front()
        {
            extra.waiting_bytes -= request.text_bytes();
            self.request(id.index, subscribe, request);
        }
        if let Some(client) = self.get(id) {
            client.tidy();
        }
    }
}

const UNSUBSCRIBE_ERROR: &str = "Error unsubscribing from channel";

/// The client's subscription of these channels. `public` and `public:allow_local_only` share a channel and
/// are two.
fn find<S>(
    client: &crate::core::client::Client<S>,
    channels: &crate::core::stream::Channels,
    kind: StreamKind,
) -> Option<u16> {
    client
        .subs
        .iter()
        .position(|subscription| {
            let same_kind = subscription.kind() == kind
                || !channels.iter().all(|channel| matches!(channel, Channel::Public { .. }));
            same_kind && subscription.channels(client.account, client.scopes) == *channels
        })
        .map(|sub| sub as u16)
}

/// The bytes of text that so many subscriptions of one client, or messages that wait, may hold.
fn text_bytes_max(count_max: usize) -> usize {
    count_max.saturating_mul(SUBSCRIPTION_TEXT_BYTES)
}

/// Whether the client may hold the text of one more stream.
fn has_room_for<S>(client: &crate::core::client::Client<S>, stream: &Stream, limits: &Limits) -> bool {
    let held: usize = client.subs.iter().map(|subscription| subscription.stream().text_bytes()).sum();
    held == 0 || held + stream.text_bytes() <= text_bytes_max(limits.subscriptions_max)
}

/// A text frame with an error, as Node words it.
fn error_frame(text: &str, status: Option<u16>) -> Bytes {
    let json = match status {
        Some(status) => serde_json::json!({ "error": text, "status": status }),
        None => serde_json::json!({ "error": text }),
    };
    wire::text(json.to_string().as_bytes())
}
