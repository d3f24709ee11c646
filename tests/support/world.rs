//! One test's surroundings: a Redis, rows in PostgreSQL, a running server, accounts with tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::machine::{PATIENCE, left_out, peer, wait_until};
use super::pgbouncer;
use super::postgres::{self, Database, Postgres};
use super::redis::Redis;
use super::server::{Env, Server};

/// See the module.
pub struct World {
    // The server goes first, so that it does not log the loss of the others.
    pub server: Server,
    pub env: Env,
    pub redis: Redis,
    pub db: Arc<Database>,
}

/// An account of this instance with a user and a token.
#[derive(Clone)]
pub struct Viewer {
    pub account: u64,
    pub user: i64,
    pub token_id: i64,
    pub token: String,
    db: Arc<Database>,
}

/// Many accounts of this instance, numbered from 1, each with a user and a token for `read`.
#[derive(Clone, Copy)]
pub struct Accounts {
    /// One less than the first one's id.
    pub before: u64,
}

impl Accounts {
    pub fn id(self, n: u64) -> u64 {
        self.before + n
    }

    pub fn token(self, n: u64) -> String {
        format!("token-{}", self.id(n))
    }

    /// The channel of the `n`-th one's home timeline.
    pub fn home(self, n: u64) -> String {
        format!("timeline:{}", self.id(n))
    }
}

/// Ids as Mastodon makes them: too large for a floating-point number to hold exactly.
pub fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    109_501_234_567_890_001 + 2 * NEXT.fetch_add(1, Ordering::Relaxed)
}

impl World {
    /// A world, or `None` where something is missing on this machine.
    pub fn start() -> Option<World> {
        World::with(&[])
    }

    /// A world whose server has these variables besides.
    pub fn with(variables: &[(&str, &str)]) -> Option<World> {
        World::build(&[], variables, |postgres| postgres.database(), |_, _| ())
    }

    /// A world whose Redis has these settings, with a word about the server's environment before it starts.
    pub fn custom(
        redis_settings: &[&str],
        variables: &[(&str, &str)],
        adjust: impl FnOnce(&Redis, &mut Env),
    ) -> Option<World> {
        World::build(redis_settings, variables, |postgres| postgres.database(), adjust)
    }

    /// A world with a database of its own: for tests that change settings of the whole instance.
    pub fn with_own_database(variables: &[(&str, &str)]) -> Option<World> {
        World::build(&[], variables, Postgres::own_database, |_, _| ())
    }

    /// A world with that Redis.
    pub fn with_redis(redis: Redis, variables: &[(&str, &str)]) -> Option<World> {
        let Some(postgres) = postgres::shared() else {
            left_out("needs postgresql");
            return None;
        };
        Some(World::of(redis, postgres, variables, |postgres| postgres.database(), |_, _| ()))
    }

    fn build(
        redis_settings: &[&str],
        variables: &[(&str, &str)],
        database: impl FnOnce(&Postgres) -> Database,
        adjust: impl FnOnce(&Redis, &mut Env),
    ) -> Option<World> {
        let (redis, postgres) = servers_with(redis_settings)?;
        Some(World::of(redis, postgres, variables, database, adjust))
    }

    fn of(
        redis: Redis,
        postgres: &Postgres,
        variables: &[(&str, &str)],
        database: impl FnOnce(&Postgres) -> Database,
        adjust: impl FnOnce(&Redis, &mut Env),
    ) -> World {
        let db = Arc::new(database(postgres));
        let url = if pgbouncer::everywhere() {
            pgbouncer::of_everybody().url(&db.name)
        } else {
            postgres.url(&db.name)
        };
        let mut env = environment(&redis, &url);
        for (name, value) in variables {
            env.insert((*name).to_owned(), (*value).to_owned());
        }
        adjust(&redis, &mut env);
        let server = Server::start(&env);
        if peer().is_some() {
            until_peer_is_ready(&redis);
        }
        World { server, env, redis, db }
    }

    /// Ends the server; its Redis is for the next.
    pub fn into_redis(self) -> Redis {
        drop(self.server);
        self.redis
    }

    /// An account whose token has these scopes.
    pub fn viewer(&self, scopes: &str) -> Viewer {
        let account = self.account();
        self.token_for(account, scopes)
    }

    /// An account of this instance without user or token.
    pub fn account(&self) -> u64 {
        let account = fresh_id();
        let sql = "INSERT INTO accounts (id, username) VALUES ($1, $2)";
        self.db.rows(sql, &[&(account as i64), &format!("u{account}")]);
        account
    }

    /// So many accounts with tokens, made at once.
    pub fn accounts(&self, count: u64) -> Accounts {
        // Apart from all ids made one by one, and from each other: several worlds may share a database.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let before = 109_601_234_567_890_000 + MADE.fetch_add(count, Ordering::Relaxed);
        self.db.run(&format!(
            "CREATE TEMPORARY TABLE made AS SELECT {before} + n AS id FROM generate_series(1, {count}) n;
             INSERT INTO accounts (id, username) SELECT id, 'c' || id FROM made;
             INSERT INTO users (id, account_id, email) SELECT id, id, 'c' || id || '@social.example' FROM made;
             INSERT INTO oauth_access_tokens (token, scopes, resource_owner_id)
               SELECT 'token-' || id, 'read', id FROM made;
             DROP TABLE made;
             ANALYZE"
        ));
        Accounts { before }
    }

