//! Traces, as an OTLP receiver gets them: rotel, a collector that others wrote, which prints what came in. What
//! goes to it passes a wire-tap, so that what must not be said is looked for in every byte.
//!
//! Needs the feature: `cargo test --features otel --test e2e_otel`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::http::{Connection, request};
use support::machine::{Folder, PATIENCE, Service, clients, free_port, wait_for};
use support::posts::{message, status, text_message};
use support::{Server, Sse, World, Ws, left_out, ours_alone, wait_until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A span as the receiver printed it.
#[derive(Clone, Default, Debug)]
struct Span {
    /// `Name`, `Trace ID`, `Start time` and so on.
    fields: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Its value, without the type that the receiver puts around it.
    fn attribute(&self, name: &str) -> &str {
        let value = self.attributes.get(name).map_or("", String::as_str);
        value.split_once('(').map_or("", |(_, rest)| rest.strip_suffix(')').unwrap_or(rest))
    }

    fn time(&self, name: &str) -> u128 {
        self.field(name).parse().expect("nanoseconds")
    }

    fn lasts(&self) -> (u128, u128) {
        (self.time("Start time"), self.time("End time"))
    }

    #[track_caller]
    fn expect(&self, attributes: &[(&str, &str)]) {
        for (name, value) in attributes {
            assert_eq!(self.attribute(name), *value, "{name} of {self:?}");
        }
    }
}

fn nanoseconds_now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// The receiver. None where it is not installed.
struct Receiver {
    service: Service,
}

impl Receiver {
    fn start(port: u16) -> Option<Receiver> {
        let Some(agent) = agent() else {
            left_out("needs rotel, see tests/run");
            return None;
        };
        let folder = Folder::new("rotel");
        let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (grpc, pid, log) = (format!("127.0.0.1:{}", free_port()), file("agent.pid"), file("agent.log"));
        let http = format!("127.0.0.1:{port}");
        let words = [
            &*agent.to_string_lossy(),
            "start",
            "--otlp-http-endpoint",
            &http,
            "--otlp-grpc-endpoint",
            &grpc,
            "--pid-file",
            &pid,
            "--log-file",
            &log,
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "detailed",
        ];
        let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let service = Service::start(folder, "TERM", &command);
        wait_until("the receiver listens", PATIENCE, || TcpStream::connect(&http).is_ok());
        Some(Receiver { service })
    }

    fn spans(&self) -> Vec<Span> {
        let log = self.service.log();
        let mut all: Vec<Span> = Vec::new();
        for line in log.lines() {
            let line = line.trim();
            if line.starts_with("Span #") {
                all.push(Span::default());
            } else if let Some(span) = all.last_mut() {
                if let Some((name, value)) = line.strip_prefix("-> ").and_then(|pair| pair.split_once(": ")) {
                    span.attributes.insert(name.to_owned(), value.to_owned());
                } else if let Some((name, value)) = line.split_once(':') {
                    // A span's own come first.
                    span.fields.entry(name.trim().to_owned()).or_insert(value.trim().to_owned());
                }
            }
        }
        all
    }

    /// The spans that are so, once there are so many.
    #[track_caller]
    fn until(&self, what: &str, count: usize, matches: impl Fn(&Span) -> bool) -> Vec<Span> {
        wait_for(&format!("{count} spans {what} are received"), PATIENCE, || {
            let found: Vec<Span> = self.spans().into_iter().filter(&matches).collect();
            (found.len() >= count).then_some(found)
        })
    }

    #[track_caller]
    fn named(&self, name: &str) -> Span {
        self.until(name, 1, |span| span.field("Name") == name).remove(0)
    }

    fn children(&self, of: &Span) -> Vec<Span> {
        let id = of.field("ID");
        self.spans().into_iter().filter(|span| span.field("Parent ID") == id).collect()
    }
}

/// Where `tests/run` puts it.
fn agent() -> Option<PathBuf> {
    let versions = std::fs::read_dir(clients().join("venv/lib")).ok()?;
    let files = versions.flatten().map(|entry| entry.path().join("site-packages/rotel/rotel-agent"));
    files.into_iter().find(|file| {
        let works = Command::new(file).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        works.is_ok_and(|status| status.success())
    })
}

/// Passes connections on and keeps what goes to the receiver.
struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn start(to: u16) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, heard) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<u8>>>::default());
        let kept = Arc::clone(&heard);
        std::thread::spawn(move || {
            while let Ok((from, _)) = listener.accept() {
                let Ok(on) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (back_from, back_to) = (on.try_clone().unwrap(), from.try_clone().unwrap());
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || pass(from, on, Some(&kept)));
                std::thread::spawn(move || pass(back_from, back_to, None));
            }
        });
        Tap { port, heard }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    #[track_caller]
    fn heard(&self, text: &str) -> bool {
        let heard = self.heard.lock().unwrap();
        assert!(!heard.is_empty(), "nothing was sent");
        heard.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, kept: Option<&Mutex<Vec<u8>>>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if let Some(kept) = kept {
            kept.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A receiver behind a tap, and a server that sends to it, at once or only at its end.
fn traced(variables: &[(&str, &str)]) -> Option<(Receiver, Tap, World)> {
    if !ours_alone() {
        return None;
    }
    let port = free_port();
    let receiver = Receiver::start(port)?;
    let tap = Tap::start(port);
    let endpoint = tap.endpoint();
    let all: Vec<_> = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "50")]
        .into_iter()
        .chain(variables.iter().copied())
        .collect();
    let world = World::with(&all)?;
    Some((receiver, tap, world))
}

