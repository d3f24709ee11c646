//! The way to the receiver: one HTTP request a batch, over hyper as the door uses it, with TLS as Redis has it. All
//! of it on the batch processor's own thread.
//!
//! Bounds: a request takes at most the batch's time; a response's body is read up to [`BODY_BYTES_MAX`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::config::variables as v;
use crate::config::{RootCerts, Tls, Traces};
use crate::net;
use crate::tls::{self, Names, Verify};

/// More is no answer to spans.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What names the files that TLS needs.
pub(crate) const NAMES: Names = Names {
    roots: v::OTEL_EXPORTER_OTLP_CERTIFICATE.name,
    cert: v::OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE.name,
    key: v::OTEL_EXPORTER_OTLP_CLIENT_KEY.name,
};

/// Where that is, for the log: paths and queries may hold keys.
pub(super) fn place(endpoint: &Uri) -> String {
    let (scheme, authority) = (endpoint.scheme_str().unwrap_or_default(), endpoint.authority());
    format!("{scheme}://{}", authority.map_or("", |authority| authority.as_str()))
}

/// Why the last request failed; the SDK's own errors do not say.
pub(super) type Causes = Arc<Mutex<Option<String>>>;

/// Sends requests, one connection each, and waits for the answer.
pub(super) struct Client {
    runtime: Runtime,
    tls: Option<tls::Client>,
    timeout: Duration,
    causes: Causes,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    pub(super) fn new(traces: &Traces, tls: &Tls) -> Result<Client, String> {
        let tls = (traces.endpoint.scheme_str() == Some("https"))
            .then(|| {
                let verify = if tls.verify || traces.roots != RootCerts::Default {
                    Verify::ChainAndName
                } else {
                    Verify::Nothing
                };
                tls::Client::new(verify, &traces.roots, tls, traces.client.as_ref(), &NAMES)
            })
            .transpose()
            .map_err(|error| format!("traces: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start the runtime of traces: {error}"))?;
        Ok(Client { runtime, tls, timeout: traces.timeout, causes: Causes::default() })
    }

    pub(super) fn causes(&self) -> Causes {
        Arc::clone(&self.causes)
    }

    /// Must not be called within a runtime.
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.runtime.block_on(async {
            let answer = tokio::time::timeout(self.timeout, self.exchange(request));
            answer.await.unwrap_or_else(|_| Err("no answer in time".into()))
        });
        *self.causes.lock().unwrap_or_else(PoisonError::into_inner) = fault(&result);
        result
    }

    /// Sends the receiver a request without any spans; says what is wrong with the answer, and what to do.
    pub(super) fn probe(&self, traces: &Traces) -> Result<(), String> {
        let mut request =
            Request::post(traces.endpoint.clone()).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &traces.headers {
            request = request.header(name, value.expose());
        }
        // Nothing at all is a message of that kind with nothing in it.
        let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
        fault(&self.send(request)).map_or(Ok(()), Err)
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = net::connect(bare, port, self.timeout).await.map_err(net::Failure::into_io)?;
        match &self.tls {
            None => talk(stream, request, &uri).await,
            Some(client) => {
                let connector = TlsConnector::from(client.config());
                talk(connector.connect(client.server_name(bare)?, stream).await?, request, &uri).await
            }
        }
    }
}

/// What went wrong and what to do about it, if anything did.
fn fault(result: &Result<Response<Bytes>, HttpError>) -> Option<String> {
    let status = match result {
        Ok(response) if response.status().is_success() => return None,
        Ok(response) => response.status(),
        Err(error) => {
            let (cause, advice) = match tls::inside(&**error) {
                Some(found) => (tls::cause(found), tls::advice(found, NAMES.roots)),
                None => (error.to_string(), ADVICE.to_owned()),
            };
            return Some(format!("{cause}; {advice}"));
        }
    };
    let advice = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "check OTEL_EXPORTER_OTLP_HEADERS",
        StatusCode::NOT_FOUND => {
            "check the path: /v1/traces is added to OTEL_EXPORTER_OTLP_ENDPOINT, nothing to \
             OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        }
        status if status.is_server_error() => "see its own log",
        _ => ADVICE,
    };
    Some(format!("it answers {status}; {advice}"))
}

const ADVICE: &str =
    "check that a receiver takes OTLP over HTTP there (mostly at port 4318; 4317 is for gRPC)";

async fn talk<T>(stream: T, request: Request<Bytes>, uri: &Uri) -> Result<Response<Bytes>, HttpError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = request.map(|bytes| Whole(Some(bytes)));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse()?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority)?);
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, read(body).await?))
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection));
    let mut is_open = true;
    poll_fn(|cx| {
        // Its own errors come out where the answer is awaited, too.
        is_open = is_open && connection.as_mut().poll(cx).is_pending();
        answer.as_mut().poll(cx)
    })
    .await
}

async fn read(mut body: Incoming) -> Result<Bytes, HttpError> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > BODY_BYTES_MAX {
            return Err(Box::new(io::Error::other("its answer is too long")));
        }
    }
    Ok(all.freeze())
}

/// A request's body.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

impl HttpClient for Client {
    // Written out, as the trait has it from a macro.
    fn send_bytes<'life, 'made>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'made>>
    where
        'life: 'made,
        Self: 'made,
    {
        // The batch processor polls it on a thread that has nothing else to do.
        Box::pin(async move { self.send(request) })
    }
}

/// An exporter whose failures are in the log: one line when they begin, one when they end.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    place: String,
    causes: Causes,
    /// Spans lost in the outage that is going on.
    lost: AtomicU64,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, endpoint: &Uri, causes: Causes) -> Watched<E> {
        Watched { exporter, place: place(endpoint), causes, lost: AtomicU64::new(0) }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::info!("traces go to {} again; {lost} spans were lost", self.place);
                }
            }
            Err(error) => {
                let before = self.lost.fetch_add(count, Ordering::Relaxed);
                if before == 0 {
                    let cause = self.causes.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let cause = cause.unwrap_or_else(|| error.to_string());
                    tracing::warn!(
                        "traces cannot be sent to {}: {cause}; spans are dropped until they can",
                        self.place
                    );
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
