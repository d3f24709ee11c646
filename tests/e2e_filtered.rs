//! Who may see which status on public and hashtag streams: a table of cases for each rule.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::machine::PATIENCE;
use support::posts::{message, status_by, text_message};
use support::world::fresh_id;
use support::{Sse, Viewer, World, Ws, left_out, ours_alone, peer, streams, wait_until};

const PUBLIC: &str = "/api/v1/streaming/public";
const CHANNEL: &str = "timeline:public";

/// With a single database connection Mastodon's server answers in order too, so that a last status shows that
/// an earlier one was withheld. Settings are read again every second.
const SETTINGS: [(&str, &str); 2] = [("DB_POOL", "1"), ("SETTINGS_REFRESH_SECONDS", "1")];

/// The people of a case.
struct Cast {
    viewer: Viewer,
    /// `bob@far.example`
    author: u64,
    /// An account that the status mentions.
    mentioned: u64,
    /// Another account.
    other: u64,
}

impl Cast {
    fn new(world: &World) -> Cast {
        let viewer = world.viewer("read");
        Cast { viewer, author: world.account(), mentioned: world.account(), other: world.account() }
    }

    /// A status of the author's that mentions somebody.
    fn status(&self) -> Value {
        let mut status = status_by(fresh_id(), self.author, "bob", "bob@far.example");
        status["mentions"] = json!([{
            "id": self.mentioned.to_string(), "username": "carol", "acct": "carol@third.example",
            "url": "https://third.example/@carol",
        }]);
        status
    }

    /// A status that mentions the account by which the instance itself speaks to others.
    fn status_to_the_instance(&self) -> Value {
        let mut status = self.status();
        status["mentions"] = json!([{"id": "-99", "username": "social.example", "acct": "social.example"}]);
        status
    }

    fn block(&self, from: u64, to: u64) {
        self.viewer.sql(&format!("INSERT INTO blocks (account_id, target_account_id) VALUES ({from}, {to})"));
    }

    fn mute(&self, from: u64, to: u64) {
        self.viewer.sql(&format!("INSERT INTO mutes (account_id, target_account_id) VALUES ({from}, {to})"));
    }

    fn block_domain(&self, from: u64, domain: &str) {
        let sql = "INSERT INTO account_domain_blocks (account_id, domain) VALUES";
        self.viewer.sql(&format!("{sql} ({from}, '{domain}')"));
    }

    fn languages(&self, list: &str) {
        let user = self.viewer.user;
        self.viewer.sql(&format!("UPDATE users SET chosen_languages = {list} WHERE id = {user}"));
    }
}

/// Whether a viewer sees a status: it is published, and a deletion behind it shows when it would have come.
#[track_caller]
fn sees(world: &World, sse: &mut Sse, channel: &str, event: &str, status: &Value) -> bool {
    world.publish(channel, &message(event, status));
    let mut seen = false;
    for round in 0..2 {
        let marker = fresh_id().to_string();
        world.publish(channel, &text_message("delete", &marker));
        loop {
            let got = sse.next();
            if got.name == "delete" {
                assert_eq!(got.data, marker);
                break;
            }
            let payload: Value = serde_json::from_str(&got.data).unwrap();
            assert_eq!((got.name.as_str(), &payload["id"]), (event, &status["id"]));
            assert!(!seen, "a status came twice");
            seen = true;
        }
        if peer().is_none() {
            break;
        }
        // Mastodon's server lets deletions overtake. It has read the status by now; a token that is looked up
        // over the only database connection comes after what it asks about the status.
        if round == 0 {
            world.server.request("GET", PUBLIC, &[("Authorization", "Bearer nobody")]);
        }
    }
    seen
}

/// What a case is called, the status that it publishes, and whether the viewer gets it.
type Row<'a> = (&'a str, &'a dyn Fn(&Cast) -> Value, bool);

