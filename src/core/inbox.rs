//! The consumer's end of a mailbox, for a thread that does a bounded part of its work per turn.
//!
//! A producer wakes the consumer only when it finds the mailbox empty. A consumer that leaves items behind has used
//! up the wake-up for all of them, and one that leaves items in the mailbox itself gets no further wake-up either.
//! So every [`take`](Inbox::take) empties the mailbox, keeps what exceeds the turn's part here, and
//! [`has_more`](Inbox::has_more) says whether the consumer must run again without sleeping.
//!
//! Invariant: if `has_more` is false after a `take`, the next push finds the mailbox empty and wakes the consumer.
//! `tests/loom.rs` tries every order of a producer and a consumer that takes one item at a time.

use std::collections::VecDeque;

use crate::core::mailbox::Mailbox;
use crate::core::slack::Slack;
use crate::core::sync::Arc;

/// Takes items out of a [`Mailbox`] in the order in which they were pushed, a part at a time.
#[derive(Debug)]
pub struct Inbox<T> {
    mailbox: Arc<Mailbox<T>>,
    /// Swapped with the mailbox's own vector, so that neither allocates in every turn.
    drained: Vec<T>,
    taken: VecDeque<T>,
}

impl<T> Inbox<T> {
    /// The only consumer of `mailbox`.
    pub fn new(mailbox: Arc<Mailbox<T>>) -> Inbox<T> {
        Inbox { mailbox, drained: Vec::new(), taken: VecDeque::new() }
    }

    /// The next items, at most `most`, in order. Dropping the iterator drops those that were not asked for.
    pub fn take(&mut self, most: usize) -> impl ExactSizeIterator<Item = T> + '_ {
        self.taken.give_back();
        self.mailbox.drain(&mut self.drained);
        self.taken.extend(self.drained.drain(..));
        self.drained.give_back();
        let part = self.taken.len().min(most);
        self.taken.drain(..part)
    }

    /// Whether items were left behind, for which no wake-up will come.
    pub fn has_more(&self) -> bool {
        !self.taken.is_empty()
    }
}
