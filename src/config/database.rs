//! How to reach PostgreSQL: `DATABASE_URL`, else the `DB_` variables, with libpq's `PG` variables for what
//! is left open. Defaults depend on `NODE_ENV`, as in Mastodon.

use std::path::PathBuf;
use std::time::Duration;

use super::env::Environment;
use super::listen::is_host;
use super::read::{Reader, Secret};
use super::url;
use super::variables::{self, Variable};

/// How to reach PostgreSQL. `application_name` is to be left empty: setting it costs PgBouncer a round trip
/// per transaction (mastodon/mastodon#23958).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Database {
    /// Where it is.
    pub host: DatabaseHost,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Role to log in as.
    pub user: String,
    /// None: none is sent.
    pub password: Option<Secret>,
    /// Database.
    pub name: String,
    /// Command-line options for the session (`-c search_path=…`).
    pub options: Option<String>,
    /// Encryption.
    pub tls: DatabaseTls,
    /// Whether the password must be bound to the encrypted connection.
    pub channel_binding: ChannelBinding,
    /// Connections at most, all uses together.
    pub pool_size: usize,
    /// How long connecting may take, if that is given. What fits into `DOOR_TIMEOUT` is the limit all the same.
    pub connect_timeout: Option<Duration>,
}

/// Where PostgreSQL is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DatabaseHost {
    /// A host name or address.
    Tcp(String),
    /// The directory of a unix socket `.s.PGSQL.PORT`.
    SocketDir(PathBuf),
}

/// How the connection is encrypted. Unix sockets never are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseTls {
    /// What is asked for.
    pub mode: SslMode,
    /// Whose certificates are believed, for the verify modes.
    pub roots: RootCerts,
    /// Our own certificate (PEM file), with its key.
    pub client: Option<ClientCert>,
    /// The variable that asks for it, for messages.
    pub variable: &'static str,
}

/// `sslmode`, with libpq's meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, whoever the server is. (With a root certificate named it is [`VerifyCa`](Self::VerifyCa), as
    /// in libpq.)
    Require,
    /// Always, and the certificate comes from a trusted authority.
    VerifyCa,
    /// Always, and the certificate is also for that host.
    VerifyFull,
}

impl SslMode {
    /// Reads libpq's names, and `no-verify` of Mastodon's own server.
    pub fn parse(text: &str) -> Option<SslMode> {
        Some(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" | "no-verify" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return None,
        })
    }
}

/// `channel_binding`, with libpq's meaning: whether a password is worth something on that encrypted connection alone
/// (SCRAM-SHA-256-PLUS), so that nobody who stands between can use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it.
    Prefer,
    /// Always; other servers are refused.
    Require,
}

impl ChannelBinding {
    fn parse(text: &str) -> Option<ChannelBinding> {
        Some(match text {
            "disable" => ChannelBinding::Disable,
            "prefer" => ChannelBinding::Prefer,
            "require" => ChannelBinding::Require,
            _ => return None,
        })
    }
}

/// Whose certificates are believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RootCerts {
    /// The system's, and those of `NODE_EXTRA_CA_CERTS`.
    Default,
    /// The system's (`sslrootcert=system`).
    System,
    /// Those in this file (PEM).
    File(PathBuf),
}

/// A client certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCert {
    /// `sslcert`
    pub cert: PathBuf,
    /// `sslkey`
    pub key: PathBuf,
}

const SSLMODES: &str = "disable, allow, prefer, require, verify-ca or verify-full";

pub(super) fn database(read: &mut Reader) -> Option<Database> {
    let given = match read.text(&variables::DATABASE_URL) {
        Some(text) => match from_url(text) {
            Ok(given) => given,
            Err(problem) => {
                read.refuse(&variables::DATABASE_URL, problem);
                return None;
            }
        },
        None => from_variables(read)?,
    };
    let pool = if read.text(&variables::STREAMING_DB_POOL).is_some() {
        &variables::STREAMING_DB_POOL
    } else {
        &variables::DB_POOL
    };
    let pool_size = read.number(pool, 10, 1..=1000);
    let password = given.password.or_else(|| read.text(&variables::DB_PASS).map(str::to_owned));
    let password = password.or_else(|| read.text(&variables::PGPASSWORD).map(str::to_owned));
    let channel_binding = channel_binding(read, given.channel_binding.as_deref())?;
    let tls = tls(read, given.tls)?;
    let host = given.host.or_else(|| read.text(&variables::PGHOST).map(str::to_owned));
    let port = given.port.unwrap_or_else(|| read.port(&variables::PGPORT, 5432));
    let user = given.user.or_else(|| Some(read.first(&[&variables::PGUSER, &variables::USER])?.1.to_owned()));
    let Some(user) = user else {
        read.refuse(&variables::DB_USER, "PostgreSQL's user name is needed");
        return None;
    };
    let name = given.name.or_else(|| read.text(&variables::PGDATABASE).map(str::to_owned));
    Some(Database {
        host: host_of(read, given.variable, host.unwrap_or_else(|| "localhost".to_owned())),
        port,
        name: name.unwrap_or_else(|| user.clone()),
        user,
        password: password.map(Secret::new),
        options: given.options,
        tls,
        channel_binding,
        pool_size,
        connect_timeout: given.connect_timeout,
    })
}

