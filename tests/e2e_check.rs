//! `tidegate check` against real servers: what works is `ok`, what would not is named with what to do, the
//! exit status says the same, and no password is in any line. And `tidegate --help`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;

use support::certificates::{Authority, path};
use support::check::{run, run_in};
use support::machine::{Folder, PATIENCE, free_port, signal};
use support::postgres::{Database, Postgres};
use support::redis::Redis;
use support::sentinel::{Cluster, LOGIN, MASTER, SENTINEL_LOGIN};
use support::server::Env;
use support::world::{World, environment, servers};
use support::{Server, Sse, ours_alone, posts, wait_until};

/// Variables for these servers, with a Redis user who may do everything, and for a port that is free.
fn variables(redis: &Redis, postgres: &Postgres, database: &str) -> Env {
    let mut env = environment(redis, &postgres.url(database));
    env.insert("REDIS_URL".into(), format!("redis://127.0.0.1:{}/0", redis.port));
    env.insert("PORT".into(), free_port().to_string());
    env
}

fn with(env: &Env, more: &[(&str, &str)]) -> Env {
    let mut env = env.clone();
    env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

fn without(env: &Env, name: &str) -> Env {
    let mut env = env.clone();
    env.remove(name);
    env
}

#[test]
fn all_is_well_where_all_is_well() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.database();
    let env = with(&variables(&redis, postgres, &database.name), &[("ADMIN_BIND", "127.0.0.1:0")]);
    let checked = run(&["check"], &env);
    assert_eq!(checked.code, 0, "{}", checked.text);
    assert!(checked.lines("FAIL").is_empty() && checked.lines("warn").is_empty(), "{}", checked.text);
    for words in [
        &["Settings", "PORT", "REDIS_URL"][..],
        &["BIND and PORT", env["PORT"].as_str(), "free"],
        &["ADMIN_BIND", "free"],
        &["Open files", "clients"],
        &["Redis (REDIS_URL)", "connected", &redis.port.to_string()],
        &["Redis", "subscribed:*"],
        &["Redis", "timeline:*"],
        &["PostgreSQL", "connected", "user tidegate", "not encrypted"],
        &["PostgreSQL table oauth_access_tokens", "revoked_at"],
        &["PostgreSQL table settings", "var, value"],
    ] {
        checked.expect(0, "ok", words);
    }
    assert!(checked.text.ends_with("\nready to serve\n"), "{}", checked.text);
    // The user with the least rights can serve, and is told what it does without.
    let least = run(&["check"], &with(&env, &[("REDIS_URL", &redis.url())]));
    least.expect(0, "ok", &["Redis", "CLIENT LIST", "config|get is not allowed"]);
    assert_eq!((least.lines("FAIL").len(), least.lines("warn").len()), (0, 0), "{}", least.text);
    // It leaves nothing behind: the presence key goes by itself.
    assert!(redis.ttl("subscribed:timeline:0") <= 1);
    redis.until_channels(&[]);
    // It tried to listen, and let go again.
    Server::start(&env);
    // Without PostgreSQL it does not ask for it.
    let alone = run(&["check", "--no-database"], &without(&env, "DATABASE_URL"));
    assert_eq!(alone.code, 0, "{}", alone.text);
    assert!(!alone.text.contains("PostgreSQL"), "{}", alone.text);
}

#[test]
fn refused_settings_are_all_named_and_nothing_is_tried() {
    if !ours_alone() {
        return;
    }
    let wrong = [("NODE_ENV", "production"), ("PORT", "http"), ("STATUS_PUBLIC", "maybe")];
    let checked = run(&["check"], &with(&Env::new(), &wrong));
    checked.expect(2, "FAIL", &["PORT", "http"]);
    checked.expect(2, "FAIL", &["STATUS_PUBLIC", "maybe"]);
    assert_eq!(checked.text.lines().filter(|line| line.contains("Redis")).count(), 0, "{}", checked.text);
}

#[test]
fn servers_that_are_away_fail_it_with_what_to_do() {
    if !ours_alone() {
        return;
    }
    let (redis, postgres) = (format!("redis://:hunter2@127.0.0.1:{}/0", free_port()), free_port());
    let database = format!("postgres://mastodon:hunter3@127.0.0.1:{postgres}/mastodon");
    let pairs = [
        ("NODE_ENV", "production"),
        ("PORT", "0"),
        ("REDIS_URL", redis.as_str()),
        ("DATABASE_URL", database.as_str()),
    ];
    let checked = run(&["check"], &with(&Env::new(), &pairs));
    checked.expect(1, "FAIL", &["Redis", "cannot be reached", "check that it runs"]);
    checked.expect(1, "FAIL", &["PostgreSQL", "cannot be reached", "check that it runs"]);
    assert!(checked.text.contains("not ready to serve, 2 failures"), "{}", checked.text);
    assert!(!checked.text.contains("hunter"), "a password: {}", checked.text);
}

