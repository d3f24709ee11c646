//! What the end-to-end tests share: private servers, the server under test, strict clients, fixtures.
//!
//! A test begins with [`World::start`], which gives it a Redis of its own, rows in this process's private
//! PostgreSQL, and a running server. `None` means that this machine lacks something: the test then says what
//! was left out and passes. With `TIDEGATE_PEER_COMMAND` set, the same tests run against the server that this
//! command starts; what only Tidegate promises begins with [`ours_alone`].
//!
//! Nothing here sleeps and hopes: every wait polls a condition until a deadline and says what it waited for.
//! Every process started here ends with the test process, however that ends.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

pub mod booted;
pub mod certificates;
pub mod check;
pub mod crowd;
pub mod encrypted;
pub mod http;
pub mod impostor;
pub mod machine;
pub mod mastodon;
pub mod nginx;
pub mod numbers;
pub mod otel;
pub mod pgbouncer;
pub mod postgres;
pub mod posts;
pub mod proxy;
pub mod redis;
pub mod sentinel;
pub mod server;
pub mod sse;
pub mod streams;
pub mod world;
pub mod ws;

pub use machine::{left_out, ours_alone, peer, wait_until};
pub use server::Server;
pub use sse::Sse;
pub use world::{Viewer, World};
pub use ws::Ws;
