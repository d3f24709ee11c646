//! Tokens and lists against a real PostgreSQL, and a PostgreSQL that goes away and comes back.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::postgres::Postgres;
use tidegate::core::stream::Scopes;
use tidegate::db::{Accounts, DbError, Host, Options, Pool};
use tidegate::limits::Waits;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

const ROWS: &str = "
INSERT INTO accounts (id, username, suspended_at) VALUES (1, 'a', NULL), (2, 'b', NULL), (3, 'c', now()), (4, 'd', NULL);
INSERT INTO users (id, email, account_id, disabled) VALUES
  (11, 'a', 1, false), (12, 'b', 2, true), (13, 'c', 3, false), (14, 'd', 4, false);
INSERT INTO oauth_access_tokens (id, token, resource_owner_id, scopes, expires_in, revoked_at, created_at) VALUES
  (21, 'good', 11, 'read write', NULL, NULL, '2020-01-01'),
  (22, 'disabled', 12, 'read', NULL, NULL, '2020-01-01'),
  (23, 'suspended', 13, 'read', NULL, NULL, '2020-01-01'),
  (24, 'revoked', 14, 'read', NULL, now(), '2020-01-01'),
  (25, 'application', NULL, 'read', NULL, NULL, '2020-01-01'),
  (26, 'expired', 14, 'read', 60, NULL, '2020-01-01'),
  (27, 'expiring', 14, 'read:statuses', 2000000000, NULL, '2020-01-01'),
  (28, 'scopeless', 14, NULL, NULL, NULL, '2020-01-01');
INSERT INTO lists (id, account_id) VALUES (31, 1), (32, 2);
";

#[test]
fn tokens_and_lists() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ROWS);
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let accounts = Accounts::new(pool.clone());
        let good = accounts.look_up("good").await.unwrap().unwrap();
        assert_eq!((good.id, good.account, good.scopes), (21, 1, Scopes::READ));
        assert_eq!(good.expires_at, None);
        let bad = [
            "disabled",
            "suspended",
            "revoked",
            "application",
            "expired",
            "unknown",
            "",
            "go\0od",
            "Good",
            "gööd",
            "good ",
        ];
        for token in bad {
            assert_eq!(accounts.look_up(token).await.unwrap(), None, "{token:?}");
        }
        let expiring = accounts.look_up("expiring").await.unwrap().unwrap();
        assert_eq!(expiring.expires_at, Some(1_577_836_800 + 2_000_000_000));
        assert_eq!(accounts.look_up("scopeless").await.unwrap().unwrap().scopes, Scopes::default());
        assert!(accounts.owns_list(1, 31).await.unwrap());
        for (account, list) in [(1, 32), (2, 31), (1, 99), (1, u64::MAX), (u64::MAX, 31)] {
            assert!(!accounts.owns_list(account, list).await.unwrap(), "{account} {list}");
        }
        let before = pool.statements();
        let mut crowd = tokio::task::JoinSet::new();
        for number in 0..1000 {
            let accounts = accounts.clone();
            crowd.spawn(async move {
                (number, accounts.look_up(if number % 2 == 0 { "good" } else { "bad" }).await)
            });
        }
        while let Some(done) = crowd.join_next().await {
            let (number, found) = done.unwrap();
            assert_eq!(found.unwrap().is_some(), number % 2 == 0);
        }
        assert!(pool.statements() - before <= 4, "{} statements", pool.statements() - before);
    });
}

#[test]
fn a_server_that_goes_and_comes_back_costs_errors_and_nothing_else() {
    let Some(mut server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ROWS);
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let accounts = Accounts::new(pool.clone());
        assert!(accounts.look_up("good").await.unwrap().is_some());
        // A terminated connection is replaced without anyone noticing.
        server.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'",
        );
        assert!(accounts.look_up("good").await.unwrap().is_some());
        for crash in [false, true] {
            server.stop(crash);
            assert!(matches!(accounts.look_up("good").await, Err(DbError::Away { .. })));
            assert!(!pool.is_up());
            server.start_again();
            assert!(accounts.look_up("good").await.unwrap().is_some());
            assert!(pool.is_up());
        }
    });
}

#[test]
fn errors_say_what_is_wrong() {
    let Some(server) = Postgres::start() else { return };
    runtime().block_on(async {
        let pool = Pool::new(&server.options("nonesuch")).unwrap();
        let error = pool.ping().await.unwrap_err();
        assert!(
            matches!(error, DbError::Refused { .. }) && error.to_string().contains("nonesuch"),
            "{error}"
        );
        let pool = Pool::new(&server.options("postgres")).unwrap();
        let error = Accounts::new(pool.clone()).look_up("x").await.unwrap_err();
        assert!(error.to_string().contains("oauth_access_tokens"), "{error}");
        let options = Options { host: Host::Tcp("127.0.0.1".into()), port: 1, ..server.options("postgres") };
        let error = Pool::new(&options).unwrap().ping().await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    });
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_and_its_connection_is_not_used_again() {
    let Some(server) = Postgres::start() else { return };
    runtime().block_on(async {
        let options = server.options("postgres");
        let waits = Waits { answer: Duration::from_millis(200), ..options.waits };
        let options = Options { waits, pool_size: 1, ..options };
        let pool = Pool::new(&options).unwrap();
        pool.ping().await.unwrap();
        let error = pool.query("SELECT pg_sleep(1000)", &[]).await.unwrap_err();
        assert!(matches!(error, DbError::Slow { .. }), "{error}");
        pool.ping().await.unwrap();
        while server
            .psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep.1000'")
            .trim()
            != "1"
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.stats().total, 1);
    });
}
