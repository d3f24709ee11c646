//! Who must not see a status, what settings say, and whose filters are whose: against a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use support::postgres::Postgres;
use tidegate::core::event::{StatusFields, Withheld};
use tidegate::core::filter::SearchText;
use tidegate::core::stream::{Channel, Id, Origin};
use tidegate::db::audience::hidden_from;
use tidegate::db::feeds::{FeedAccess, Settings};
use tidegate::db::preferences::preferences;
use tidegate::db::{DbError, Pool};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn status(author: Id, mentions: &[Id], domain: Option<&str>) -> StatusFields {
    StatusFields {
        author,
        domain: domain.map(Box::from),
        local: domain.is_none(),
        mentions: mentions.iter().map(|id| *id as i64).collect(),
        language: None,
        has_filtered: false,
        local_only: false,
    }
}

#[test]
fn each_relation_and_its_direction() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    // Viewers 1 to 12; author 100, mentioned 101 and 102.
    server.psql(
        &name,
        "INSERT INTO blocks (account_id, target_account_id) VALUES (1, 100), (2, 101), (100, 3), (101, 4), (5, 6);
         INSERT INTO mutes (account_id, target_account_id, expires_at) VALUES
           (7, 100, NULL), (8, 102, NULL), (9, 100, '2020-01-01');
         INSERT INTO mutes (account_id, target_account_id) VALUES (100, 10), (1, 100);
         INSERT INTO account_domain_blocks (account_id, domain) VALUES
           (11, 'far.example'), (12, 'x.far.example'), (1, 'far.example'), (10, 'FAR.example');",
    );
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let viewers: Vec<i64> = (1..=12).collect();
        let (relation, domain) = (Withheld::Relationship, Withheld::DomainBlock);
        let hidden =
            hidden_from(&pool, &viewers, &status(100, &[101, 102], Some("far.example")), true).await.unwrap();
        let expected: Vec<(Id, Withheld)> = vec![
            (1, relation),
            (2, relation),
            (3, relation),
            (7, relation),
            (8, relation),
            (9, relation),
            (11, domain),
        ];
        assert_eq!(hidden, expected);
        let hidden = hidden_from(&pool, &viewers, &status(100, &[], None), true).await.unwrap();
        assert_eq!(hidden.iter().map(|entry| entry.0).collect::<Vec<_>>(), [1, 3, 7, 9]);
        // Only those who are asked about; an id or a domain that cannot be in the database hides nothing.
        let hidden =
            hidden_from(&pool, &[1, 4], &status(100, &[u64::MAX], Some("a\0b")), true).await.unwrap();
        assert_eq!(hidden, [(1, relation)]);
        assert_eq!(hidden_from(&pool, &[], &status(100, &[], None), true).await.unwrap(), []);
        assert_eq!(pool.statements(), 4);
    });
}

/// A small generator (xorshift), so that a run can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// Node's rule for one viewer, over the same relations.
struct Relations {
    blocks: BTreeSet<(Id, Id)>,
    mutes: BTreeSet<(Id, Id)>,
    domains: BTreeSet<(Id, String)>,
}

impl Relations {
    fn random(random: &mut Random) -> Relations {
        let mut pairs = |count: u64| -> BTreeSet<(Id, Id)> {
            (0..count).map(|_| (random.below(400) + 1, random.below(30) + 380)).collect()
        };
        let (mut blocks, mutes) = (pairs(2000), pairs(1500));
        // One whom nearly everybody blocks, and one who blocks nearly everybody.
        blocks.extend((1..390).map(|id| (id, 401)));
        blocks.extend((1..390).map(|id| (402, id)));
        let domains =
            (0..400).map(|_| (random.below(400) + 1, format!("d{}.example", random.below(8)))).collect();
        Relations { blocks, mutes, domains }
    }

