//! The commands on the subscriber connection that Redis has not answered yet, in order.
//!
//! Redis answers in the order of the commands, one reply per channel, or one error for a whole command
//! without saying for which. Only who remembers what was sent can tell what an error is about, and whether
//! the two sides are still in step.
//!
//! Bound: the channels of unanswered commands, 16 bytes each.

use std::collections::VecDeque;

use crate::core::stream::Channel;

/// A command that was answered with an error.
#[derive(PartialEq, Eq, Debug)]
pub enum Refused {
    /// SUBSCRIBE of these channels.
    Subscribe(Vec<Channel>),
    /// UNSUBSCRIBE of these channels.
    Unsubscribe(Vec<Channel>),
    /// SUBSCRIBE of channels that nobody needs.
    Probe,
    /// PING. An answer all the same: the link lives.
    Ping,
}

/// For whom a command was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// For those who hold the channel.
    Holders,
    /// To see whether Redis allows it.
    Probe,
}

/// An answer to something that was not asked.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("Redis answered out of order")]
pub struct OutOfStep;

/// Unanswered commands.
#[derive(Debug, Default)]
pub struct Pipeline {
    sent: VecDeque<Sent>,
}

#[derive(Debug)]
enum Sent {
    Subscribe(Batch),
    Unsubscribe(Batch),
    Ping,
}

#[derive(Debug)]
struct Batch {
    whose: Whose,
    channels: Vec<Channel>,
    answered: usize,
}

impl Batch {
    fn new(whose: Whose, channels: Vec<Channel>) -> Batch {
        Batch { whose, channels, answered: 0 }
    }

    /// Whether that channel's answer is the next; and whether it is the last.
    fn answer(&mut self, channel: &Channel) -> Result<bool, OutOfStep> {
        if self.channels.get(self.answered) != Some(channel) {
            return Err(OutOfStep);
        }
        self.answered += 1;
        Ok(self.answered == self.channels.len())
    }
}

impl Pipeline {
    /// A SUBSCRIBE of these channels was written.
    pub fn subscribe(&mut self, channels: Vec<Channel>) {
        self.sent.push_back(Sent::Subscribe(Batch::new(Whose::Holders, channels)));
    }

    /// An UNSUBSCRIBE of these channels was written.
    pub fn unsubscribe(&mut self, channels: Vec<Channel>) {
        self.sent.push_back(Sent::Unsubscribe(Batch::new(Whose::Holders, channels)));
    }

    /// A SUBSCRIBE and an UNSUBSCRIBE of these channels were written, to see whether Redis allows them.
    pub fn probe(&mut self, channels: Vec<Channel>) {
        self.sent.push_back(Sent::Subscribe(Batch::new(Whose::Probe, channels.clone())));
        self.sent.push_back(Sent::Unsubscribe(Batch::new(Whose::Probe, channels)));
    }

    /// A PING was written.
    pub fn ping(&mut self) {
        self.sent.push_back(Sent::Ping);
    }

    /// That channel's SUBSCRIBE was confirmed.
    pub fn subscribed(&mut self, channel: &Channel) -> Result<Whose, OutOfStep> {
        let Some(Sent::Subscribe(batch)) = self.sent.front_mut() else { return Err(OutOfStep) };
        let (whose, is_last) = (batch.whose, batch.answer(channel)?);
        if is_last {
            self.sent.pop_front();
        }
        Ok(whose)
    }

    /// That channel's UNSUBSCRIBE was confirmed.
    pub fn unsubscribed(&mut self, channel: &Channel) -> Result<Whose, OutOfStep> {
        let Some(Sent::Unsubscribe(batch)) = self.sent.front_mut() else { return Err(OutOfStep) };
        let (whose, is_last) = (batch.whose, batch.answer(channel)?);
        if is_last {
            self.sent.pop_front();
        }
        Ok(whose)
    }

    /// PING was answered.
    pub fn pong(&mut self) -> Result<(), OutOfStep> {
        match self.sent.pop_front() {
            Some(Sent::Ping) => Ok(()),
            _ => Err(OutOfStep),
        }
    }

    /// An error came: the answer to the oldest command, none of whose channels was answered.
    pub fn error(&mut self) -> Result<Refused, OutOfStep> {
        match self.sent.pop_front() {
            Some(Sent::Subscribe(Batch { whose: Whose::Probe, answered: 0, .. })) => Ok(Refused::Probe),
            Some(Sent::Unsubscribe(Batch { whose: Whose::Probe, answered: 0, .. })) => Ok(Refused::Probe),
            Some(Sent::Subscribe(Batch { channels, answered: 0, .. })) => Ok(Refused::Subscribe(channels)),
            Some(Sent::Unsubscribe(Batch { channels, answered: 0, .. })) => {
                Ok(Refused::Unsubscribe(channels))
            }
            Some(Sent::Ping) => Ok(Refused::Ping),
            _ => Err(OutOfStep),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order() {
        let (a, b) = (Channel::Account(1), Channel::Account(2));
        let mut pipeline = Pipeline::default();
        pipeline.subscribe(vec![a.clone(), b.clone()]);
        pipeline.ping();
        pipeline.unsubscribe(vec![a.clone()]);
        pipeline.subscribe(vec![b.clone()]);
        assert_eq!(pipeline.subscribed(&a), Ok(Whose::Holders));
        assert_eq!(pipeline.subscribed(&b), Ok(Whose::Holders));
        assert_eq!(pipeline.pong(), Ok(()));
        assert_eq!(pipeline.unsubscribed(&a), Ok(Whose::Holders));
        assert_eq!(pipeline.error(), Ok(Refused::Subscribe(vec![b])));
        assert_eq!(pipeline.error(), Err(OutOfStep));
    }

    #[test]
    fn an_answer_to_nothing_is_noticed() {
        let (a, b) = (Channel::Account(1), Channel::Account(2));
        let mut pipeline = Pipeline::default();
        pipeline.subscribe(vec![a.clone(), b.clone()]);
        assert_eq!(pipeline.subscribed(&b), Err(OutOfStep));
        assert_eq!(pipeline.unsubscribed(&a), Err(OutOfStep));
        assert_eq!(pipeline.subscribed(&a), Ok(Whose::Holders));
        assert_eq!(pipeline.error(), Err(OutOfStep), "half of a command cannot be refused");
    }

    #[test]
    fn probe_is_told_from_the_same_channels_real_subscription() {
        let a = Channel::Account(1);
        let mut pipeline = Pipeline::default();
        pipeline.probe(vec![a.clone()]);
        pipeline.subscribe(vec![a.clone()]);
        pipeline.probe(vec![Channel::Account(9)]);
        assert_eq!(pipeline.subscribed(&a), Ok(Whose::Probe));
        assert_eq!(pipeline.unsubscribed(&a), Ok(Whose::Probe));
        assert_eq!(pipeline.subscribed(&a), Ok(Whose::Holders));
        assert_eq!(pipeline.error(), Ok(Refused::Probe));
        assert_eq!(pipeline.unsubscribed(&Channel::Account(9)), Ok(Whose::Probe));
    }
}
