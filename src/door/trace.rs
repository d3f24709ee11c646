//! A newcomer's way, told to whoever follows it (the feature `otel`); without anyone it costs nothing.
//!
//! It is followed from its request's head until the reactor has written the response's: that head lets go of
//! the trace with its last byte. What is told is never a query, a header but `traceparent` and `tracestate`, or a
//! path that could hold a token; and those two headers are a trusted proxy's, since with them whoever sends them
//! decides whose trace it is and whether it is kept.

#[cfg(feature = "otel")]
pub(crate) use followed::Trace;
#[cfg(not(feature = "otel"))]
pub(crate) use nobody::{Part, Trace};

#[cfg(feature = "otel")]
pub(crate) use crate::core::trail::Part;

#[cfg(feature = "otel")]
mod followed {
    use std::sync::Arc;

    use bytes::Bytes;
    use hyper::body::Incoming;
    use hyper::{Method, Version};

    use super::super::errors::Refusal;
    use super::super::headers::{Peer, RequestId};
    use super::super::{Door, Socket, routes};
    use super::Part;
    use crate::core::stream::StreamKind;
    use crate::core::trail::{Arrival, Request};

    /// Where Mastodon's clients open WebSockets, with and without a slash.
    const WEBSOCKET_ROUTE: &str = "/api/v1/streaming";

    /// A newcomer that is followed, or not. Clones follow the same one.
    #[derive(Clone)]
    pub(crate) struct Trace(Option<Arc<dyn Arrival>>);

    impl Trace {
        pub(crate) fn begin<S: Socket>(
            door: &Door<S>,
            peer: Peer,
            id: &RequestId,
            request: &hyper::Request<Incoming>,
            is_websocket: bool,
        ) -> Trace {
            let Some(arrivals) = door.arrivals.get() else { return Trace(None) };
            let is_trusted = match peer {
                Peer::Tcp(address) => (door.trusted)(address.to_canonical()),
                Peer::Unix => true,
            };
            let header = |name| {
                let value = is_trusted.then(|| request.headers().get(name))??;
                value.to_str().ok()
            };
            let path = request.uri().path();
            // Only the paths of streams come here without a WebSocket.
            let bare = path.strip_suffix('/').unwrap_or(path);
            let is_route = !is_websocket || bare == WEBSOCKET_ROUTE;
            let is_known = matches!(request.method(), &Method::GET | &Method::HEAD | &Method::POST);
            Trace(arrivals(&Request {
                id: id.as_str(),
                method: if is_known { request.method().as_str() } else { "" },
                path: (is_route || routes::shown(path) == path).then_some(path),
                route: is_route.then_some(bare),
                is_http_1_1: request.version() == Version::HTTP_11,
                is_websocket,
                traceparent: header("traceparent"),
                tracestate: header("tracestate"),
            }))
        }

        pub(crate) fn enter(&self, part: Part) {
            if let Some(arrival) = &self.0 {
                arrival.enter(part);
            }
        }

        pub(crate) fn stream(&self, kind: StreamKind) {
            if let Some(arrival) = &self.0 {
                arrival.stream(kind.name());
            }
        }

        pub(crate) fn answer(&self, status: u16) {
            if let Some(arrival) = &self.0 {
                arrival.answer(status, None);
            }
        }

        pub(crate) fn refuse(&self, refusal: &Refusal) {
            if let Some(arrival) = &self.0 {
                arrival.answer(refusal.status, Some(refusal.reason.label()));
            }
        }

        /// The same bytes, with the trace until they are let go.
        pub(crate) fn carried_by(&self, head: Bytes) -> Bytes {
            if self.0.is_some() { Bytes::from_owner(Carrier { head, _trace: self.clone() }) } else { head }
        }
    }

    struct Carrier {
        head: Bytes,
        _trace: Trace,
    }

    impl AsRef<[u8]> for Carrier {
        fn as_ref(&self) -> &[u8] {
            &self.head
        }
    }
}

#[cfg(not(feature = "otel"))]
mod nobody {
    use bytes::Bytes;
    use hyper::body::Incoming;

    use super::super::errors::Refusal;
    use super::super::headers::{Peer, RequestId};
    use super::super::{Door, Socket};
    use crate::core::stream::StreamKind;

    /// A part of the time that a newcomer waits.
    #[derive(Clone, Copy)]
    pub(crate) enum Part {
        Token,
        Stream,
        Redis,
        TokenAgain,
        HandOver,
    }

    /// Nobody follows.
    #[derive(Clone)]
    pub(crate) struct Trace;

    impl Trace {
        pub(crate) fn begin<S: Socket>(
            _: &Door<S>,
            _: Peer,
            _: &RequestId,
            _: &hyper::Request<Incoming>,
            _: bool,
        ) -> Trace {
            Trace
        }

        pub(crate) fn enter(&self, _: Part) {}

        pub(crate) fn stream(&self, _: StreamKind) {}

        pub(crate) fn answer(&self, _: u16) {}

        pub(crate) fn refuse(&self, _: &Refusal) {}

        pub(crate) fn carried_by(&self, head: Bytes) -> Bytes {
            head
        }
    }
}