    fn sql(&self) -> String {
        let mut sql = String::new();
        for (table, pairs) in [("blocks", &self.blocks), ("mutes", &self.mutes)] {
            let rows: Vec<String> = pairs.iter().map(|(one, other)| format!("({one}, {other})")).collect();
            let _ =
                write!(sql, "INSERT INTO {table} (account_id, target_account_id) VALUES {};", rows.join(","));
        }
        let rows: Vec<String> =
            self.domains.iter().map(|(id, domain)| format!("({id}, '{domain}')")).collect();
        let _ =
            write!(sql, "INSERT INTO account_domain_blocks (account_id, domain) VALUES {};", rows.join(","));
        sql
    }

    fn hides(&self, viewer: Id, status: &StatusFields) -> Option<Withheld> {
        let mentions = status.mentions.iter().map(|id| id.unsigned_abs());
        let targets = || mentions.clone().chain([status.author]);
        if targets().any(|id| self.blocks.contains(&(viewer, id)))
            || self.blocks.contains(&(status.author, viewer))
            || targets().any(|id| self.mutes.contains(&(viewer, id)))
        {
            return Some(Withheld::Relationship);
        }
        let domain = status.domain.as_ref()?;
        self.domains.contains(&(viewer, domain.to_string())).then_some(Withheld::DomainBlock)
    }
}

#[test]
fn random_relations_give_what_a_question_per_viewer_would() {
    let Some(server) = Postgres::start() else { return };
    let mut random = Random(0x0074_6964_6567_6174);
    let relations = Relations::random(&mut random);
    let name = server.fresh();
    server.psql(&name, &relations.sql());
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let (mut hidden_count, mut seen_count) = (0, 0);
        for round in 0..600 {
            if round == 300 {
                // The planner knows the tables from here on.
                server.psql(&name, "ANALYZE");
            }
            let size = [0, 1, 5, 60, 400][random.below(5) as usize];
            let viewers: BTreeSet<i64> = (0..size).map(|_| random.below(410) as i64 + 1).collect();
            let viewers: Vec<i64> = viewers.into_iter().collect();
            let mentions: Vec<Id> = (0..random.below(4)).map(|_| random.below(40) + 375).collect();
            let domain = (random.below(2) == 0).then(|| format!("d{}.example", random.below(9)));
            let status = status(random.below(40) + 375, &mentions, domain.as_deref());
            let expected: Vec<(Id, Withheld)> = viewers
                .iter()
                .filter_map(|id| Some((*id as Id, relations.hides(*id as Id, &status)?)))
                .collect();
            let hidden = hidden_from(&pool, &viewers, &status, true).await.unwrap();
            assert_eq!(hidden, expected, "{status:?} for {viewers:?}");
            hidden_count += hidden.len();
            seen_count += viewers.len() - hidden.len();
        }
        assert!(hidden_count > 1000 && seen_count > 1000, "{hidden_count} hidden, {seen_count} seen");
    });
}