#[test]
fn what_a_redis_user_lacks_is_named() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.database();
    let env = variables(&redis, postgres, &database.name);
    let allow = |rules: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", "tide", "reset", "on", ">hunter2"];
        words.extend(rules);
        redis.command(&words);
    };
    let url = |login: &str| format!("redis://{login}@127.0.0.1:{}/0", redis.port);
    let check = |login: &str| {
        let checked = run(&["check"], &with(&env, &[("REDIS_URL", &url(login))]));
        assert!(!checked.text.contains("hunter2"), "a password: {}", checked.text);
        checked
    };
    let enough = [
        "+ping",
        "+subscribe",
        "+unsubscribe",
        "+select",
        "+set",
        "+client",
        "+config|get",
        "+info",
        "&timeline:*",
        "~subscribed:*",
    ];
    allow(&enough);
    let checked = check("tide:hunter2");
    checked.expect(0, "ok", &["Redis", "user tide", "with a password"]);
    checked.expect(0, "ok", &["Redis", "timeline:*"]);

    check("tide:wrong").expect(1, "FAIL", &["Redis", "refuses AUTH", "REDIS_PASSWORD"]);
    let lacks = |word: &str| -> Vec<&str> { enough.into_iter().filter(|other| *other != word).collect() };
    for (left_out, said) in [
        ("+set", "SET subscribed:"),
        ("~subscribed:*", "SET subscribed:"),
        ("+subscribe", "SUBSCRIBE timeline:"),
        ("&timeline:*", "SUBSCRIBE timeline:"),
        ("+unsubscribe", "UNSUBSCRIBE"),
    ] {
        allow(&lacks(left_out));
        check("tide:hunter2").expect(1, "FAIL", &["Redis", said, "timeline:* and the keys subscribed:*"]);
    }
    // It serves without these.
    allow(&lacks("+client"));
    check("tide:hunter2").expect(0, "warn", &["Redis", "client|list"]);
    allow(&lacks("+config|get"));
    check("tide:hunter2").expect(0, "ok", &["Redis", "taken to be Redis's default"]);
    allow(&lacks("+info"));
    assert_eq!(check("tide:hunter2").code, 0);

    redis.command(&["CONFIG", "SET", "requirepass", "hunter2"]);
    let nobody = format!("redis://127.0.0.1:{}/0", redis.port);
    let checked = run(&["check"], &with(&env, &[("REDIS_URL", &nobody)]));
    checked.expect(1, "FAIL", &["Redis", "NOAUTH", "REDIS_PASSWORD"]);
}

#[test]
fn a_redis_that_cannot_be_written_to_fails_it() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.database();
    let Some(replica) = Redis::start_on(None, &["--replicaof", &format!("127.0.0.1 {}", redis.port)]) else {
        return;
    };
    let env = variables(&replica, postgres, &database.name);
    run(&["check"], &env).expect(1, "FAIL", &["Redis", "SET subscribed:", "master"]);
}

/// A role with this password-less login and these privileges.
fn role(database: &Database, name: &str, grants: &[String]) {
    database.run(&format!("DROP ROLE IF EXISTS {name}"));
    database.run(&format!("CREATE ROLE {name} LOGIN"));
    for grant in grants {
        database.run(&format!("GRANT {grant} TO {name}"));
    }
}

fn all_grants() -> Vec<String> {
    tidegate::db::TABLES
        .iter()
        .map(|(table, columns)| format!("SELECT ({}) ON {table}", columns.join(", ")))
        .collect()
}

