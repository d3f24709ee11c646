//! Traces: OpenTelemetry's own variables, with the meaning and the defaults of its specification.
//!
//! They are off until an endpoint is named, as on Mastodon's Rails side, or an exporter; what else is set is
//! read only then, since it may be meant for other programs.

use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::database::{ClientCert, RootCerts};
use super::read::{Reader, Secret};
use super::variables::{self as v, Variable};

/// Where traces go, and which.
#[derive(Clone, PartialEq, Debug)]
pub struct Traces {
    /// Where they are posted to.
    pub endpoint: Uri,
    /// The variable that says so, for messages.
    pub variable: &'static str,
    /// Whose certificates are believed where that is https.
    pub roots: RootCerts,
    /// Our own certificate, for a receiver that asks for one.
    pub client: Option<ClientCert>,
    /// Headers of each request, valid ones.
    pub headers: Vec<(String, Secret)>,
    /// How long one batch may take, every attempt included.
    pub timeout: Duration,
    /// Which handshakes are traced.
    pub sampler: Sampler,
    /// Whether a handshake in a trace that somebody else began is traced exactly if that one is.
    pub parent_based: bool,
    /// The share of messages that are traced, 0 to 1.
    pub message_ratio: f64,
    /// What the spans are of: `service.name` and what `OTEL_RESOURCE_ATTRIBUTES` says.
    pub resource: Vec<(String, String)>,
    /// Spans that wait to be sent, at most; others are dropped.
    pub queue_max: usize,
    /// Spans in one request, at most.
    pub batch_max: usize,
    /// How long spans wait for others.
    pub delay: Duration,
}

impl Traces {
    /// Host (IPv6 without brackets) and port of the receiver.
    pub fn receiver(&self) -> Option<(&str, u16)> {
        let host = self.endpoint.host()?.trim_start_matches('[').trim_end_matches(']');
        let usual = if self.endpoint.scheme_str() == Some("https") { 443 } else { 80 };
        Some((host, self.endpoint.port_u16().unwrap_or(usual)))
    }
}

/// Which traces that begin here are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Sampler {
    /// All.
    Always,
    /// None.
    Never,
    /// That share, 0 to 1.
    Ratio(f64),
}

/// None if nothing is to be traced.
pub(super) fn traces(read: &mut Reader) -> Option<Traces> {
    let exporter = read.text(&v::OTEL_TRACES_EXPORTER);
    let named =
        read.first(&[&v::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, &v::OTEL_EXPORTER_OTLP_ENDPOINT]).is_some();
    let is_disabled = read.flag(&v::OTEL_SDK_DISABLED, false);
    let is_on = match exporter {
        None => named,
        Some("otlp") => true,
        Some("none") => false,
        Some(_) => {
            read.refuse(&v::OTEL_TRACES_EXPORTER, "otlp or none");
            false
        }
    };
    if !is_on || is_disabled {
        return None;
    }
    protocol(read);
    let (sampler, parent_based) = sampler(read);
    // Nothing is nothing, messages included.
    let message_ratio = ratio(read, &v::TRACE_MESSAGE_RATIO, 0.001);
    let message_ratio = if sampler == Sampler::Never { 0.0 } else { message_ratio };
    let queue_max = read.number(&v::OTEL_BSP_MAX_QUEUE_SIZE, 2048, 1..=100_000);
    let batch_max = read.number(&v::OTEL_BSP_MAX_EXPORT_BATCH_SIZE, 512, 1..=100_000);
    let (variable, endpoint) = endpoint(read);
    let roots = read.first(&[&v::OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE, &v::OTEL_EXPORTER_OTLP_CERTIFICATE]);
    Some(Traces {
        endpoint,
        variable: variable.name,
        roots: roots.map_or(RootCerts::Default, |(_, path)| RootCerts::File(path.into())),
        client: client(read),
        headers: headers(read),
        timeout: timeout(read),
        sampler,
        parent_based,
        message_ratio,
        resource: resource(read),
        queue_max,
        // The specification's "must be less or equal"; the defaults' smaller partner gives way.
        batch_max: batch_max.min(queue_max),
        delay: milliseconds(read, &v::OTEL_BSP_SCHEDULE_DELAY, 5000),
    })
}

fn milliseconds(read: &mut Reader, variable: &'static Variable, default: u64) -> Duration {
    Duration::from_millis(read.number(variable, default, 1..=3_600_000))
}

fn timeout(read: &mut Reader) -> Duration {
    let of_all = milliseconds(read, &v::OTEL_EXPORTER_OTLP_TIMEOUT, 10_000);
    let of_traces = milliseconds(
        read,
        &v::OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
        of_all.as_millis().try_into().unwrap_or(10_000),
    );
    of_traces.min(milliseconds(read, &v::OTEL_BSP_EXPORT_TIMEOUT, 30_000))
}

fn protocol(read: &mut Reader) {
    let both = [&v::OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, &v::OTEL_EXPORTER_OTLP_PROTOCOL];
    if let Some((variable, text)) = read.first(&both)
        && text != "http/protobuf"
    {
        read.refuse(variable, "http/protobuf; collectors take it at port 4318");
    }
}

