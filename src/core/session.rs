//! What a WebSocket client's messages ask for, and how the parameters of a request become a stream.

use crate::core::stream::{Stream, StreamKind};

/// A client's text message.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientMessage {
    /// `{"type":"subscribe", …}`
    Subscribe(StreamRequest),
    /// `{"type":"unsubscribe", …}`
    Unsubscribe(StreamRequest),
    /// Anything else: not JSON, not an object, an unknown type. Silence, as in Node.
    Ignored,
}

/// A stream as asked for, not yet checked: by message, or by query parameters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StreamRequest {
    /// The name, if it was text (of an array, the first entry).
    pub stream: Option<String>,
    /// `tag`
    pub tag: Given,
    /// `list`
    pub list: Given,
    /// glitch-soc's `allow_local_only`, as a truth value.
    pub allow_local_only: bool,
}

/// A parameter's value as the client gave it.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Given {
    /// Not there, or falsy in JavaScript's sense (empty string, null, false, 0).
    #[default]
    Missing,
    /// A string.
    Text(String),
    /// A JSON number's text: taken as its text and echoed as a number.
    Number(String),
    /// Repeated in a query, or of another JSON type: 400.
    Wrong,
}

/// Why a request does not name a stream. [`text`](Self::text) and [`status`](Self::status) are what the
/// client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum RequestError {
    UnknownStream,
    MissingTag,
    MissingList,
    /// A list's id that is not a number (the same text as a foreign list's).
    ForeignList,
    /// A tag or list of a wrong type, repeated, or longer than `param_bytes_max`.
    BadParameter,
    /// The token's scopes do not allow it.
    Scope,
}

impl RequestError {
    /// The text in `{"error": …}`.
    pub fn text(self) -> &'static str {
        todo!()
    }

    /// The HTTP status, or `status` in a WebSocket's error message.
    pub fn status(self) -> u16 {
        todo!()
    }
}

impl ClientMessage {
    /// Reads a text message. Never fails: what Node ignores is [`Ignored`](Self::Ignored).
    pub fn parse(text: &str) -> ClientMessage {
        let _ = text;
        todo!()
    }
}

impl StreamRequest {
    /// Reads `stream`, `tag`, `list`, `only_media` and `allow_local_only` from a query string
    /// (without `?`), percent-decoded.
    pub fn from_query(query: &str) -> StreamRequest {
        let _ = query;
        todo!()
    }

    /// The stream that is meant. `param_bytes_max` bounds tag and list.
    pub fn resolve(&self, param_bytes_max: usize) -> Result<Stream, RequestError> {
        let _ = param_bytes_max;
        todo!()
    }

    /// The kind by its name alone, for the scope check that comes first.
    pub fn kind(&self) -> Option<StreamKind> {
        StreamKind::from_name(self.stream.as_deref()?)
    }
}
