//! Traces by OpenTelemetry, where they are compiled in (the feature `otel`) and asked for: spans of handshakes
//! and of a share of the messages, sent to an OTLP receiver.
//!
//! Those who follow a newcomer or a message ([`arrival`], [`message`]) measure and hand finished spans to the
//! SDK's batch processor: a bounded queue that drops what does not fit, and a thread of its own that sends
//! ([`export`]). So neither door, ingest nor reactors ever wait for the receiver.
//!
//! Bounds: `OTEL_BSP_MAX_QUEUE_SIZE` spans wait, one batch is on its way, a span has a fixed number of short
//! attributes. Tested against a receiver of somebody else's in `tests/e2e_otel.rs` and `tests/e2e_otel_receiver.rs`.

mod arrival;
mod export;
mod message;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingResult, SdkTracer, SdkTracerProvider,
    ShouldSample, SpanLimits,
};

use crate::clock::Clock;
use crate::config::{self, Tls, Traces};
use crate::core::trail::{Arrivals, Trails};
use export::{Client, Watched};

pub(crate) use export::NAMES;

/// How long the end of the process waits for the last spans to be sent.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Running traces.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    message_ratio: f64,
}

impl Telemetry {
    /// Starts the thread that sends. The receiver need not be there.
    ///
    /// # Errors
    /// What in the settings cannot be used, for the person who starts the server.
    pub fn start(traces: &Traces, tls: &Tls) -> Result<Telemetry, String> {
        let client = Client::new(traces, tls)?;
        let causes = client.causes();
        let headers: HashMap<String, String> =
            traces.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(traces.endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(traces.timeout)
            .with_headers(headers)
            .build()
            .map_err(|error| format!("traces: {error}"))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(traces.queue_max)
            .with_max_export_batch_size(traces.batch_max)
            .with_scheduled_delay(traces.delay)
            .build();
        let processor = BatchSpanProcessor::builder(Watched::new(exporter, &traces.endpoint, causes))
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(traces))
            .with_sampler(Kept::new(traces))
            .with_span_limits(SpanLimits::default())
            .with_span_processor(processor)
            .build();
        tracing::info!(
            "traces go to {}, of messages a share of {}",
            export::place(&traces.endpoint),
            traces.message_ratio
        );
        let tracer = provider.tracer("tidegate");
        Ok(Telemetry { provider, tracer, message_ratio: traces.message_ratio })
    }

    /// What follows newcomers.
    pub fn arrivals(&self) -> Arrivals {
        arrival::arrivals(self.tracer.clone())
    }

    /// What follows messages, if any are to be.
    pub fn trails(&self, clock: Clock) -> Option<Trails> {
        (self.message_ratio > 0.0).then(|| message::trails(self.tracer.clone(), clock, self.message_ratio))
    }

    /// Sends what waits and ends, within two seconds. Blocks; what is measured from now on goes nowhere.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_MAX) {
            tracing::debug!("the last spans were not sent: {error}");
        }
    }
}

/// Why the receiver cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// The settings do not allow to try it; the server would not start.
    Setup(String),
    /// It does not take traces; the server would serve and drop them.
    Receiver(String),
}

/// Asks the receiver whether it takes traces, by a request without any. Gives its address. Must not be called
/// within a runtime.
///
/// # Errors
/// What is wrong and what to do.
pub fn probe(traces: &Traces, tls: &Tls) -> Result<String, Fault> {
    let place = export::place(&traces.endpoint);
    let client = Client::new(traces, tls).map_err(Fault::Setup)?;
    match client.probe(traces) {
        Ok(()) => Ok(place),
        Err(fault) => Err(Fault::Receiver(format!("cannot be sent to {place}: {fault}"))),
    }
}

fn resource(traces: &Traces) -> Resource {
    let attributes = traces.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        // What is set wins.
        .with_attributes(attributes)
        .build()
}

/// Which spans are kept: a child goes with its parent here, a message was chosen before its span was made, and
/// of handshakes the settings decide.
#[derive(Clone, Debug)]
struct Kept {
    handshakes: Sampler,
}

impl Kept {
    fn new(traces: &Traces) -> Kept {
        let root = match traces.sampler {
            config::Sampler::Always => Sampler::AlwaysOn,
            config::Sampler::Never => Sampler::AlwaysOff,
            config::Sampler::Ratio(ratio) => Sampler::TraceIdRatioBased(ratio),
        };
        Kept { handshakes: if traces.parent_based { Sampler::ParentBased(Box::new(root)) } else { root } }
    }
}

impl ShouldSample for Kept {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        // Of what is not kept no children are made.
        let is_child = parent.is_some_and(|parent| {
            let span = parent.span();
            span.span_context().is_valid() && !span.span_context().is_remote()
        });
        let is_decided = is_child || *kind == SpanKind::Consumer;
        let sampler = if is_decided { &Sampler::AlwaysOn } else { &self.handshakes };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// Wall-clock times that a span's steps cannot turn around: one look at the wall clock, the rest by the
/// steady one.
#[derive(Clone, Copy, Debug)]
struct Times {
    wall: SystemTime,
    steady: Instant,
}

impl Times {
    /// Of what began so long ago.
    fn since(ago: Duration) -> Times {
        let (wall, steady) = (SystemTime::now(), Instant::now());
        Times {
            wall: wall.checked_sub(ago).unwrap_or(wall),
            steady: steady.checked_sub(ago).unwrap_or(steady),
        }
    }

    fn begin(&self) -> SystemTime {
        self.wall
    }

    fn now(&self) -> SystemTime {
        self.wall.checked_add(self.steady.elapsed()).unwrap_or(self.wall)
    }
}