/// Runs a table: for each row people of its own, what stands between them, the status, and whether it is seen.
#[track_caller]
fn check(rows: &[Row<'_>]) {
    let Some(world) = World::with(&SETTINGS) else { return };
    for (what, prepare, expected) in rows {
        let cast = Cast::new(&world);
        let status = prepare(&cast);
        for (path, channel) in [
            (PUBLIC, CHANNEL),
            ("/api/v1/streaming/public/remote?only_media=1", "timeline:public:remote:media"),
            ("/api/v1/streaming/hashtag?tag=sea", "timeline:hashtag:sea"),
        ] {
            let mut sse = Sse::open(&world.server, path, &cast.viewer.token);
            world.redis.until_subscribed(&[channel]);
            for event in ["update", "status.update"] {
                let seen = sees(&world, &mut sse, channel, event, &status);
                assert_eq!(seen, *expected, "{what}: {event} on {channel}");
            }
            // Everything else passes, whoever wrote it.
            world.publish(channel, &text_message("delete", status["id"].as_str().unwrap()));
            sse.expect("delete", status["id"].as_str().unwrap());
            drop(sse);
            world.redis.until_channels(&[]);
        }
    }
}

#[test]
fn blocks_and_mutes() {
    check(&[
        ("nothing between them", &|c: &Cast| c.status(), true),
        ("the viewer blocks the author", &|c| (c.block(c.viewer.account, c.author), c.status()).1, false),
        ("the viewer mutes the author", &|c| (c.mute(c.viewer.account, c.author), c.status()).1, false),
        ("the author blocks the viewer", &|c| (c.block(c.author, c.viewer.account), c.status()).1, false),
        ("the author mutes the viewer", &|c| (c.mute(c.author, c.viewer.account), c.status()).1, true),
        (
            "the viewer blocks who is mentioned",
            &|c| (c.block(c.viewer.account, c.mentioned), c.status()).1,
            false,
        ),
        (
            "the viewer mutes who is mentioned",
            &|c| (c.mute(c.viewer.account, c.mentioned), c.status()).1,
            false,
        ),
        (
            "who is mentioned blocks the viewer",
            &|c| (c.block(c.mentioned, c.viewer.account), c.status()).1,
            true,
        ),
        ("somebody else blocks the author", &|c| (c.block(c.other, c.author), c.status()).1, true),
        ("somebody else mutes the author", &|c| (c.mute(c.other, c.author), c.status()).1, true),
        ("the viewer blocks somebody else", &|c| (c.block(c.viewer.account, c.other), c.status()).1, true),
        ("the author blocks who is mentioned", &|c| (c.block(c.author, c.mentioned), c.status()).1, true),
        (
            "the last of many mentions is blocked",
            &|c| {
                c.block(c.viewer.account, c.mentioned);
                let mut status = c.status();
                let mentions = status["mentions"].as_array_mut().unwrap();
                for _ in 0..40 {
                    mentions.insert(0, json!({"id": fresh_id().to_string(), "acct": "x@y.example"}));
                }
                status
            },
            false,
        ),
        ("the instance's own account is mentioned", &|c| c.status_to_the_instance(), true),
        (
            "the viewer blocks the instance's own account, which is mentioned",
            &|c| {
                let sql = "INSERT INTO blocks (account_id, target_account_id) VALUES";
                c.viewer.sql(&format!("{sql} ({}, -99)", c.viewer.account));
                c.status_to_the_instance()
            },
            false,
        ),
        (
            "an expired mute hides until it is deleted",
            &|c| {
                c.mute(c.viewer.account, c.author);
                c.viewer.sql("UPDATE mutes SET expires_at = now() - interval '1 day'");
                c.status()
            },
            false,
        ),
        (
            "the author of what is boosted is blocked",
            &|c| {
                c.block(c.viewer.account, c.other);
                let mut status = c.status();
                status["reblog"] = status_by(fresh_id(), c.other, "dave", "dave@far.example");
                status
            },
            true,
        ),
        (
            "the author of what is quoted is blocked",
            &|c| {
                c.block(c.viewer.account, c.other);
                let mut status = c.status();
                let quoted = status_by(fresh_id(), c.other, "dave", "dave@far.example");
                status["quote"] = json!({"state": "accepted", "quoted_status": quoted});
                status
            },
            true,
        ),
        ("one's own status", &|c| status_by(fresh_id(), c.viewer.account, "me", "me"), true),
    ]);
}

#[test]
fn blocked_domains() {
    let local = |c: &Cast| {
        let mut status = c.status();
        (status["account"]["username"], status["account"]["acct"]) = (json!("alice"), json!("alice"));
        status
    };
    check(&[
        (
            "the author's domain",
            &|c: &Cast| (c.block_domain(c.viewer.account, "far.example"), c.status()).1,
            false,
        ),
        ("a mention's domain", &|c| (c.block_domain(c.viewer.account, "third.example"), c.status()).1, true),
        ("another domain", &|c| (c.block_domain(c.viewer.account, "example"), c.status()).1, true),
        ("a subdomain of it", &|c| (c.block_domain(c.viewer.account, "a.far.example"), c.status()).1, true),
        (
            "another spelling of it",
            &|c| (c.block_domain(c.viewer.account, "FAR.example"), c.status()).1,
            true,
        ),
        ("somebody else's block", &|c| (c.block_domain(c.other, "far.example"), c.status()).1, true),
        ("a local author has none", &|c| (c.block_domain(c.viewer.account, ""), local(c)).1, true),
    ]);
}

#[test]
fn chosen_languages() {
    let language = |c: &Cast, list: &str, language: Value| {
        c.languages(list);
        let mut status = c.status();
        status["language"] = language;
        status
    };
    let without = |c: &Cast, list: &str| {
        c.languages(list);
        let mut status = c.status();
        status.as_object_mut().unwrap().remove("language");
        status
    };
    check(&[
        ("none chosen", &|c: &Cast| language(c, "NULL", json!("en")), true),
        ("none chosen, none given", &|c| language(c, "NULL", Value::Null), true),
        ("none chosen, none there", &|c| without(c, "NULL"), true),
        ("the first", &|c| language(c, "'{en,de}'", json!("en")), true),
        ("the second", &|c| language(c, "'{en,de}'", json!("de")), true),
        ("another", &|c| language(c, "'{en,de}'", json!("fr")), false),
        ("a variant", &|c| language(c, "'{pt}'", json!("pt-BR")), false),
        ("the variant itself", &|c| language(c, "'{pt-BR}'", json!("pt-BR")), true),
        ("null", &|c| language(c, "'{en}'", Value::Null), false),
        ("not there", &|c| without(c, "'{en}'"), false),
        ("an empty choice", &|c| language(c, "'{}'", json!("en")), false),
    ]);
}

#[test]
fn unfiltered_streams_ask_nothing() {
    let Some(world) = World::with(&SETTINGS) else { return };
    let cast = Cast::new(&world);
    cast.block(cast.viewer.account, cast.author);
    cast.languages("'{fr}'");
    let list = cast.viewer.list();
    for (path, channel) in [
        ("user".to_owned(), cast.viewer.home()),
        ("direct".to_owned(), format!("timeline:direct:{}", cast.viewer.account)),
        (format!("list?list={list}"), format!("timeline:list:{list}")),
    ] {
        let mut sse = Sse::open(&world.server, &format!("/api/v1/streaming/{path}"), &cast.viewer.token);
        world.redis.until_subscribed(&[&channel]);
        let status = cast.status();
        world.publish(&channel, &message("update", &status));
        sse.expect("update", &status.to_string());
    }
}

#[test]
fn statuses_for_this_instance_alone_pass_where_they_are_allowed() {
    let Some(world) = World::with(&SETTINGS) else { return };
    let cast = Cast::new(&world);
    let mut status = cast.status();
    status["local_only"] = json!(true);
    for stream in streams::all(&cast.viewer) {
        let mut ws = Ws::open(&world.server, "/", &cast.viewer.token);
        ws.subscribe(&world.redis, stream.request.clone(), &stream.channels);
        for event in ["update", "status.update"] {
            let marker = cast.status();
            world.publish(&stream.channels[0], &message(event, &status));
            world.publish(&stream.channels[0], &message("update", &marker));
            let got = ws.next_json();
            let payload: Value = serde_json::from_str(got["payload"].as_str().unwrap()).unwrap();
            let passed = payload["id"] == status["id"];
            assert_eq!(passed, stream.local_only, "{} {event}", stream.name);
            if passed {
                ws.next();
            }
        }
    }
    // By parameter, on both transports.
    for (path, channel, passes) in [
        ("public?allow_local_only=true", "timeline:public", true),
        ("public?allow_local_only=0", "timeline:public", false),
        ("public?allow_local_only=", "timeline:public", false),
        ("public?only_media=1&allow_local_only=1", "timeline:public:media", true),
        ("public/remote?allow_local_only=1", "timeline:public:remote", false),
    ] {
        let mut sse = Sse::open(&world.server, &format!("/api/v1/streaming/{path}"), &cast.viewer.token);
        world.redis.until_subscribed(&[channel]);
        assert_eq!(sees(&world, &mut sse, channel, "update", &status), passes, "{path}");
    }
    for (message_, passes) in [
        (json!({"stream": "public", "allow_local_only": true}), true),
        (json!({"stream": "public", "allow_local_only": "1"}), true),
        (json!({"stream": "public", "allow_local_only": false}), false),
        (json!({"stream": "public", "allow_local_only": "false"}), false),
        (json!({"stream": "public:remote", "allow_local_only": true}), false),
    ] {
        let mut ws = Ws::open(&world.server, "/", &cast.viewer.token);
        let channel = if message_["stream"] == "public" { CHANNEL } else { "timeline:public:remote" };
        ws.subscribe(&world.redis, message_.clone(), &[channel]);
        world.publish(channel, &message("update", &status));
        world.publish(channel, &message("update", &cast.status()));
        let payload: Value = serde_json::from_str(ws.next_json()["payload"].as_str().unwrap()).unwrap();
        assert_eq!(payload["id"] == status["id"], passes, "{message_}");
    }
}

/// Hometown shows local-only posts on `public` and `public:media` to everybody who is signed in.
#[test]
fn with_hometowns_rule_local_only_statuses_are_on_public_streams() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("DB_POOL", "1"), ("LOCAL_ONLY_ON_PUBLIC", "true")]) else { return };
    let cast = Cast::new(&world);
    let mut status = cast.status();
    status["local_only"] = json!(true);
    for (path, channel, passes) in [
        ("public", "timeline:public", true),
        ("public?only_media=1", "timeline:public:media", true),
        ("public?allow_local_only=0", "timeline:public", true),
        ("public/remote", "timeline:public:remote", false),
    ] {
        let mut sse = Sse::open(&world.server, &format!("/api/v1/streaming/{path}"), &cast.viewer.token);
        world.redis.until_subscribed(&[channel]);
        assert_eq!(sees(&world, &mut sse, channel, "update", &status), passes, "{path}");
    }
    let mut ws = Ws::open(&world.server, "/", &cast.viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "public"}), &[CHANNEL]);
    world.publish(CHANNEL, &message("update", &status));
    let payload: Value = serde_json::from_str(ws.next_json()["payload"].as_str().unwrap()).unwrap();
    assert_eq!(payload["id"], status["id"]);
}

