//! What heads carry: request ids, the heads written by hand for the reactor, the WebSocket handshake
//! (RFC 6455, 4.2), CORS, and the address that a request came from.
//!
//! Invariant: whatever of a request comes back in a head (the subprotocol, the requested header names) was a
//! `HeaderValue` before, so it holds no line end.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::SameOrigin;
use bytes::Bytes;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, VARY, VIA,
};
use hyper::{Method, Response, StatusCode, Version};
use uuid::Uuid;

use super::errors::Refusal;
use crate::limits::WAITING_HEADERS_MAX;
use crate::proto::{sse, ws::handshake};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Names a response in logs and for its client: a fresh UUID v4 each time; an incoming one is not used.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn new() -> RequestId {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::new_v4().hyphenated().encode_lower(&mut text);
        RequestId(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("")))
    }

    pub(crate) fn value(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A TCP peer's address.
    Tcp(IpAddr),
    /// A peer on the unix socket: on this machine, and taken for a trusted proxy.
    Unix,
}

impl Peer {
    /// Whether the connection comes from this machine.
    pub fn is_local(self) -> bool {
        match self {
            Peer::Tcp(address) => address.to_canonical().is_loopback(),
            Peer::Unix => true,
        }
    }
}

/// Whether an address is a proxy whose `X-Forwarded-For` is believed (`TRUSTED_PROXY_IP`).
pub type TrustedProxies = std::sync::Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The client's address as trusted proxies report it: the last forwarded address that is not itself a
/// trusted proxy. None for a unix peer that reports nothing.
pub(crate) fn client_address(peer: Peer, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
    let mut nearest = match peer {
        Peer::Tcp(address) => {
            let address = address.to_canonical();
            if !trusted(address) {
                return Some(address);
            }
            Some(address)
        }
        Peer::Unix => None,
    };
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        // Bytes: what the client put before the proxies' addresses may be anything.
        for entry in value.as_bytes().rsplit(|&byte| byte == b',') {
            let Some(address) = forwarded_address(entry) else { return nearest };
            nearest = Some(address);
            if !trusted(address) {
                return nearest;
            }
        }
    }
    nearest
}

/// An entry of `X-Forwarded-For`; some proxies add the port.
fn forwarded_address(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = match entry.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => match entry.parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip(),
            Err(_) => entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?,
        },
    };
    Some(address.to_canonical())
}

/// Headers that proxies add, besides all that begin with `x-forwarded-`.
const FORWARDED: [&str; 6] =
    ["cf-connecting-ip", "forwarded", "true-client-ip", "via", "x-client-ip", "x-real-ip"];

/// Whether a proxy says that it passes somebody else's request on: the request does not count as a direct one.
pub(crate) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        name.starts_with("x-forwarded-") || FORWARDED.contains(&name)
    })
}

/// Headers of which at most two values are looked at: the first, and whether there is a second one.
const SINGLE: [HeaderName; 10] = [
    HOST,
    UPGRADE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
    AUTHORIZATION,
    ACCEPT,
    ACCESS_CONTROL_REQUEST_HEADERS,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Headers whose lines are one list (RFC 9110, 5.3).
const LISTS: [HeaderName; 2] = [CONNECTION, X_FORWARDED_FOR];

/// Removes of a request with very many headers those that this server never reads, before it waits for anything:
/// hyper's table of 2,000 headers takes 300 KiB.
pub(crate) fn reduce(headers: &mut HeaderMap) {
    if headers.len() <= WAITING_HEADERS_MAX {
        return;
    }
    let all = std::mem::take(headers);
    for name in SINGLE {
        for value in all.get_all(&name).iter().take(2) {
            headers.append(&name, value.clone());
        }
    }
    for name in LISTS {
        let lines: Vec<&[u8]> = all.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        // Header values joined by commas are one.
        if let Some(list) =
            (!lines.is_empty()).then(|| HeaderValue::from_bytes(&lines.join(&b',')).ok()).flatten()
        {
            headers.insert(name, list);
        }
    }
    if is_forwarded(&all) && !is_forwarded(headers) {
        headers.insert(VIA, HeaderValue::from_static(""));
    }
}

/// Whether a request names its host exactly once, as HTTP/1.1 demands (RFC 9112, 3.2).
pub(crate) fn has_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => false,
        (Some(_), None) => true,
        (None, None) => version != Version::HTTP_11,
    }
}

/// Whether the connection stays open after this request's response.
pub(crate) fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11 && !has_token(headers, &CONNECTION, "close")
}

