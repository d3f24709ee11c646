//! What a request asks for, and its answer.
//!
//! Stream paths are compared exactly: a trailing slash makes another path. The three fixed pages match as
//! they do in Mastodon's server, whatever their case and with or without a slash at the end. A WebSocket is
//! opened on any path.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::connection::Visit;
use super::errors::Refusal;
use super::handover::{Asked, Handover};
use super::headers::{self, Handshake, RequestId};
use super::trace::{Part, Trace};
use super::{Door, PageBody, PageRequest, Socket, auth};
use crate::core::event::Transport;
use crate::core::session::StreamRequest;
use crate::core::stream::StreamKind;
use crate::proto::ws::encode::text_header;

const ALLOWED: &str = "GET, HEAD, OPTIONS";
/// What the listener without streams says on a path that it does not know.
const ADMIN_PATHS: &str = "Not found. Here are /metrics, /ready and /status; streams are on the main port.\n";
const NO_STORE: HeaderValue = HeaderValue::from_static("private, no-store");

/// Answers a request. Does not return where the connection becomes a client: it leaves the handover in
/// `visit` then.
pub(crate) async fn answer<S: Socket>(
    door: &Door<S>,
    visit: &Arc<Visit<S>>,
    mut request: Request<Incoming>,
) -> Response<PageBody> {
    door.counters.requests.fetch_add(1, Ordering::Relaxed);
    // A body with bytes is never read, so the next request cannot be found: the connection ends. It also ends after an
    // empty body in chunks, since a proxy may have taken something else for that body.
    let may_stay =
        request.body().is_end_stream() && headers::keeps_alive(request.version(), request.headers());
    let content = if opens_stream(door, &request) {
        visit.unfinished(content(request.body_mut())).await
    } else if request.body().is_end_stream() {
        Content::None
    } else {
        Content::Bytes
    };
    let _busy = visit.begin();
    let id = RequestId::new();
    tracing::debug!(
        request = id.as_str(),
        method = shown(request.method().as_str()),
        path = shown(request.uri().path()),
        "request"
    );
    let mut response = if !headers::has_host(request.version(), request.headers()) {
        refused(door, &id, Refusal::HOST).json(&id, ALLOWED).map(PageBody::from)
    } else if request.method() == Method::OPTIONS {
        headers::preflight(request.headers()).map(PageBody::from)
    } else if !door.streams {
        match page(door, visit, &request).await {
            Some(page) => page.map(|body| visit.watch(body)),
            None => text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", ADMIN_PATHS),
        }
    } else if headers::is_websocket(request.headers()) {
        // The client expects a WebSocket's answer, not a web page's: without CORS headers and body.
        let trace = Trace::begin(door, visit.peer, &id, &request, true);
        let refusal = refused(door, &id, open_websocket(door, visit, &id, &request, content, &trace).await);
        trace.refuse(&refusal);
        return refusal.upgrade(&id).map(PageBody::from);
    } else if let Some(kind) = stream_kind(request.uri().path(), request.uri().query().unwrap_or_default()) {
        let trace = Trace::begin(door, visit.peer, &id, &request, false);
        match stream(door, visit, &id, &request, content, kind, &trace).await {
            Ok(response) => {
                trace.answer(response.status().as_u16());
                response
            }
            Err(refusal) => {
                trace.refuse(&refusal);
                refused(door, &id, refusal).json(&id, ALLOWED)
            }
        }
        .map(PageBody::from)
    } else {
        match page(door, visit, &request).await {
            Some(page) => page.map(|body| visit.watch(body)),
            None => refused(door, &id, Refusal::UNKNOWN_CHANNEL).json(&id, ALLOWED).map(PageBody::from),
        }
    };
    let stays = may_stay && !door.is_full.load(Ordering::Relaxed);
    headers::complete(&mut response, &id, stays.then_some(door.limits.keep_alive));
    response
}

