//! The receiver of traces: away, silent, behind TLS, asked by `tidegate check`; and the settings that name it.
//!
//! Needs the feature: `cargo test --features otel --test e2e_otel_receiver`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::machine::free_port;
use support::otel::{Receiver, traced};
use support::posts::text_message;
use support::{Server, Sse, World, ours_alone};

const USER: &str = "/api/v1/streaming/user";

#[test]
fn without_a_receiver_streams_go_on_and_the_log_says_so_once() {
    if !ours_alone() {
        return;
    }
    let port = free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "200"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("TRACE_MESSAGE_RATIO", "1"),
    ];
    let Some(world) = World::with(&variables) else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    let mut redis = world.redis.client();
    let mut publish = |from: u64, to: u64| {
        for id in from..to {
            redis.publish(&viewer.home(), &text_message("delete", &id.to_string()));
            sse.expect("delete", &id.to_string());
        }
    };
    publish(0, 3000);
    let missed = format!("traces cannot be sent to {endpoint}: ");
    world.server.until_output(&missed);
    let before = world.server.rss_kib();
    publish(3000, 20_000);
    let grown = world.server.rss_kib().saturating_sub(before);
    assert!(grown < 6 * 1024, "{grown} KiB for 17,000 spans that nobody took");
    assert_eq!(world.server.output().matches(&missed).count(), 1, "{}", world.server.output());
    assert!(world.server.output().contains("Connection refused"));

    let Some(receiver) = Receiver::start(port) else { return };
    publish(20_000, 20_010);
    world.server.until_output(&format!("traces go to {endpoint} again; "));
    receiver.named("relay user");
}

#[test]
fn a_receiver_that_never_answers_delays_neither_streams_nor_the_end() {
    if !ours_alone() {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
        ("TRACE_MESSAGE_RATIO", "1"),
        ("DRAIN_SECONDS", "0"),
    ];
    let Some(mut world) = World::with(&variables) else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    // The thread that sends waits for its answer from here on.
    let (_held, _) = silent.accept().unwrap();
    for id in 0..500 {
        world.publish(&viewer.home(), &text_message("delete", &id.to_string()));
        sse.expect("delete", &id.to_string());
    }
    let begun = Instant::now();
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn it_is_off_until_asked_for_and_a_file_can_ask_for_it() {
    let Some((receiver, tap, world)) = traced(&[("OTEL_TRACES_EXPORTER", "none")]) else { return };
    let endpoint = tap.endpoint();
    let is_on = |variables: &[(&str, &str)]| {
        let mut env = world.env.clone();
        env.remove("OTEL_EXPORTER_OTLP_ENDPOINT");
        env.remove("OTEL_TRACES_EXPORTER");
        env.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Server::start(&env).output().contains("traces go to ")
    };
    assert!(!world.server.output().contains("traces go to "), "none");
    assert!(!is_on(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "nonsense of another program")]));
    assert!(!is_on(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_SDK_DISABLED", "true")]));
    assert!(is_on(&[("OTEL_TRACES_EXPORTER", "otlp")]));

    // Everything in .env.production, with headers that the receiver gets and the log does not.
    let base = format!("{endpoint}/");
    let file = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT={base}\\nOTEL_EXPORTER_OTLP_HEADERS=x-key=s3cret%2C1\\n\
         OTEL_RESOURCE_ATTRIBUTES=deployment.environment=tideland\\nOTEL_SERVICE_NAME=gate-of-tides\\n\
         OTEL_BSP_SCHEDULE_DELAY=50\\n"
    );
    let script = format!("printf %b '{file}' >.env.production; exec \"$0\"");
    let mut env = world.env.clone();
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_BSP_SCHEDULE_DELAY"] {
        env.remove(name);
    }
    env.insert("NODE_ENV".to_owned(), "production".to_owned());
    env.insert("LOG_LEVEL".to_owned(), "trace".to_owned());
    let server = Server::spawn_by(&script, Stdio::null(), &env).listening();
    drop(Sse::open(&server, USER, &world.viewer("read").token));
    receiver.named(&format!("GET {USER}"));
    for text in ["x-key: s3cret,1\r\n", "POST /v1/traces HTTP/1.1\r\n", "tideland", "gate-of-tides"] {
        assert!(tap.heard(text), "{text}");
    }
    assert!(!server.output().contains("s3cret"), "{}", server.output());
}

#[test]
fn wrong_values_end_the_start_with_their_names() {
    if !ours_alone() {
        return;
    }
    let cases: &[(&str, &str)] = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hunter2@localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://localhost/v1/traces"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no value: hunter2"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=hunter2%0d%0ab"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("TRACE_MESSAGE_RATIO", "1.5"),
        ("OTEL_RESOURCE_ATTRIBUTES", "alone"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
        ("OTEL_BSP_EXPORT_TIMEOUT", ""),
    ];
    let start = |pairs: &[(&str, &str)]| {
        let env = [("OTEL_TRACES_EXPORTER", "otlp"), ("NODE_ENV", "production")].iter().chain(pairs);
        let env = env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut server = Server::spawn_ours(&["--no-database"], &env);
        let code = server.until_exit().code();
        // Its last words may still be on their way.
        server.until_output("tidegate: ");
        (code, server.output())
    };
    // Where the settings are good it cannot listen.
    let nowhere = [("SOCKET", "/nowhere/at/all"), ("REDIS_URL", "redis://127.0.0.1:1")];
    for (name, value) in cases {
        let (code, output) = start(&[&nowhere[..], &[(name, value)]].concat());
        assert_eq!(code, Some(1), "{output}");
        let is_named = output.contains(&format!("Invalid {name} environment variable"));
        // Empty is unset.
        assert_eq!(is_named, !value.is_empty(), "{name}: {output}");
        assert!(!output.contains("hunter2"), "{output}");
    }
    let argument = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "half")];
    assert!(start(&argument).1.contains("Invalid OTEL_TRACES_SAMPLER_ARG environment variable"));
}