const USER: &str = "/api/v1/streaming/user";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn open_sse(server: &Server, path: &str, headers: &[(&str, &str)]) -> Sse {
    let mut connection = server.connect();
    connection.send(request("GET", path, headers).as_bytes());
    Sse::read_head(connection).unwrap_or_else(|response| panic!("{}", response.text()))
}

#[test]
fn a_handshake_is_part_of_its_proxys_trace_and_the_last_spans_are_sent_at_the_end() {
    // Nothing is sent before the end.
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("DRAIN_SECONDS", "0")];
    let Some((receiver, tap, mut world)) = traced(&variables) else { return };
    let viewer = world.viewer("read");
    let parent = traceparent("01");
    let bearer = viewer.bearer();
    let sse = open_sse(&world.server, USER, &[("Authorization", &bearer), ("traceparent", &parent)]);
    let path = format!("/api/v1/streaming/?stream=public&access_token={}", viewer.token);
    let mut ws = Ws::try_open(world.server.address(), &path, &[]).unwrap();
    ws.send("{}");
    assert!(receiver.spans().is_empty());
    drop((sse, ws));
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());

    let span = receiver.named(&format!("GET {USER}"));
    assert_eq!((span.field("Trace ID"), span.field("Parent ID")), (TRACE, PARENT));
    assert_eq!(span.field("Kind"), "SPAN_KIND_SERVER");
    assert_eq!(span.field("Status code"), "STATUS_CODE_UNSET");
    span.expect(&[
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", USER),
        ("url.path", USER),
        ("network.protocol.version", "1.1"),
        ("tidegate.stream", "user"),
        ("tidegate.transport", "sse"),
    ]);
    assert_eq!(span.attribute("tidegate.request_id").len(), 36);
    // Each part of the wait, in order and within it.
    let mut children = receiver.children(&span);
    children.sort_by_key(Span::lasts);
    let names: Vec<&str> = children.iter().map(|child| child.field("Name")).collect();
    assert_eq!(
        names,
        ["look up token", "check stream", "wait for Redis", "look up token again", "hand over"]
    );
    let mut before = span.lasts().0;
    for child in &children {
        assert_eq!(child.field("Trace ID"), TRACE);
        let (start, end) = child.lasts();
        assert!(before <= start && start <= end && end <= span.lasts().1, "{children:?}");
        before = end;
    }

    let span = receiver.named("GET /api/v1/streaming");
    assert!(span.field("Trace ID") != TRACE && span.field("Parent ID").is_empty(), "{span:?}");
    span.expect(&[
        ("http.response.status_code", "101"),
        ("url.path", "/api/v1/streaming/"),
        ("tidegate.stream", "public"),
        ("tidegate.transport", "websocket"),
    ]);
    assert!(tap.heard("mastodon/streaming"), "the service's name");
    assert!(!tap.heard(&viewer.token));
}

