//! The addresses to listen on, and how many clients fit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Report;
use crate::config::{Config, Listen};
use crate::door::{Address, ListenError, Listener};
use crate::server::{DESCRIPTORS_KEPT, listen_address, raise_descriptor_limit};

/// Fewer clients than this are worth a warning: browsers and apps of a few dozen people.
const CLIENTS_FEW: u64 = 1000;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// To be called within a tokio runtime.
pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    let about = match &config.listen {
        Listen::Tcp(_) => "BIND and PORT",
        Listen::Unix(_) => "SOCKET",
    };
    bind(report, about, &listen_address(&config.listen));
    if let Some(admin) = &config.monitoring.admin {
        bind(report, "ADMIN_BIND", &Address::Admin(admin.host.clone(), admin.port));
    }
    if config.monitoring.status_public {
        report.warn("STATUS_PUBLIC", "the status pages are for everybody");
    }
    let descriptors = raise_descriptor_limit();
    let clients = match config.limits.connections_max {
        0 => descriptors.saturating_sub(DESCRIPTORS_KEPT),
        wanted => wanted as u64,
    };
    if clients + DESCRIPTORS_KEPT > descriptors {
        report.warn(
            "Open files",
            format_args!(
                "MAX_CONNECTIONS={clients} is more than RLIMIT_NOFILE={descriptors} allows; raise \
                 LimitNOFILE= in the unit, or ulimit -Hn"
            ),
        );
    } else if clients < CLIENTS_FEW && config.limits.connections_max == 0 {
        report.warn(
            "Open files",
            format_args!(
                "RLIMIT_NOFILE={descriptors} allows {clients} clients; raise LimitNOFILE= in the unit, or \
                 ulimit -Hn"
            ),
        );
    } else {
        report.ok("Open files", format_args!("room for {clients} clients"));
    }
}

fn bind(report: &mut Report<'_>, about: &str, address: &Address) {
    match Listener::bind(address) {
        Ok(listener) => report.ok(about, format_args!("{} is free to listen on", listener.address())),
        Err(error @ (ListenError::PortInUse(..) | ListenError::SocketInUse(_))) => {
            let is_streaming = match &error {
                ListenError::PortInUse(at, _) => streams_at(*at),
                ListenError::SocketInUse(path) => streams_on(path),
                _ => false,
            };
            if is_streaming {
                report.warn(
                    about,
                    format_args!(
                        "a streaming server is running there; it has to stop before this one can start"
                    ),
                );
            } else {
                report.fail(about, error);
            }
        }
        Err(error) => report.fail(about, error),
    }
}

/// Whether what listens there is a streaming server: the one to be replaced, or ourselves.
fn streams_at(at: SocketAddr) -> bool {
    // Nobody can connect to "all addresses".
    let at = if at.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], at.port())) } else { at };
    TcpStream::connect_timeout(&at, PROBE_TIMEOUT).is_ok_and(|mut stream| {
        let timed = stream.set_read_timeout(Some(PROBE_TIMEOUT));
        timed.is_ok() && says_ok(&mut stream)
    })
}

fn streams_on(path: &Path) -> bool {
    UnixStream::connect(path).is_ok_and(|mut stream| {
        let timed = stream.set_read_timeout(Some(PROBE_TIMEOUT));
        timed.is_ok() && says_ok(&mut stream)
    })
}

fn says_ok(stream: &mut (impl Read + Write)) -> bool {
    const ASK: &[u8] =
        b"GET /api/v1/streaming/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    // The time-out ends it where the server does not close.
    let _ = stream.write_all(ASK).and_then(|()| stream.take(4096).read_to_end(&mut answer).map(drop));
    answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"OK")
}
