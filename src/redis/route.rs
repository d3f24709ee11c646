//! What becomes of a frame and of a command: who gets it, in which order.
//!
//! Everything that reactors and the audience stage are to get is collected in one list for each, in the
//! order in which it was read or asked for, and handed over once per turn. That one order is what makes a
//! newcomer's first message the one after its attachment.
//!
//! No I/O but the mailboxes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::core::counters::{add, set};
#[cfg(feature = "otel")]
use crate::core::event::Event;
use crate::core::event::{Copies, Parsed, Position};
use crate::core::gate::Gate;
use crate::core::handover::{Command, Delivery, HoldError, Reply, StageItem};
use crate::core::mailbox::Mailbox;
use crate::core::slack::Slack;
use crate::core::stream::{Channel, Id};
use crate::core::subscriptions::{Held, Subscriptions};
#[cfg(feature = "otel")]
use crate::core::trail::Trails;
use crate::logging::Limited;
use crate::proto::ring::{Frame, Payload};
use crate::redis::Options;
use crate::redis::connect::{advice, refusal, tell};
use crate::redis::pipeline::{Pipeline, Refused, Whose};
use crate::redis::stats::IngestStats;

/// Where everything goes.
pub(super) struct Router<S> {
    pub(super) table: Subscriptions<Reply>,
    pub(super) epoch: u32,
    /// Whether the reactors were told of a gap and not yet that it is over.
    gap_open: bool,
    seq: u64,
    options: Options,
    prefix: String,
    gate: Arc<Gate>,
    copies: Copies,
    reactors: Vec<Outbox<Delivery<S>>>,
    stage: Option<Outbox<StageItem>>,
    stats: Arc<IngestStats>,
    finished: Vec<(Reply, Result<(), HoldError>)>,
    last_refusal: String,
    refusals: Limited,
    too_long: Limited,
    #[cfg(feature = "otel")]
    pub(super) trails: Option<Trails>,
}

/// A mailbox, and what will be put into it at the end of the turn.
pub(super) struct Outbox<T> {
    mailbox: Arc<Mailbox<T>>,
    batch: Vec<T>,
}

impl<T> Outbox<T> {
    pub(super) fn new(mailbox: Arc<Mailbox<T>>) -> Outbox<T> {
        Outbox { mailbox, batch: Vec::new() }
    }
}

impl<S> Router<S> {
    pub(super) fn new(
        options: Options,
        gate: Arc<Gate>,
        reactors: Vec<Arc<Mailbox<Delivery<S>>>>,
        stage: Option<Arc<Mailbox<StageItem>>>,
        stats: Arc<IngestStats>,
    ) -> Router<S> {
        Router {
            table: Subscriptions::default(),
            epoch: 0,
            gap_open: false,
            seq: 0,
            prefix: options.prefix(),
            options,
            gate,
            copies: Copies::default(),
            reactors: reactors.into_iter().map(Outbox::new).collect(),
            stage: stage.map(Outbox::new),
            stats,
            finished: Vec::new(),
            last_refusal: String::new(),
            refusals: Limited::every(Duration::from_secs(60)),
            too_long: Limited::every(Duration::from_secs(10)),
            #[cfg(feature = "otel")]
            trails: None,
        }
    }

    /// What stands before each channel's name.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Does what was asked.
    pub(super) fn command(&mut self, command: Command<S>) {
        match command {
            Command::Hold { ticket, channels, reply } => self.table.hold(ticket, channels, reply),
            Command::Attach { ticket, reactor, client, refused } => {
                let known = self.reactors.get(usize::from(reactor)).is_some();
                debug_assert!(known, "there is no reactor {reactor}");
                match self.table.attach(ticket, reactor) {
                    Ok(channels) if known => {
                        self.joined(&channels, client.viewer.account);
                        self.give(reactor, Delivery::Client(client, self.seq));
                    }
                    Ok(channels) => {
                        channels.iter().for_each(|channel| self.table.release(channel));
                        refused(HoldError::Refused, client);
                    }
                    Err(error) => refused(error, client),
                }
            }
            Command::Subscribe { ticket, client, subscription, reply } => {
                let channels: Held = subscription.channels.iter().cloned().collect();
                if self.table.subscribe(ticket, channels, client.reactor, reply) {
                    self.joined(&subscription.channels, subscription.account);
                    self.give(client.reactor, Delivery::Subscription(client, subscription, self.seq));
                }
            }
            Command::Cancel(ticket) => self.table.cancel(ticket),
            Command::Release(channels) => {
                for (channel, account) in channels {
                    self.table.release(&channel);
                    if channel.is_filtered() {
                        self.tell_stage(StageItem::Leave(channel, account));
                    }
                }
            }
            Command::PresenceSet(channels, epoch) if epoch == self.epoch => {
                channels.iter().for_each(|channel| self.table.presence_set(channel));
            }
            Command::PresenceSet(..) => {}
            Command::PresenceRefused(refused) => self.table.refuse_presence(refused),
        }
    }

