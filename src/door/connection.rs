//! One connection at the door: hyper drives it until it ends or its socket is taken.
//!
//! The service's future stays pending when a stream is to be handed over: it leaves a [`Handover`] in the
//! [`Visit`] that it shares with the task driving the connection. That task takes hyper apart once every
//! earlier response has been written.
//!
//! hyper runs in half-close mode, so that it answers a client that has already ended its half, and because
//! its own watch for a client that leaves stops when bytes are read ahead. The task watches instead: the
//! kernel's notice that the peer ended its half, which needs no reading. While a request waits for its
//! stream, that counts as left, and dropping the task releases everything the request holds.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;

use super::handover::Handover;
use super::headers::{self, Peer};
use super::listen::{Place, WaitingRoom};
use super::{Door, PageBody, Reason, Socket, routes};
use crate::limits::{HEADER_LINES_MAX, KEEP_ALIVE_GRACE, LINGER_BYTES_MAX, Limits};

/// What the service's future and the connection's task share.
pub(crate) struct Visit<S> {
    pub(crate) peer: Peer,
    /// A request is being answered.
    busy: AtomicBool,
    /// Requests so far.
    requests: AtomicU64,
    /// A page is being sent that has no end of its own.
    live: AtomicBool,
    /// A request's head was read, the end of its body was not.
    unfinished: AtomicBool,
    handover: Mutex<Option<Box<Handover<S>>>>,
}

impl<S> Visit<S> {
    /// A request begins; it is over when the guard is dropped.
    pub(crate) fn begin(&self) -> Busy<'_> {
        self.busy.store(true, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy(&self.busy)
    }

    /// Waits for the end of a request's body. That is part of reading the request: the time for its head goes on,
    /// and the connection may be evicted.
    pub(crate) async fn unfinished<T>(&self, rest: impl Future<Output = T>) -> T {
        self.unfinished.store(true, Ordering::Relaxed);
        let result = rest.await;
        self.unfinished.store(false, Ordering::Relaxed);
        result
    }

    /// Notes for how long a page without an end is being sent: its connection is not idle.
    pub(crate) fn watch(self: &Arc<Self>, body: PageBody) -> PageBody
    where
        S: Send + 'static,
    {
        let PageBody::Live(mut next) = body else { return body };
        self.live.store(true, Ordering::Relaxed);
        let ended = Ended(Arc::clone(self));
        PageBody::Live(Box::new(move |context| {
            let Ended(_) = &ended;
            next(context)
        }))
    }

    /// Leaves a client to be sent on. The request's future must stay pending from now on.
    pub(crate) fn leave(&self, handover: Handover<S>) {
        *self.handover.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handover));
    }

    fn take(&self) -> Option<Box<Handover<S>>> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

pub(crate) struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Ended<S>(Arc<Visit<S>>);

impl<S> Drop for Ended<S> {
    fn drop(&mut self) {
        self.0.live.store(false, Ordering::Relaxed);
    }
}

/// What a connection without a request under way is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The rest of a request's head, or the end of its body, or the first head.
    Head,
    /// Another request.
    Another,
}

/// Bounds the time between requests: each wait has its own, which begins when it does.
struct Patience {
    /// Requests and reads at the last look.
    requests: u64,
    reads: u64,
    wait: Option<(Awaited, Pin<Box<Sleep>>)>,
}

impl Patience {
    fn new() -> Patience {
        Patience { requests: 0, reads: 0, wait: None }
    }

    /// Something else is going on.
    fn stop(&mut self) {
        self.wait = None;
    }

    /// Ready when what is awaited has not come in time. To be called after each look at the connection.
    fn poll<S>(
        &mut self,
        visit: &Visit<S>,
        reads: u64,
        limits: &Limits,
        cx: &mut Context<'_>,
    ) -> Poll<Awaited> {
        let requests = visit.requests.load(Ordering::Relaxed);
        let unfinished = visit.unfinished.load(Ordering::Relaxed);
        if requests != self.requests {
            // What was read belongs to the requests; a head that began behind them gets the shorter time.
            (self.requests, self.reads) = (requests, reads);
            self.wait = None;
        }
        let awaited =
            if unfinished || requests == 0 || reads != self.reads { Awaited::Head } else { Awaited::Another };
        if self.wait.as_ref().is_none_or(|wait| wait.0 != awaited) {
            let time = match awaited {
                Awaited::Head => limits.request_head_timeout,
                Awaited::Another => limits.keep_alive + KEEP_ALIVE_GRACE,
            };
            self.wait = Some((awaited, Box::pin(tokio::time::sleep(time))));
        }
        match &mut self.wait {
            Some((awaited, sleep)) => sleep.as_mut().poll(cx).map(|()| *awaited),
            None => Poll::Pending,
        }
    }
}

