//! Who follows a message or a newcomer on its way: a trail is told of each step, and its drop is the end.
//!
//! Only where traces are compiled in (the feature `otel`) is there anyone to tell; elsewhere
//! [`Event::mark`](super::event::Event::mark) is empty and nothing is stored. What a trail makes of a step, and
//! what time it is then, is its own affair: it must neither block nor panic.

/// A step on a message's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// It is known who may see it.
    AudienceKnown {
        /// Whether nobody may, for want of an answer or of a status that can be read.
        is_withheld: bool,
    },
    /// A reactor owes it to so many subscriptions.
    Owed(u32),
    /// A reactor has made, or given up, its last delivery.
    Done,
}

#[cfg(feature = "otel")]
pub use followed::*;

#[cfg(feature = "otel")]
mod followed {
    use std::sync::Arc;

    use super::Step;
    use crate::core::event::Event;

    /// Follows a message.
    pub trait Trail: Send + Sync {
        /// The message has come so far. Called by any thread.
        fn mark(&self, step: Step);
    }

    /// Whether a message that was just read is followed, and by whom. It goes to so many reactors.
    pub type Trails = Box<dyn Fn(&Event, u32) -> Option<Box<dyn Trail>> + Send>;

    /// What is known of a request that may become a stream.
    #[derive(Clone, Copy, Debug)]
    pub struct Request<'a> {
        /// Its id in the log.
        pub id: &'a str,
        /// The method; empty if it is none of HTTP's own.
        pub method: &'a str,
        /// The path without the query, if it is one that cannot hold a secret.
        pub path: Option<&'a str>,
        /// Where the path is one of those that are served.
        pub route: Option<&'a str>,
        /// The minor version of HTTP/1.
        pub is_http_1_1: bool,
        /// Whether a WebSocket is asked for.
        pub is_websocket: bool,
        /// `traceparent`, from a proxy that is trusted.
        pub traceparent: Option<&'a str>,
        /// `tracestate` likewise.
        pub tracestate: Option<&'a str>,
    }

    /// A part of the time that a newcomer waits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Part {
        /// PostgreSQL is asked for the token.
        Token,
        /// The stream is checked, a list's owner with it.
        Stream,
        /// Redis is to confirm the channels, and the presence keys.
        Redis,
        /// The token is looked up once more.
        TokenAgain,
        /// The ingest and the reactor take the client over, and its response is written.
        HandOver,
    }

    /// Follows a newcomer.
    pub trait Arrival: Send + Sync {
        /// One part begins, and with that the one before it ends.
        fn enter(&self, part: Part);
        /// Which stream is meant.
        fn stream(&self, kind: &'static str);
        /// What the response will be; `refused` is the reason's label. The last call counts.
        fn answer(&self, status: u16, refused: Option<&'static str>);
    }

    /// Whether a request is followed, and by whom.
    pub type Arrivals = Box<dyn Fn(&Request<'_>) -> Option<Arc<dyn Arrival>> + Send + Sync>;
}
