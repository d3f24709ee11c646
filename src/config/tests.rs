//! What Mastodon's variables mean, and that any environment gives a configuration or errors.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::variables::{ALL, help, sample};
use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    Config::from_env(&Env::from_pairs(pairs.iter().copied()), Mode::Serve)
}

/// In production, where everything has a default.
fn production(pairs: &[(&str, &str)]) -> Config {
    read(&[&[("NODE_ENV", "production")], pairs].concat()).unwrap()
}

fn errors(pairs: &[(&str, &str)]) -> Vec<String> {
    let refused = read(&[&[("NODE_ENV", "production")], pairs].concat()).unwrap_err();
    refused.iter().map(|error| error.to_string()).collect()
}

fn database(pairs: &[(&str, &str)]) -> Database {
    production(pairs).database.unwrap()
}

fn host_port(host: &str, port: u16) -> HostPort {
    HostPort { host: host.into(), port }
}

#[test]
fn production_defaults() {
    let config = production(&[]);
    assert_eq!(config.listen, Listen::Tcp(host_port("127.0.0.1", 4000)));
    assert_eq!(config.redis.endpoint, RedisEndpoint::Tcp { at: host_port("127.0.0.1", 6379), tls: false });
    assert_eq!((config.redis.db, config.redis.user, config.redis.password), (0, None, None));
    let database = config.database.unwrap();
    assert_eq!(database.host, DatabaseHost::Tcp("localhost".into()));
    assert_eq!(
        (database.port, database.user.as_str(), database.name.as_str()),
        (5432, "mastodon", "mastodon_production")
    );
    assert_eq!((database.password, database.pool_size), (None, 10));
    assert_eq!(database.connect_timeout, None);
    assert_eq!((database.tls.mode, database.tls.roots), (SslMode::Prefer, RootCerts::Default));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Info, LogFormat::Text));
    assert_eq!(config.limits, Limits::default());
    assert!(config.monitoring.metrics_main_port && !config.monitoring.status_public && config.tls.verify);
}

#[test]
fn development_takes_what_is_left_open_from_libpqs_variables() {
    let config = read(&[("USER", "deploy")]).unwrap();
    assert_eq!(config.log.level, LogLevel::Debug);
    let database = config.database.unwrap();
    assert_eq!((database.user.as_str(), database.name.as_str()), ("deploy", "mastodon_development"));
    assert_eq!(database.host, DatabaseHost::Tcp("localhost".into()));

    let set = [
        ("USER", "deploy"),
        ("PGUSER", "pg"),
        ("PGHOST", "/run/pg"),
        ("PGPORT", "5433"),
        ("PGPASSWORD", "pw"),
    ];
    let database = read(&set).unwrap().database.unwrap();
    assert_eq!((database.user.as_str(), database.port), ("pg", 5433));
    assert_eq!(database.host, DatabaseHost::SocketDir("/run/pg".into()));
    assert_eq!(database.password.unwrap().expose(), "pw");
    // Production's defaults leave nothing open but the password.
    let production = production(&set).database.unwrap();
    assert_eq!((production.user.as_str(), production.port), ("mastodon", 5432));
    assert_eq!(production.host, DatabaseHost::Tcp("localhost".into()));
    assert_eq!(production.password.unwrap().expose(), "pw");

    assert!(read(&[]).unwrap_err()[0].to_string().starts_with("Invalid DB_USER environment variable"));
    let staging = read(&[("NODE_ENV", "staging")]).unwrap_err();
    assert_eq!((staging[0].variable, staging[0].value.as_deref()), ("NODE_ENV", Some("staging")));
    assert!(read(&[("NODE_ENV", "staging"), ("DATABASE_URL", "postgres://a@b/c")]).is_ok());
}