#[test]
fn what_postgresql_lacks_is_named_by_table() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.own_database();
    let env = variables(&redis, postgres, &database.name);
    let as_reader = |name: &str| {
        let url = format!("postgres://{name}@127.0.0.1:{}/{}", postgres.port, database.name);
        run(&["check"], &with(&env, &[("DATABASE_URL", &url)]))
    };
    let name = format!("reader_{}", database.name);
    role(&database, &name, &all_grants());
    assert_eq!(as_reader(&name).code, 0);
    database.run(&format!(
        "REVOKE SELECT ON blocks FROM {name}; REVOKE SELECT (scopes) ON oauth_access_tokens FROM {name}"
    ));
    let checked = as_reader(&name);
    let advice = format!("GRANT SELECT ON blocks TO \"{name}\";");
    checked.expect(1, "FAIL", &["table blocks", "account_id, target_account_id", &advice]);
    checked.expect(1, "FAIL", &["table oauth_access_tokens", "may not read scopes;"]);
    checked.expect(1, "ok", &["table mutes"]);

    database.run("ALTER TABLE users DROP COLUMN chosen_languages; DROP TABLE lists");
    let checked = run(&["check"], &env);
    checked.expect(1, "FAIL", &["table users", "has no chosen_languages", "migrations"]);
    checked.expect(1, "FAIL", &["table lists", "is not there", "DB_NAME"]);

    checked_names(&env, &["no_such_database", "DB_NAME"], &postgres.url("no_such_database"));
    let nobody = format!("postgres://no_such_role@127.0.0.1:{}/{}", postgres.port, database.name);
    checked_names(&env, &["no_such_role", "DB_USER"], &nobody);
    let silent = format!("postgres://tidegate@127.0.0.1:{}/{}", postgres.port, database.name);
    checked_names(&env, &["refuses", "set DB_PASS"], &silent);
    // As Debian has it on PostgreSQL's socket, but for the user's name.
    let socket = postgres.service.folder().display();
    let peer = format!("postgres://no_such_role@/{}?host={socket}&port={}", database.name, postgres.port);
    checked_names(&env, &["refuses", "DB_USER", "DB_HOST=localhost"], &peer);
    database.run(&format!("DROP OWNED BY {name}; DROP ROLE {name}"));
}

#[test]
fn grants_of_an_older_version_are_a_warning() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.own_database();
    let env = variables(&redis, postgres, &database.name);
    database.run("REVOKE SELECT (domain) ON accounts FROM tidegate");
    let checked = run(&["check"], &env);
    checked.expect(0, "warn", &["table accounts", "may not read domain", "postgresql-grants.sql"]);
    database.run("REVOKE SELECT (suspended_at) ON accounts FROM tidegate");
    run(&["check"], &env).expect(1, "FAIL", &["table accounts", "may not read suspended_at, domain"]);
}

#[test]
fn a_mastodon_older_than_4_is_named_as_such() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.own_database();
    let env = variables(&redis, postgres, &database.name);
    database.run("DROP TABLE user_roles CASCADE; DROP TABLE custom_filter_keywords CASCADE");
    let checked = run(&["check"], &env);
    checked.expect(1, "FAIL", &["user_roles and custom_filter_keywords", "older than 4.0", "Fedibird"]);
    assert_eq!(checked.lines("FAIL").len(), 1, "one reason and no list of tables: {}", checked.text);
}

fn checked_names(env: &Env, words: &[&str], url: &str) {
    run(&["check"], &with(env, &[("DATABASE_URL", url)])).expect(1, "FAIL", words);
}

#[test]
fn the_server_needs_no_more_than_the_columns_that_are_checked() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let name = format!("served_{}", world.db.name);
    role(&world.db, &name, &all_grants());
    let mut env = world.env.clone();
    let port = support::postgres::shared().unwrap().port;
    env.insert("DATABASE_URL".into(), format!("postgres://{name}@127.0.0.1:{port}/{}", world.db.name));
    let server = Server::start(&env);
    let viewer = world.viewer("read");
    let list = viewer.list();
    let filter =
        "INSERT INTO custom_filters (account_id, phrase, context) VALUES ($1, 'f', '{home}') RETURNING id";
    let filter = world.db.id(filter, &[&(viewer.account as i64)]);
    viewer.sql(&format!(
        "INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES ({filter}, 'tide')"
    ));
    let mut listed = Sse::open(&server, &format!("/api/v1/streaming/list?list={list}"), &viewer.token);
    let mut public = Sse::open(&server, "/api/v1/streaming/public", &viewer.token);
    let channel = format!("timeline:list:{list}");
    world.redis.until_subscribed(&[channel.as_str(), "timeline:public"]);
    world.publish(&channel, r#"{"event":"delete","payload":"1"}"#);
    listed.expect("delete", "1");
    let status = posts::status(1, world.account());
    world.publish("timeline:public", &posts::message("update", &status));
    let event = public.next();
    assert_eq!(event.name, "update");
    assert!(event.data.contains("keyword_matches\":[\"tide\"]"), "{}", event.data);
    assert!(!server.output().contains("permission denied"), "{}", server.output());
    drop(server);
    world.db.run(&format!("DROP OWNED BY {name}; DROP ROLE {name}"));
}