/// What a URL or the `DB_` variables say; the rest is open.
struct Given {
    variable: &'static Variable,
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    name: Option<String>,
    options: Option<String>,
    tls: GivenTls,
    channel_binding: Option<String>,
    connect_timeout: Option<Duration>,
}

#[derive(Default)]
struct GivenTls {
    mode: Option<&'static str>,
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

fn from_url(text: &str) -> Result<Given, &'static str> {
    let text = text.trim();
    // "/DIRECTORY NAME", a form of Node's client library.
    if text.starts_with('/') {
        let (directory, name) = text.split_once(' ').unwrap_or((text, ""));
        return Ok(given_socket(directory, Some(name)));
    }
    let url = url::parse(text)?;
    let owned = |name: &str| url.parameter(name).map(str::to_owned);
    let mut given = match url.scheme.as_str() {
        "postgres" | "postgresql" | "postgis" => Given {
            variable: &variables::DATABASE_URL,
            host: owned("host").or_else(|| owned("hostaddr")).or(url.host.clone()),
            port: url.port,
            user: owned("user").or(url.user.clone()),
            password: owned("password").or(url.password.clone()),
            name: owned("dbname").or(url.path.clone().map(|path| path.trim_start_matches('/').to_owned())),
            options: None,
            tls: GivenTls::default(),
            channel_binding: None,
            connect_timeout: None,
        },
        "socket" => {
            let directory = url.path.as_deref().ok_or("socket:/DIRECTORY?db=NAME is expected")?;
            let login = (url.user.clone(), url.password.clone());
            Given { user: login.0, password: login.1, ..given_socket(directory, url.parameter("db")) }
        }
        _ => return Err("postgresql://USER:PASSWORD@HOST:PORT/NAME is expected"),
    };
    given.name = given.name.filter(|name| !name.is_empty());
    given.options = owned("options");
    given.channel_binding = owned("channel_binding");
    if let Some(port) = url.parameter("port") {
        let port = port.parse().ok().filter(|port| *port > 0);
        given.port = Some(port.ok_or(url::PORT_PROBLEM)?);
    }
    if let Some(seconds) = url.parameter("connect_timeout") {
        let seconds: u64 =
            seconds.parse().map_err(|_| "connect_timeout must be a whole number of seconds")?;
        // To libpq, 0 is no limit; here everything has one.
        given.connect_timeout = Some(seconds).filter(|s| *s > 0).map(|s| Duration::from_secs(s.min(600)));
    }
    given.tls = GivenTls {
        mode: url_sslmode(url.parameter("sslmode"), url.parameter("ssl"))?,
        root: owned("sslrootcert"),
        cert: owned("sslcert"),
        key: owned("sslkey"),
    };
    Ok(given)
}

fn given_socket(directory: &str, name: Option<&str>) -> Given {
    Given {
        variable: &variables::DATABASE_URL,
        host: Some(directory.to_owned()),
        port: None,
        user: None,
        password: None,
        name: name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
        options: None,
        tls: GivenTls::default(),
        channel_binding: None,
        connect_timeout: None,
    }
}

