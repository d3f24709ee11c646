//! What a WebSocket client's messages ask for, and how the parameters of a request become a stream.
//!
//! Both come from outside, and clients have only ever been tried against Node: JSON is taken as `JSON.parse`
//! takes it, a query as Node's `querystring` does, and what counts as "there" is what JavaScript calls true.
//!
//! Bounds: time and memory linear in the input (bounded by the caller: a message, a request head); tag and
//! list are refused when longer than `param_bytes_max`, as written or normalised; a [`Bucket`] bounds how often.
//! Tested by tables of what Node does, and by properties.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode;

use crate::core::hashtag;
use crate::core::json;
use crate::core::millis;
use crate::core::stream::{Id, Param, Stream, StreamKind};
use crate::proto::resp::CHANNEL_BYTES_MAX;

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
#[repr(u8)]
#[allow(missing_docs)]
pub enum RequestError {
    UnknownStream,
    MissingTag,
    MissingList,
    /// A list's id that is not a number (the same text as a foreign list's).
    ForeignList,
    /// A tag of a wrong type, repeated, or longer than `param_bytes_max`, as written or normalised.
    BadTag,
    /// A list of a wrong type, repeated, or longer than `param_bytes_max`.
    BadList,
    /// The token's scopes do not allow it.
    Scope,
    /// A personal stream where there are no accounts (`--no-database`).
    NoAccount,
    /// The connection has as many subscriptions as it may have.
    TooMany,
}

impl RequestError {
    /// All of them, by their number.
    pub const ALL: [RequestError; 9] = [
        RequestError::UnknownStream,
        RequestError::MissingTag,
        RequestError::MissingList,
        RequestError::ForeignList,
        RequestError::BadTag,
        RequestError::BadList,
        RequestError::Scope,
        RequestError::NoAccount,
        RequestError::TooMany,
    ];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            RequestError::UnknownStream => "unknown_stream",
            RequestError::MissingTag => "missing_tag",
            RequestError::MissingList => "missing_list",
            RequestError::ForeignList => "foreign_list",
            RequestError::BadTag => "bad_tag",
            RequestError::BadList => "bad_list",
            RequestError::Scope => "scope",
            RequestError::NoAccount => "no_account",
            RequestError::TooMany => "too_many",
        }
    }

    /// The text in `{"error": …}`.
    pub fn text(self) -> &'static str {
        match self {
            RequestError::UnknownStream => "Unknown stream type",
            RequestError::MissingTag => "Missing tag name parameter",
            RequestError::MissingList => "Missing list name parameter",
            RequestError::ForeignList => "Not authorized to stream this list",
            RequestError::BadTag => "Invalid tag name parameter",
            RequestError::BadList => "Invalid list name parameter",
            RequestError::Scope => "Access token does not have the required scopes",
            RequestError::NoAccount => "This server runs without a database: public and hashtag streams only",
            RequestError::TooMany => "Too many subscriptions",
        }
    }

    /// The HTTP status, or `status` in a WebSocket's error message.
    pub fn status(self) -> u16 {
        match self {
            RequestError::ForeignList | RequestError::Scope | RequestError::NoAccount => 401,
            RequestError::TooMany => 429,
            _ => 400,
        }
    }
}

impl ClientMessage {
    /// Reads a text message. Never fails: what Node ignores is [`Ignored`](Self::Ignored).
    pub fn parse(text: &str) -> ClientMessage {
        let mut kind = None;
        let mut request = StreamRequest::default();
        let is_object = json::members(text, |name, token| match name {
            "type" => kind = json::text(token),
            "stream" => request.stream = stream_from_json(token),
            "tag" => request.tag = Given::from_json(token),
            "list" => request.list = Given::from_json(token),
            "allow_local_only" => request.allow_local_only = is_true_in_json(token),
            _ => {}
        });
        match kind.as_deref() {
            Some("subscribe") if is_object => ClientMessage::Subscribe(request),
            Some("unsubscribe") if is_object => ClientMessage::Unsubscribe(request),
            _ => ClientMessage::Ignored,
        }
    }
}

/// The stream's name; of an array, its first entry counts, if that is text.
fn stream_from_json(token: &str) -> Option<String> {
    if json::kind(token) != json::Kind::Array {
        return json::text(token).map(Cow::into_owned);
    }
    let mut first = None;
    json::elements(token, |entry| {
        first.get_or_insert(entry);
    });
    json::text(first?).map(Cow::into_owned)
}

fn is_true_in_json(token: &str) -> bool {
    json::is_truthy(token) && json::text(token).is_none_or(|text| is_true_text(&text))
}

/// Whether a parameter's text is a yes (`only_media`, `allow_local_only`).
pub fn is_true_text(text: &str) -> bool {
    !matches!(text, "" | "0" | "f" | "F" | "false" | "FALSE" | "off" | "OFF")
}