/// The answer to a CORS preflight, the same for any path: as Mastodon's server (the `cors` package) gives it.
pub(crate) fn preflight(request: &HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET,HEAD,PUT,PATCH,POST,DELETE"));
    headers.insert(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    if let Some(wanted) = request.get(ACCESS_CONTROL_REQUEST_HEADERS).filter(|wanted| !wanted.is_empty()) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

/// Whether this asks for a WebSocket, in HTTP/1.0 too: nginx speaks that to its upstreams unless configured
/// otherwise, and Mastodon's server does not look at the version either (RFC 9110, 7.8 would ignore it). Any
/// other upgrade (curl's h2c) is ignored, as HTTP allows.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade")
        && headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// A valid WebSocket handshake: what of it comes back in the 101.
#[derive(Debug)]
pub(crate) struct Handshake {
    accept: String,
    /// The first subprotocol offered; browsers fail a connection that offered some and got none.
    protocol: Option<HeaderValue>,
}

impl Handshake {
    /// Checks RFC 6455, 4.2.1. Versions 8 and 13 differ in nothing that a server sees.
    pub(crate) fn read(method: &Method, headers: &HeaderMap) -> Result<Handshake, Refusal> {
        if method != Method::GET {
            return Err(Refusal::METHOD);
        }
        match headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) {
            Some(b"13" | b"8") => {}
            _ => return Err(Refusal::BAD_VERSION),
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
        let key = key.filter(|key| handshake::is_key(key)).ok_or(Refusal::NO_KEY)?;
        let protocol = match headers.get(SEC_WEBSOCKET_PROTOCOL) {
            None => None,
            Some(value) => {
                let first = value.as_bytes().split(|&byte| byte == b',').next().unwrap_or_default();
                let first = first.trim_ascii();
                if first.is_empty() || !first.iter().copied().all(is_token_byte) {
                    return Err(Refusal::BAD_PROTOCOL);
                }
                Some(HeaderValue::from_bytes(first).map_err(|_| Refusal::BAD_PROTOCOL)?)
            }
        };
        Ok(Handshake { accept: handshake::accept_key(key), protocol })
    }

    /// The head of the 101, complete.
    pub(crate) fn head(&self, id: &RequestId) -> Vec<u8> {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        );
        write_header(&mut head, "Sec-WebSocket-Accept", self.accept.as_bytes());
        if let Some(protocol) = &self.protocol {
            write_header(&mut head, "Sec-WebSocket-Protocol", protocol.as_bytes());
        }
        write_header(&mut head, "X-Request-Id", id.0.as_bytes());
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// The head of an event stream's response and the greeting `:)`, for a client of that HTTP version. An
/// HTTP/1.0 client gets no chunks: the end is the end of the connection.
pub(crate) fn event_stream(id: &RequestId, version: Version, keep_alive: Option<Duration>) -> Bytes {
    let mut head = Vec::with_capacity(384);
    head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    write_header(&mut head, "X-Request-Id", id.0.as_bytes());
    write_header(&mut head, "Access-Control-Allow-Origin", b"*");
    write_header(&mut head, "Content-Type", b"text/event-stream");
    write_header(&mut head, "Cache-Control", b"private, no-store");
    write_header(&mut head, "Date", httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    if let Some(time) = keep_alive {
        write_header(&mut head, "Connection", b"keep-alive");
        write_header(&mut head, "Keep-Alive", timeout(time).as_bytes());
    } else {
        write_header(&mut head, "Connection", b"close");
    }
    if version == Version::HTTP_11 {
        write_header(&mut head, "Transfer-Encoding", b"chunked");
        head.extend_from_slice(b"\r\n");
        sse::chunk(&mut head, sse::GREETING);
    } else {
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(sse::GREETING);
    }
    head.into()
}

/// All of a response as HTTP/1.1, its head and body.
pub(crate) fn write(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let mut out = Vec::with_capacity(384);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        write_header(&mut out, &title_case(name), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(response.body());
    out
}

fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn title_case(name: &HeaderName) -> String {
    let mut at_start = true;
    name.as_str()
        .chars()
        .map(|letter| {
            let shown = if at_start { letter.to_ascii_uppercase() } else { letter };
            at_start = letter == '-';
            shown
        })
        .collect()
}

/// Whether a list-valued header has that entry, whatever its case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|entry| entry.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// RFC 9110, 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What clients are told about an idle connection, in whole seconds.
fn timeout(keep_alive: Duration) -> String {
    format!("timeout={}", keep_alive.as_secs())
}

/// Adds what every plain response carries. `keep_alive` is how long the connection may stay idle after it;
/// none where it is closed.
pub(crate) fn complete<B>(response: &mut Response<B>, id: &RequestId, keep_alive: Option<Duration>) {
    let same_origin = response.extensions().get::<SameOrigin>().is_some();
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.value());
    if !same_origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    match keep_alive {
        Some(time) if !headers.contains_key(CONNECTION) => {
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
            if let Ok(value) = HeaderValue::from_str(&timeout(time)) {
                headers.insert(KEEP_ALIVE, value);
            }
        }
        Some(_) => {}
        None => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

#[cfg(test)]
mod tests;
