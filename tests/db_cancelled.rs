//! Statements that PostgreSQL gives up for reasons of its own: asked once more where that is of use, answered with 503
//! where it is not, and told in the log as what they are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use support::machine::{PATIENCE, wait_until};
use support::postgres::Postgres;
use support::{Server, Sse, World, left_out, ours_alone};
use tidegate::db::{Accounts, Options, Pool};

/// In the place of a table: each look at it takes two seconds.
const SLOW_TOKENS: &str = "
    INSERT INTO accounts (id, username) VALUES (1, 'a');
    INSERT INTO users (id, email, account_id) VALUES (11, 'a', 1);
    INSERT INTO oauth_access_tokens (id, token, resource_owner_id, scopes) VALUES (21, 'good', 11, 'read');
    ALTER TABLE oauth_access_tokens RENAME TO tokens;
    CREATE VIEW oauth_access_tokens AS SELECT tokens.* FROM tokens, LATERAL (SELECT pg_sleep(2)) slowly;
    GRANT SELECT ON oauth_access_tokens TO tidegate;";

#[test]
fn a_statement_that_a_standby_cancels_is_asked_once_more() {
    let Some(primary) = Postgres::start_with(None, &["max_wal_senders=4", "wal_level=replica"]) else {
        return left_out("needs postgresql");
    };
    let database = primary.fresh();
    primary.psql(&database, SLOW_TOKENS);
    // A statement that is in the way of replaying is cancelled at once.
    let standby = primary.standby(&["max_standby_streaming_delay=0", "hot_standby=on"]);
    let options = Options { pool_size: 1, ..standby.options(&database) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = Pool::new(&options).unwrap();
        let accounts = Accounts::new(pool.clone());
        let asking = tokio::spawn(async move { accounts.look_up("good").await });
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let conflicts =
            "SELECT confl_lock FROM pg_stat_database_conflicts WHERE datname = current_database()";
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while standby.psql(&database, sleeps).trim() != "1" {
            assert!(tokio::time::Instant::now() < deadline, "the standby was not asked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The standby has to take this lock too, which the statement has.
        primary.psql(&database, "BEGIN; LOCK TABLE tokens IN ACCESS EXCLUSIVE MODE; COMMIT");
        let found = asking.await.unwrap();
        assert_eq!(
            found.map(|token| token.map(|token| token.id)).map_err(|error| error.to_string()),
            Ok(Some(21))
        );
        assert_eq!(standby.psql(&database, conflicts).trim(), "1", "the first attempt was cancelled");
        assert_eq!(pool.statements(), 2);
        assert!(pool.is_up());
    });
}

/// A look at `lists` fails so many times with that SQLSTATE, and counts how often it was tried.
const FAILING_LISTS: &str = "
    ALTER TABLE lists RENAME TO real_lists;
    CREATE SEQUENCE attempts;
    CREATE TABLE failure (code text, times bigint);
    INSERT INTO failure VALUES ('40001', 0);
    CREATE FUNCTION works() RETURNS boolean VOLATILE SECURITY DEFINER LANGUAGE plpgsql AS $$
    DECLARE wanted failure;
    BEGIN
        SELECT * INTO wanted FROM failure;
        IF nextval('attempts') <= wanted.times THEN
            RAISE EXCEPTION 'as the test wants it' USING ERRCODE = wanted.code;
        END IF;
        RETURN true;
    END $$;
    CREATE VIEW lists AS SELECT * FROM real_lists WHERE works();
    GRANT SELECT ON lists TO tidegate;";

#[test]
fn what_could_not_be_asked_is_503_and_the_log_says_why() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    let list = viewer.list();
    let stranger = world.viewer("read");
    world.db.run(FAILING_LISTS);
    // Counting is writing, which sessions of that role may do from now on.
    let name = &world.db.name;
    world.db.run(&format!("ALTER ROLE tidegate IN DATABASE {name} SET default_transaction_read_only = off"));
    let server = Server::start(&world.env);
    let ask = |code: &str, times: u32, token: &str| {
        world.db.run(&format!(
            "UPDATE failure SET code = '{code}', times = {times}; SELECT setval('attempts', 1, false)"
        ));
        let path = format!("/api/v1/streaming/list?list={list}");
        let (status, says_when) = match Sse::try_open(&server, &path, token) {
            Ok(_) => (200, false),
            Err(refused) => (refused.status(), refused.head.header("retry-after").is_some()),
        };
        let tried = world.db.id("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM attempts", &[]);
        (status, says_when, tried)
    };
    // Once is mended by asking once more, in silence.
    for code in ["40001", "40P01", "55P03", "57P01"] {
        assert_eq!(ask(code, 1, &viewer.token), (200, false, 2), "{code}");
    }
    assert!(!server.output().contains("WARN"), "{}", server.output());
    // What goes on is told as what it is: nobody's list is somebody else's because of it.
    for (code, tries) in
        [("40001", 2), ("40P01", 2), ("55P03", 2), ("57014", 1), ("25006", 1), ("53300", 1), ("P0001", 1)]
    {
        assert_eq!(ask(code, 9, &viewer.token), (503, true, tries), "{code}");
    }
    let log = server.output();
    assert!(log.contains("max_standby_streaming_delay"), "{log}");
    assert!(!log.contains("DB_NAME") && !log.contains("DB_HOST"), "{log}");
    assert_eq!(ask("40001", 0, &viewer.token), (200, false, 1));
    assert_eq!(ask("40001", 0, &stranger.token).0, 401, "another's list");
    wait_until("it is ready", PATIENCE, || server.get("/ready").status() == 200);
}