/// Authors whose domain is written otherwise in `acct` than where Rails stores it: with the handle that the status has,
/// the domain of their account, and whether that is what the viewer blocks.
const ODD_AUTHORS: [(&str, &str, bool); 5] = [
    ("bob@b\u{fc}cher.example", "xn--bcher-kva.example", true),
    ("bob@B\u{dc}CHER.example", "xn--bcher-kva.example", true),
    ("bob@handle.invalid", "xn--bcher-kva.example", true),
    ("bob@b\u{fc}cher.example.other", "xn--bcher-kva.example.other", false),
    ("bob@handle.invalid", "far.example", false),
];

/// Rails stores a blocked domain as Punycode, and a status's `acct` has it in Unicode, or not at all.
#[test]
fn a_blocked_domain_hides_authors_however_their_handle_is_written() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&SETTINGS) else { return };
    let viewer = world.viewer("read");
    viewer.sql(&format!(
        "INSERT INTO account_domain_blocks (account_id, domain) VALUES ({}, 'xn--bcher-kva.example')",
        viewer.account
    ));
    let author = |acct: &str, domain: &str| {
        let author = fresh_id();
        viewer.sql(&format!(
            "INSERT INTO accounts (id, username, domain) VALUES ({author}, 'bob{author}', '{domain}')"
        ));
        status_by(fresh_id(), author, "bob", acct)
    };
    let check = |world: &World, by_account: bool| {
        let mut sse = Sse::open(&world.server, PUBLIC, &viewer.token);
        world.redis.until_subscribed(&[CHANNEL]);
        for (acct, domain, blocked) in ODD_AUTHORS {
            let hidden = blocked && (by_account || !acct.ends_with("invalid"));
            let seen = sees(world, &mut sse, CHANNEL, "update", &author(acct, domain));
            assert_eq!(seen, !hidden, "{acct} of {domain}, by account: {by_account}");
        }
        // An author of whom there is no row yet.
        let unknown = status_by(fresh_id(), fresh_id(), "bob", "bob@b\u{fc}cher.example");
        assert!(!sees(world, &mut sse, CHANNEL, "update", &unknown));
    };
    check(&world, true);

    // The grants of an older version: nothing else suffers, and the log has it once.
    world.db.run("REVOKE SELECT (domain) ON accounts FROM tidegate");
    let other = support::Server::start(&world.env);
    let world = World { server: other, ..world };
    check(&world, false);
    let warnings = world.server.output().matches("accounts.domain may not be read").count();
    assert_eq!(warnings, 1, "{}", world.server.output());
    // The grants come while it runs.
    world.db.run("GRANT SELECT (domain) ON accounts TO tidegate");
    let mut sse = Sse::open(&world.server, PUBLIC, &viewer.token);
    world.redis.until_subscribed(&[CHANNEL]);
    wait_until("the new grants are noticed", PATIENCE, || {
        !sees(&world, &mut sse, CHANNEL, "update", &author("bob@handle.invalid", "xn--bcher-kva.example"))
    });
    // And go again: at worst one status is asked about twice.
    world.db.run("REVOKE SELECT (domain) ON accounts FROM tidegate");
    check(&world, false);
    let warnings = world.server.output().matches("accounts.domain may not be read").count();
    assert_eq!(warnings, 1, "{}", world.server.output());
}