impl Given {
    fn from_json(token: &str) -> Given {
        if !json::is_truthy(token) {
            return Given::Missing;
        }
        match json::kind(token) {
            json::Kind::Text => Given::Text(json::text(token).unwrap_or_default().into_owned()),
            json::Kind::Number => Given::Number(number_text(token)),
            _ => Given::Wrong,
        }
    }

    fn from_query(value: &QueryValue<'_>) -> Given {
        match value {
            QueryValue::Once(text) if !text.is_empty() => Given::Text(text.to_string()),
            QueryValue::Missing | QueryValue::Once(_) => Given::Missing,
            QueryValue::Repeated(_) => Given::Wrong,
        }
    }

    /// The value as JSON, if that is not the string `normal`.
    fn spelling(&self, normal: &str) -> Option<Arc<Box<str>>> {
        let json = match self {
            Given::Text(text) if text == normal => return None,
            Given::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
            Given::Number(number) => number.clone(),
            Given::Missing | Given::Wrong => return None,
        };
        Some(Arc::new(json.into_boxed_str()))
    }

    /// The text, however it was given; `missing` or `bad` otherwise.
    fn text(&self, bytes_max: usize, missing: RequestError, bad: RequestError) -> Result<&str, RequestError> {
        match self {
            Given::Missing => Err(missing),
            Given::Text(text) | Given::Number(text) if text.len() <= bytes_max => Ok(text),
            _ => Err(bad),
        }
    }
}

/// A number as JavaScript prints it (`1.0` and `1e2` are ids too). What it would round, or print with an
/// exponent, stays as written.
fn number_text(token: &str) -> String {
    const PLAIN: std::ops::RangeInclusive<f64> = 1e-6..=9_007_199_254_740_991.0;
    match token.parse::<f64>() {
        Ok(number) if PLAIN.contains(&number.abs()) => number.to_string(),
        _ => token.to_owned(),
    }
}

impl StreamRequest {
    /// Reads `stream`, `tag`, `list` and `allow_local_only` from a query string (without `?`),
    /// percent-decoded.
    pub fn from_query(query: &str) -> StreamRequest {
        let (mut stream, mut tag, mut list) = (QueryValue::Missing, QueryValue::Missing, QueryValue::Missing);
        let mut allow_local_only = QueryValue::Missing;
        for pair in query.split('&').filter(|pair| !pair.is_empty()).take(QUERY_PAIRS_MAX) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match decode(name).as_ref() {
                "stream" => &mut stream,
                "tag" => &mut tag,
                "list" => &mut list,
                "allow_local_only" => &mut allow_local_only,
                _ => continue,
            };
            place.add(decode(value));
        }
        StreamRequest {
            stream: match stream {
                // Empty is as good as missing, unless it is the first of several.
                QueryValue::Once(name) if !name.is_empty() => Some(name.into_owned()),
                QueryValue::Repeated(first) => Some(first.into_owned()),
                QueryValue::Missing | QueryValue::Once(_) => None,
            },
            tag: Given::from_query(&tag),
            list: Given::from_query(&list),
            allow_local_only: allow_local_only.is_true(),
        }
    }

    /// The stream that is meant. `param_bytes_max` bounds tag and list; with `local_only_on_public`, `public` and
    /// `public:media` show local-only statuses to everybody, as in Hometown.
    pub fn resolve(
        &self,
        param_bytes_max: usize,
        local_only_on_public: bool,
    ) -> Result<Stream, RequestError> {
        let kind = self.kind().ok_or(RequestError::UnknownStream)?;
        let (param, spelling) = match kind {
            StreamKind::Hashtag | StreamKind::HashtagLocal => {
                let text = self.tag.text(param_bytes_max, RequestError::MissingTag, RequestError::BadTag)?;
                let tag = hashtag::normalise(text);
                // Compatibility forms come apart: a few bytes could become eleven times as many. And what Redis says
                // about a channel with a name too long is not understood: all that follows would be taken for answers
                // to something else.
                if tag.as_str().len() > param_bytes_max.min(TAG_BYTES_MAX) {
                    return Err(RequestError::BadTag);
                }
                let spelling = self.tag.spelling(tag.as_str());
                (Param::Tag(tag), spelling)
            }
            StreamKind::List => {
                let text =
                    self.list.text(param_bytes_max, RequestError::MissingList, RequestError::BadList)?;
                let id = list_id(text).ok_or(RequestError::ForeignList)?;
                (Param::List(id), self.list.spelling(&id.to_string()))
            }
            _ => (Param::None, None),
        };
        let allow_local_only = match kind {
            StreamKind::Public | StreamKind::PublicMedia => self.allow_local_only || local_only_on_public,
            StreamKind::PublicAllowLocalOnly | StreamKind::PublicAllowLocalOnlyMedia => true,
            _ => false,
        };
        Ok(Stream { kind, allow_local_only, param, spelling })
    }

    /// The same request without what cannot change its answer, so that one that waits takes little more than
    /// `param_bytes_max`, however long the message was.
    pub fn shortened(self, param_bytes_max: usize) -> StreamRequest {
        let kind = self.kind();
        let short = |given: Given, matters: bool| match given {
            Given::Text(text) | Given::Number(text) if matters && text.len() > param_bytes_max => {
                Given::Wrong
            }
            given if matters => given,
            _ => Given::Missing,
        };
        StreamRequest {
            stream: self.stream.filter(|_| kind.is_some()),
            tag: short(self.tag, matches!(kind, Some(StreamKind::Hashtag | StreamKind::HashtagLocal))),
            list: short(self.list, kind == Some(StreamKind::List)),
            allow_local_only: self.allow_local_only,
        }
    }

    /// The bytes of text that it holds.
    pub fn text_bytes(&self) -> usize {
        let given = |given: &Given| match given {
            Given::Text(text) | Given::Number(text) => text.len(),
            Given::Missing | Given::Wrong => 0,
        };
        self.stream.as_ref().map_or(0, String::len) + given(&self.tag) + given(&self.list)
    }

    /// The kind by its name alone, for the scope check that comes first.
    pub fn kind(&self) -> Option<StreamKind> {
        StreamKind::from_name(self.stream.as_deref()?)
    }
}