/// What is known of a request's body.
#[derive(Clone, Copy)]
enum Content {
    /// It has no byte.
    None,
    /// It has bytes, or nothing depends on whether it has.
    Bytes,
    /// It is not in chunks as its head says.
    Invalid,
}

impl Content {
    fn must_be_none(self) -> Result<(), Refusal> {
        match self {
            Content::None => Ok(()),
            Content::Bytes => Err(Refusal::BODY),
            Content::Invalid => Err(Refusal::CHUNKS),
        }
    }
}

/// Whether a request's answer depends on its body: on whether that is empty.
fn opens_stream<S>(door: &Door<S>, request: &Request<Incoming>) -> bool {
    let uri = request.uri();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && door.streams
        && (headers::is_websocket(request.headers())
            || stream_kind(uri.path(), uri.query().unwrap_or_default()).is_some())
}

/// Reads an empty body to its end. A proxy sends such a body, in chunks, where it passes a request on before it
/// knows that nothing follows: HAProxy and Caddy for HTTP/2, nginx without buffering. Chunk extensions and
/// trailers are skipped; hyper bounds each of them to 16 KiB.
async fn content(body: &mut Incoming) -> Content {
    match body.size_hint().exact() {
        Some(0) => return Content::None,
        // Reading could ask for the bytes, by a 100 Continue.
        Some(_) => return Content::Bytes,
        None => {}
    }
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Content::None,
            Some(Ok(frame)) if frame.data_ref().is_some_and(|bytes| !bytes.is_empty()) => {
                return Content::Bytes;
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => return Content::Invalid,
        }
    }
}

/// What of a request line may stand in the log: words as the known paths and methods have them. A confused
/// client may have put its token anywhere; none is without digits and mixed case.
pub(super) fn shown(text: &str) -> &str {
    let plain = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'/' | b'_');
    let is_plain = text.bytes().all(plain) || text.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_plain && text.len() <= 64 { text } else { "(not shown)" }
}

fn refused<S: Socket>(door: &Door<S>, id: &RequestId, refusal: Refusal) -> Refusal {
    door.counters.count(refusal.reason);
    tracing::debug!(
        request = id.as_str(),
        status = refusal.status,
        reason = refusal.reason.label(),
        "refused"
    );
    refusal
}

/// The stream of that path, if it is one.
fn stream_kind(path: &str, query: &str) -> Option<StreamKind> {
    let media = |with: StreamKind, without: StreamKind| {
        if auth::is_true(query, "only_media") { with } else { without }
    };
    Some(match path.strip_prefix("/api/v1/streaming/")? {
        "user" => StreamKind::User,
        "user/notification" => StreamKind::UserNotification,
        "public" => media(StreamKind::PublicMedia, StreamKind::Public),
        "public/local" => media(StreamKind::PublicLocalMedia, StreamKind::PublicLocal),
        "public/remote" => media(StreamKind::PublicRemoteMedia, StreamKind::PublicRemote),
        "hashtag" => StreamKind::Hashtag,
        "hashtag/local" => StreamKind::HashtagLocal,
        "list" => StreamKind::List,
        "direct" => StreamKind::Direct,
        _ => return None,
    })
}

/// A request on a stream's path. Returns what is not a stream in the end.
async fn stream<S: Socket>(
    door: &Door<S>,
    visit: &Visit<S>,
    id: &RequestId,
    request: &Request<Incoming>,
    content: Content,
    kind: StreamKind,
    trace: &Trace,
) -> Result<Response<Bytes>, Refusal> {
    let method = request.method();
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::METHOD);
    }
    content.must_be_none()?;
    let query = request.uri().query().unwrap_or_default();
    let asked = Asked { id, peer: visit.peer, headers: request.headers(), query, trace };
    let opened = door.in_time(async {
        let admitted = door.admit(&asked).await?;
        let named =
            StreamRequest { stream: Some(kind.name().to_owned()), ..StreamRequest::from_query(query) };
        trace.enter(Part::Stream);
        trace.stream(kind);
        let stream = door.stream(&named, admitted.viewer()).await?;
        if method == Method::HEAD {
            return Ok(None);
        }
        let version = request.version();
        let transport = if version == Version::HTTP_11 { Transport::SseChunked } else { Transport::SsePlain };
        let keep_alive = headers::keeps_alive(version, request.headers()).then_some(door.limits.keep_alive);
        let head = headers::event_stream(id, version, keep_alive);
        door.hand_over(&asked, admitted, Some(stream), transport, head).await.map(Some)
    });
    match opened.await? {
        Some(handover) => wait_to_be_taken(visit, handover).await,
        None => Ok(event_stream_head()),
    }
}