    fn token_for(&self, account: u64, scopes: &str) -> Viewer {
        let sql = "INSERT INTO users (account_id, email) VALUES ($1, $2) RETURNING id";
        let user = self.db.id(sql, &[&(account as i64), &format!("u{account}@social.example")]);
        let (token_id, token) = self.token(user, scopes);
        Viewer { account, user, token_id, token, db: Arc::clone(&self.db) }
    }

    /// A further token for a user.
    pub fn token(&self, user: i64, scopes: &str) -> (i64, String) {
        // Doorkeeper's tokens are 43 characters of unpadded base64url.
        let token = format!("{:043}", fresh_id()).replace("00", "-A").replace('1', "_z");
        let sql = "INSERT INTO oauth_access_tokens (token, scopes, resource_owner_id) VALUES ($1, $2, $3)
            RETURNING id";
        (self.db.id(sql, &[&token, &scopes, &user]), token)
    }

    /// Publishes until the server under test has it read: gives Redis's count of subscribers.
    pub fn publish(&self, channel: &str, message: &str) -> i64 {
        self.redis.publish(channel, message)
    }

    /// `/status` as JSON.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let answer = self.server.request("GET", "/status", &[("Accept", "application/json")]);
        serde_json::from_str(&answer.text()).expect("a status page in JSON")
    }

    /// Checks that every message owed was delivered, filtered, given up with its client, or still waits.
    #[track_caller]
    pub fn assert_conserved(&self) -> serde_json::Value {
        let status = self.status();
        assert_eq!(status["messages"]["difference"], serde_json::json!(0), "{status}");
        status
    }

    /// Waits until nothing of any client is left: no channel, no count.
    #[track_caller]
    pub fn until_empty(&self) {
        self.redis.until_channels(&[]);
        for kind in ["websocket", "eventsource"] {
            self.server.until_metric("connected_clients", &[("type", kind)], 0.0);
        }
        wait_until("no metric counts a channel", PATIENCE, || {
            let page = self.server.get("/metrics").text();
            page.lines()
                .filter(|line| line.starts_with("connected_channels{"))
                .all(|line| line.ends_with(" 0"))
        });
        self.server.until_metric("redis_subscriptions", &[], 0.0);
    }
}

/// Mastodon's server listens before its two Redis connections have finished their opening questions, and a
/// client that is faster leaves its subscriber connection in a state that never unsubscribes.
fn until_peer_is_ready(redis: &Redis) {
    wait_until("the peer's Redis connections are ready", PATIENCE, || {
        redis.command(&["CLIENT", "LIST"]).text().matches("cmd=info").count() >= 2
    });
}

/// A Redis and the process's PostgreSQL, or a word on what is missing.
pub fn servers() -> Option<(Redis, &'static Postgres)> {
    servers_with(&[])
}

fn servers_with(redis_settings: &[&str]) -> Option<(Redis, &'static Postgres)> {
    let Some(postgres) = postgres::shared() else {
        left_out("needs postgresql");
        return None;
    };
    let Some(redis) = Redis::start_on(None, redis_settings) else {
        left_out("needs redis-server");
        return None;
    };
    Some((redis, postgres))
}

/// The variables a server needs for these.
pub fn environment(redis: &Redis, database_url: &str) -> Env {
    let pairs = [
        ("NODE_ENV", "production".to_owned()),
        ("LOG_LEVEL", "info".to_owned()),
        ("BIND", "127.0.0.1".to_owned()),
        ("PORT", "0".to_owned()),
        ("REDIS_URL", redis.url()),
        ("DATABASE_URL", database_url.to_owned()),
        ("DB_POOL", "4".to_owned()),
        ("DRAIN_SECONDS", "0".to_owned()),
        // On a machine with many other things to do, a handshake may take its time.
        ("DOOR_TIMEOUT", "60".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Viewer {
    /// A new list of the viewer's.
    pub fn list(&self) -> i64 {
        let sql = "INSERT INTO lists (account_id, title) VALUES ($1, 'list') RETURNING id";
        self.db.id(sql, &[&(self.account as i64)])
    }

    /// The channel of the viewer's home timeline.
    pub fn home(&self) -> String {
        format!("timeline:{}", self.account)
    }

    /// The channels of the stream `user`.
    pub fn user_channels(&self) -> Vec<String> {
        vec![self.home(), format!("timeline:{}:notifications", self.account)]
    }

    pub fn system_channels(&self) -> [String; 2] {
        [format!("timeline:access_token:{}", self.token_id), format!("timeline:system:{}", self.account)]
    }

    /// `Bearer …`
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Runs SQL in the viewer's database.
    pub fn sql(&self, sql: &str) {
        self.db.run(sql);
    }
}