/// A normalised tag. Leaves room for what stands around it in its channel's name, `REDIS_NAMESPACE` included.
const TAG_BYTES_MAX: usize = CHANNEL_BYTES_MAX - 1024;

/// Node's `querystring` looks at no more pairs than this.
const QUERY_PAIRS_MAX: usize = 1000;

/// A query parameter's value: Node makes an array of a repeated one.
enum QueryValue<'a> {
    Missing,
    Once(Cow<'a, str>),
    Repeated(Cow<'a, str>),
}

impl<'a> QueryValue<'a> {
    fn add(&mut self, value: Cow<'a, str>) {
        *self = match std::mem::replace(self, QueryValue::Missing) {
            QueryValue::Missing => QueryValue::Once(value),
            QueryValue::Once(first) | QueryValue::Repeated(first) => QueryValue::Repeated(first),
        };
    }

    /// An array is true in JavaScript, whatever it holds.
    fn is_true(&self) -> bool {
        match self {
            QueryValue::Missing => false,
            QueryValue::Once(text) => is_true_text(text),
            QueryValue::Repeated(_) => true,
        }
    }
}

/// Percent-decoding as Node's `querystring` does it: `+` is a space, `%` without two hexadecimal digits stays,
/// what is not UTF-8 becomes U+FFFD.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned())
}

/// A list's id as PostgreSQL would take it: decimal digits, a positive `bigint`.
fn list_id(text: &str) -> Option<Id> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| (1..=i64::MAX as Id).contains(id))
}

/// How often a connection may ask for something: a token bucket in 8 bytes, full when new.
///
/// Holds what is owed rather than what is left, so that its zero is a full bucket of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Thousandths of a token.
    owed_milli: u32,
    /// Milliseconds of the caller's clock, modulo 2^32 (49 days).
    at_ms: u32,
}

const _: () = assert!(std::mem::size_of::<Bucket>() == 8);

impl Bucket {
    /// Takes tokens at `now` (any clock that does not go back), of `rate` a second and at most `burst` at
    /// once. False, and nothing taken, when there are not as many.
    pub fn take(&mut self, tokens: u32, now: Duration, rate: u32, burst: u32) -> bool {
        let owed_milli = self.owed_milli(now, rate) + 1000 * u64::from(tokens);
        if owed_milli > u64::from(burst) * 1000 {
            return false;
        }
        // Only a burst of millions exceeds the field; it is then capped, not wrapped.
        self.owed_milli = u32::try_from(owed_milli).unwrap_or(u32::MAX);
        self.at_ms = millis(now);
        true
    }

    /// Whether it is as good as a new one.
    pub fn is_full(&self, now: Duration, rate: u32) -> bool {
        self.owed_milli(now, rate) == 0
    }

    /// What is still owed at `now`, in thousandths.
    fn owed_milli(&self, now: Duration, rate: u32) -> u64 {
        // One who asks for nothing for 49 days would find the bucket less full than it should be.
        let elapsed_ms = millis(now).wrapping_sub(self.at_ms);
        // One a second is one thousandth a millisecond.
        u64::from(self.owed_milli).saturating_sub(u64::from(elapsed_ms) * u64::from(rate))
    }
}

#[cfg(test)]
mod tests;
