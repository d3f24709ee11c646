//! Every environment variable that is read, with its default and what it means: one table for the reader,
//! for `tidegate --help` and for `.env.sample`.
//!
//! [`Env::get`](super::Env::get) takes a [`Variable`], and only this table can make one, so a variable that is
//! read is a variable that is documented. Tests check the rest: that `.env.sample` is this table, that nothing
//! else in the crate asks the process's environment, that each default is what an unset variable means, and
//! that each variable is used.

use std::fmt::Write;

/// A variable that may be set.
#[derive(Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// What an unset variable means in production, as one would write it; empty: see `help`.
    pub default: &'static str,
    /// Where it is listed.
    pub group: Group,
    /// What it means and what is allowed, in one or a few sentences.
    pub help: &'static str,
    // Private, so that only this file makes variables.
    secret: bool,
}

impl Variable {
    /// Whether its value may hold a password: then no message shows it.
    pub fn is_secret(&self) -> bool {
        self.secret
    }
}

/// What a variable is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Group {
    General,
    Listening,
    Redis,
    PostgreSQL,
    Certificates,
    Logging,
    Monitoring,
    Delivery,
    Keepalive,
    Limits,
    #[cfg(feature = "otel")]
    Traces,
}

impl Group {
    /// The group's heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::General => "General",
            Group::Listening => "Listening",
            Group::Redis => "Redis",
            Group::PostgreSQL => "PostgreSQL",
            Group::Certificates => "Certificates",
            Group::Logging => "Logging",
            Group::Monitoring => "Monitoring",
            Group::Delivery => "Delivery: memory, slow clients, faults",
            Group::Keepalive => "Keepalive and refresh intervals",
            Group::Limits => "Limits for clients",
            #[cfg(feature = "otel")]
            Group::Traces => "Traces (OpenTelemetry)",
        }
    }

    /// Whether only some builds have it: it is listed by their `--help` and in the README, not in the files that
    /// are the same for all.
    pub fn is_optional(self) -> bool {
        #[cfg(feature = "otel")]
        return self == Group::Traces;
        #[cfg(not(feature = "otel"))]
        false
    }
}

