//! A first run without Redis or PostgreSQL.

pub mod broker;
