//! How to reach Redis. `STREAMING_REDIS_URL`, else `REDIS_URL`, else Sentinel, else host and port; a URL is
//! exclusive, as in Mastodon since 4.3.

use std::path::PathBuf;

use super::listen::{HostPort, is_host};
use super::read::{Reader, Secret};
use super::url::{self, Url};
use super::variables::{self, Variable};

/// How to reach Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redis {
    /// Where it is.
    pub endpoint: RedisEndpoint,
    /// User of the access control lists; none: the default user.
    pub user: Option<String>,
    /// None: no AUTH is sent.
    pub password: Option<Secret>,
    /// Database number, for SELECT. Only keys depend on it, channels do not.
    pub db: u32,
    /// Prefix of keys and channels, without the colon that follows it.
    pub namespace: Option<String>,
    /// The variable that names the endpoint, for messages.
    pub variable: &'static str,
}

/// Where Redis is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RedisEndpoint {
    /// One server over TCP.
    Tcp {
        /// Its address.
        at: HostPort,
        /// Whether over TLS (`rediss://`).
        tls: bool,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// Whoever these sentinels call master.
    Sentinel(Sentinel),
}

/// The sentinels to ask for the master. Their login is apart from the master's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sentinel {
    /// The master's name.
    pub master: String,
    /// At least one.
    pub sentinels: Vec<HostPort>,
    /// User at the sentinels.
    pub user: Option<String>,
    /// Password at the sentinels.
    pub password: Option<Secret>,
    /// Whether over TLS to the sentinels.
    pub tls: bool,
    /// Whether over TLS to the master that they name.
    pub master_tls: bool,
}

impl Redis {
    /// A server without password at that address.
    pub fn at(address: std::net::SocketAddr) -> Redis {
        let at = HostPort { host: address.ip().to_string(), port: address.port() };
        Redis {
            endpoint: RedisEndpoint::Tcp { at, tls: false },
            user: None,
            password: None,
            db: 0,
            namespace: None,
            variable: variables::REDIS_HOST.name,
        }
    }
}

pub(super) fn redis(read: &mut Reader) -> Redis {
    let namespace = read.text(&variables::REDIS_NAMESPACE).map(str::to_owned);
    let found = match read.first(&[&variables::STREAMING_REDIS_URL, &variables::REDIS_URL]) {
        Some((variable, text)) => from_url(read, variable, text),
        None => from_variables(read),
    };
    Redis { namespace, ..found }
}

fn from_url(read: &mut Reader, variable: &'static Variable, text: &str) -> Redis {
    let mut found = Redis { variable: variable.name, ..Redis::at(([127, 0, 0, 1], 6379).into()) };
    // A bare path or HOST:PORT is accepted by Mastodon's client library too.
    let text = text.trim();
    let full = match text {
        text if text.starts_with('/') => format!("unix://{text}"),
        text if !text.contains('/') && !text.starts_with("unix:") => format!("redis://{text}"),
        text => text.to_owned(),
    };
    match url::parse(&full).and_then(|url| fill(&mut found, url)) {
        Ok(()) => {}
        Err(problem) => read.refuse(variable, problem),
    }
    found
}