/// Opens streams until what they show is what is expected: settings are read at most a second late.
#[track_caller]
fn until_sees(
    world: &World,
    cast: &Cast,
    (path, channel): (&str, &str),
    status: &Value,
    expected: bool,
    why: &str,
) {
    wait_until(&format!("{why}: {path} shows {}: {expected}", status["account"]["acct"]), PATIENCE, || {
        let mut sse = Sse::open(&world.server, path, &cast.viewer.token);
        world.redis.until_subscribed(&[channel]);
        sees(world, &mut sse, channel, "update", status) == expected
    });
}

#[test]
fn feed_access_settings_close_feeds_but_not_their_deletes() {
    let Some(world) = World::with_own_database(&SETTINGS) else { return };
    let cast = Cast::new(&world);
    let remote = cast.status();
    let mut local = cast.status();
    (local["account"]["username"], local["account"]["acct"]) = (json!("alice"), json!("alice"));
    let feeds = [
        (PUBLIC, CHANNEL, "live"),
        ("/api/v1/streaming/public/local", "timeline:public:local", "live"),
        ("/api/v1/streaming/public/remote?only_media=1", "timeline:public:remote:media", "live"),
        ("/api/v1/streaming/hashtag?tag=sea", "timeline:hashtag:sea", "topic"),
        ("/api/v1/streaming/hashtag/local?tag=sea", "timeline:hashtag:sea:local", "topic"),
    ];
    // Only the exact stored text closes; other settings of the same kind don't.
    let settings = [
        ("local_live_feed_access", "--- disabled\n", "live", "local"),
        ("remote_live_feed_access", "--- disabled\n", "live", "remote"),
        ("local_topic_feed_access", "--- disabled\n", "topic", "local"),
        ("remote_topic_feed_access", "--- disabled\n", "topic", "remote"),
        ("local_live_feed_access", "--- authenticated\n", "", ""),
        ("remote_live_feed_access", "--- public\n", "", ""),
        ("remote_topic_feed_access", "disabled", "", ""),
    ];
    for (name, value, kind, origin) in settings {
        world.db.run("DELETE FROM settings");
        let sql = "INSERT INTO settings (var, value) VALUES ($1, $2)";
        world.db.rows(sql, &[&name, &value]);
        let why = format!("{name}: {value:?}");
        for (path, channel, feed) in feeds {
            for (status, from) in [(&local, "local"), (&remote, "remote")] {
                let open = feed != kind || from != origin;
                until_sees(&world, &cast, (path, channel), status, open, &why);
            }
        }
    }
}