fn sampler(read: &mut Reader) -> (Sampler, bool) {
    let name = read.text(&v::OTEL_TRACES_SAMPLER).unwrap_or("parentbased_always_on");
    let (root, parent_based) = match name.strip_prefix("parentbased_") {
        Some(root) => (root, true),
        None => (name, false),
    };
    let sampler = match root {
        "always_on" => Sampler::Always,
        "always_off" => Sampler::Never,
        "traceidratio" => Sampler::Ratio(ratio(read, &v::OTEL_TRACES_SAMPLER_ARG, 1.0)),
        _ => {
            read.refuse(
                &v::OTEL_TRACES_SAMPLER,
                "always_on, always_off or traceidratio, each also with parentbased_ before it",
            );
            Sampler::Always
        }
    };
    (sampler, parent_based)
}

fn ratio(read: &mut Reader, variable: &'static Variable, default: f64) -> f64 {
    let Some(text) = read.text(variable) else { return default };
    match text.trim().parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
        _ => {
            read.refuse(variable, "a number from 0 to 1");
            default
        }
    }
}

fn client(read: &mut Reader) -> Option<ClientCert> {
    let certs = [&v::OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE, &v::OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE];
    let keys = [&v::OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY, &v::OTEL_EXPORTER_OTLP_CLIENT_KEY];
    match (read.first(&certs), read.first(&keys)) {
        (Some((_, cert)), Some((_, key))) => Some(ClientCert { cert: cert.into(), key: key.into() }),
        (None, None) => None,
        (Some((alone, _)), None) | (None, Some((alone, _))) => {
            read.refuse(alone, "a certificate and its key are needed together");
            None
        }
    }
}

/// Where it is, and the variable that says so.
fn endpoint(read: &mut Reader) -> (&'static Variable, Uri) {
    let default = || Uri::from_static("http://localhost:4318/v1/traces");
    let text = |variable| read.text(variable).map(|text| (variable, text.trim().to_owned()));
    // That of all signals is a base, that of traces is taken as it stands.
    let (variable, url) =
        match (text(&v::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), text(&v::OTEL_EXPORTER_OTLP_ENDPOINT)) {
            (Some(own), _) => own,
            (None, Some((variable, base))) => (variable, format!("{}/v1/traces", base.trim_end_matches('/'))),
            (None, None) => return (&v::OTEL_TRACES_EXPORTER, default()),
        };
    match url.parse::<Uri>() {
        Ok(uri) if is_usable(&uri) => (variable, uri),
        _ => {
            read.refuse(
                variable,
                "http://HOST[:PORT][/PATH] or https://…; a password goes into OTEL_EXPORTER_OTLP_HEADERS",
            );
            (variable, default())
        }
    }
}

fn is_usable(uri: &Uri) -> bool {
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && !has_user
}

fn headers(read: &mut Reader) -> Vec<(String, Secret)> {
    let both = [&v::OTEL_EXPORTER_OTLP_TRACES_HEADERS, &v::OTEL_EXPORTER_OTLP_HEADERS];
    let Some((variable, text)) = read.first(&both) else { return Vec::new() };
    let all = pairs(text).map(|pairs| {
        pairs.into_iter().filter(|(name, value)| {
            HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
        })
    });
    let count = entries(text).count();
    match all.map(Iterator::collect::<Vec<_>>) {
        Some(all) if all.len() == count => {
            all.into_iter().map(|(name, value)| (name, Secret::new(value))).collect()
        }
        _ => {
            read.refuse(variable, "NAME=VALUE,NAME=VALUE, with %2C for a comma in a value");
            Vec::new()
        }
    }
}

/// The service's name, as Mastodon's other processes are named where nothing else is said, and what else there is.
fn resource(read: &mut Reader) -> Vec<(String, String)> {
    let text = read.text(&v::OTEL_RESOURCE_ATTRIBUTES).unwrap_or_default();
    let mut all = pairs(text).unwrap_or_else(|| {
        read.refuse(&v::OTEL_RESOURCE_ATTRIBUTES, "NAME=VALUE,NAME=VALUE, with %2C for a comma in a value");
        Vec::new()
    });
    const NAME: &str = "service.name";
    if let Some(name) = read.text(&v::OTEL_SERVICE_NAME) {
        all.retain(|(key, _)| key != NAME);
        all.push((NAME.to_owned(), name.to_owned()));
    } else if !all.iter().any(|(key, _)| key == NAME) {
        let prefix = read.raw(&v::OTEL_SERVICE_NAME_PREFIX).unwrap_or("mastodon");
        let separator = read.raw(&v::OTEL_SERVICE_NAME_SEPARATOR).unwrap_or("/");
        all.push((NAME.to_owned(), format!("{prefix}{separator}streaming")));
    }
    all
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// `NAME=VALUE` with commas between, values percent-encoded (W3C Baggage). None if it is anything else.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    entries(text)
        .map(|entry| {
            let (name, value) = entry.split_once('=')?;
            let (name, value) = (name.trim(), percent_decode_str(value.trim()).decode_utf8().ok()?);
            (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
        })
        .collect()
}
