//! What a client is owed becomes one vectored write; what the socket took is settled.
//!
//! Everything a client still has to get lies in the queues of its channels from its place on. Gathering
//! merges them by place: the cost is the client's own messages, whatever else is in the log. Frames are
//! shared bytes; the pieces of one write are at most [`TURN_PIECES_MAX`] and [`TURN_BYTES_MAX`].

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Relay, Socket, TURN_BYTES_MAX, TURN_PIECES_MAX, millis};
use crate::core::client::{Client, Flags, HalfWritten, Phase};
use crate::core::counters::{CloseReason, add, sub, transport_index};
use crate::core::event::{Event, FRAME_PARTS, Frame, Verdict};
use crate::core::log::{Entry, Log, Place, QueueIndex};
use crate::core::table::SubIndex;

/// Buffers of the gathering, reused for every client.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pieces: Vec<Piece>,
}

/// A part of a write.
#[derive(Debug)]
enum Piece {
    /// Bytes that are no message.
    Out(Bytes),
    /// A message's frame.
    Message { at: Owed, read_at: Duration, frame: Frame },
}

impl Piece {
    fn read_at(&self) -> Option<Duration> {
        match self {
            Piece::Out(_) => None,
            Piece::Message { read_at, .. } => Some(*read_at),
        }
    }
}

/// A message that a client is owed: where it stands, by which subscription, and the length of its payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Owed {
    pub place: Place,
    pub sub: SubIndex,
    pub queue: QueueIndex,
    pub bytes: u32,
}

/// The messages a client is owed, in order.
pub(super) struct Gathered<'a, S> {
    client: &'a Client<S>,
    log: &'a Log,
    /// The next message of each of the client's channels that has any.
    next: SmallVec<[Owed; 4]>,
}

impl<'a, S> Gathered<'a, S> {
    pub fn new(client: &'a Client<S>, log: &'a Log) -> Gathered<'a, S> {
        Gathered::of(client, log, 0..client.subs.len())
    }

    /// Only what one subscription is owed; the others' messages are not looked at.
    pub fn of_subscription(client: &'a Client<S>, log: &'a Log, sub: SubIndex) -> Gathered<'a, S> {
        let sub = usize::from(sub);
        Gathered::of(client, log, sub..sub + 1)
    }

    fn of(client: &'a Client<S>, log: &'a Log, subs: Range<usize>) -> Gathered<'a, S> {
        let mut next = SmallVec::new();
        for (sub, subscription) in client.subs.iter().enumerate().take(subs.end).skip(subs.start) {
            let sub = sub as SubIndex;
            let from = if sub < client.sub_at { client.place + 1 } else { client.place };
            for channel in &subscription.channels(client.account, client.scopes) {
                if let Some(queue) = log.queue(channel)
                    && let Some(owed) = first_owed(client, log, queue, sub, from)
                {
                    next.push(owed);
                }
            }
        }
        Gathered { client, log, next }
    }
}

impl<S> Iterator for Gathered<'_, S> {
    type Item = Owed;

    fn next(&mut self) -> Option<Owed> {
        let (index, owed) = self.next.iter().copied().enumerate().min_by_key(|(_, owed)| *owed)?;
        match first_owed(self.client, self.log, owed.queue, owed.sub, owed.place + 1) {
            Some(next) => self.next[index] = next,
            None => {
                self.next.swap_remove(index);
            }
        }
        Some(owed)
    }
}

/// The first message from `from` on that this subscription is owed.
fn first_owed<S>(
    client: &Client<S>,
    log: &Log,
    queue: QueueIndex,
    sub: SubIndex,
    from: Place,
) -> Option<Owed> {
    let entry = log.entries_from(queue, from).find(|entry| outcome(client, entry, sub).is_some())?;
    Some(Owed { place: entry.place, sub, queue, bytes: entry.bytes })
}