fn fill(found: &mut Redis, url: Url) -> Result<(), &'static str> {
    let parameter_db = url.parameter("db").map(str::to_owned);
    let mut db = parameter_db.as_deref();
    match url.scheme.as_str() {
        scheme @ ("redis" | "rediss") => {
            let host = url.host.unwrap_or_else(|| "127.0.0.1".to_owned());
            if !is_host(&host) {
                return Err("the URL's host is neither an address nor a host name");
            }
            let at = HostPort { host, port: url.port.unwrap_or(6379) };
            found.endpoint = RedisEndpoint::Tcp { at, tls: scheme == "rediss" };
            db =
                url.path.as_deref().map(|path| path.trim_matches('/')).filter(|path| !path.is_empty()).or(db);
        }
        "unix" | "redis+unix" => {
            let path = url.path.filter(|path| path.starts_with('/') && path.len() > 1);
            found.endpoint = RedisEndpoint::Unix(path.ok_or("unix:///PATH is expected")?.into());
        }
        _ => return Err("redis://, rediss:// or unix:// is expected"),
    }
    if let Some(text) = db {
        found.db = text.parse().map_err(|_| "the URL's database must be a whole number from 0")?;
    }
    // A login of one part is the password: alone, a user's name could not log in.
    (found.user, found.password) = match (url.user, url.password) {
        (user, Some(password)) => (user, Some(Secret::new(password))),
        (Some(password), None) => (None, Some(Secret::new(password))),
        (None, None) => (None, None),
    };
    Ok(())
}

fn from_variables(read: &mut Reader) -> Redis {
    let owned = |text: &str| text.to_owned();
    let user = read.first(&[&variables::REDIS_USER, &variables::REDIS_USERNAME]).map(|(_, text)| owned(text));
    let password = read.text(&variables::REDIS_PASSWORD).map(Secret::new);
    let db = read.number(&variables::REDIS_DB, 0, 0..=u32::MAX);
    let sentinels = read.text(&variables::REDIS_SENTINELS);
    let (endpoint, variable) = match (sentinels, read.text(&variables::REDIS_SENTINEL_MASTER)) {
        (Some(list), Some(master)) => {
            let (tls, master_tls) = sentinel_tls(read);
            // Set but empty means no login at the sentinels, though the master has one.
            let sentinel = Sentinel {
                master: master.to_owned(),
                sentinels: sentinel_list(read, list),
                user: match read.raw(&variables::REDIS_SENTINEL_USERNAME) {
                    Some(text) => Some(text.to_owned()).filter(|text| !text.is_empty()),
                    None => user.clone(),
                },
                password: match read.raw(&variables::REDIS_SENTINEL_PASSWORD) {
                    Some(text) => Some(text).filter(|text| !text.is_empty()).map(Secret::new),
                    None => password.clone(),
                },
                tls,
                master_tls,
            };
            (RedisEndpoint::Sentinel(sentinel), &variables::REDIS_SENTINELS)
        }
        _ => {
            let host = read.text(&variables::REDIS_HOST).unwrap_or("127.0.0.1").trim();
            let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
            if !is_host(host) {
                read.refuse(&variables::REDIS_HOST, "a host name or an address");
            }
            let at = HostPort { host: host.to_owned(), port: read.port(&variables::REDIS_PORT, 6379) };
            (RedisEndpoint::Tcp { at, tls: false }, &variables::REDIS_HOST)
        }
    };
    Redis { endpoint, user, password, db, namespace: None, variable: variable.name }
}

/// For the sentinels, and for the master.
fn sentinel_tls(read: &mut Reader) -> (bool, bool) {
    match read.text(&variables::REDIS_SENTINEL_TLS) {
        None | Some("false") => (false, false),
        Some("true") => (true, true),
        Some("sentinels") => (true, false),
        Some("master") => (false, true),
        Some(_) => {
            read.refuse(&variables::REDIS_SENTINEL_TLS, "true, false, sentinels or master");
            (false, false)
        }
    }
}

fn sentinel_list(read: &mut Reader, list: &str) -> Vec<HostPort> {
    let default_port = read.port(&variables::REDIS_SENTINEL_PORT, 26379);
    let mut sentinels = Vec::new();
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match url::host_and_port(entry) {
            Ok((host, port)) if is_host(host) => {
                sentinels.push(HostPort { host: host.to_owned(), port: port.unwrap_or(default_port) });
            }
            _ => {
                sentinels.clear();
                break;
            }
        }
    }
    if sentinels.is_empty() {
        read.refuse(&variables::REDIS_SENTINELS, "HOST or HOST:PORT, several separated by commas");
    }
    sentinels
}