#[test]
fn listening() {
    let listen = |pairs: &[(&str, &str)]| production(pairs).listen.to_string();
    assert_eq!(listen(&[("BIND", "0.0.0.0"), ("PORT", "0")]), "0.0.0.0:0");
    assert_eq!(listen(&[("BIND", "[::1]")]), "[::1]:4000");
    assert_eq!(listen(&[("BIND", "::1")]), "[::1]:4000");
    assert_eq!(listen(&[("BIND", "")]), "[::]:4000");
    assert_eq!(listen(&[("BIND", "localhost")]), "localhost:4000");
    assert_eq!(listen(&[("SOCKET", "/run/a.sock"), ("PORT", "http")]), "/run/a.sock");
    for (name, value) in [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "40 00"),
        ("BIND", "a b"),
        ("BIND", "h:1"),
    ] {
        assert!(
            errors(&[(name, value)])[0]
                .starts_with(&format!("Invalid {name} environment variable: {value:?}"))
        );
    }
    let admin = |value| production(&[("ADMIN_BIND", value)]).monitoring.admin.unwrap();
    assert_eq!(admin("127.0.0.1:9100"), host_port("127.0.0.1", 9100));
    assert_eq!(admin("[::1]:9100"), host_port("::1", 9100));
    assert_eq!(admin("[::1]:0"), host_port("::1", 0));
    assert_eq!(admin("localhost:0"), host_port("localhost", 0));
    for wrong in ["9100", ":9100", "localhost", "::1:9100", ":0"] {
        assert_eq!(errors(&[("ADMIN_BIND", wrong)]).len(), 1, "{wrong}");
    }
}

#[test]
fn metrics_leave_the_main_port_only_for_another() {
    assert!(production(&[("METRICS_MAIN_PORT", "false")]).monitoring.metrics_main_port);
    let both = [("METRICS_MAIN_PORT", "false"), ("ADMIN_BIND", "localhost:9100")];
    assert!(!production(&both).monitoring.metrics_main_port);
    assert_eq!(production(&[("METRICS_PREFIX", "mastodon_")]).monitoring.metrics_prefix, "mastodon_");
    assert_eq!(errors(&[("METRICS_PREFIX", "a-b"), ("STATUS_PUBLIC", "maybe")]).len(), 2);
}

#[test]
fn redis_by_url() {
    let redis = |url| production(&[("REDIS_URL", url), ("REDIS_PASSWORD", "no"), ("REDIS_DB", "7")]).redis;
    let tcp = |host: &str, port, tls| RedisEndpoint::Tcp { at: host_port(host, port), tls };
    let at = |url| (redis(url).endpoint, redis(url).db);
    assert_eq!(at("redis://r.example"), (tcp("r.example", 6379, false), 0));
    assert_eq!(at("redis://r.example:6380/3"), (tcp("r.example", 6380, false), 3));
    assert_eq!(at("rediss://[fd00::1]:6380/?db=4"), (tcp("fd00::1", 6380, true), 4));
    assert_eq!(at("r.example:6380"), (tcp("r.example", 6380, false), 0));
    assert_eq!(at("unix:///run/redis.sock?db=2"), (RedisEndpoint::Unix("/run/redis.sock".into()), 2));
    assert_eq!(at("unix:/run/redis.sock"), (RedisEndpoint::Unix("/run/redis.sock".into()), 0));
    assert_eq!(at("/run/redis.sock"), (RedisEndpoint::Unix("/run/redis.sock".into()), 0));
    let login = |url| (redis(url).user, redis(url).password.map(|password| password.expose().to_owned()));
    assert_eq!(login("redis://h"), (None, None));
    assert_eq!(login("redis://u:p%40@h"), (Some("u".into()), Some("p@".into())));
    assert_eq!(login("redis://:p@h"), (None, Some("p".into())));
    assert_eq!(login("redis://p@h"), (None, Some("p".into())));
    for wrong in ["http://h", "redis://h/x", "redis://:hunter2/@h", "unix://", "redis://h h", "redis://h:x"] {
        let errors = errors(&[("REDIS_URL", wrong)]);
        assert!(errors[0].starts_with("Invalid REDIS_URL environment variable ("), "{errors:?}");
        assert!(!errors[0].contains("hunter2"));
    }
    let both = [("REDIS_URL", "redis://a"), ("STREAMING_REDIS_URL", "redis://b"), ("REDIS_NAMESPACE", "m")];
    let redis = production(&both).redis;
    assert_eq!((redis.endpoint, redis.variable), (tcp("b", 6379, false), "STREAMING_REDIS_URL"));
    assert_eq!(redis.namespace.as_deref(), Some("m"));
}