/// How this subscription gets the message: with which filter outcome; none if it does not get it. The same
/// question has the same answer at any time.
fn outcome<S>(client: &Client<S>, entry: &Entry, sub: SubIndex) -> Option<u16> {
    let event = entry.event.as_ref()?;
    let subscription = client.subs.get(usize::from(sub))?;
    if subscription.live_after >= event.position().seq {
        return None;
    }
    if !event.needs_audience() {
        return Some(0);
    }
    match event.verdict(subscription.stream(), client.account) {
        Verdict::Deliver(outcome) => Some(outcome),
        Verdict::Withheld(_) => None,
    }
}

impl<S: Socket> Relay<S> {
    /// Queues bytes that are no message; they are written with the client's next message, or when it is its turn to be
    /// answered.
    pub(super) fn send(&mut self, index: u32, bytes: Bytes) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if bytes.is_empty() {
            return;
        }
        client.extra().out.push_back(bytes);
        if !client.flags.has(Flags::BLOCKED) && client.flags.set(Flags::ANSWERED) {
            self.answers.push_back(index);
        }
    }

    /// One write of what the client is owed, up to its budget.
    pub(super) fn write(&mut self, index: u32, now: Duration) {
        let mut pieces = std::mem::take(&mut self.scratch.pieces);
        self.write_pieces(index, now, &mut pieces);
        pieces.clear();
        self.scratch.pieces = pieces;
    }

    fn write_pieces(&mut self, index: u32, now: Duration, pieces: &mut Vec<Piece>) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.flags.has(Flags::BLOCKED) {
            return;
        }
        gather(client, &self.log, pieces);
        let mut slices: SmallVec<[IoSlice<'_>; 16]> = SmallVec::new();
        let mut skip =
            if matches!(pieces.first(), Some(Piece::Message { .. })) { client.offset as usize } else { 0 };
        let mut offered = 0;
        for piece in pieces.iter() {
            let parts: [&[u8]; FRAME_PARTS] = match piece {
                Piece::Out(bytes) => [bytes, &[], &[], &[], &[]],
                Piece::Message { frame, .. } => frame.parts(),
            };
            for part in parts {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if part.len() > skipped {
                    slices.push(IoSlice::new(&part[skipped..]));
                    offered += part.len() - skipped;
                }
            }
        }
        if slices.is_empty() {
            return;
        }
        add(&self.counters.writes, 1);
        let taken = loop {
            match client.socket.write(&slices) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                taken => break taken,
            }
        };
        drop(slices);
        match taken {
            Ok(taken) => {
                add(&self.counters.write_bytes, taken as u64);
                self.settle(index, pieces, taken, now);
                if taken < offered {
                    self.blocked(index, now);
                } else if self.clients.get(index as usize).is_some_and(Client::has_output) {
                    self.ready.push(index);
                }
                self.unlist_if_idle(index);
                self.written(index, now);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked(index, now),
            Err(_) => self.remove(index, CloseReason::SocketError),
        }
    }

    /// The message that a client is owed there, with its frame.
    pub(super) fn frame_at(&self, index: u32, at: &Owed) -> Option<(Arc<Event>, Frame)> {
        let client = self.clients.get(index as usize)?;
        let entry = self.log.entries_from(at.queue, at.place).next()?;
        let (event, outcome) = (entry.event.as_ref()?, outcome(client, entry, at.sub)?);
        let subscription = client.subs.get(usize::from(at.sub))?;
        let frame = event.frame(client.transport, subscription.stream(), outcome);
        Some((Arc::clone(event), frame))
    }

    fn blocked(&mut self, index: u32, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.flags.set(Flags::BLOCKED);
        add(&self.counters.would_block, 1);
        self.list(index, now);
    }

    /// Accounts for the bytes that the socket took, piece by piece.
    fn settle(&mut self, index: u32, pieces: &[Piece], mut taken: usize, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let mut delivered = 0;
        if taken > 0
            && let Some(lag) = client.lag_mut()
        {
            lag.taken_ms = millis(now);
        }
        let mut pieces = pieces.iter().peekable();
        while taken > 0
            && let Some(piece) = pieces.peek()
        {
            match piece {
                Piece::Out(bytes) => {
                    let part = taken.min(bytes.len());
                    taken -= part;
                    if let Some(whole) = client.took_out(part) {
                        delivered += 1;
                        self.half_written_bytes -= whole.event.payload().len() as u64;
                        add(&self.counters.delivered[transport_index(client.transport)], 1);
                    }
                }
                Piece::Message { at, read_at, frame } => {
                    let left = frame.len() - client.offset as usize;
                    if taken < left {
                        // Frames are bounded by the message bound, far below 4 GiB.
                        client.offset += taken as u32;
                        client.place = at.place;
                        client.sub_at = at.sub;
                        break;
                    }
                    taken -= left;
                    client.offset = 0;
                    client.place = at.place;
                    client.sub_at = at.sub + 1;
                    client.owed -= 1;
                    client.progress_ms = millis(now);
                    if let Some(lag) = client.lag_mut() {
                        lag.bytes -= u64::from(at.bytes);
                    }
                    delivered += 1;
                    self.counters.message_delivered(client.transport, now.saturating_sub(*read_at));
                    self.log.settle(at.queue, at.place);
                    self.log.sweep(at.queue);
                }
            }
            pieces.next();
        }
        if let Some(lag) = client.lag_mut()
            && let Some(read_at) = pieces.find_map(Piece::read_at)
        {
            lag.oldest_ms = millis(read_at);
        }
        client.tidy();
        if delivered > 0 {
            sub(&self.counters.pending, delivered);
        }
    }

    /// After a write: a closing client whose last byte is out goes on to its end.
    fn written(&mut self, index: u32, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.phase == Phase::Closing && !client.has_output() {
            self.all_written(index, now);
        }
    }
}

