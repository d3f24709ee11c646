//! Why a request or a subscription is refused, and how the client is told.
//!
//! One [`Refusal`] has three forms: a JSON body (HTTP), a response without body whose text is in
//! `X-Error-Message` (a failed upgrade), and the JSON of a text frame (on an open WebSocket). Texts are
//! Mastodon's where it has one. They are constants: nothing that a client sent comes back in them.

use bytes::Bytes;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};

use super::headers::{self, RequestId, X_REQUEST_ID};
use crate::core::handover::HoldError;
use crate::core::session::RequestError;
use crate::limits::RETRY_AFTER_SECONDS;

const X_ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// What a client is told instead of getting what it asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The HTTP status, or `status` in a WebSocket's error message.
    pub status: u16,
    /// The text.
    pub text: &'static str,
    /// Under which name it is counted.
    pub reason: Reason,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident => $label:literal,)*) => {
        /// Why the door refused something: a label of its counters.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $reason,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Reason] = &[$(Reason::$reason),*];

            /// The name in metrics and logs.
            pub fn label(self) -> &'static str {
                match self { $(Reason::$reason => $label,)* }
            }
        }
    };
}

reasons! {
    /// No token, or one that is not good.
    Token => "token",
    /// The token's scopes do not allow the stream, the list is another's, or the server has no accounts.
    Forbidden => "forbidden",
    /// A mistake in the request.
    Request => "request",
    /// PostgreSQL gave no answer.
    Database => "database",
    /// Redis is away, or refused.
    Redis => "redis",
    /// Redis did not confirm within `DOOR_TIMEOUT`, or PostgreSQL did not answer.
    Timeout => "timeout",
    /// As many clients as the server takes.
    Full => "full",
    /// As many clients as one address may have.
    Address => "address",
    /// What came is not HTTP, or breaks its rules.
    Malformed => "malformed",
    /// A request's head over `REQUEST_HEAD_BYTES` or with more than 2,000 header lines.
    HeadSize => "head_size",
    /// A request's head, or the end of its empty body, that did not come in `REQUEST_HEAD_SECONDS`.
    HeadTime => "head_time",
    /// Without a request, closed to make room at the door (`MAX_DOOR_CONNECTIONS`).
    Evicted => "evicted",
}

impl Refusal {
    pub(crate) const MISSING_TOKEN: Refusal = refusal(401, "Missing access token", Reason::Token);
    pub(crate) const INVALID_TOKEN: Refusal = refusal(401, "Invalid access token", Reason::Token);
    pub(crate) const FOREIGN_LIST: Refusal =
        refusal(401, "Not authorized to stream this list", Reason::Forbidden);
    pub(crate) const NO_ACCOUNTS: Refusal = refusal(
        401,
        "This server runs without a database and knows no accounts: only public and hashtag streams are available",
        Reason::Forbidden,
    );
    pub(crate) const UNKNOWN_CHANNEL: Refusal = refusal(400, "Unknown channel requested", Reason::Request);
    pub(crate) const DATABASE_AWAY: Refusal =
        refusal(503, "The database is not available, try again later", Reason::Database);
    pub(crate) const REDIS_REFUSED: Refusal =
        refusal(503, "Redis refuses what this stream needs, try again later", Reason::Redis);
    pub(crate) const REDIS_AWAY: Refusal =
        refusal(503, "The connection to Redis is lost, try again later", Reason::Redis);
    pub(crate) const TIMEOUT: Refusal =
        refusal(503, "The stream could not be opened in time, try again later", Reason::Timeout);
    pub(crate) const FULL: Refusal =
        refusal(503, "Too many clients are connected, try again later", Reason::Full);
    pub(crate) const ADDRESS: Refusal =
        refusal(429, "Too many clients are connected from this address", Reason::Address);
    pub(crate) const METHOD: Refusal = refusal(405, "Method not allowed", Reason::Request);
    pub(crate) const BODY: Refusal =
        refusal(400, "A request for a stream must not have a body", Reason::Request);
    pub(crate) const CHUNKS: Refusal =
        refusal(400, "The body's chunked encoding is invalid", Reason::Malformed);
    pub(crate) const HOST: Refusal = refusal(400, "A request must have one Host header", Reason::Malformed);
    pub(crate) const NO_KEY: Refusal =
        refusal(400, "Missing or invalid Sec-WebSocket-Key header", Reason::Request);
    pub(crate) const BAD_PROTOCOL: Refusal =
        refusal(400, "Invalid Sec-WebSocket-Protocol header", Reason::Request);
    pub(crate) const BAD_VERSION: Refusal =
        refusal(426, "Missing or unsupported Sec-WebSocket-Version header", Reason::Request);