#[test]
fn what_is_refused_is_an_error_and_no_secret_is_said_wherever_it_stands() {
    let Some((receiver, tap, world)) = traced(&[]) else { return };
    let viewer = world.viewer("read");
    let good = &viewer.token;
    let wrong = "n0-Such-T0ken-4";
    let in_query = format!("{USER}?access_token={wrong}");
    world.server.get(&in_query).assert_error(401, "Invalid access token");
    let span = receiver.named(&format!("GET {USER}"));
    span.expect(&[("http.response.status_code", "401"), ("error.type", "token")]);
    assert_eq!(span.field("Status code"), "STATUS_CODE_ERROR");

    // Wherever a confused client puts it.
    for path in [format!("/{good}"), format!("/api/v1/streaming/{good}?stream={good}&tag={good}")] {
        let headers = [("Sec-WebSocket-Protocol", wrong), ("Cookie", good), ("tracestate", "a=b")];
        assert_eq!(Ws::try_open(world.server.address(), &path, &headers).err().unwrap().0, 401);
        let headers = [("Sec-WebSocket-Protocol", &**good), ("traceparent", &**good), ("baggage", good)];
        drop(Ws::try_open(world.server.address(), &path, &headers));
    }
    let spans = receiver.until("of WebSockets", 4, |span| span.field("Name") == "GET");
    assert!(spans.iter().all(|span| span.attribute("url.path").is_empty()), "{spans:?}");
    assert!(!tap.heard(good) && !tap.heard(wrong));
}

#[test]
fn whoever_leaves_before_there_is_an_answer_is_an_error_too() {
    let Some((receiver, _tap, world)) = traced(&[("LOG_LEVEL", "debug")]) else { return };
    let viewer = world.viewer("read");
    // Redis confirms nothing for a while.
    world.redis.command(&["CLIENT", "PAUSE", "3000"]);
    let mut connection = world.server.connect();
    connection.send(request("GET", USER, &[("Authorization", &viewer.bearer())]).as_bytes());
    world.server.until_output("identified");
    drop(connection);
    let span = receiver.named(&format!("GET {USER}"));
    span.expect(&[("error.type", "left"), ("http.response.status_code", "")]);
    assert_eq!(span.field("Status code"), "STATUS_CODE_ERROR");
    let names: Vec<String> =
        receiver.children(&span).iter().map(|child| child.field("Name").to_owned()).collect();
    assert!(names.contains(&"wait for Redis".to_owned()), "{names:?}");
}

#[test]
fn a_proxy_decides_what_is_traced_and_strangers_do_not() {
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let Some((receiver, _tap, world)) = traced(&off) else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let open = |path: &str, flags: &str| {
        let parent = traceparent(flags);
        drop(open_sse(&world.server, path, &[("Authorization", &bearer), ("traceparent", &parent)]));
    };
    // Neither without a word of the proxy nor against it.
    drop(open_sse(&world.server, "/api/v1/streaming/direct", &[("Authorization", &bearer)]));
    open("/api/v1/streaming/public", "00");
    open(USER, "01");
    assert_eq!(receiver.named(&format!("GET {USER}")).field("Trace ID"), TRACE);
    let servers = receiver.until("of handshakes", 1, |span| span.field("Kind") == "SPAN_KIND_SERVER");
    assert_eq!(servers.len(), 1, "{servers:?}");

    let stranger = [("TRUSTED_PROXY_IP", "10.0.0.1")];
    let Some((receiver, _tap, world)) = traced(&stranger) else { return };
    let bearer = world.viewer("read").bearer();
    let parent = traceparent("01");
    drop(open_sse(&world.server, USER, &[("Authorization", &bearer), ("traceparent", &parent)]));
    let span = receiver.named(&format!("GET {USER}"));
    assert!(span.field("Trace ID") != TRACE && span.field("Parent ID").is_empty(), "{span:?}");
}