impl<S> Client<S> {
    /// The socket took so many bytes of `out`. Returns the frame that was finished by that, if its entry had been
    /// given up while it was half written.
    fn took_out(&mut self, taken: usize) -> Option<HalfWritten> {
        let extra = self.extra.as_mut()?;
        extra.out.advance(taken);
        let frame = extra.half_written.as_mut()?;
        frame.left -= taken.min(frame.left);
        if frame.left > 0 { None } else { extra.half_written.take() }
    }
}

/// Collects what the client is to get next, in order, as far as it fits a turn.
fn gather<S>(client: &Client<S>, log: &Log, pieces: &mut Vec<Piece>) {
    let mut bytes = 0;
    // A half-written frame is finished before anything else is said.
    let half_written = client.offset > 0;
    if !half_written {
        push_out(client, pieces, &mut bytes);
    }
    if client.owed == 0 {
        return;
    }
    let mut messages = Gathered::new(client, log);
    let mut first = true;
    while bytes < TURN_BYTES_MAX && pieces.len() < TURN_PIECES_MAX {
        let Some(at) = messages.next() else { return };
        let Some(entry) = log.entries_from(at.queue, at.place).next() else { return };
        let (Some(event), Some(outcome)) = (&entry.event, outcome(client, entry, at.sub)) else { continue };
        let Some(subscription) = client.subs.get(usize::from(at.sub)) else { continue };
        let frame = event.frame(client.transport, subscription.stream(), outcome);
        bytes += frame.len();
        pieces.push(Piece::Message { at, read_at: event.position().read_at, frame });
        if first && half_written {
            push_out(client, pieces, &mut bytes);
        }
        first = false;
    }
}

fn push_out<S>(client: &Client<S>, pieces: &mut Vec<Piece>, bytes: &mut usize) {
    if let Some(extra) = &client.extra {
        for chunk in extra.out.iter().take(TURN_PIECES_MAX) {
            *bytes += chunk.len();
            pieces.push(Piece::Out(chunk.clone()));
        }
    }
}