    /// As an HTTP response with a JSON body. `allow` is what a 405 says is allowed.
    pub(crate) fn json(self, id: &RequestId, allow: &'static str) -> Response<Bytes> {
        let mut response = self.response(format!("{{\"error\":{}}}", quoted(self.text)), id, allow);
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// As the answer to an upgrade: no body, and the connection is closed.
    pub(crate) fn upgrade(self, id: &RequestId) -> Response<Bytes> {
        let mut response = self.response(String::new(), id, "GET");
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == 426 {
            // It has to name what to upgrade to (RFC 9110, 15.5.22 and 7.8).
            headers.insert(CONNECTION, HeaderValue::from_static("close, Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(X_ERROR_MESSAGE, HeaderValue::from_static(self.text));
        response
    }

    /// The JSON of a text frame on an open WebSocket.
    pub(crate) fn frame(self) -> Bytes {
        format!("{{\"error\":{},\"status\":{}}}", quoted(self.text), self.status).into()
    }

    /// All of the response, for a socket that the HTTP server has given away. The connection is closed
    /// after it.
    pub(crate) fn bytes(self, id: &RequestId, upgrade: bool) -> Vec<u8> {
        let mut response = if upgrade { self.upgrade(id) } else { self.json(id, "GET") };
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        headers::write(&response)
    }

    fn response(self, body: String, id: &RequestId, allow: &'static str) -> Response<Bytes> {
        let length = body.len();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, length.into());
        headers.insert(X_REQUEST_ID, id.value());
        match self.status {
            405 => headers.insert(ALLOW, HeaderValue::from_static(allow)),
            426 => headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
            429 | 503 => headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into()),
            _ => None,
        };
        response
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Refusal {
        let reason = match error {
            RequestError::Scope | RequestError::ForeignList => Reason::Forbidden,
            _ => Reason::Request,
        };
        refusal(error.status(), error.text(), reason)
    }
}

impl From<HoldError> for Refusal {
    fn from(error: HoldError) -> Refusal {
        match error {
            HoldError::RedisAway => Refusal::REDIS_AWAY,
            HoldError::Refused | HoldError::PresenceRefused => Refusal::REDIS_REFUSED,
            HoldError::Killed => Refusal::INVALID_TOKEN,
        }
    }
}

/// The answer to an unsubscribe that failed: the only error without a status.
pub(crate) fn unsubscribe_frame() -> Bytes {
    Bytes::from_static(br#"{"error":"Error unsubscribing from channel"}"#)
}

const fn refusal(status: u16, text: &'static str, reason: Reason) -> Refusal {
    Refusal { status, text, reason }
}

fn quoted(text: &str) -> serde_json::Value {
    serde_json::Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_upgrade_has_its_text_in_a_header_and_no_body() {
        let id = RequestId::new();
        let bytes = String::from_utf8(Refusal::INVALID_TOKEN.bytes(&id, true)).unwrap();
        let lines: Vec<_> = bytes.split("\r\n").collect();
        assert_eq!(lines[0], "HTTP/1.1 401 Unauthorized");
        assert!(lines.contains(&"Connection: close"));
        assert!(lines.contains(&"Content-Type: text/plain"));
        assert!(lines.contains(&"Content-Length: 0"));
        assert!(lines.contains(&"X-Error-Message: Invalid access token"));
        assert!(lines.contains(&format!("X-Request-Id: {}", id.as_str()).as_str()));
        assert!(bytes.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_refusal_that_passes_says_when_to_come_back() {
        let bytes = String::from_utf8(Refusal::REDIS_AWAY.bytes(&RequestId::new(), false)).unwrap();
        assert!(bytes.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{bytes}");
        assert!(bytes.contains("\r\nRetry-After: 5\r\n"));
        assert!(bytes.ends_with("\r\n\r\n{\"error\":\"The connection to Redis is lost, try again later\"}"));
    }

    #[test]
    fn a_frame_carries_text_and_status() {
        assert_eq!(
            Refusal::FOREIGN_LIST.frame(),
            r#"{"error":"Not authorized to stream this list","status":401}"#
        );
    }
}
