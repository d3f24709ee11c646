//! The ingest's connection: made on a thread of its own, left when another server is the master, made again when lost.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::Builder;
use std::time::Instant;

use super::{SOCKET, Worker, wake};
use crate::core::counters::{add, set};
use crate::limits::CONNECT_TIMEOUT;
use crate::redis::connect::{ConnectError, Connected, Role, connect, refusal};
use crate::redis::link::Link;
use crate::redis::loss::Loss;
use crate::redis::presence::Subscriber;
use crate::redis::socket::BlockingSocket;

/// What is done about a missing connection.
pub(super) enum Attempt {
    /// The next one begins then.
    At(Instant),
    /// A thread is at it.
    Running(Receiver<Result<Connected<BlockingSocket>, ConnectError>>),
}

impl<S: Send + 'static> Worker<S> {
    /// Whether the sentinels have announced another master than the one that was connected to.
    fn master_has_moved(&self) -> bool {
        self.options.sentinels().is_some_and(|sentinels| sentinels.has_moved())
    }

    /// Leaves the old master when the sentinels announce another.
    pub(super) fn follow_master(&mut self, now: Instant) {
        // Whoever is being connected to is compared with the one that was announced when that is done.
        let is_connecting = self.link.is_none() && matches!(self.attempt, Attempt::Running(_));
        if is_connecting || !self.master_has_moved() {
            return;
        }
        self.backoff.reset();
        if self.link.is_some() {
            self.lost(&Loss::from("the sentinels have made another server the master".to_owned()));
        }
        if let Attempt::At(at) = &mut self.attempt {
            *at = now;
        }
    }

    /// Sees to it that there is a connection. When to look again, if that is a matter of time.
    pub(super) fn connecting(&mut self, now: Instant) -> Option<Instant> {
        if self.link.is_some() {
            return None;
        }
        let result = match &self.attempt {
            Attempt::At(at) if now < *at => return Some(*at),
            Attempt::At(_) => {
                let (sender, receiver) = sync_channel(1);
                let (options, waker) = (self.options.clone(), Arc::clone(&self.waker));
                let thread = Builder::new().name("redis-connect".into()).spawn(move || {
                    // Nobody takes it only if the ingest has ended.
                    let _ = sender.send(connect(&options, Role::Subscriber, CONNECT_TIMEOUT));
                    wake(&waker);
                });
                match thread {
                    Ok(_) => {
                        self.attempt = Attempt::Running(receiver);
                        // The thread wakes us. If it died we look for ourselves.
                        return Some(now + CONNECT_TIMEOUT * 2);
                    }
                    Err(error) => Err(ConnectError::Unreachable(self.options.address.clone(), error)),
                }
            }
            Attempt::Running(receiver) => match receiver.try_recv() {
                Ok(result) => result,
                Err(TryRecvError::Empty) => return Some(now + CONNECT_TIMEOUT * 2),
                Err(TryRecvError::Disconnected) => Err(ConnectError::Timeout(self.options.address.clone())),
            },
        };
        let address = self.options.address.clone();
        let bytes_max = self.limits.message_bytes_max;
        // It may believe to be the master still, cut off from the others.
        let has_moved = result.is_ok() && self.master_has_moved();
        let result = if has_moved { Err(ConnectError::Superseded(address.clone())) } else { result };
        let linked = result.and_then(|connected| {
            Link::new(connected, self.poll.registry(), SOCKET, bytes_max)
                .map_err(|error| ConnectError::Broken(address, error))
        });
        match linked {
            Ok(link) => {
                self.connected(link);
                None
            }
            Err(error) => {
                match &error {
                    ConnectError::Refused { command, text, .. } => {
                        self.stats.obstacle.set(&refusal(command, text));
                    }
                    _ => self.stats.obstacle.clear(),
                }
                let text = error.to_string();
                if self.stats.last_error.set(&text) || self.lost_at.is_none() {
                    tracing::warn!("{text}; trying again until it works");
                }
                self.lost_at.get_or_insert(now);
                add(&self.stats.failed_attempts, 1);
                let at = now + self.backoff.next_delay();
                self.attempt = Attempt::At(at);
                Some(at)
            }
        }
    }

    fn connected(&mut self, link: Link) {
        let epoch = self.router.connected();
        set(&self.stats.epoch, u64::from(epoch));
        self.stats.connected.store(true, Relaxed);
        let client_id = link.client_id;
        self.link = Some(link);
        self.probe_at = Instant::now();
        self.presence.subscriber.send_replace(Subscriber {
            epoch,
            connected: true,
            client_id,
            paused: false,
        });
        tracing::debug!("connected to Redis at {}", self.options.address);
    }

    pub(super) fn lost(&mut self, loss: &Loss) {
        let behind = self.link.as_ref().map_or(0, Link::behind_bytes);
        let patience = self.presence.headroom.read();
        let output_limit = loss.is_output_limit(behind, &patience, self.clock.now());
        add(&self.stats.output_limits, u64::from(output_limit));
        add(&self.stats.presence_gaps, u64::from(loss.is_for_keys()));
        // Dropping the socket takes it out of the poll.
        self.link = None;
        self.unpause();
        self.unfinished = false;
        self.refreshing = Vec::new();
        self.router.lost();
        // Clients learn of the gap before anything else is done.
        self.router.flush();
        self.stats.connected.store(false, Relaxed);
        let reason = loss.tell(output_limit, &patience);
        let text = format!("Redis at {} is lost: {reason}", self.options.address);
        self.stats.last_error.set(&text);
        tracing::warn!("{text}; connecting again");
        let now = Instant::now();
        self.lost_at.get_or_insert(now);
        self.attempt = Attempt::At(now + self.backoff.next_delay());
        self.presence.subscriber.send_modify(|subscriber| {
            subscriber.connected = false;
            subscriber.paused = false;
        });
    }

    /// Everything is subscribed, and all presence keys are set.
    pub(super) fn regained(&mut self) {
        self.backoff.reset();
        self.live_at = Some(Instant::now());
        let channels = self.router.table.referenced();
        let address = &self.options.address;
        match self.lost_at.take() {
            Some(lost) => tracing::info!(
                "Redis at {address} is back after {:.1} s; {channels} channels are subscribed again",
                lost.elapsed().as_secs_f64()
            ),
            None => tracing::info!("Redis at {address} is connected"),
        }
    }
}