/// `sslmode=`, or Node's `ssl=`, by which that server verifies everything.
fn url_sslmode(sslmode: Option<&str>, ssl: Option<&str>) -> Result<Option<&'static str>, &'static str> {
    const NAMES: [&str; 7] =
        ["disable", "allow", "prefer", "require", "no-verify", "verify-ca", "verify-full"];
    match (sslmode, ssl) {
        (Some(mode), _) => NAMES
            .into_iter()
            .find(|name| *name == mode)
            .map(Some)
            .ok_or("sslmode must be disable, allow, prefer, require, verify-ca or verify-full"),
        (None, Some("true" | "1")) => Ok(Some("verify-full")),
        (None, Some("false" | "0")) => Ok(Some("disable")),
        (None, Some("no-verify")) => Ok(Some("no-verify")),
        (None, Some(_)) => Err("ssl must be true, false or no-verify"),
        (None, None) => Ok(None),
    }
}

fn from_variables(read: &mut Reader) -> Option<Given> {
    let owned = |variable| read.text(variable).map(str::to_owned);
    let (host, user, name) =
        (owned(&variables::DB_HOST), owned(&variables::DB_USER), owned(&variables::DB_NAME));
    let production = match read.env().environment() {
        Environment::Production => true,
        Environment::Development => false,
        Environment::Other(_) => {
            read.refuse(&variables::NODE_ENV, "production or development; with any other, set DATABASE_URL");
            return None;
        }
    };
    let or = |value: Option<String>, default: &str| value.or_else(|| production.then(|| default.to_owned()));
    let port_given = production || read.text(&variables::DB_PORT).is_some();
    Some(Given {
        variable: &variables::DB_HOST,
        host: or(host, "localhost"),
        port: port_given.then(|| read.port(&variables::DB_PORT, 5432)),
        user: or(user, "mastodon"),
        password: None,
        name: or(name, "mastodon_production").or_else(|| Some("mastodon_development".to_owned())),
        options: None,
        tls: GivenTls::default(),
        channel_binding: None,
        connect_timeout: None,
    })
}

fn host_of(read: &mut Reader, variable: &'static Variable, host: String) -> DatabaseHost {
    if host.starts_with('/') {
        return DatabaseHost::SocketDir(host.into());
    }
    let bare = host.trim();
    let bare = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
    if !is_host(bare) {
        read.refuse(variable, "the host must be a name, an address, or the directory of a unix socket");
    }
    DatabaseHost::Tcp(bare.to_owned())
}

fn channel_binding(read: &mut Reader, given: Option<&str>) -> Option<ChannelBinding> {
    let (variable, text) = match given {
        Some(text) => (&variables::DATABASE_URL, text),
        None => match read.text(&variables::PGCHANNELBINDING) {
            Some(text) => (&variables::PGCHANNELBINDING, text.trim()),
            None => return Some(ChannelBinding::Prefer),
        },
    };
    let parsed = ChannelBinding::parse(text);
    if parsed.is_none() {
        read.refuse(variable, "channel_binding must be disable, prefer or require");
    }
    parsed
}

fn tls(read: &mut Reader, given: GivenTls) -> Option<DatabaseTls> {
    let set = read.first(&[&variables::DB_SSLMODE, &variables::PGSSLMODE]);
    let (variable, text) = match given.mode {
        Some(mode) => (&variables::DATABASE_URL, Some(mode)),
        None => set.map_or((&variables::DB_SSLMODE, None), |(variable, text)| (variable, Some(text.trim()))),
    };
    let roots = match given.root.as_deref().or_else(|| read.text(&variables::PGSSLROOTCERT)) {
        None => RootCerts::Default,
        Some("system") => RootCerts::System,
        Some(path) => RootCerts::File(path.into()),
    };
    let mode = match (text.map(SslMode::parse), &roots) {
        (Some(None), _) => {
            read.refuse(variable, SSLMODES);
            return None;
        }
        (None, RootCerts::System) => SslMode::VerifyFull,
        (Some(Some(mode)), RootCerts::System) if mode != SslMode::VerifyFull => {
            read.refuse(variable, "with sslrootcert=system, sslmode must be verify-full");
            return None;
        }
        (None, _) => SslMode::Prefer,
        (Some(Some(SslMode::Require)), RootCerts::File(_)) if text == Some("require") => SslMode::VerifyCa,
        (Some(Some(mode)), _) => mode,
    };
    let client = match (given.cert, given.key) {
        (Some(cert), Some(key)) => Some(ClientCert { cert: cert.into(), key: key.into() }),
        (None, None) => None,
        _ => {
            read.refuse(&variables::DATABASE_URL, "sslcert and sslkey are needed together");
            return None;
        }
    };
    Some(DatabaseTls { mode, roots, client, variable: variable.name })
}
