//! A receiver of traces that others wrote: rotel, a collector, which prints what came in. And a wire-tap in front
//! of it, so that what must not be said is looked for in every byte.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::machine::{Folder, PATIENCE, Service, clients, free_port, wait_for};
use super::{World, left_out, ours_alone, wait_until};

/// A span as the receiver printed it.
#[derive(Clone, Default, Debug)]
pub struct Span {
    /// `Name`, `Trace ID`, `Start time` and so on.
    fields: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
}

impl Span {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Its value, without the type that the receiver puts around it.
    pub fn attribute(&self, name: &str) -> &str {
        let value = self.attributes.get(name).map_or("", String::as_str);
        value.split_once('(').map_or("", |(_, rest)| rest.strip_suffix(')').unwrap_or(rest))
    }

    fn time(&self, name: &str) -> u128 {
        self.field(name).parse().expect("nanoseconds")
    }

    pub fn lasts(&self) -> (u128, u128) {
        (self.time("Start time"), self.time("End time"))
    }

    #[track_caller]
    pub fn expect(&self, attributes: &[(&str, &str)]) {
        for (name, value) in attributes {
            assert_eq!(self.attribute(name), *value, "{name} of {self:?}");
        }
    }
}

/// The receiver. None where it is not installed.
pub struct Receiver {
    service: Service,
}

impl Receiver {
    pub fn start(port: u16) -> Option<Receiver> {
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

    pub fn spans(&self) -> Vec<Span> {
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
    pub fn until(&self, what: &str, count: usize, matches: impl Fn(&Span) -> bool) -> Vec<Span> {
        wait_for(&format!("{count} spans {what} are received"), PATIENCE, || {
            let found: Vec<Span> = self.spans().into_iter().filter(&matches).collect();
            (found.len() >= count).then_some(found)
        })
    }

    #[track_caller]
    pub fn named(&self, name: &str) -> Span {
        self.until(name, 1, |span| span.field("Name") == name).remove(0)
    }

    pub fn children(&self, of: &Span) -> Vec<Span> {
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
pub struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub fn start(to: u16) -> Tap {
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

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    #[track_caller]
    pub fn heard(&self, text: &str) -> bool {
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
pub fn traced(variables: &[(&str, &str)]) -> Option<(Receiver, Tap, World)> {
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
