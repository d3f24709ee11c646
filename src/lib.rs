//! Tidegate relays Redis pub/sub to WebSockets and Server-Sent Events: the streaming server of Mastodon, small
//! and without silent gaps.
//!
//! ```text
//! Redis ─read─▶ Ring (8 KiB) ─memchr─▶ push frame ─parse once─▶ Arc<Event> ─▶ mailbox of each reactor
//!                 ▲                                                  │
//!                 └────────── Gate (closed while over budget) ◀──────┘ bytes still held
//!
//! reactor: mailbox ─▶ Log (shared tail of Arc<Event>) ─▶ each client of the channel: a cursor ─▶ one write
//! ```
//!
//! # The house, in the order in which a message passes through it
//!
//! - [`redis`]: the way in. [`redis::ingest`] is a thread that reads one subscriber connection through
//!   [`proto::ring`] and [`proto::resp`], parses each message once ([`core::event`]) and sends it to the
//!   reactors' mailboxes, or first to the audience stage ([`db`]), where viewers' settings decide.
//! - [`reactor`]: how messages go out. N threads, each with an epoll loop around a [`core::relay`], which
//!   holds its clients, table, log and timers, and decides everything.
//! - [`door`]: how clients come in. [`server`] runs it on the main thread's runtime.
//! - [`db`]: what PostgreSQL knows: tokens, lists, who may see what, custom filters.
//! - [`status`]: metrics and the pages that show how it goes.
//! - `telemetry` (the feature `otel`): traces of handshakes and messages.
//! - [`demo`]: a broker and a publisher for a first run without Redis or PostgreSQL.
//!
//! [`proto`] (bytes and meaning) and [`core`] (decisions) are pure: no sockets, no clock, no threads; they
//! import no other room. The rooms at the edges import them and never each other; [`server`] is where they
//! meet, by mailboxes and closures. [`config`] and [`limits`] hold every variable and every bound; [`net`] and
//! [`tls`] are what outgoing connections have in common.
//!
//! # The threads
//!
//! The main thread (door, PostgreSQL pool, presence keys), the ingest, the audience stage, and the reactors; with
//! traces, one that sends them.
//! Their number does not depend on the number of clients.

// The fuzz targets' bodies, which unit tests share, call this crate by its name.
#[cfg(test)]
extern crate self as tidegate;

pub mod clock;
pub mod config;
pub mod core;
pub mod db;
pub mod demo;
pub mod door;
pub mod limits;
pub mod logging;
pub mod net;
pub mod proto;
pub mod reactor;
pub mod redis;
pub mod server;
pub mod status;
mod sys;
#[cfg(feature = "otel")]
pub mod telemetry;
pub mod tls;

pub use server::{Failure, run};