#[test]
fn settings_of_accounts_and_feeds() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(
        &name,
        "INSERT INTO user_roles (id, permissions) VALUES (1, 1), (2, 1048576), (3, 1048577);
         INSERT INTO accounts (id, username) SELECT g, 'a' || g FROM generate_series(1, 6) g;
         INSERT INTO users (email, account_id, role_id, chosen_languages) VALUES
           ('1', 1, NULL, NULL), ('2', 2, 1, '{}'), ('3', 3, 2, '{de,NULL}'), ('4', 4, 3, '{en,pt-BR}');
         INSERT INTO settings (var, value) VALUES
           ('local_live_feed_access', E'--- disabled\\n'), ('remote_live_feed_access', E'--- public\\n'),
           ('remote_topic_feed_access', '--- disabled'), ('other', E'--- disabled\\n');",
    );
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let found = preferences(&pool, &[1, 2, 3, 4, 5, 99], &[], true).await.unwrap();
        assert_eq!((pool.statements(), found.filters.len()), (1, 0));
        let settings: BTreeMap<Id, Settings> = found.settings.into_iter().collect();
        let chosen =
            |languages: &[&str]| Some(languages.iter().map(|language| Box::from(*language)).collect());
        let expected = [
            (1, Settings { languages: None, sees_closed_feeds: false }),
            (2, Settings { languages: chosen(&[]), sees_closed_feeds: false }),
            (3, Settings { languages: chosen(&["de"]), sees_closed_feeds: true }),
            (4, Settings { languages: chosen(&["en", "pt-BR"]), sees_closed_feeds: true }),
        ];
        assert_eq!(settings, expected.into());
        let instance = found.instance.unwrap();
        assert!(instance.domains_readable);
        let access = instance.feeds;
        assert_eq!(access, FeedAccess { live_local_closed: true, ..FeedAccess::default() });
        let public = Channel::Public { origin: Origin::Any, media: false };
        assert!(access.is_closed(&public, true) && !access.is_closed(&public, false));

        let of = |language: Option<&str>| StatusFields {
            language: language.map(Box::from),
            ..status(1, &[], None)
        };
        assert_eq!(settings[&1].withhold(&of(None), true), Some(Withheld::FeedAccess));
        assert_eq!(settings[&1].withhold(&of(None), false), None);
        assert_eq!(settings[&2].withhold(&of(Some("en")), false), Some(Withheld::Language));
        assert_eq!(settings[&4].withhold(&of(Some("en")), true), None);
        assert_eq!(settings[&4].withhold(&of(Some("EN")), false), Some(Withheld::Language));
        assert_eq!(settings[&4].withhold(&of(None), false), Some(Withheld::Language));
    });
}

#[test]
fn filters_of_many_accounts_come_in_batches() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(
        &name,
        "INSERT INTO accounts (id, username) SELECT g, 'a' || g FROM generate_series(1, 2500) g;
         INSERT INTO custom_filters (id, account_id, phrase, context, action, expires_at)
           SELECT g, g, 'title ' || g, '{home,public}', g % 3, NULL FROM generate_series(1, 2500) g WHERE g % 2 = 0;
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word)
           SELECT f.id, 'word' || f.id || k, k % 2 = 0 FROM custom_filters f, generate_series(0, 9) k;
         INSERT INTO custom_filters (id, account_id, phrase, context, expires_at) VALUES
           (9001, 2, 'soon', '{}', now() AT TIME ZONE 'UTC' + interval '1 day'),
           (9002, 2, 'over', '{}', now() AT TIME ZONE 'UTC' - interval '1 second'),
           (9003, 2, 'never', '{}', 'infinity'), (9004, 2, 'no keywords', '{}', NULL);
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (9001, 'x'), (9002, 'x'), (9003, 'x');",
    );
    runtime().block_on(async {
        let pool = Pool::new(&server.options(&name)).unwrap();
        let accounts: Vec<i64> = (1..=2500).collect();
        let filters = preferences(&pool, &[], &accounts, false).await.unwrap().filters;
        assert_eq!((filters.len(), pool.statements()), (1250, 3));
        let held: usize = filters.values().map(|filters| filters.held_bytes()).sum();
        assert!(held / filters.len() < 16 << 10, "{held} bytes");
        let apply = |account: Id, text: &str| {
            let mut out = Vec::new();
            filters[&account].apply(&SearchText::new(text.to_owned()), 0, &mut { usize::MAX }, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let found = apply(1000, "word10005, then word10003");
        assert!(found.contains(r#""id":"1000","title":"title 1000","context":["home","public"],"expires_at":null,"filter_action":"hide""#), "{found}");
        assert!(found.contains(r#""keyword_matches":["word10005"]"#), "{found}");
        assert_eq!(apply(1000, "xword10000"), "");
        let found = apply(2, "x");
        assert!(found.contains("soon") && found.contains("never") && !found.contains("over"), "{found}");
    });
}

#[test]
fn an_unknown_database_is_an_error_that_says_so() {
    let Some(server) = Postgres::start() else { return };
    runtime().block_on(async {
        let pool = Pool::new(&server.options("postgres")).unwrap();
        let error = hidden_from(&pool, &[1], &status(1, &[], None), true).await.unwrap_err();
        assert!(matches!(error, DbError::Statement { .. }), "{error}");
    });
}
