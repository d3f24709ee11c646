//! Names with several addresses of which the first swallows packets: a listener of the same port that has no room for
//! another connection, whose kernel then drops what comes. The names stand in a hosts file that only the server sees.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use support::machine::{Folder, PATIENCE, program};
use support::posts::text_message;
use support::sentinel::Cluster;
use support::server::Env;
use support::world::{World, environment};
use support::{Server, Sse, Viewer, left_out, ours_alone, wait_until};

/// Swallows packets, on any port that is asked for.
const DEAD: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const NAME: &str = "two.tidegate.test";

/// A port of [`DEAD`] where nothing is answered while this lives.
struct BlackHole {
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    fn at(port: u16) -> BlackHole {
        let address = SocketAddr::from((DEAD, port));
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) if waiting.len() < 64 => waiting.push(stream),
                Err(error) if error.kind() == ErrorKind::TimedOut => break,
                other => panic!("{address} should have become full: {other:?}"),
            }
        }
        BlackHole { _listener: listener, _waiting: waiting }
    }
}

/// Starts our own binary where [`NAME`] has the dead address first and then 127.0.0.1.
fn start(folder: &Folder, arguments: &str, env: &Env) -> Server {
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{DEAD} {NAME}\n127.0.0.1 {NAME}\n")).unwrap();
    let script = format!(
        "exec unshare --mount sh -c 'mount --bind {} /etc/hosts && exec \"$0\" {arguments}' \"$0\"",
        hosts.display()
    );
    Server::spawn_by(&script, Stdio::null(), env)
}

/// Whether this process may have a hosts file of its own.
fn may_mount() -> bool {
    let may = program("unshare").is_some_and(|unshare| {
        let tried = std::process::Command::new(unshare)
            .args(["--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"])
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    });
    if !may {
        left_out("needs root and unshare, for a hosts file");
    }
    may
}

/// Newcomers get in, within `DOOR_TIMEOUT` as it is by default, and their messages arrive.
fn serves(server: &Server, viewer: &Viewer, publish: impl Fn(&str, &str) -> i64) {
    wait_until("it is ready", PATIENCE * 2, || server.get("/ready").status() == 200);
    for n in 0..3 {
        let mut sse = Sse::open(server, "/api/v1/streaming/user", &viewer.token);
        assert_eq!(publish(&viewer.home(), &text_message("update", &format!(r#"{{"id":"{n}"}}"#))), 1);
        sse.expect("update", &format!(r#"{{"id":"{n}"}}"#));
    }
}

#[test]
fn a_dead_first_address_of_redis_and_postgresql_costs_nobody_the_stream() {
    if !ours_alone() || !may_mount() {
        return;
    }
    let Some(world) = World::start() else { return };
    let postgres = support::postgres::shared().unwrap();
    let _dead = (BlackHole::at(world.redis.port), BlackHole::at(postgres.port));
    let viewer = world.viewer("read");
    let folder = Folder::new("hosts");
    let by_url = |env: &mut Env| {
        for name in ["REDIS_URL", "DATABASE_URL"] {
            let url = env[name].replace("127.0.0.1", NAME).replace("localhost", NAME);
            assert!(url.contains(NAME));
            env.insert(name.into(), url);
        }
    };
    let mut env = world.env.clone();
    by_url(&mut env);
    env.remove("DOOR_TIMEOUT");
    let server = start(&folder, "", &env).listening();
    serves(&server, &viewer, |channel, message| world.publish(channel, message));
    drop(server);

    // The same by the variables.
    let database = env.remove("DATABASE_URL").unwrap();
    env.insert("DB_HOST".into(), NAME.into());
    env.insert("DB_PORT".into(), postgres.port.to_string());
    env.insert("DB_USER".into(), support::postgres::ROLE.into());
    env.insert("DB_PASS".into(), support::postgres::PASSWORD.into());
    env.insert("DB_NAME".into(), database.rsplit_once('/').unwrap().1.into());
    let redis = env.remove("REDIS_URL").unwrap();
    let password = redis.split_once("//:").and_then(|(_, rest)| Some(rest.split_once('@')?.0.to_owned()));
    env.extend(password.map(|password| ("REDIS_PASSWORD".to_owned(), password)));
    env.insert("REDIS_HOST".into(), NAME.into());
    env.insert("REDIS_PORT".into(), world.redis.port.to_string());
    let server = start(&folder, "", &env).listening();
    serves(&server, &viewer, |channel, message| world.publish(channel, message));
    drop(server);

    // `check` says that it works, and what is wrong.
    let mut checked = start(&folder, "check", &env);
    let status = checked.until_exit();
    let wanted = |text: &str, about: &str| {
        let words = [about, "1 of the 2 addresses", NAME, "127.77.0.1"];
        text.lines().any(|line| line.starts_with("warn") && words.iter().all(|word| line.contains(word)))
    };
    wait_until("check has printed all", PATIENCE, || checked.output().contains("ready to serve"));
    let text = checked.output();
    assert!(status.success() && wanted(&text, "Redis (REDIS_HOST)") && wanted(&text, "PostgreSQL"), "{text}");
}

#[test]
fn a_dead_first_address_of_the_sentinels_does_not_hide_the_master() {
    if !ours_alone() || !may_mount() {
        return;
    }
    let Some(cluster) = Cluster::start() else { return };
    let Some(postgres) = support::postgres::shared() else { return };
    let Some(world) = World::start() else { return };
    let sentinel = &cluster.sentinels[0];
    let _dead = BlackHole::at(sentinel.port);
    let mut env = environment(&world.redis, &postgres.url(&world.db.name));
    env.extend(cluster.variables().into_iter().map(|(name, value)| (name.to_owned(), value)));
    env.insert("REDIS_SENTINELS".into(), format!("{NAME}:{}", sentinel.port));
    env.remove("DOOR_TIMEOUT");
    let folder = Folder::new("hosts");
    let server = start(&folder, "", &env).listening();
    let viewer = world.viewer("read");
    serves(&server, &viewer, |channel, message| cluster.master.publish(channel, message));
}
