//! What the gate and the mailbox are synchronised with: the standard library's types, by names that
//! `tests/loom.rs` gives to those of a model checker, which tries every order of the threads.

pub use std::sync::{Arc, Mutex, MutexGuard, atomic};
