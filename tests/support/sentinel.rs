//! A master, a replica and three sentinels that watch them.

use std::time::Duration;

use super::left_out;
use super::machine::{Folder, Service, free_port, program, signal, wait_until};
use super::redis::{Client, Redis, Reply};

/// How long an election and what follows may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// One sentinel.
pub struct Sentinel {
    pub port: u16,
    service: Service,
    login: Option<(String, String)>,
}

impl Sentinel {
    /// Starts one with that configuration; it listens on `port`.
    pub fn start(port: u16, settings: &str, login: Option<(&str, &str)>) -> Option<Sentinel> {
        let Some(binary) = program("redis-sentinel").or_else(|| program("valkey-sentinel")) else {
            left_out("needs redis-sentinel");
            return None;
        };
        let folder = Folder::new("sentinel");
        let file = folder.path().join("sentinel.conf");
        let dir = folder.path().display();
        std::fs::write(&file, format!("bind 127.0.0.1\ndir {dir}\n{settings}\n")).unwrap();
        let command = [binary.to_str().unwrap().to_owned(), file.to_str().unwrap().to_owned()];
        let service = Service::start(folder, "TERM", &command);
        let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Some(Sentinel { port, service, login })
    }

    /// What it answers; none while it is not there.
    pub fn ask(&self, words: &[&str]) -> Option<Reply> {
        let mut client = Client::connect(self.port).ok()?;
        if let Some((user, password)) = &self.login {
            client.try_command(&["AUTH", user, password])?;
        }
        client.try_command(words)
    }

    /// A field of what it knows of the master.
    fn known(&self, master: &str, field: &str) -> Option<String> {
        let Some(Reply::Array(items)) = self.ask(&["SENTINEL", "MASTER", master]) else { return None };
        let words: Vec<String> = items.iter().map(Reply::text).collect();
        words.chunks(2).find(|pair| pair[0] == field).map(|pair| pair[1].clone())
    }

    pub fn kill(&self) {
        signal(self.service.pid(), "KILL");
    }

    pub fn log(&self) -> String {
        self.service.log()
    }
}

/// Redis as a whole, highly available.
pub struct Cluster {
    pub master: Redis,
    pub replica: Redis,
    pub sentinels: Vec<Sentinel>,
}

pub const MASTER: &str = "mymaster";
/// Login at the sentinels.
pub const SENTINEL_LOGIN: (&str, &str) = ("watcher", "sentinel-secret");
/// Login at Redis.
pub const LOGIN: (&str, &str) = ("streaming", "master-secret");

impl Cluster {
    /// What a server has to be told to find the master by the sentinels, and to tell of its loss soon.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let told = [
            ("REDIS_URL", ""),
            ("REDIS_SENTINELS", &self.list()),
            ("REDIS_SENTINEL_MASTER", MASTER),
            ("REDIS_SENTINEL_PORT", &self.sentinels[0].port.to_string()),
            ("REDIS_SENTINEL_USERNAME", SENTINEL_LOGIN.0),
            ("REDIS_SENTINEL_PASSWORD", SENTINEL_LOGIN.1),
            ("REDIS_USER", LOGIN.0),
            ("REDIS_PASSWORD", LOGIN.1),
            ("GAP_CLOSE_SPREAD", "0.1"),
            ("REDIS_AWAY_CLOSE", "60"),
        ];
        told.map(|(name, value)| (name, value.to_owned())).into()
    }

    /// Starts them and waits until each knows the others.
    pub fn start() -> Option<Cluster> {
        let password = format!(">{}", LOGIN.1);
        let user = ["--user", LOGIN.0, "on", &password, "~*", "&*", "+@all"];
        let quick = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let Some(master) = Redis::start_on(None, &[&user[..], &quick].concat()) else {
            left_out("needs redis-server");
            return None;
        };
        let port = master.port.to_string();
        let of = ["--replicaof", "127.0.0.1", &port];
        let replica = Redis::start_on(None, &[&user[..], &quick, &of].concat())?;
        let (name, secret) = SENTINEL_LOGIN;
        let settings = |own: u16| {
            format!(
                "port {own}\n\
                 user default off\nuser {name} on >{secret} ~* &* +@all\n\
                 sentinel sentinel-user {name}\nsentinel sentinel-pass {secret}\n\
                 sentinel monitor {MASTER} 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds {MASTER} 2000\n\
                 sentinel failover-timeout {MASTER} 10000"
            )
        };
        let sentinels = (0..3)
            .map(|_| free_port())
            .map(|own| Sentinel::start(own, &settings(own), Some(SENTINEL_LOGIN)))
            .collect::<Option<Vec<_>>>()?;
        for sentinel in &sentinels {
            wait_until("the sentinels know each other and the replica", LONG, || {
                let known = |field| sentinel.known(MASTER, field).unwrap_or_default();
                known("num-other-sentinels") == "2"
                    && known("num-slaves") == "1"
                    && known("flags") == "master"
            });
        }
        wait_until("the replica is in step", LONG, || {
            replica.command(&["INFO", "replication"]).text().contains("master_link_status:up")
        });
        Some(Cluster { master, replica, sentinels })
    }

    /// What `REDIS_SENTINELS` says: a dead one first, the first real one without its port.
    pub fn list(&self) -> String {
        let [_, second, third] = &self.sentinels[..] else { panic!("three sentinels") };
        format!("127.0.0.1:{}, 127.0.0.1, 127.0.0.1:{},127.0.0.1:{}", free_port(), second.port, third.port)
    }
}