/// How a connection's time at the door ends.
enum End<S> {
    /// hyper is done with it.
    Closed(hyper::Result<()>),
    /// Its socket goes to a reactor.
    Taken(Box<Handover<S>>),
    /// The client left while its request waited.
    Left,
    /// It made room for a newer one.
    Evicted,
    /// It does not read its response.
    Stalled,
    /// What it was waited for did not come in time.
    Late(Awaited),
}

/// Drives a connection until it ends or goes to a reactor.
pub(crate) async fn serve<S: Socket>(
    door: Arc<Door<S>>,
    stream: Stream,
    peer: Peer,
    waiting_room: Arc<WaitingRoom>,
    entered: Place,
) {
    let pipe = Arc::new(Pipe { stream, blocked: AtomicBool::new(false), reads: AtomicU64::new(0) });
    let visit = Arc::new(Visit {
        peer,
        busy: AtomicBool::new(false),
        requests: AtomicU64::new(0),
        live: AtomicBool::new(false),
        unfinished: AtomicBool::new(false),
        handover: Mutex::new(None),
    });
    let service = service_fn(|mut request| {
        headers::reduce(request.headers_mut());
        let (door, visit) = (Arc::clone(&door), Arc::clone(&visit));
        Box::pin(async move { Ok::<_, Infallible>(routes::answer(&door, &visit, request).await) })
            as ResponseFuture
    });
    let mut http = http(&door.limits).serve_connection(TokioIo::new(Io(Arc::clone(&pipe))), service);
    let end = {
        let evict = entered.evict();
        let mut evicted = pin!(evict.notified());
        let mut left = pin!(pipe.stream.left());
        let mut place = Some(entered);
        let mut stall: Option<Pin<Box<Sleep>>> = None;
        let mut patience = Patience::new();
        poll_fn(|cx| {
            if let Poll::Ready(result) = http.poll_without_shutdown(cx) {
                return Poll::Ready(End::Closed(result));
            }
            let blocked = pipe.blocked.load(Ordering::Relaxed);
            if blocked {
                let stall =
                    stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(door.limits.door_timeout)));
                if stall.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(End::Stalled);
                }
            } else {
                stall = None;
                if let Some(handover) = visit.take() {
                    return Poll::Ready(End::Taken(handover));
                }
            }
            if visit.is_busy() {
                place = None;
                patience.stop();
                left.as_mut().poll(cx).map(|()| End::Left)
            } else {
                if blocked || visit.live.load(Ordering::Relaxed) {
                    patience.stop();
                } else {
                    let reads = pipe.reads.load(Ordering::Relaxed);
                    if let Poll::Ready(awaited) = patience.poll(&visit, reads, &door.limits, cx) {
                        return Poll::Ready(End::Late(awaited));
                    }
                }
                place.get_or_insert_with(|| waiting_room.enter(&evict));
                evicted.as_mut().poll(cx).map(|()| End::Evicted)
            }
        })
        .await
    };
    match end {
        End::Taken(handover) => {
            let read_ahead = http.into_parts().read_buf;
            // hyper's halves of the socket went with its parts.
            let Some(pipe) = Arc::into_inner(pipe) else { return };
            match pipe.stream.into_socket() {
                Ok(socket) => door.send_on(*handover, socket, read_ahead),
                Err(error) => tracing::debug!(%error, "a socket could not be handed over"),
            }
        }
        End::Closed(Ok(())) => {
            drop(http);
            pipe.stream.finish(door.limits.close_flush).await;
        }
        End::Closed(Err(error)) => {
            tracing::debug!(%error, ?peer, "connection ended");
            drop(http);
            if error.is_parse() {
                let too_large = error.is_parse_too_large();
                door.counters.count(if too_large { Reason::HeadSize } else { Reason::Malformed });
                pipe.stream.finish(door.limits.close_flush).await;
            }
        }
        End::Late(awaited) => {
            tracing::debug!(?peer, "no request came in time");
            let unfinished = visit.unfinished.load(Ordering::Relaxed);
            let began = unfinished || !http.into_parts().read_buf.is_empty();
            if began {
                let _ = pipe.stream.try_write(REQUEST_TIMEOUT);
            }
            if began || awaited == Awaited::Head {
                door.counters.count(Reason::HeadTime);
            }
            pipe.stream.finish(door.limits.close_flush).await;
        }
        End::Left => {
            door.counters.left.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(?peer, "left before its stream began");
        }
        End::Evicted => {
            door.counters.count(Reason::Evicted);
            tracing::debug!(?peer, "closed unidentified, to make room");
            pipe.stream.reset();
        }
        End::Stalled => {
            tracing::debug!(?peer, "does not read its response");
            pipe.stream.reset();
        }
    }
}