/// The answer to HEAD on a stream's path: the head that GET would get, but for Transfer-Encoding, which
/// hyper leaves out where no body follows.
fn event_stream_head() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}

/// Opens a WebSocket; returns only why it was not opened. A stream in the query that cannot be had is an
/// error message on the open WebSocket.
async fn open_websocket<S: Socket>(
    door: &Door<S>,
    visit: &Visit<S>,
    id: &RequestId,
    request: &Request<Incoming>,
    content: Content,
    trace: &Trace,
) -> Refusal {
    if let Err(refusal) = content.must_be_none() {
        return refusal;
    }
    let query = request.uri().query().unwrap_or_default();
    let asked = Asked { id, peer: visit.peer, headers: request.headers(), query, trace };
    let opened = door.in_time(async {
        let admitted = door.admit(&asked).await?;
        let handshake = Handshake::read(request.method(), request.headers())?;
        let mut head = handshake.head(id);
        let wanted = StreamRequest::from_query(query);
        let stream = if wanted.stream.as_deref().unwrap_or_default().is_empty() {
            None
        } else {
            trace.enter(Part::Stream);
            match door.stream(&wanted, admitted.viewer()).await {
                Ok(stream) => {
                    trace.stream(stream.kind);
                    Some(stream)
                }
                Err(refusal) => {
                    let refusal = refused(door, id, refusal);
                    let frame = refusal.frame();
                    head.extend_from_slice(&text_header(frame.len()));
                    head.extend_from_slice(&frame);
                    None
                }
            }
        };
        door.hand_over(&asked, admitted, stream, Transport::WebSocket, head.into()).await
    });
    match opened.await {
        Ok(handover) => wait_to_be_taken(visit, handover).await,
        Err(refusal) => refusal,
    }
}

/// Leaves the client for the connection's task, which drops this future when it takes the socket.
async fn wait_to_be_taken<S, T>(visit: &Visit<S>, handover: Handover<S>) -> T {
    visit.leave(handover);
    std::future::pending().await
}

/// What is neither a stream nor a WebSocket.
async fn page<S: Socket>(
    door: &Door<S>,
    visit: &Visit<S>,
    request: &Request<Incoming>,
) -> Option<Response<PageBody>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return None;
    }
    let path = request.uri().path();
    if is_page(path, "/api/v1/streaming/health") {
        return Some(text(StatusCode::OK, "text/plain", "OK"));
    }
    if is_page(path, "/favicon.ico") {
        let mut response = Response::new(PageBody::Full(None));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Some(response);
    }
    if let Some(demo) = door.pages.demo.as_ref().filter(|_| path == "/") {
        let mut page = text(StatusCode::OK, "text/html; charset=utf-8", demo.html.clone());
        let policy = HeaderValue::from_static(demo.security_policy);
        page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        return Some(page);
    }
    let made = door.pages.source.as_ref()?(&PageRequest {
        path: if is_page(path, "/metrics") { "/metrics" } else { path },
        query: request.uri().query().unwrap_or_default(),
        accept: request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()),
        peer: visit.peer,
        forwarded: headers::is_forwarded(request.headers()),
    })?;
    Some(made.await)
}

/// Whether a path names a fixed page, as Express compares it.
fn is_page(path: &str, page: &str) -> bool {
    path.strip_suffix('/').unwrap_or(path).eq_ignore_ascii_case(page)
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<PageBody> {
    let mut response = Response::new(PageBody::from(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}
