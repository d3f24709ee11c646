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
    /// PING. An answer all the same: the link lives.
    Ping,
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
    Subscribe { channels: Vec<Channel>, answered: usize },
    Unsubscribe { channels: Vec<Channel>, answered: usize },
    Ping,
}

impl Pipeline {
    /// A SUBSCRIBE of these channels was written.
    pub fn subscribe(&mut self, channels: Vec<Channel>) {
        self.sent.push_back(Sent::Subscribe { channels, answered: 0 });
    }

    /// An UNSUBSCRIBE of these channels was written.
    pub fn unsubscribe(&mut self, channels: Vec<Channel>) {
        self.sent.push_back(Sent::Unsubscribe { channels, answered: 0 });
    }

    /// A PING was written.
    pub fn ping(&mut self) {
        self.sent.push_back(Sent::Ping);
    }

    /// That channel's SUBSCRIBE was confirmed.
    pub fn subscribed(&mut self, channel: &Channel) -> Result<(), OutOfStep> {
        match self.sent.front_mut() {
            Some(Sent::Subscribe { channels, answered }) if channels.get(*answered) == Some(channel) => {
                *answered += 1;
                if *answered == channels.len() {
                    self.sent.pop_front();
                }
                Ok(())
            }
            _ => Err(OutOfStep),
        }
    }

    /// That channel's UNSUBSCRIBE was confirmed.
    pub fn unsubscribed(&mut self, channel: &Channel) -> Result<(), OutOfStep> {
        match self.sent.front_mut() {
            Some(Sent::Unsubscribe { channels, answered }) if channels.get(*answered) == Some(channel) => {
                *answered += 1;
                if *answered == channels.len() {
                    self.sent.pop_front();
                }
                Ok(())
            }
            _ => Err(OutOfStep),
        }
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
            Some(Sent::Subscribe { channels, answered: 0 }) => Ok(Refused::Subscribe(channels)),
            Some(Sent::Unsubscribe { channels, answered: 0 }) => Ok(Refused::Unsubscribe(channels)),
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
        assert_eq!(pipeline.subscribed(&a), Ok(()));
        assert_eq!(pipeline.subscribed(&b), Ok(()));
        assert_eq!(pipeline.pong(), Ok(()));
        assert_eq!(pipeline.unsubscribed(&a), Ok(()));
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
        assert_eq!(pipeline.subscribed(&a), Ok(()));
        assert_eq!(pipeline.error(), Err(OutOfStep), "half of a command cannot be refused");
    }
}