#[test]
fn redis_by_variables() {
    let redis = production(&[
        ("REDIS_HOST", "[::1]"),
        ("REDIS_PORT", "6380"),
        ("REDIS_DB", "3"),
        ("REDIS_USER", "u"),
        ("REDIS_PASSWORD", "p"),
        ("REDIS_SENTINELS", "ignored.without.master"),
        ("REDIS_URL", ""),
    ])
    .redis;
    assert_eq!(redis.endpoint, RedisEndpoint::Tcp { at: host_port("::1", 6380), tls: false });
    assert_eq!((redis.db, redis.user.as_deref(), redis.password.unwrap().expose()), (3, Some("u"), "p"));
    for (name, value) in [("REDIS_PORT", "x"), ("REDIS_DB", "-1"), ("REDIS_DB", "two"), ("REDIS_HOST", "a/b")]
    {
        assert!(
            errors(&[(name, value)])[0]
                .starts_with(&format!("Invalid {name} environment variable: {value:?}"))
        );
    }
}

#[test]
fn sentinels() {
    let set = [
        ("REDIS_SENTINELS", "a, b:1 ,[::1]:2,"),
        ("REDIS_SENTINEL_MASTER", "mymaster"),
        ("REDIS_SENTINEL_PORT", "5000"),
        ("REDIS_USER", "u"),
        ("REDIS_PASSWORD", "p"),
    ];
    let sentinel = |more: &[(&str, &str)]| match production(&[&set, more].concat()).redis.endpoint {
        RedisEndpoint::Sentinel(sentinel) => sentinel,
        other => panic!("{other:?}"),
    };
    let found = sentinel(&[]);
    assert_eq!(found.master, "mymaster");
    assert_eq!(found.sentinels, [host_port("a", 5000), host_port("b", 1), host_port("::1", 2)]);
    assert_eq!((found.user.as_deref(), found.password), (Some("u"), Some(Secret::new("p"))));
    for (value, expected) in [
        ("", (false, false)),
        ("true", (true, true)),
        ("sentinels", (true, false)),
        ("master", (false, true)),
    ] {
        let found = sentinel(&[("REDIS_SENTINEL_TLS", value)]);
        assert_eq!((found.tls, found.master_tls), expected, "{value:?}");
    }
    assert_eq!(errors(&[set[0], set[1], ("REDIS_SENTINEL_TLS", "maybe")]).len(), 1);
    let old_name = [set[0], set[1], ("REDIS_USERNAME", "v")];
    let RedisEndpoint::Sentinel(found) = production(&old_name).redis.endpoint else { panic!("no sentinels") };
    assert_eq!(found.user.as_deref(), Some("v"));
    let found = sentinel(&[("REDIS_SENTINEL_USERNAME", ""), ("REDIS_SENTINEL_PASSWORD", "")]);
    assert_eq!((found.user, found.password), (None, None));
    for wrong in [",", "a,b:x", "::1"] {
        assert_eq!(errors(&[("REDIS_SENTINELS", wrong), ("REDIS_SENTINEL_MASTER", "m")]).len(), 1, "{wrong}");
    }
}