    /// The audience stage is told of a viewer of these channels.
    fn joined(&mut self, channels: &[Channel], account: Id) {
        for channel in channels.iter().filter(|channel| channel.is_filtered()) {
            self.tell_stage(StageItem::Join(channel.clone(), account));
        }
    }

    fn give(&mut self, reactor: u16, delivery: Delivery<S>) {
        if let Some(outbox) = self.reactors.get_mut(usize::from(reactor)) {
            outbox.batch.push(delivery);
        }
    }

    /// Takes a frame. An error is the end of the connection, with its reason.
    pub(super) fn frame(
        &mut self,
        frame: Frame<'_>,
        pipeline: &mut Pipeline,
        read_at: Duration,
    ) -> Result<Heard, String> {
        match frame {
            Frame::Message { channel, payload } => self.message(channel, payload, read_at),
            Frame::TooLong { channel, bytes } => self.too_long(channel, bytes),
            Frame::Subscribed { channel, .. } => {
                let channel = self.known(channel).ok_or("it confirmed a channel that nobody asked for")?;
                match pipeline.subscribed(&channel).map_err(|error| error.to_string())? {
                    Whose::Holders => self.table.confirmed(&channel),
                    Whose::Probe => self.stats.obstacle.clear(),
                }
            }
            Frame::Unsubscribed { channel, .. } => {
                let channel = self.known(channel).ok_or("it confirmed a channel that nobody asked for")?;
                let whose = pipeline.unsubscribed(&channel).map_err(|error| error.to_string())?;
                if whose == Whose::Holders {
                    self.table.unsubscribed(&channel);
                }
            }
            Frame::Pong => {
                pipeline.pong().map_err(|error| error.to_string())?;
                return Ok(Heard::Pong);
            }
            Frame::Error(text) => {
                let text = String::from_utf8_lossy(text);
                let told = tell(&self.options, &text);
                match pipeline.error() {
                    Ok(Refused::Ping) => return Ok(Heard::Pong),
                    Ok(Refused::Probe) => {
                        if self.stats.obstacle.set(&refusal("to let this server subscribe", &text)) {
                            tracing::warn!(
                                "Redis refuses to let this server subscribe: {told}; {}",
                                advice(&told)
                            );
                        }
                    }
                    Ok(Refused::Subscribe(channels)) => {
                        // Of several each is tried again by itself: then it is known which one Redis minds.
                        if let [channel] = channels.as_slice() {
                            self.refused(&told, channel);
                        }
                        self.table.refused(&channels);
                    }
                    Ok(Refused::Unsubscribe(channels)) => {
                        channels.first().inspect(|channel| self.refused(&told, channel));
                        channels.iter().for_each(|channel| self.table.unsubscribed(channel));
                    }
                    Err(_) => return Err(format!("it said: {told}")),
                }
            }
            Frame::Other => {}
        }
        Ok(Heard::Other)
    }

    fn message(&mut self, name: &[u8], payload: Payload<'_>, read_at: Duration) {
        add(&self.stats.messages, 1);
        let found = self.known(name).and_then(|channel| Some((self.table.reactors(&channel)?, channel)));
        let Some((mask, channel)) = found else {
            add(&self.stats.unsubscribed_messages, 1);
            return;
        };
        self.seq += 1;
        // Newcomers may hold it already, but nobody lives on it. Only a kill concerns them.
        if mask == 0 && !channel.is_system() {
            add(&self.stats.unattached_messages, 1);
            return;
        }
        let at = Position { epoch: self.epoch, seq: self.seq, read_at };
        match self.copies.parse(channel.clone(), at, payload, &self.gate) {
            Parsed::Event(event) => {
                #[cfg(feature = "otel")]
                let event = self.followed(event, mask);
                match &mut self.stage {
                    Some(stage) if channel.is_filtered() => stage.batch.push(StageItem::Event(event, mask)),
                    _ => self.deliver(mask, || Delivery::Event(Arc::clone(&event))),
                }
            }
            Parsed::Kill => {
                add(&self.stats.kills, 1);
                self.table.killed(&channel);
                self.deliver(mask, || Delivery::Kill(channel.clone()));
            }
            Parsed::FiltersChanged => {
                if let Channel::System(account) = channel {
                    self.tell_stage(StageItem::FiltersChanged(account));
                }
            }
            Parsed::Ignored(reason) => add(self.stats.ignored(reason), 1),
        }
    }

