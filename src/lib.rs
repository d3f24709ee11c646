//! Tidegate relays Redis pub/sub to WebSockets and Server-Sent Events.

pub mod clock;
pub mod core;
pub mod db;
pub mod demo;
pub mod door;
pub mod limits;
pub mod proto;
pub mod reactor;
pub mod redis;
pub mod status;