#[test]
fn a_role_that_may_view_feeds_sees_closed_ones() {
    let Some(world) = World::with_own_database(&SETTINGS) else { return };
    for name in ["local_live_feed_access", "remote_live_feed_access"] {
        world.db.rows("INSERT INTO settings (var, value) VALUES ($1, '--- disabled\n')", &[&name]);
    }
    let role = |permissions: i64| {
        let sql = "INSERT INTO user_roles (name, permissions) VALUES ('role', $1) RETURNING id";
        world.db.id(sql, &[&permissions])
    };
    for (permissions, open) in
        [(1 << 20, true), (1 << 20 | 1 << 3, true), (1, false), (1 << 19, false), (0, false)]
    {
        let cast = Cast::new(&world);
        let id = role(permissions);
        cast.viewer.sql(&format!("UPDATE users SET role_id = {id} WHERE id = {}", cast.viewer.user));
        let status = cast.status();
        until_sees(&world, &cast, (PUBLIC, CHANNEL), &status, open, &format!("permissions {permissions:#x}"));
    }
}

/// Settings of a person and of the instance take effect on streams that are open.
#[test]
fn changed_settings_reach_open_streams() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&SETTINGS) else { return };
    let cast = Cast::new(&world);
    let status = cast.status();
    let mut sse = Sse::open(&world.server, PUBLIC, &cast.viewer.token);
    let until = |sse: &mut Sse, why: &str, expected: bool| {
        wait_until(why, PATIENCE, || sees(&world, sse, CHANNEL, "update", &status) == expected);
    };
    until(&mut sse, "it is seen", true);
    cast.languages("'{de}'");
    until(&mut sse, "another language hides it", false);
    cast.languages("NULL");
    until(&mut sse, "it is seen again", true);
    world.db.run("INSERT INTO settings (var, value) VALUES ('remote_live_feed_access', E'--- disabled\\n')");
    until(&mut sse, "the feed is closed", false);
    let role =
        world.db.id("INSERT INTO user_roles (name, permissions) VALUES ('r', 1048576) RETURNING id", &[]);
    cast.viewer.sql(&format!("UPDATE users SET role_id = {role} WHERE id = {}", cast.viewer.user));
    until(&mut sse, "the role opens it", true);
    cast.viewer.sql(&format!("UPDATE users SET role_id = NULL WHERE id = {}", cast.viewer.user));
    until(&mut sse, "without the role it is closed", false);
    world.db.run("DELETE FROM settings");
    until(&mut sse, "the feed is open again", true);
    cast.block(cast.author, cast.viewer.account);
    until(&mut sse, "a block hides it", false);
    world.db.run("DELETE FROM blocks");
    until(&mut sse, "without the block it is seen", true);
}