#[test]
fn postgresql_by_url() {
    let set = database(&[
        (
            "DATABASE_URL",
            "postgresql://u:p%3A%2Fw@db.example:5433/masto?options=-c%20search_path%3Dx&connect_timeout=3",
        ),
        ("DB_USER", "no"),
        ("DB_PASS", "no"),
        ("DB_HOST", "no"),
        ("DB_POOL", "7"),
    ]);
    assert_eq!(set.host, DatabaseHost::Tcp("db.example".into()));
    assert_eq!((set.port, set.user.as_str(), set.name.as_str(), set.pool_size), (5433, "u", "masto", 7));
    assert_eq!(set.password.unwrap().expose(), "p:/w");
    assert_eq!(
        (set.options.as_deref(), set.connect_timeout),
        (Some("-c search_path=x"), Some(Duration::from_secs(3)))
    );

    let pool = [("DB_POOL", "7"), ("STREAMING_DB_POOL", "3")];
    assert_eq!(database(&pool).pool_size, 3);
    let password = [("DATABASE_URL", "postgres://u@h"), ("DB_PASS", "p")];
    let set = database(&password);
    assert_eq!((set.password.unwrap().expose(), set.name.as_str(), set.port), ("p", "u", 5432));

    let host = |url| database(&[("DATABASE_URL", url), ("USER", "me")]).host;
    let socket = |path: &str| DatabaseHost::SocketDir(path.into());
    assert_eq!(host("postgresql:///db?host=/run/pg"), socket("/run/pg"));
    assert_eq!(host("postgresql://%2Frun%2Fpg/db"), socket("/run/pg"));
    assert_eq!(host("postgresql://ignored/db?host=%2Frun%2Fpg"), socket("/run/pg"));
    assert_eq!(host("socket:/run/pg?db=masto"), socket("/run/pg"));
    assert_eq!(host("socket://u:p@/run/pg?db=masto"), socket("/run/pg"));
    assert_eq!(host("/run/pg masto"), socket("/run/pg"));
    assert_eq!(host("postgresql://[::1]/db"), DatabaseHost::Tcp("::1".into()));
    assert_eq!(host("postgresql:///db"), DatabaseHost::Tcp("localhost".into()));
    assert_eq!(database(&[("DATABASE_URL", "/run/pg masto"), ("USER", "me")]).name, "masto");

    for wrong in [
        "mysql://h",
        "h",
        "postgres://u:hunter2/@h:x",
        "postgres://a,b/c",
        "postgres://u@h/d?port=x",
        "postgres://u@h/d?sslcert=x",
    ] {
        let errors = errors(&[("DATABASE_URL", wrong)]);
        assert!(errors[0].starts_with("Invalid DATABASE_URL environment variable ("), "{errors:?}");
        assert!(!errors[0].contains("hunter2"));
    }
}

