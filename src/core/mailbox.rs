//! A queue into a thread: many producers, one consumer, one wake for all that waits.
//!
//! Producers append a whole batch under one short lock; the consumer swaps the full vector for an empty
//! one. Only the producer that finds the mailbox empty wakes the consumer, so a burst costs one wake. The
//! lock is per batch, never per delivery.
//!
//! Invariant: when something waits, a wake was sent after it was put there, or the consumer has yet to
//! drain what an earlier wake announced.

use std::sync::PoisonError;

use crate::core::sync::{Mutex, MutexGuard};

/// A queue of `T` with its consumer's alarm.
pub struct Mailbox<T> {
    queue: Mutex<Vec<T>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<T> std::fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mailbox({} waiting)", self.lock().len())
    }
}

impl<T> Mailbox<T> {
    /// An empty mailbox; `wake` makes the consumer call [`drain`](Self::drain) soon. It is called from
    /// producers' threads.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Mailbox<T> {
        Mailbox { queue: Mutex::new(Vec::new()), wake: Box::new(wake) }
    }

    /// Appends one item.
    pub fn push(&self, item: T) {
        let mut queue = self.lock();
        let was_empty = queue.is_empty();
        queue.push(item);
        drop(queue);
        if was_empty {
            (self.wake)();
        }
    }

    /// Moves all of `batch` to the end, in order, leaving it empty.
    pub fn push_all(&self, batch: &mut Vec<T>) {
        if batch.is_empty() {
            return;
        }
        let mut queue = self.lock();
        let was_empty = queue.is_empty();
        queue.append(batch);
        drop(queue);
        if was_empty {
            (self.wake)();
        }
    }

    /// Takes everything that waits, in order. `into` must be empty; its memory is used for what comes next.
    pub fn drain(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.lock(), into);
    }

    // Nothing in here can panic while it holds the lock, so a poisoned queue is a whole queue.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