/// A status that is none goes to nobody who needs filtering, and disturbs nothing else.
#[test]
fn a_malformed_status_goes_to_nobody_and_disturbs_nothing() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&SETTINGS) else { return };
    let cast = Cast::new(&world);
    let mut sse = Sse::open(&world.server, PUBLIC, &cast.viewer.token);
    let mut user = Sse::open(&world.server, "/api/v1/streaming/user", &cast.viewer.token);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut status = cast.status();
        change(&mut status);
        status
    };
    let table = [
        changed(&|s| drop(s.as_object_mut().unwrap().remove("account"))),
        changed(&|s| s["account"] = Value::Null),
        changed(&|s| s["account"] = json!("bob")),
        changed(&|s| s["account"] = json!([])),
        changed(&|s| drop(s["account"].as_object_mut().unwrap().remove("id"))),
        changed(&|s| s["account"]["id"] = json!("x")),
        changed(&|s| s["account"]["id"] = json!({})),
        changed(&|s| drop(s["account"].as_object_mut().unwrap().remove("acct"))),
        changed(&|s| s["account"]["acct"] = Value::Null),
        changed(&|s| drop(s.as_object_mut().unwrap().remove("mentions"))),
        changed(&|s| s["mentions"] = Value::Null),
        changed(&|s| s["mentions"] = json!({})),
        changed(&|s| s["mentions"] = json!([null])),
        changed(&|s| s["mentions"] = json!([{"id": null}])),
        json!("text"),
        json!(5),
        json!([]),
        json!({}),
        json!(true),
    ];
    for (n, status) in table.iter().enumerate() {
        world.publish(CHANNEL, &message("update", status));
        world.publish(CHANNEL, &message("status.update", status));
        let good = cast.status();
        world.publish(CHANNEL, &message("update", &good));
        let event = sse.next();
        let payload: Value = serde_json::from_str(&event.data).unwrap_or_default();
        assert_eq!(payload["id"], good["id"], "after {status}: {event:?}");
        world.publish(&cast.viewer.home(), &message("update", status));
        world.publish(&cast.viewer.home(), &text_message("marker", &n.to_string()));
        let first = user.next();
        assert_eq!(first.name, "update", "an unfiltered stream passes {status}");
        user.expect_marker(&n.to_string());
    }
    assert!(world.server.exit_status().is_none());
}