macro_rules! variables {
    (@secret) => { false };
    (@secret secret) => { true };
    (@one $group:ident, $name:ident, ($($mark:ident)?), $default:literal, $help:literal, $($feature:tt)*) => {
        $($feature)*
        #[doc = concat!("`", stringify!($name), "`: see its [`help`](Variable::help).")]
        pub static $name: Variable = Variable {
            name: stringify!($name),
            default: $default,
            group: Group::$group,
            help: $help,
            secret: variables!(@secret $($mark)?),
        };
    };
    (
        $($group:ident { $($name:ident $(($mark:ident))? = $default:literal, $help:literal;)* })*
        #[cfg(feature = "otel")]
        $otel:ident { $($other:ident $(($other_mark:ident))? = $other_default:literal, $other_help:literal;)* }
    ) => {
        $($(variables!(@one $group, $name, ($($mark)?), $default, $help,);)*)*
        $(variables!(
            @one $otel, $other, ($($other_mark)?), $other_default, $other_help, #[cfg(feature = "otel")]
        );)*

        /// All of them, in the order in which they are listed.
        pub static ALL: &[&Variable] = &[$($(&$name,)*)* $(#[cfg(feature = "otel")] &$other,)*];
    };
}

variables! {
    General {
        NODE_ENV = "development", "production or development, as for Mastodon's own server: which defaults hold, and whether .env.production or .env is read. The file is looked for in the working directory, then one directory above; variables that are set win over it.";
        STREAMING_THREADS = "", "Threads that write to clients, 1 to 16. Default: the number of cores, at most 4.";
    }
    Listening {
        PORT = "4000", "TCP port, 0 to 65535. 0 takes any free one.";
        BIND = "127.0.0.1", "Address to listen on. IPv6 addresses may stand in square brackets. Set but empty: all addresses. A socket that systemd passes (socket activation) wins over BIND, PORT and SOCKET.";
        SOCKET = "", "Path of a unix socket to listen on instead of BIND and PORT.";
        TRUSTED_PROXY_IP = "loopback,uniquelocal", "Proxies whose X-Forwarded-For is believed: addresses, networks (10.0.0.0/8) and the names loopback, linklocal and uniquelocal, separated by commas or blanks.";
    }
    Redis {
        STREAMING_REDIS_URL (secret) = "", "Like REDIS_URL, for streaming alone: wins over every other REDIS_ variable.";
        REDIS_URL (secret) = "", "redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// for TLS, or unix:///PATH[?db=DB]. Wins over the variables below, but for REDIS_NAMESPACE.";
        REDIS_HOST = "127.0.0.1", "Host name or address.";
        REDIS_PORT = "6379", "TCP port, 1 to 65535.";
        REDIS_DB = "0", "Database number. Publishing ignores it, the keys that tell Rails who listens do not.";
        REDIS_USER = "", "User of Redis's access control lists.";
        REDIS_USERNAME = "", "The same by the name that Mastodon 4.3.0 had for it. REDIS_USER wins.";
        REDIS_PASSWORD (secret) = "", "Password.";
        REDIS_SENTINELS = "", "Sentinels, as HOST[:PORT] separated by commas. Used together with REDIS_SENTINEL_MASTER, instead of REDIS_HOST and REDIS_PORT.";
        REDIS_SENTINEL_MASTER = "", "Name of the master that the sentinels watch.";
        REDIS_SENTINEL_PORT = "26379", "Port of sentinels that are given without one, 1 to 65535.";
        REDIS_SENTINEL_USERNAME = "", "User at the sentinels. Default: REDIS_USER; set but empty: none.";
        REDIS_SENTINEL_PASSWORD (secret) = "", "Password at the sentinels. Default: REDIS_PASSWORD; set but empty: none.";
        REDIS_SENTINEL_TLS = "false", "TLS to the sentinels and to the master that they name: true or false; sentinels or master for these alone.";
        REDIS_NAMESPACE = "", "Prefix of all keys and channels, for Mastodon up to 4.3. Mastodon 4.4 and later refuse to start with it.";
    }
    PostgreSQL {
        DATABASE_URL (secret) = "", "postgresql://[USER[:PASSWORD]@]HOST[:PORT]/NAME[?sslmode=…&sslrootcert=…&channel_binding=…&connect_timeout=…]; a socket's directory as ?host=/PATH. Wins over DB_USER, DB_NAME, DB_HOST and DB_PORT; DB_PASS and DB_SSLMODE count where the URL has neither.";
        DB_HOST = "localhost", "Host name, address, or the directory of a unix socket.";
        DB_PORT = "5432", "Port, 1 to 65535.";
        DB_USER = "mastodon", "User. In development: PGUSER, or the user who runs the server.";
        DB_PASS (secret) = "", "Password.";
        DB_NAME = "mastodon_production", "Database. In development: mastodon_development.";
        DB_SSLMODE = "prefer", "TLS as libpq and Rails mean it: disable, allow, prefer, require (encrypted, not verified), verify-ca, verify-full. no-verify is taken as require.";
        STREAMING_DB_POOL = "", "Like DB_POOL, for streaming alone: wins over it.";
        DB_POOL = "10", "Connections to PostgreSQL at most, 1 to 1000.";
        PGHOST = "", "Used where neither DATABASE_URL nor DB_HOST names a host; not for production's DB_ variables, which have a default.";
        PGPORT = "", "The same for the port.";
        PGUSER = "", "The same for the user.";
        PGDATABASE = "", "The database, where DATABASE_URL names none.";
        PGPASSWORD (secret) = "", "The password, where neither DATABASE_URL nor DB_PASS gives one.";
        PGSSLMODE = "", "sslmode, where neither DATABASE_URL nor DB_SSLMODE gives one.";
        PGSSLROOTCERT = "", "File with the certificate authorities for PostgreSQL, where DATABASE_URL gives none; `system` for the system's.";
        PGCHANNELBINDING = "", "disable, prefer or require, where DATABASE_URL gives none: whether the password must be bound to the encrypted connection (SCRAM-SHA-256-PLUS), so that nobody who stands between can use it. Default: prefer.";
        USER = "", "User of the operating system, the last resort for PostgreSQL's user name.";
    }
    Certificates {
        NODE_EXTRA_CA_CERTS = "", "File with certificate authorities (PEM) to trust besides the system's.";
        SSL_CERT_FILE = "", "File with certificate authorities (PEM) in place of the system's.";
        NODE_TLS_REJECT_UNAUTHORIZED = "1", "0 turns the verification of TLS certificates off where nothing else asks for it.";
    }
    Logging {
        LOG_LEVEL = "info", "trace, debug, info, warn, error or fatal; other values are ignored. In development: debug.";
        LOG_FORMAT = "text", "text for people, json for machines (one object a line: level, time, name, msg, and the fields). On standard output.";
        RUST_LOG = "", "Filter by module, for developers (tidegate::redis=trace,info); wins over LOG_LEVEL.";
    }
    Monitoring {
        ADMIN_BIND = "", "HOST:PORT of a second listener for /metrics, /ready and the status pages, shown there to whoever can connect: keep it on a private address.";
        METRICS_MAIN_PORT = "true", "Whether /metrics is on the main port too, as in Mastodon's own server: true or false.";
        METRICS_PREFIX = "", "Put before the names of Mastodon's own metrics (connected_clients and so on), for example mastodon_streaming_.";
        STATUS_PUBLIC = "false", "Whether anyone may see the status pages: true or false. Otherwise the main port shows them to direct local requests only.";
    }
    Delivery {
        BACKPRESSURE_HIGH_BYTES = "16MiB", "Undelivered messages of all clients together. Over it reading from Redis pauses; at half of it, it goes on. Over three quarters of it, clients that take nothing for a second are closed. Default: less where the process may use less than 80 MiB. Sizes may end in KiB, MiB or GiB.";
        MAX_MESSAGE_BYTES = "8MiB", "A longer message is skipped; the clients of its channel are closed and told.";
        SLOW_CLIENT_GRACE = "5", "Seconds that a client may hold old messages back without finishing one while three quarters of the budget are used up, and that any pause may last.";
        DOOR_TIMEOUT = "10", "Seconds that a newcomer or a subscription waits for Redis and PostgreSQL. An attempt to connect takes at most a quarter of them, an answer a third, so that a retry fits in.";
        GAP_CLOSE_SPREAD = "10", "Seconds over which clients are closed after messages may have been missed.";
        REDIS_AWAY_CLOSE = "30", "Seconds after which clients are closed when Redis stays away.";
        DRAIN_SECONDS = "10", "Seconds over which clients are closed at shutdown.";
        AUDIENCE_TIMEOUT = "10", "Seconds without an answer from PostgreSQL on who must not see a public status, after which nobody gets it.";
        LOCAL_ONLY_ON_PUBLIC = "false", "true or false. true: the streams public and public:media show local-only posts to everybody who is signed in, as Hometown does; false: only to clients that ask for it, as in glitch-soc.";
        FILTER_CACHE_BYTES = "32MiB", "Memory for the compiled custom filters of all accounts. Default: less where the process may use less than 144 MiB.";
    }
    Keepalive {
        SSE_HEARTBEAT_SECONDS = "15", "Seconds between the comments that keep a Server-Sent Events response alive.";
        WS_PING_SECONDS = "30", "Seconds between WebSocket pings; a client that has not answered by the next one is cut.";
        WRITE_STALL_SECONDS = "60", "Seconds that a client with messages waiting may finish none, even while there is room.";
        PRESENCE_REFRESH_SECONDS = "360", "Seconds after which the keys that tell Rails who listens are set again. They live three times as long.";
        REDIS_PING_SECONDS = "10", "Seconds of silence on the Redis connection after which it is asked whether it lives.";
        SETTINGS_REFRESH_SECONDS = "60", "Seconds after which languages, permissions and feed settings are read again.";
        PERIODIC_TIMERS = "true", "true or false. false: the server looks after its memory, its gauges and PostgreSQL once an hour only. For tests which show that no client waits for such a timer; leave it alone otherwise.";
    }
    Limits {
        MAX_CONNECTIONS = "0", "Clients in all; 0: as many as open files are allowed.";
        MAX_CONNECTIONS_PER_ADDRESS = "0", "Clients of one IPv4 address or IPv6 /64 network, as trusted proxies report it; 0: no limit.";
        MAX_DOOR_CONNECTIONS = "4096", "Connections that have not yet become a stream.";
        MAX_SUBSCRIPTIONS = "200", "Streams on one WebSocket. The text of their tags together takes at most 128 bytes for each of so many.";
        CLIENT_MESSAGE_RATE = "50", "Messages, fragments and pings of any kind per second from one client …";
        CLIENT_MESSAGE_BURST = "1000", "… after so many at once.";
        SUBSCRIBE_RATE = "20", "Subscribe and unsubscribe messages per second and connection …";
        SUBSCRIBE_BURST = "200", "… after so many at once.";
        MAX_PARAM_BYTES = "512", "Length of a tag or list parameter; of a tag as it is normalised too, which may take 6 KiB at most.";
        MAX_CLIENT_MESSAGE_BYTES = "64KiB", "One message from a WebSocket client.";
        MAX_UNFINISHED_BYTES = "4MiB", "All unfinished messages from WebSocket clients together.";
        UNFINISHED_SECONDS = "30", "Seconds in which each message from a client must be whole.";
        REQUEST_HEAD_BYTES = "16KiB", "Size of a request's head.";
        REQUEST_HEAD_SECONDS = "10", "Seconds in which a request's head must be whole, and the end of a body without bytes must follow.";
        KEEP_ALIVE_SECONDS = "5", "Seconds that a connection may stay without a request after its last response.";
    }
    #[cfg(feature = "otel")]
    Traces {
        OTEL_EXPORTER_OTLP_ENDPOINT (secret) = "", "Where an OTLP receiver takes HTTP, such as http://localhost:4318; /v1/traces is added. Traces are off until this, the next or OTEL_TRACES_EXPORTER is set.";
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (secret) = "", "The same for traces alone, taken as it stands.";
        OTEL_TRACES_EXPORTER = "", "otlp or none. Default: otlp if an endpoint is set.";
        OTEL_SDK_DISABLED = "false", "Whether traces are off whatever else is set: true or false.";
        OTEL_EXPORTER_OTLP_HEADERS (secret) = "", "Headers of each request, NAME=VALUE separated by commas, values percent-encoded.";
        OTEL_EXPORTER_OTLP_TRACES_HEADERS (secret) = "", "Those of requests with traces: in place of these.";
        OTEL_EXPORTER_OTLP_CERTIFICATE = "", "File with the certificate authorities (PEM) of a receiver at https. Default: the system's and NODE_EXTRA_CA_CERTS.";
        OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE = "", "The same for traces alone.";
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE = "", "File with our own certificate (PEM), for a receiver that asks for one.";
        OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE = "", "The same for traces alone.";
        OTEL_EXPORTER_OTLP_CLIENT_KEY = "", "File with its key.";
        OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY = "", "The same for traces alone.";
        OTEL_EXPORTER_OTLP_TIMEOUT = "10000", "Milliseconds that a batch of spans may take to be sent, another try included.";
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT = "", "The same for traces alone.";
        OTEL_EXPORTER_OTLP_PROTOCOL = "http/protobuf", "http/protobuf is the only one.";
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = "", "The same for traces alone.";
        OTEL_TRACES_SAMPLER = "parentbased_always_on", "Which handshakes are traced: always_on, always_off (messages neither) or traceidratio; with parentbased_ before it those exactly whose proxy says so, where one does.";
        OTEL_TRACES_SAMPLER_ARG = "1", "Of traceidratio: the share, 0 to 1.";
        TRACE_MESSAGE_RATIO = "0.001", "The share of messages that are traced, 0 to 1. OTEL_TRACES_SAMPLER is not asked about them.";
        OTEL_SERVICE_NAME = "", "service.name. Default: mastodon/streaming, or what the next two make of it.";
        OTEL_SERVICE_NAME_PREFIX = "mastodon", "What stands before streaming, as Mastodon's other processes have it.";
        OTEL_SERVICE_NAME_SEPARATOR = "/", "What stands between.";
        OTEL_RESOURCE_ATTRIBUTES = "", "Attributes of the service, NAME=VALUE separated by commas, values percent-encoded.";
        OTEL_BSP_SCHEDULE_DELAY = "5000", "Milliseconds that spans wait for others.";
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE = "512", "Spans in one request.";
        OTEL_BSP_MAX_QUEUE_SIZE = "2048", "Spans that wait to be sent; more are dropped.";
        OTEL_BSP_EXPORT_TIMEOUT = "30000", "Milliseconds after which a batch is given up, if OTEL_EXPORTER_OTLP_TIMEOUT is longer.";
    }
}

const WIDTH: usize = 96;

/// The variables by group, for `--help`.
pub fn help() -> String {
    let mut out = String::from("Environment variables (also read from .env.production or .env):\n");
    each_group(|group, members| {
        let _ = writeln!(out, "\n{}:", group.title());
        for variable in members {
            let default = if variable.default.is_empty() {
                String::new()
            } else {
                format!(" [default: {}]", variable.default)
            };
            let _ = writeln!(out, "  {}{default}", variable.name);
            for line in wrap(variable.help, WIDTH - 10) {
                let _ = writeln!(out, "          {line}");
            }
        }
    });
    out
}

/// The text of `.env.sample`.
pub fn sample() -> String {
    let mut out = String::from(
        "# Tidegate's settings. It reads the variables that Mastodon's own streaming server reads, so an\n\
         # existing .env.production serves as it is; everything else here is optional.\n\
         # Each line shows what holds when the variable is not set (in production).\n",
    );
    each_group(|group, members| {
        if group.is_optional() {
            return;
        }
        let _ = writeln!(out, "\n# {}\n# {}", group.title(), "-".repeat(group.title().chars().count()));
        for variable in members {
            out.push('\n');
            for line in wrap(variable.help, WIDTH) {
                let _ = writeln!(out, "# {line}");
            }
            let _ = writeln!(out, "#{}={}", variable.name, variable.default);
        }
    });
    out
}

fn each_group(mut visit: impl FnMut(Group, &[&'static Variable])) {
    for members in ALL.chunk_by(|one, next| one.group == next.group) {
        if let Some(first) = members.first() {
            visit(first.group, members);
        }
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