#[test]
fn a_message_is_traced_from_redis_to_its_last_write() {
    let Some((receiver, tap, world)) = traced(&[("TRACE_MESSAGE_RATIO", "1")]) else { return };
    let viewer = world.viewer("read");
    let mut quick = Sse::open(&world.server, USER, &viewer.token);
    let mut slow = Connection::narrow(world.server.address());
    slow.send(request("GET", USER, &[("Authorization", &viewer.bearer())]).as_bytes());
    slow.head();
    // Far more than the slow one's buffers take.
    let payload = "x".repeat(4 << 20);
    let published = nanoseconds_now();
    world.publish(&viewer.home(), &text_message("conversation", &payload));
    quick.expect("conversation", &payload);
    let delivered = nanoseconds_now();
    // The slow one still waits.
    let page = world.status();
    assert_eq!(page["messages"]["ledger"]["pending"], 1, "{page}");
    assert!(receiver.spans().iter().all(|span| span.field("Name") != "relay user"));
    slow.take(payload.len());
    let span = receiver.named("relay user");
    let (start, end) = span.lasts();
    assert!(published <= start && start <= delivered && delivered <= end, "{published} {delivered} {span:?}");
    assert!(end <= nanoseconds_now());
    assert_eq!((span.field("Kind"), span.field("Parent ID")), ("SPAN_KIND_CONSUMER", ""));
    span.expect(&[
        ("messaging.system", "redis"),
        ("messaging.message.body.size", &(payload.len() + 2).to_string()),
        ("tidegate.channel", "user"),
        ("tidegate.event", "conversation"),
        ("tidegate.deliveries", "2"),
    ]);

    // A status that PostgreSQL is asked about, on a channel with a name that somebody chose.
    let mut tagged = Sse::open(&world.server, "/api/v1/streaming/hashtag?tag=Tellnobody", &viewer.token);
    let author = world.account();
    let id = 109_501_234_567_890_000 + u64::from(std::process::id());
    let mut read = 0;
    // The second finds PostgreSQL's connection open, so that its question takes no time to speak of.
    for id in [id, id + 1] {
        world.publish("timeline:hashtag:tellnobody", &message("update", &status(id, author)));
        assert_eq!(tagged.next().name, "update");
        read = nanoseconds_now();
    }
    let mut spans = receiver.until("of the tag", 2, |span| span.field("Name") == "relay hashtag");
    spans.sort_by_key(Span::lasts);
    let span = &spans[1];
    span.expect(&[("tidegate.event", "update"), ("tidegate.deliveries", "1")]);
    let children = receiver.children(span);
    assert_eq!(children.len(), 1, "{children:?}");
    assert_eq!(children[0].field("Name"), "find audience");
    let ((start, end), (asked, known)) = (span.lasts(), children[0].lasts());
    // The stage keeps the status for a second: that is no part of its way.
    assert!(start <= asked && asked < known && known <= end && end < read + 500_000_000, "{span:?}");
    assert!(!tap.heard("ellnobody") && !tap.heard(&viewer.account.to_string()));
}

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

/// The address in a URL is where the tap listens; checked here since a typing mistake would hide what is sent.
#[test]
fn the_tap_hears() {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let tap = Tap::start(sink.local_addr().unwrap().port());
    let address: SocketAddr = tap.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
    TcpStream::connect(address).unwrap().write_all(b"a token").unwrap();
    let mut passed = String::new();
    sink.accept().unwrap().0.read_to_string(&mut passed).unwrap();
    assert_eq!(passed, "a token");
    assert!(tap.heard("token") && !tap.heard("other"));
}