/// The database goes away while statuses flow: what cannot be decided is held back, never shown unasked.
#[test]
fn without_the_database_nothing_unasked_is_shown() {
    if !ours_alone() {
        return;
    }
    let settings = [("DB_POOL", "2"), ("AUDIENCE_TIMEOUT", "2")];
    let Some(mut world) = World::with_own_database(&settings) else { return };
    let (cast, free) = (Cast::new(&world), Cast::new(&world));
    let mut blocked = Sse::open(&world.server, PUBLIC, &cast.viewer.token);
    let mut open = Sse::open(&world.server, PUBLIC, &free.viewer.token);
    let mut user = Sse::open(&world.server, "/api/v1/streaming/user", &free.viewer.token);
    cast.block(cast.viewer.account, cast.author);
    let name = world.db.name.clone();
    let Some(postgres) = support::postgres::shared() else { return left_out("needs postgresql") };
    let admin = postgres.open("postgres");
    let cut = || {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.rows(sql, &[&name]);
    };
    // Away for a moment: held back, then decided.
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    cut();
    let status = cast.status();
    world.publish(CHANNEL, &message("update", &status));
    world.publish(CHANNEL, &text_message("delete", "7"));
    world.publish(&free.viewer.home(), &text_message("delete", "1"));
    user.expect("delete", "1");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    let first = open.next();
    if first.name == "update" {
        open.expect("delete", "7");
    } else {
        // A machine so slow that the time ran out.
        assert_eq!(first.data, "7");
    }
    blocked.expect("delete", "7");
    // Away for longer: withheld from everybody, and the stream goes on.
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    cut();
    world.publish(CHANNEL, &message("update", &cast.status()));
    world.publish(CHANNEL, &text_message("delete", "8"));
    open.expect("delete", "8");
    blocked.expect("delete", "8");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    wait_until("statuses are decided again", PATIENCE, || {
        let marker = fresh_id().to_string();
        world.publish(CHANNEL, &message("update", &cast.status()));
        world.publish(CHANNEL, &text_message("delete", &marker));
        let mut seen = false;
        loop {
            let event = open.next();
            if event.data == marker {
                blocked.expect("delete", &marker);
                return seen;
            }
            seen = true;
        }
    });
    assert!(world.server.exit_status().is_none());
}