    /// Nobody else has the event yet.
    #[cfg(feature = "otel")]
    fn followed(&self, mut event: Arc<Event>, mask: u16) -> Arc<Event> {
        if let Some(trail) = self.trails.as_ref().and_then(|trails| trails(&event, mask.count_ones()))
            && let Some(event) = Arc::get_mut(&mut event)
        {
            event.follow(trail);
        }
        event
    }

    fn too_long(&mut self, name: &[u8], bytes: u64) {
        add(&self.stats.messages, 1);
        let Some(channel) = self.known(name) else { return add(&self.stats.unsubscribed_messages, 1) };
        let Some(mask) = self.table.reactors(&channel) else {
            return add(&self.stats.unsubscribed_messages, 1);
        };
        self.seq += 1;
        add(&self.stats.too_long, 1);
        match &mut self.stage {
            // Behind what was published before and still waits for its audience.
            Some(stage) if channel.is_filtered() => {
                stage.batch.push(StageItem::ChannelGap(channel.clone(), mask))
            }
            _ => self.deliver(mask, || Delivery::ChannelGap(channel.clone())),
        }
        if let Some(skipped) = self.too_long.allow() {
            tracing::warn!(
                unsaid = skipped,
                "a message of {bytes} bytes on {channel} was skipped, and its clients are closed: it is over \
                 MAX_MESSAGE_BYTES"
            );
        }
    }

    fn refused(&mut self, told: &str, channel: &Channel) {
        self.stats.obstacle.set(&refusal("to let this server subscribe", told));
        // For one wrong rule a line a minute, not one for each newcomer.
        if self.refusals.allow().is_some() || told != self.last_refusal {
            tracing::warn!("Redis refuses {channel}: {told}; {}", advice(told));
            told.clone_into(&mut self.last_refusal);
        }
    }

    fn known(&self, name: &[u8]) -> Option<Channel> {
        Channel::parse(name.strip_prefix(self.prefix.as_bytes())?)
    }

    /// A connection stands. Its number.
    pub(super) fn connected(&mut self) -> u32 {
        self.epoch += 1;
        self.last_refusal.clear();
        self.table.connected();
        self.epoch
    }

    /// The connection is gone: everybody may miss something from now on.
    pub(super) fn lost(&mut self) {
        self.table.connection_lost();
        self.gap_open = true;
        let next = self.epoch + 1;
        self.deliver(u16::MAX, || Delivery::Gap(next));
    }

    /// Answers the tickets that were decided, and hands everything over. True if everything is subscribed
    /// again since the last time.
    pub(super) fn flush(&mut self) -> bool {
        let regained = self.table.take_regained();
        if regained && std::mem::take(&mut self.gap_open) {
            self.deliver(u16::MAX, || Delivery::Regained);
        }
        for outbox in &mut self.reactors {
            outbox.mailbox.push_all(&mut outbox.batch);
            outbox.batch.give_back();
        }
        if let Some(stage) = &mut self.stage {
            stage.mailbox.push_all(&mut stage.batch);
            stage.batch.give_back();
        }
        self.table.take_finished(&mut self.finished);
        for (reply, result) in self.finished.drain(..) {
            reply(result);
        }
        self.finished.give_back();
        set(&self.stats.seq, self.seq);
        set(&self.stats.channels, self.table.referenced() as u64);
        set(&self.stats.tickets, self.table.open_tickets() as u64);
        self.stats.live.store(self.table.is_live(), Relaxed);
        regained
    }

    fn deliver(&mut self, mask: u16, mut delivery: impl FnMut() -> Delivery<S>) {
        for (number, outbox) in self.reactors.iter_mut().enumerate() {
            if mask & 1 << number != 0 {
                outbox.batch.push(delivery());
            }
        }
    }

    fn tell_stage(&mut self, item: StageItem) {
        if let Some(stage) = &mut self.stage {
            stage.batch.push(item);
        }
    }
}

/// What a frame said of the link itself.
#[derive(PartialEq, Eq)]
pub(super) enum Heard {
    /// The answer to PING.
    Pong,
    /// Anything else.
    Other,
}