#[test]
fn sslmode_means_what_it_means_to_libpq() {
    let tls = |pairs: &[(&str, &str)]| database(pairs).tls;
    for (text, mode) in [
        ("", SslMode::Prefer),
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("no-verify", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ] {
        assert_eq!(tls(&[("DB_SSLMODE", text)]).mode, mode, "{text}");
        assert_eq!(tls(&[("PGSSLMODE", text)]).mode, mode, "{text}");
        let url = format!("postgres://u@h/d?sslmode={text}");
        assert_eq!(tls(&[("DATABASE_URL", &url)]).mode, mode, "{text}");
    }
    let with_url = |query: &str| format!("postgres://u@h/d?{query}");
    let set = tls(&[("DATABASE_URL", &with_url("")), ("DB_SSLMODE", "verify-full")]);
    assert_eq!((set.mode, set.variable), (SslMode::VerifyFull, "DB_SSLMODE"));
    let set = tls(&[("DATABASE_URL", &with_url("sslmode=disable")), ("DB_SSLMODE", "verify-full")]);
    assert_eq!((set.mode, set.variable), (SslMode::Disable, "DATABASE_URL"));
    let set = tls(&[("DATABASE_URL", &with_url("sslmode=require&sslrootcert=/ca.pem&sslcert=a&sslkey=b"))]);
    assert_eq!((set.mode, set.roots), (SslMode::VerifyCa, RootCerts::File("/ca.pem".into())));
    assert_eq!(set.client, Some(ClientCert { cert: "a".into(), key: "b".into() }));
    assert_eq!(tls(&[("DB_SSLMODE", "no-verify"), ("PGSSLROOTCERT", "/ca.pem")]).mode, SslMode::Require);
    assert_eq!(tls(&[("PGSSLROOTCERT", "system")]).mode, SslMode::VerifyFull);
    for (query, mode) in
        [("ssl=true", SslMode::VerifyFull), ("ssl=0", SslMode::Disable), ("ssl=no-verify", SslMode::Require)]
    {
        assert_eq!(tls(&[("DATABASE_URL", &with_url(query))]).mode, mode);
    }
    assert_eq!(
        errors(&[("DB_SSLMODE", "on")]),
        [
            "Invalid DB_SSLMODE environment variable: \"on\" (disable, allow, prefer, require, verify-ca or verify-full)"
        ]
    );
    assert_eq!(errors(&[("DB_SSLMODE", "require"), ("PGSSLROOTCERT", "system")]).len(), 1);
    assert_eq!(errors(&[("DATABASE_URL", &with_url("sslmode=on"))]).len(), 1);
}

#[test]
fn limits_are_read_with_units_and_ranges() {
    let limits = production(&[
        ("BACKPRESSURE_HIGH_BYTES", "64KiB"),
        ("SSE_HEARTBEAT_SECONDS", "0.05"),
        ("GAP_CLOSE_SPREAD", "0"),
        ("MAX_SUBSCRIPTIONS", "5"),
        ("STREAMING_THREADS", "16"),
    ])
    .limits;
    assert_eq!((limits.backpressure_high_bytes, limits.subscriptions_max, limits.reactors), (65536, 5, 16));
    assert_eq!((limits.sse_heartbeat, limits.gap_close_spread), (Duration::from_millis(50), Duration::ZERO));
    for (name, value) in [
        ("STREAMING_THREADS", "17"),
        // A subscription's index has 16 bits.
        ("MAX_SUBSCRIPTIONS", "65536"),
        ("MAX_SUBSCRIPTIONS", "10001"),
        ("DOOR_TIMEOUT", "0"),
        ("MAX_MESSAGE_BYTES", "1TiB"),
        ("WS_PING_SECONDS", "soon"),
    ] {
        assert!(
            errors(&[(name, value)])[0]
                .starts_with(&format!("Invalid {name} environment variable: {value:?} ("))
        );
    }
    assert_eq!(
        errors(&[("STREAMING_THREADS", "0"), ("PORT", "x"), ("LOG_FORMAT", "xml"), ("RUST_LOG", "a=b=c")])
            .len(),
        4
    );
}

#[test]
fn other_levels_are_ignored() {
    for (text, level) in [
        ("trace", LogLevel::Trace),
        ("fatal", LogLevel::Fatal),
        ("silly", LogLevel::Info),
        ("WARN", LogLevel::Info),
    ] {
        assert_eq!(production(&[("LOG_LEVEL", text)]).log.level, level, "{text}");
    }
}

#[test]
fn without_a_database_its_variables_are_not_read_and_the_demo_reads_neither() {
    let env = Env::from_pairs([("DATABASE_URL", "nonsense"), ("REDIS_HOST", "r")]);
    let config = Config::from_env(&env, Mode::NoDatabase).unwrap();
    assert_eq!(config.database, None);
    assert_eq!(config.redis.endpoint, RedisEndpoint::Tcp { at: host_port("r", 6379), tls: false });
    let env = Env::from_pairs([
        ("DATABASE_URL", "nonsense"),
        ("REDIS_URL", "nonsense://"),
        ("SOCKET", "/s"),
        ("PORT", "1"),
    ]);
    let config = Config::from_env(&env, Mode::Demo).unwrap();
    assert_eq!((config.database, config.listen), (None, Listen::Tcp(host_port("127.0.0.1", 1))));
}

#[test]
fn printing_a_configuration_shows_no_password() {
    let config = production(&[("DATABASE_URL", "postgres://u:hunter2@h/d"), ("REDIS_PASSWORD", "hunter2")]);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn the_sample_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.sample");
    let file = std::fs::read_to_string(path).unwrap();
    assert!(file == sample(), ".env.sample is out of date: cargo test --lib -- --ignored write_the_sample");
    for variable in ALL {
        assert!(help().contains(&format!("\n  {}", variable.name)));
    }
}

#[test]
#[ignore = "writes .env.sample from the table of variables"]
fn write_the_sample() {
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.sample"), sample()).unwrap();
}

#[test]
fn each_default_is_what_an_unset_variable_means() {
    let unset = production(&[]);
    for variable in ALL.iter().filter(|variable| !variable.default.is_empty() && variable.name != "NODE_ENV")
    {
        let mut set = production(&[(variable.name, variable.default)]);
        // Only whether it was set differs.
        set.budgets_set = unset.budgets_set;
        assert_eq!(set, unset, "{}", variable.name);
    }
}

/// Nothing in the crate reads a variable past the table, and everything in the table is used.
#[test]
fn every_variable_that_is_read_is_listed_and_every_listed_one_is_read() {
    fn sources(folder: &Path, found: &mut Vec<(std::path::PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.retain(|(path, _)| !path.ends_with("tests.rs") && !path.ends_with("config/variables.rs"));
    for (_, text) in &mut files {
        let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        text.truncate(tests);
    }
    for (path, text) in &files {
        let asks = ["env::var", "env::vars", "env::{", "dotenvy"].iter().any(|call| text.contains(call));
        assert!(
            !asks || path.ends_with("config/env.rs") || path.ends_with("config/mod.rs"),
            "{}",
            path.display()
        );
    }
    let text: String = files.into_iter().map(|(_, text)| text).collect();
    for variable in ALL {
        let used = [")", ",", ".", "]", ";"].iter().any(|end| {
            text.contains(&format!("variables::{}{end}", variable.name))
                || text.contains(&format!("v::{}{end}", variable.name))
        }) || text.contains(&format!("&variables::{}\n", variable.name));
        assert!(used, "{} is listed but not read", variable.name);
    }
}

fn any_value() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "redis://",
        "rediss://",
        "unix://",
        "postgresql://",
        "socket:",
        "/run",
        "host",
        "[::1]",
        ":",
        "@",
        "%2F",
        "%",
        "?",
        "&",
        "=",
        "sslmode=",
        "require",
        "verify-full",
        "system",
        "sslrootcert=",
        "db",
        ",",
        " ",
        "6379",
        "0",
        "-1",
        "9".repeat(30).leak(),
        "1.5",
        "KiB",
        "true",
        "off",
        "production",
        "development",
        "json",
        "trace",
        "10.0.0.0/8",
        "loopback",
        "ü",
        "\u{0}",
        "\n",
        "é%ff",
        "",
    ]);
    prop::collection::vec(pieces, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_environment_gives_a_configuration_or_errors(
        pairs in prop::collection::vec((prop::sample::select(ALL.to_vec()), any_value()), 0..12),
        mode in prop::sample::select(vec![Mode::Serve, Mode::NoDatabase, Mode::Demo]),
    ) {
        let env = Env::from_pairs(pairs.iter().map(|(variable, value)| (variable.name, value.as_str())));
        match Config::from_env(&env, mode) {
            Ok(config) => {
                prop_assert_eq!(config.database.is_some(), mode == Mode::Serve);
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    let variable = ALL.iter().find(|variable| variable.name == error.variable).unwrap();
                    prop_assert!(!variable.is_secret() || error.value.is_none());
                    prop_assert!(!error.to_string().contains('\n'), "{}", error);
                }
            }
        }
    }
}
