//! What the fuzz targets do: one plain function each, `run(&[u8])`, which panics when a promise is broken.
//!
//! The ordinary tests include these files too, and replay the corpora on stable Rust.

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod accept;
pub mod broker;
pub mod client_list;
pub mod der;
pub mod env;
pub mod event;
pub mod filter;
pub mod frames;
pub mod hashtag;
pub mod html_text;
pub mod http;
pub mod input;
pub mod pg_rows;
pub mod query;
pub mod resp;
pub mod ring;
pub mod sentinel;
pub mod ws_decode;
pub mod ws_session;
