//! The receiver of traces: away, silent, behind TLS, asked by `tidegate check`; and the settings that name it.
//!
//! Needs the feature: `cargo test --features otel --test e2e_otel_receiver`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::certificates::{Authority, Pair, path};
use support::check::{Checked, run};
use support::machine::{Folder, PATIENCE, Service, free_port};
use support::nginx::{frame, sbin};
use support::otel::{Receiver, traced};
use support::posts::text_message;
use support::{Server, Sse, World, ours_alone, wait_until};

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
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/a.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/a.key"),
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

/// TLS in front of the receiver, which asks for no more than `rules` say.
struct Front {
    port: u16,
    _nginx: Service,
}

impl Front {
    fn start(to: u16, pair: &Pair, rules: &str) -> Option<Front> {
        let nginx = sbin("nginx")?;
        let (folder, port) = (Folder::new("tls-front"), free_port());
        let http = format!(
            "server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\n{rules}\n\
             location = /v1/traces {{ if ($http_x_key != s3cret) {{ return 401; }} proxy_pass http://127.0.0.1:{to}; }}\n\
             location / {{ return 404; }}\n}}",
            path(&pair.cert),
            path(&pair.key),
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, frame(folder.path(), &http)).unwrap();
        let words = [path(&nginx), "-e", "stderr", "-c", path(&file)].map(str::to_owned);
        let nginx = Service::start(folder, "TERM", &words);
        wait_until("nginx listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Front { port, _nginx: nginx })
    }

    fn at(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }
}

const KEY: (&str, &str) = ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=s3cret");

fn check(world: &World, variables: &[(&str, &str)]) -> Checked {
    let mut env = world.env.clone();
    env.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let checked = run(&["check"], &env);
    assert!(!checked.text.contains("s3cret"), "{}", checked.text);
    checked
}

#[test]
fn spans_go_through_tls_where_the_receiver_is_who_it_should_be() {
    if !ours_alone() {
        return;
    }
    let (Some(authority), Some(stranger)) = (Authority::new(), Authority::new()) else { return };
    let (root, strange, to) = (authority.root(), stranger.root(), free_port());
    let pair = authority.issue("receiver", "receiver", &["DNS:localhost"]);
    let (Some(receiver), Some(front)) = (Receiver::start(to), Front::start(to, &pair, "")) else { return };
    let endpoint = front.at("localhost");
    let to_front = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint);
    let (extra, own) = ("NODE_EXTRA_CA_CERTS", "OTEL_EXPORTER_OTLP_CERTIFICATE");
    let Some(world) = World::with(&[to_front, KEY, (extra, path(&root)), ("OTEL_BSP_SCHEDULE_DELAY", "50")])
    else {
        return;
    };
    drop(Sse::open(&world.server, USER, &world.viewer("read").token));
    receiver.named(&format!("GET {USER}"));
    assert!(!world.server.output().contains("cannot be sent"), "{}", world.server.output());

    let good =
        |variables: &[(&str, &str)]| check(&world, variables).expect(0, "ok", &["Traces", "takes them"]);
    good(&[(own, path(&root)), (extra, path(&strange))]);
    // That of traces wins, and is in the place of what is trusted elsewhere.
    good(&[("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", path(&root)), (own, path(&strange)), (extra, "")]);
    let bad = |variables: &[(&str, &str)], words: &[&str]| check(&world, variables).expect(0, "warn", words);
    bad(&[(extra, "")], &["Traces", "an authority that is not trusted here", "put", own]);
    // It has the same name.
    bad(&[(own, path(&strange))], &["Traces", "not signed by the authority of that name", "put", own]);
    bad(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &front.at("127.0.0.1"))],
        &["its certificate is for localhost, not for 127.0.0.1", "host name"],
    );
    good(&[(extra, ""), ("NODE_TLS_REJECT_UNAUTHORIZED", "0")]);

    // A certificate that is its own authority, named itself.
    let alone = authority.self_signed("alone", "localhost");
    let Some(front) = Front::start(to, &alone, "") else { return };
    let to_front = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*front.at("localhost"));
    bad(&[to_front], &["Traces", own]);
    good(&[to_front, (own, path(&alone.cert))]);

    // One that wants to know who comes.
    let rules = format!("ssl_client_certificate {}; ssl_verify_client on;", path(&root));
    let Some(front) = Front::start(to, &pair, &rules) else { return };
    let to_front = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*front.at("localhost"));
    let us = authority.issue("tidegate", "tidegate", &[]);
    bad(&[to_front], &["Traces", "it answers 400 Bad Request"]);
    let (cert, key) = (
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", path(&us.cert)),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", path(&us.key)),
    );
    good(&[to_front, cert, key]);
    check(&world, &[to_front, cert]).expect(
        2,
        "FAIL",
        &["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "together"],
    );
    // The other's key: no start.
    let checked = check(&world, &[to_front, cert, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", path(&pair.key))]);
    checked.expect(
        1,
        "FAIL",
        &["Traces", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY"],
    );
    let checked = check(&world, &[to_front, (own, "/nowhere.pem")]);
    checked.expect(1, "FAIL", &[own, "/nowhere.pem cannot be read"]);
}

#[test]
fn check_asks_the_receiver_and_says_what_to_do() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let (to, root) = (free_port(), authority.root());
    let pair = authority.issue("receiver", "receiver", &["DNS:localhost"]);
    let (Some(receiver), Some(front)) = (Receiver::start(to), Front::start(to, &pair, "")) else { return };
    let Some(world) = World::start() else { return };
    let at = |endpoint: &str, more: &[(&str, &str)]| {
        let mut all =
            vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("NODE_EXTRA_CA_CERTS", path(&root)), KEY];
        all.extend(more);
        check(&world, &all)
    };
    let plain = format!("http://127.0.0.1:{to}");
    at(&plain, &[]).expect(
        0,
        "ok",
        &["Traces (OTEL_EXPORTER_OTLP_ENDPOINT): ", &plain, "as mastodon/streaming, with the headers x-key"],
    );
    // Such is the name as Rails makes it of these two.
    let named = [("OTEL_SERVICE_NAME_PREFIX", "tide"), ("OTEL_SERVICE_NAME_SEPARATOR", "")];
    at(&plain, &named).expect(0, "ok", &["as tidestreaming,"]);
    assert!(receiver.spans().is_empty(), "it asks without spans");
    let silent = check(&world, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &plain), ("OTEL_SDK_DISABLED", "true")]);
    assert!(silent.code == 0 && !silent.text.contains("Traces"), "{}", silent.text);

    let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let elsewhere = front.at("localhost") + "/v2/traces";
    at("", &[(own, &elsewhere)]).expect(0, "warn", &[own, "it answers 404 Not Found", "check the path"]);
    let wrong = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-key=hunter2");
    let checked = at(&front.at("localhost"), &[wrong]);
    checked.expect(0, "warn", &["it answers 401 Unauthorized", "OTEL_EXPORTER_OTLP_HEADERS"]);
    assert!(!checked.text.contains("hunter2"), "{}", checked.text);
    at(&format!("https://localhost:{to}"), &[]).expect(0, "warn", &["does not speak TLS", "check the port"]);
    at(&format!("http://localhost:{}", front.port), &[]).expect(0, "warn", &["it answers 400 Bad Request"]);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    at(&nobody, &[]).expect(0, "warn", &["cannot be sent to", &nobody, "Connection refused", "4318"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let short = ("OTEL_EXPORTER_OTLP_TIMEOUT", "200");
    at(&silent, &[short]).expect(0, "warn", &["no answer in time", "4318"]);
}