#[test]
fn addresses_that_are_taken_fail_it_but_for_the_server_to_be_replaced() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let running = world.server.address().port().to_string();
    let checked = run(&["check"], &with(&world.env, &[("PORT", &running)]));
    checked.expect(0, "warn", &["BIND and PORT", "streaming server is running there"]);

    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let checked = run(&["check"], &with(&world.env, &[("PORT", &port)]));
    checked.expect(1, "FAIL", &["BIND and PORT", &port, "in use by another process"]);

    let folder = Folder::new("check-socket");
    let path = folder.path().join("streaming.sock");
    let socket = path.to_str().unwrap();
    let on_socket = with(&world.env, &[("SOCKET", socket)]);
    run(&["check"], &on_socket).expect(0, "ok", &["SOCKET", socket]);
    std::fs::write(&path, "a file").unwrap();
    run(&["check"], &on_socket).expect(1, "FAIL", &["SOCKET", "not a socket"]);
    let missing = with(&world.env, &[("SOCKET", "/no/such/folder/streaming.sock")]);
    run(&["check"], &missing).expect(1, "FAIL", &["SOCKET", "/no/such/folder"]);
    let absent = with(&world.env, &[("BIND", "no.such.name.invalid")]);
    run(&["check"], &absent).expect(1, "FAIL", &["BIND", "no such address"]);
}

#[test]
fn files_and_the_settings_file_are_looked_at() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = servers() else { return };
    let database = postgres.database();
    let env = variables(&redis, postgres, &database.name);
    let folder = Folder::new("check-files");
    let file = folder.path().join("ca.pem");
    let ca = file.to_str().unwrap();
    let named = with(&env, &[("NODE_EXTRA_CA_CERTS", ca)]);
    run(&["check"], &named).expect(1, "FAIL", &["NODE_EXTRA_CA_CERTS", ca, "cannot be read"]);
    std::fs::write(&file, "not PEM").unwrap();
    run(&["check"], &named).expect(1, "FAIL", &["NODE_EXTRA_CA_CERTS", "holds no CERTIFICATE"]);

    // Everything from the file, as the service has it.
    let lines: String = env
        .iter()
        .filter(|(name, _)| *name != "NODE_ENV")
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    std::fs::write(folder.path().join(".env.production"), lines).unwrap();
    let production = with(&Env::new(), &[("NODE_ENV", "production")]);
    let checked = run_in(&folder, &["check"], &production);
    checked.expect(0, "ok", &["Settings", "settings read from", ".env.production"]);

    // None there: every place is named, in the log too, and before the variable that is refused.
    let empty = Folder::new("check-no-file");
    let looked_for = format!("no settings file at {}/.env.production or ", empty.path().display());
    let checked = run_in(&empty, &["check"], &production);
    checked.expect(1, "warn", &["Settings", &looked_for]);
    let refused = run_in(&empty, &[], &with(&production, &[("PORT", "http")]));
    let lines: Vec<&str> = refused.text.lines().collect();
    assert!(lines[0].contains(&looked_for), "{}", refused.text);
    assert!(lines[lines.len() - 1].contains("PORT"), "{}", refused.text);
    assert_eq!(refused.code, 1);

    // NODE_ENV forgotten: the commonest mistake.
    let checked = run_in(&folder, &["check"], &without(&env, "NODE_ENV"));
    checked.expect(0, "warn", &["NODE_ENV", "NODE_ENV=production"]);

    // Root reads everything.
    std::fs::set_permissions(folder.path().join(".env.production"), PermissionsExt::from_mode(0o000))
        .unwrap();
    if std::fs::read(folder.path().join(".env.production")).is_err() {
        run_in(&folder, &["check"], &production).expect(
            1,
            "warn",
            &[".env.production", "cannot be read by user"],
        );
    }
}

#[test]
fn help_lists_every_variable_under_its_group() {
    if !ours_alone() {
        return;
    }
    let help = run(&["--help"], &Env::new());
    assert_eq!(help.code, 0);
    let mut rest = help.text.as_str();
    let mut group = None;
    for variable in tidegate::config::variables::ALL {
        if group != Some(variable.group) {
            group = Some(variable.group);
            let title = format!("\n{}:\n", variable.group.title());
            rest = rest.split_once(title.as_str()).unwrap_or_else(|| panic!("no group {title:?} in order")).1;
        }
        let line = format!("  {}", variable.name);
        let found = rest.lines().any(|text| text == line || text.starts_with(&format!("{line} [default: ")));
        assert!(found, "{} is not under {}", variable.name, variable.group.title());
    }
    // Those of traces are there exactly where traces are.
    assert_eq!(help.text.contains("OTEL_"), cfg!(feature = "otel"));
    for command in ["demo", "check", "--no-database"] {
        assert!(help.text.contains(command), "{command}");
    }
    assert!(
        run(&["check", "--help"], &Env::new()).text.contains("Exit status"),
        "check explains its exit status"
    );
}

