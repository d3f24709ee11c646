//! Where to listen: `BIND` and `PORT`, `SOCKET`, `ADMIN_BIND`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::read::Reader;
use super::url::host_and_port;
use super::variables;

/// A host name or address without brackets, and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// Name, IPv4 or IPv6 address.
    pub host: String,
    /// TCP port; 0 (any free one) only to listen on.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What clients connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// A TCP address. The host `::` stands for all addresses of both families; where the kernel has no IPv6,
    /// for 0.0.0.0.
    Tcp(HostPort),
    /// A unix socket's path, to be made 0666.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => path.display().fmt(f),
        }
    }
}

pub(super) fn main(read: &mut Reader) -> Listen {
    if let Some(path) = read.text(&variables::SOCKET) {
        return Listen::Unix(path.into());
    }
    tcp(read)
}

pub(super) fn tcp(read: &mut Reader) -> Listen {
    let port = read.number(&variables::PORT, 4000, 0..=u16::MAX);
    let bind = read.raw(&variables::BIND).unwrap_or("127.0.0.1").trim();
    let host = match bind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bind) {
        "" => "::",
        host => host,
    };
    if !is_host(host) {
        read.refuse(
            &variables::BIND,
            "an address or host name to listen on, such as 127.0.0.1, 0.0.0.0 or [::]",
        );
    }
    Listen::Tcp(HostPort { host: host.to_owned(), port })
}

pub(super) fn admin(read: &mut Reader) -> Option<HostPort> {
    let text = read.text(&variables::ADMIN_BIND)?.trim();
    // Port 0, any free one, has a meaning only where one listens.
    let (named, any_port) = match text.strip_suffix(":0") {
        Some(host) => (host, true),
        None => (text, false),
    };
    match host_and_port(named) {
        Ok((host, Some(port))) if is_host(host) && !any_port => {
            Some(HostPort { host: host.to_owned(), port })
        }
        Ok((host, None)) if is_host(host) && any_port => Some(HostPort { host: host.to_owned(), port: 0 }),
        _ => {
            read.refuse(&variables::ADMIN_BIND, "HOST:PORT, such as 127.0.0.1:9100 or [::1]:9100");
            None
        }
    }
}

/// Whether this can be a host's name or address. Whether it exists is found out by using it.
pub(super) fn is_host(text: &str) -> bool {
    let address = text.split('%').next().unwrap_or_default();
    let is_name = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    address.parse::<IpAddr>().is_ok() || is_name(text)
}