const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<PageBody>, Infallible>> + Send>>;

fn http(limits: &Limits) -> http1::Builder {
    /// The least that hyper takes.
    const BUFFER_MIN: usize = 8192;
    let mut http = http1::Builder::new();
    http.half_close(WATCHES_ITSELF)
        .title_case_headers(true)
        // Its own clock runs while a connection is idle, too.
        .header_read_timeout(None)
        .max_headers(HEADER_LINES_MAX)
        .max_header_size(limits.request_head_bytes_max)
        .max_buf_size(limits.request_head_bytes_max.max(BUFFER_MIN));
    http
}

/// A client's connection, as the listener accepted it.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! on_either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

/// Elsewhere the kernel's notice cannot be had without reading, so hyper watches.
const WATCHES_ITSELF: bool = cfg!(any(target_os = "linux", target_os = "android"));

impl Stream {
    fn into_socket<S: Socket>(self) -> io::Result<S> {
        Ok(match self {
            Stream::Tcp(stream) => stream.into_std()?.into(),
            Stream::Unix(stream) => stream.into_std()?.into(),
        })
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        on_either!(self, stream => stream.try_write(bytes))
    }

    /// Ready when the peer has ended its half, or the connection is broken. Reads nothing.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn left(&self) {
        // Of what this interest stands for only the peer's end is ever reported: sockets are not registered
        // for priority data.
        match on_either!(self, stream => stream.ready(Interest::PRIORITY).await) {
            Ok(ready) if !ready.is_read_closed() => std::future::pending().await,
            Ok(_) | Err(_) => {}
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    async fn left(&self) {
        std::future::pending().await
    }

    /// Makes the close that follows a reset: what the peer did not read does not linger in the kernel.
    fn reset(&self) {
        let linger = Some(Duration::ZERO);
        let _ = on_either!(self, stream => socket2::SockRef::from(stream).set_linger(linger));
    }

    /// Ends our half and reads what still comes, bounded, so that the last response is not lost to a reset.
    async fn finish(&self, time_max: Duration) {
        let shut = on_either!(self, stream => {
            socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
        });
        if shut.is_err() {
            return;
        }
        let drain = async {
            let mut rest = [0; 4096];
            let mut taken = 0;
            while taken < LINGER_BYTES_MAX {
                match on_either!(self, stream => stream.try_read(&mut rest)) {
                    Ok(0) => break,
                    Ok(read) => taken += read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if on_either!(self, stream => stream.ready(Interest::READABLE).await).is_err() {
                            break;
                        }
                    }
                    Err(_) => break,
                }
            }
        };
        let _ = tokio::time::timeout(time_max, drain).await;
    }
}

/// A stream that knows whether all that hyper wrote is out.
struct Pipe {
    stream: Stream,
    /// hyper has bytes that the socket did not take. hyper flushes after every write, and passes the flush on
    /// only with nothing left.
    blocked: AtomicBool,
    /// Reads that gave bytes.
    reads: AtomicU64,
}

/// hyper's hold on a [`Pipe`].
struct Io(Arc<Pipe>);

impl Io {
    fn write(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&Stream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = on_either!(&self.0.stream, stream => stream.poll_write_ready(cx));
            self.0.blocked.store(ready.is_pending(), Ordering::Relaxed);
            ready!(ready)?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(on_either!(&self.0.stream, stream => stream.poll_read_ready(cx)))?;
            match on_either!(&self.0.stream, stream => stream.try_read(buf.initialize_unfilled())) {
                Ok(read) => {
                    if read > 0 {
                        self.0.reads.fetch_add(1, Ordering::Relaxed);
                    }
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| on_either!(stream, stream => stream.try_write_vectored(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.blocked.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The task that drives the connection ends it.
        Poll::Ready(Ok(()))
    }
}