#[test]
fn health_asks_a_running_server() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let at = |port: u16| with(&world.env, &[("PORT", &port.to_string())]);
    let running = at(world.server.address().port());
    wait_until("it is ready", PATIENCE, || run(&["health", "--ready"], &running).code == 0);
    assert_eq!(run(&["health"], &running).code, 0);
    assert_eq!(run(&["health"], &with(&running, &[("BIND", "0.0.0.0")])).code, 0);
    let nobody = run(&["health"], &at(free_port()));
    assert_eq!(nobody.code, 1);
    assert!(nobody.text.contains("does not answer"), "{}", nobody.text);

    // Alive without Redis, but not ready.
    signal(world.redis.service.pid(), "KILL");
    wait_until("it is not ready", PATIENCE, || {
        let ready = run(&["health", "--ready"], &running);
        ready.code == 1 && ready.text.contains("Redis is away")
    });
    assert_eq!(run(&["health"], &running).code, 0);

    let folder = Folder::new("health");
    let path = folder.path().join("streaming.sock");
    let on_socket = with(&world.env, &[("SOCKET", path.to_str().unwrap())]);
    assert_eq!(run(&["health"], &on_socket).code, 1);
    let _server = Server::start(&on_socket);
    assert_eq!(run(&["health"], &on_socket).code, 0);
}

#[test]
fn an_encrypted_redis_is_tried_as_the_server_would() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let Some(postgres) = support::postgres::shared() else { return };
    let pair = authority.issue("redis", "redis", &["DNS:localhost"]);
    let (port, root) = (free_port().to_string(), authority.root());
    let settings = [
        ["--tls-port", &port],
        ["--tls-cert-file", path(&pair.cert)],
        ["--tls-key-file", path(&pair.key)],
        ["--tls-ca-cert-file", path(&root)],
        ["--tls-auth-clients", "no"],
    ];
    let Some(redis) = Redis::start_on(None, settings.as_flattened()) else { return };
    let database = postgres.database();
    let url = format!("rediss://localhost:{port}");
    let env = with(&variables(&redis, postgres, &database.name), &[("REDIS_URL", &url)]);
    let trusting = with(&env, &[("NODE_EXTRA_CA_CERTS", path(&root))]);
    let checked = run(&["check"], &trusting);
    checked.expect(0, "ok", &["Redis (REDIS_URL)", "connected to", &port]);
    checked.expect(0, "ok", &["NODE_EXTRA_CA_CERTS", "is readable"]);
    run(&["check"], &env).expect(1, "FAIL", &["Redis", "NODE_EXTRA_CA_CERTS"]);
    let other_name = with(&trusting, &[("REDIS_URL", &format!("rediss://127.0.0.1:{port}"))]);
    run(&["check"], &other_name).expect(1, "FAIL", &["Redis", "localhost"]);
}

#[test]
fn the_master_is_asked_for_where_there_are_sentinels() {
    if !ours_alone() {
        return;
    }
    let Some(postgres) = support::postgres::shared() else { return };
    let Some(cluster) = Cluster::start() else { return };
    let database = postgres.database();
    let env = without(&variables(&cluster.master, postgres, &database.name), "REDIS_URL");
    let first = cluster.sentinels[0].port.to_string();
    let sentinels = [
        ("REDIS_SENTINELS", &*cluster.list()),
        ("REDIS_SENTINEL_MASTER", MASTER),
        ("REDIS_SENTINEL_PORT", &first),
        ("REDIS_SENTINEL_USERNAME", SENTINEL_LOGIN.0),
        ("REDIS_SENTINEL_PASSWORD", SENTINEL_LOGIN.1),
        ("REDIS_USER", LOGIN.0),
        ("REDIS_PASSWORD", LOGIN.1),
    ];
    let env = with(&env, &sentinels);
    let checked = run(&["check"], &env);
    checked.expect(0, "ok", &["Redis (REDIS_SENTINELS)", "connected to", "user streaming"]);
    assert!(!checked.text.contains("secret"), "a password: {}", checked.text);
    let unknown = run(&["check"], &with(&env, &[("REDIS_SENTINEL_MASTER", "nobody")]));
    unknown.expect(1, "FAIL", &["Redis", "nobody", "REDIS_SENTINEL_MASTER"]);
    let locked_out = run(&["check"], &with(&env, &[("REDIS_SENTINEL_PASSWORD", "wrong-secret")]));
    assert_eq!(locked_out.code, 1, "{}", locked_out.text);
    assert!(!locked_out.text.contains("secret"), "a password: {}", locked_out.text);
}
