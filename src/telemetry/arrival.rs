//! A handshake as a span: from the request's head to the response's last byte, or to its refusal, with a child
//! for each part of the wait. Attributes by OpenTelemetry's conventions for HTTP servers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::Times;
use crate::core::trail::{Arrival, Arrivals, Part, Request};

/// What follows newcomers.
pub(super) fn arrivals(tracer: SdkTracer) -> Arrivals {
    let propagator = TraceContextPropagator::new();
    Box::new(move |request| {
        let parent = propagator.extract_with_context(&Context::new(), &Headers(request));
        let times = Times::since(Duration::ZERO);
        let span = begin(&tracer, request, &parent, &times);
        if !span.is_recording() {
            return None;
        }
        let as_parent = Context::new().with_remote_span_context(span.span_context().clone());
        let state = Mutex::new(State { span, part: None, is_answered: false });
        Some(Arc::new(Followed { tracer: tracer.clone(), times, as_parent, state }))
    })
}

fn begin(tracer: &SdkTracer, request: &Request<'_>, parent: &Context, times: &Times) -> Span {
    let method = if request.method.is_empty() { "_OTHER" } else { request.method };
    let name_method = if request.method.is_empty() { "HTTP" } else { request.method };
    let name = match request.route {
        Some(route) => format!("{name_method} {route}"),
        None => name_method.to_owned(),
    };
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("network.protocol.name", "http"),
        KeyValue::new("network.protocol.version", if request.is_http_1_1 { "1.1" } else { "1.0" }),
        KeyValue::new("tidegate.transport", if request.is_websocket { "websocket" } else { "sse" }),
        KeyValue::new("tidegate.request_id", request.id.to_owned()),
    ];
    attributes.extend(request.path.map(|path| KeyValue::new("url.path", path.to_owned())));
    attributes.extend(request.route.map(|route| KeyValue::new("http.route", route.to_owned())));
    tracer
        .span_builder(name)
        .with_kind(SpanKind::Server)
        .with_start_time(times.begin())
        .with_attributes(attributes)
        .start_with_context(tracer, parent)
}

/// What of the request says whose trace it is in.
struct Headers<'a>(&'a Request<'a>);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.0.traceparent,
            "tracestate" => self.0.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

struct Followed {
    tracer: SdkTracer,
    times: Times,
    as_parent: Context,
    state: Mutex<State>,
}

struct State {
    span: Span,
    part: Option<Span>,
    is_answered: bool,
}

impl Followed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival for Followed {
    fn enter(&self, part: Part) {
        let now = self.times.now();
        let next = self
            .tracer
            .span_builder(match part {
                Part::Token => "look up token",
                Part::Stream => "check stream",
                Part::Redis => "wait for Redis",
                Part::TokenAgain => "look up token again",
                Part::HandOver => "hand over",
            })
            .with_kind(SpanKind::Internal)
            .with_start_time(now)
            .start_with_context(&self.tracer, &self.as_parent);
        if let Some(mut before) = self.state().part.replace(next) {
            before.end_with_timestamp(now);
        }
    }

    fn stream(&self, kind: &'static str) {
        self.state().span.set_attribute(KeyValue::new("tidegate.stream", kind));
    }

    fn answer(&self, status: u16, refused: Option<&'static str>) {
        let mut state = self.state();
        state.is_answered = true;
        state.span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(reason) = refused {
            state.span.set_attribute(KeyValue::new("error.type", reason));
            // Whoever asks the traces for refused handshakes is to find them all, the clients' own faults too.
            state.span.set_status(Status::error(reason));
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let now = self.times.now();
        let mut state = self.state();
        if let Some(mut part) = state.part.take() {
            part.end_with_timestamp(now);
        }
        if !state.is_answered {
            state.span.set_attribute(KeyValue::new("error.type", "left"));
            state.span.set_status(Status::error("the client left before its stream began"));
        }
        state.span.end_with_timestamp(now);
    }
}
