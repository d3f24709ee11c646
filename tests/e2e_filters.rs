//! Custom filters: which of a person's filters match a status on a public stream, and how the result is told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::machine::PATIENCE;
use support::posts::{message, status, text_message, with_filtered};
use support::world::fresh_id;
use support::{Sse, Viewer, World, Ws, ours_alone, peer, wait_until};

const PATH: &str = "/api/v1/streaming/public/local";
const CHANNEL: &str = "timeline:public:local";

/// A filter with keywords; gives its id.
fn filter(world: &World, viewer: &Viewer, title: &str, action: i32, keywords: &[(&str, bool)]) -> i64 {
    let sql = "INSERT INTO custom_filters (account_id, phrase, context, action)
        VALUES ($1, $2, '{home,public}', $3) RETURNING id";
    let id = world.db.id(sql, &[&(viewer.account as i64), &title, &action]);
    for (keyword, whole_word) in keywords {
        let sql =
            "INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word) VALUES ($1, $2, $3)";
        world.db.rows(sql, &[&id, keyword, whole_word]);
    }
    id
}

/// The next status's `filtered`.
#[track_caller]
fn filtered(sse: &mut Sse, world: &World, post: &Value) -> Value {
    world.publish(CHANNEL, &message("update", post));
    let event = sse.next();
    assert_eq!(event.name, "update");
    let payload: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(payload["id"], post["id"]);
    payload["filtered"].clone()
}

fn post(content: &str) -> Value {
    let mut post = status(fresh_id(), fresh_id());
    post["content"] = json!(content);
    post
}

/// Runs a table of keyword, whole word, status, and the text that matches.
#[track_caller]
fn check(table: &[(&str, bool, Value, Option<&str>)]) {
    let Some(world) = World::start() else { return };
    for (keyword, whole_word, post, expected) in table {
        let viewer = world.viewer("read");
        filter(&world, &viewer, "t", 0, &[(keyword, *whole_word)]);
        let mut sse = Sse::open(&world.server, PATH, &viewer.token);
        world.redis.until_subscribed(&[CHANNEL]);
        let result = filtered(&mut sse, &world, post);
        let matches = result.as_array().unwrap_or_else(|| panic!("{keyword:?}: {result}"));
        let found = matches.first().map(|result| result["keyword_matches"].clone());
        let expected = expected.map(|text| json!([text]));
        assert_eq!(found, expected, "{keyword:?} (whole word: {whole_word}) in {}", post["content"]);
        drop(sse);
        world.redis.until_channels(&[]);
    }
}

#[test]
fn keywords_match_text_without_regard_to_case() {
    let p = |text: &str| post(&format!("<p>{text}</p>"));
    check(&[
        ("tide", false, p("The Tide turns"), Some("Tide")),
        ("TIDE", true, p("the tide turns"), Some("tide")),
        ("tid", false, p("The Tide"), Some("Tid")),
        ("tid", true, p("The Tide"), None),
        ("ide", true, p("The Tide"), None),
        ("tide", true, p("tide"), Some("tide")),
        ("tide", true, p("(tide)"), Some("tide")),
        ("tide", true, p("#tide!"), Some("tide")),
        ("tide", true, p("tide_line"), None),
        ("tide", true, p("tide-line"), Some("tide")),
        ("tide", true, p("tide2"), None),
        ("the tide", true, p("It is the tide that turns"), Some("the tide")),
        ("nothing", true, p("The Tide turns"), None),
        // Only the first match is told.
        ("tide", false, p("Tide, TIDE, tide"), Some("Tide")),
    ]);
}

#[test]
fn special_characters_are_literal() {
    let p = |text: &str| post(&format!("<p>{text}</p>"));
    check(&[
        ("a.b", true, p("axb"), None),
        ("a.b", true, p("see a.b now"), Some("a.b")),
        ("c++", true, p("I write C++ now"), Some("C++")),
        ("c++", true, p("I write abc++ now"), None),
        ("(x)", false, p("f(x) = y"), Some("(x)")),
        ("[y]", true, p("a[y]"), Some("[y]")),
        ("a|b", false, p("only a or b"), None),
        ("^a$", false, p("a"), None),
        ("\\w", false, p("word"), None),
        ("\\w", false, p("a \\w b"), Some("\\w")),
        ("{2}", false, p("aa{2}"), Some("{2}")),
        ("$5", true, p("costs $5 each"), Some("$5")),
        ("$5", true, p("costs $50 each"), None),
        ("*", false, p("a * b"), Some("*")),
        ("?", true, p("what?"), Some("?")),
        ("/", false, p("and/or"), Some("/")),
        ("-", false, p("a-b"), Some("-")),
        ("a  b", false, p("a  b"), Some("a  b")),
        ("🌊", false, p("the 🌊 sea"), Some("🌊")),
        ("🌊", true, p("the 🌊sea"), Some("🌊")),
    ]);
}

#[test]
fn content_is_read_as_html() {
    check(
        &[
            ("noon", true, post("<p>at <a href=\"https://x.example/\">noon</a></p>"), Some("noon")),
            ("x.example", false, post("<p>at <a href=\"https://x.example/\">noon</a></p>"), None),
            ("href", false, post("<p>at <a href=\"https://x.example/\">noon</a></p>"), None),
            ("ebb & flow", true, post("<p>Ebb &amp; flow</p>"), Some("Ebb & flow")),
            ("amp", false, post("<p>Ebb &amp; flow</p>"), None),
            ("<b>", false, post("<p>&lt;b&gt; is bold</p>"), Some("<b>")),
            ("it's", true, post("<p>It&#39;s</p>"), Some("It's")),
            ("foobar", true, post("<p>foo<b>bar</b></p>"), Some("foobar")),
            ("foobar", true, post("<p>foo<span class=\"invisible\">bar</span></p>"), Some("foobar")),
            ("onetwo", false, post("<p>one<br>two</p>"), None),
            ("onetwo", false, post("<p>one<br />two</p>"), None),
            ("onetwo", false, post("<p>one<br/>two</p>"), None),
            ("onetwo", false, post("<p>one</p><p>two</p>"), None),
            ("two", true, post("<p>one<br>two</p>"), Some("two")),
            ("two", true, post("<p>one</p><p>two</p>"), Some("two")),
            ("sea", true, post("<p>#<span>sea</span></p>"), Some("sea")),
            ("", false, post(""), None),
            ("x", false, post(""), None),
        ]
        .into_iter()
        // An empty keyword would match everything there.
        .filter(|(keyword, ..)| !(keyword.is_empty() && peer().is_some()))
        .collect::<Vec<_>>(),
    );
}

#[test]
fn the_warning_the_poll_and_the_descriptions_are_read_too() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut post = post("<p>content</p>");
        change(&mut post);
        post
    };
    let poll = |titles: Value| {
        with(&|post| {
            let options: Vec<Value> = titles
                .as_array()
                .unwrap()
                .iter()
                .map(|title| json!({"title": title, "votes_count": 0}))
                .collect();
            post["poll"] = json!({"id": "1", "options": options});
        })
    };
    let media = |descriptions: Value| {
        with(&|post| {
            let all: Vec<Value> = descriptions
                .as_array()
                .unwrap()
                .iter()
                .map(|text| json!({"id": "1", "type": "image", "description": text}))
                .collect();
            post["media_attachments"] = json!(all);
        })
    };
    check(&[
        ("storm", true, with(&|post| post["spoiler_text"] = json!("A storm warning")), Some("storm")),
        ("storm", true, with(&|post| post["spoiler_text"] = Value::Null), None),
        ("low", true, poll(json!(["High", "Low"])), Some("Low")),
        ("highlow", false, poll(json!(["High", "Low"])), None),
        ("gull", true, media(json!(["A gull", null])), Some("gull")),
        ("gull", true, media(json!([null, "A gull"])), Some("gull")),
        ("null", false, media(json!([null, null])), None),
        ("storm content", false, with(&|post| post["spoiler_text"] = json!("storm")), None),
        ("title", false, poll(json!(["a"])), None),
        // Neither the author nor the tags.
        ("alice", false, with(&|_| {}), None),
        ("waterline", false, with(&|_| {}), None),
    ]);
}

/// Word boundaries and case as Rails sees them on home timelines: in every script.
#[test]
fn words_are_words_in_every_script() {
    if !ours_alone() {
        return;
    }
    let p = |text: &str| post(&format!("<p>{text}</p>"));
    check(&[
        ("über", true, p("Über uns"), Some("Über")),
        ("über", true, p("Überfall"), None),
        ("ber", true, p("über"), None),
        ("caf", true, p("café"), None),
        ("мир", true, p("Мир!"), Some("Мир")),
        ("мир", true, p("мирный"), None),
        ("мир", false, p("мирный"), Some("мир")),
        ("ΣΟΦΙΑ", true, p("σοφια"), Some("σοφια")),
        ("i̇", false, p("x"), None),
        ("東京", false, p("東京都"), Some("東京")),
        ("東京", true, p("(東京)"), Some("東京")),
        ("שלום", true, p("שלום!"), Some("שלום")),
        ("سلام", true, p("سلام عليكم"), Some("سلام")),
    ]);
}

/// The warning, poll options and descriptions are plain text: what looks like HTML there is no HTML.
#[test]
fn only_content_is_html() {
    if !ours_alone() {
        return;
    }
    let mut warning = post("<p>x</p>");
    warning["spoiler_text"] = json!("2 <b> 3 &amp; 4");
    let mut described = post("<p>x</p>");
    described["media_attachments"] = json!([{"description": "a <sea> of &lt;grass&gt;"}]);
    check(&[
        ("<b>", false, warning.clone(), Some("<b>")),
        ("&amp;", false, warning, Some("&amp;")),
        ("<sea>", false, described.clone(), Some("<sea>")),
        ("<grass>", false, described, None),
    ]);
}

#[test]
fn the_result_has_its_exact_shape() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let first = filter(&world, &viewer, "Tides & \"waves\"", 0, &[("turns", true), ("tide", false)]);
    let second = filter(&world, &viewer, "Hidden", 1, &[("tide", true)]);
    let third = filter(&world, &viewer, "Until", 0, &[("the", true)]);
    world.db.run(&format!(
        "UPDATE custom_filters SET expires_at = '2100-02-03 04:05:06.789', context = '{{public,thread}}' WHERE id = {third}"
    ));
    // These say nothing: another's, one without keywords, one that has expired, one that does not match.
    let other = world.viewer("read");
    filter(&world, &other, "Other", 0, &[("tide", true)]);
    filter(&world, &viewer, "No keywords", 0, &[]);
    let expired = filter(&world, &viewer, "Expired", 0, &[("tide", true)]);
    world.db.run(&format!(
        "UPDATE custom_filters SET expires_at = now() at time zone 'utc' - interval '1 second' WHERE id = {expired}"
    ));
    filter(&world, &viewer, "No match", 0, &[("ebb", true)]);

    let post = post("<p>The tide turns</p>");
    let entry = |id: i64, title: &str, context: &str, expires: &str, action: &str, matched: &str| {
        format!(
            r#"{{"filter":{{"id":"{id}","title":{},"context":{context},"expires_at":{expires},"filter_action":"{action}"}},"keyword_matches":["{matched}"],"status_matches":null}}"#,
            json!(title)
        )
    };
    let expected = format!(
        "[{},{},{}]",
        // Of several keywords, the one that stands first in the text.
        entry(first, "Tides & \"waves\"", r#"["home","public"]"#, "null", "warn", "tide"),
        entry(second, "Hidden", r#"["home","public"]"#, "null", "hide", "tide"),
        entry(third, "Until", r#"["public","thread"]"#, "\"2100-02-03T04:05:06.789Z\"", "warn", "The"),
    );
    let mut sse = Sse::open(&world.server, PATH, &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "public:local"}), &[CHANNEL]);
    let mut unfiltered = Sse::open(&world.server, PATH, &world.viewer("read").token);
    world.publish(CHANNEL, &text_message("marker", "live"));
    while sse.next().data != "live" {}
    unfiltered.expect_marker("live");
    ws.next();
    for event in ["update", "status.update"] {
        world.publish(CHANNEL, &message(event, &post));
        sse.expect(event, &with_filtered(&post, &expected));
        ws.expect_event(&json!(["public:local"]), event, &with_filtered(&post, &expected));
        unfiltered.expect(event, &with_filtered(&post, "[]"));
    }
}

#[test]
fn blur_is_sent_as_blur() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    filter(&world, &viewer, "Blurred", 2, &[("tide", true)]);
    let mut sse = Sse::open(&world.server, PATH, &viewer.token);
    let result = filtered(&mut sse, &world, &post("<p>tide</p>"));
    assert_eq!(result[0]["filter"]["filter_action"], "blur");
}

#[test]
fn a_payload_that_has_filtered_already_is_untouched() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    filter(&world, &viewer, "t", 0, &[("tide", true)]);
    let mut sse = Sse::open(&world.server, PATH, &viewer.token);
    world.redis.until_subscribed(&[CHANNEL]);
    for given in [json!([]), json!([{"a": 1}]), Value::Null, json!("x")] {
        let mut post = post("<p>tide</p>");
        post["filtered"] = given;
        world.publish(CHANNEL, &message("update", &post));
        sse.expect("update", &post.to_string());
    }
}

#[test]
fn changed_filters_count_from_their_signal_on() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, PATH, &viewer.token);
    world.redis.until_subscribed(&[CHANNEL]);
    let text = "<p>The tide turns at noon</p>";
    assert_eq!(filtered(&mut sse, &world, &post(text)), json!([]));
    let change = |sql: &str| {
        world.db.run(sql);
        // Rails publishes to both channels, without a payload.
        world.publish(&viewer.system_channels()[1], r#"{"event":"filters_changed"}"#);
        world.publish(&viewer.home(), r#"{"event":"filters_changed"}"#);
    };
    let id = filter(&world, &viewer, "New", 0, &[("tide", true)]);
    change("SELECT 1");
    let until = |sse: &mut Sse, why: &str, expected: Value| {
        wait_until(why, PATIENCE, || {
            let result = filtered(sse, &world, &post(text));
            let matches: Vec<&Value> =
                result.as_array().unwrap().iter().map(|entry| &entry["keyword_matches"][0]).collect();
            json!(matches) == expected
        });
    };
    until(&mut sse, "the new filter matches", json!(["tide"]));
    change(&format!("UPDATE custom_filter_keywords SET keyword = 'noon' WHERE custom_filter_id = {id}"));
    until(&mut sse, "the changed keyword matches", json!(["noon"]));
    change(&format!("DELETE FROM custom_filters WHERE id = {id}"));
    until(&mut sse, "no filter is left", json!([]));
}

/// A filter ends at its time, without any signal.
#[test]
fn a_filter_expires_while_the_stream_is_open() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let id = filter(&world, &viewer, "Short", 0, &[("tide", true)]);
    world.db.run(&format!(
        "UPDATE custom_filters SET expires_at = now() at time zone 'utc' + interval '3 seconds' WHERE id = {id}"
    ));
    let mut sse = Sse::open(&world.server, PATH, &viewer.token);
    world.redis.until_subscribed(&[CHANNEL]);
    assert_eq!(filtered(&mut sse, &world, &post("<p>tide</p>")).as_array().unwrap().len(), 1);
    wait_until("the filter has expired", PATIENCE, || {
        filtered(&mut sse, &world, &post("<p>tide</p>")).as_array().unwrap().is_empty()
    });
}

/// Two connections of one account, and two accounts with different filters, on one channel.
#[test]
fn each_account_gets_its_own_result() {
    let Some(world) = World::start() else { return };
    let viewers: Vec<Viewer> = (0..12).map(|_| world.viewer("read")).collect();
    for (n, viewer) in viewers.iter().enumerate() {
        if n % 3 != 0 {
            filter(&world, viewer, &format!("f{n}"), 0, &[(if n % 3 == 1 { "tide" } else { "noon" }, true)]);
        }
    }
    let mut streams: Vec<(usize, Sse)> =
        (0..24).map(|n| (n % 12, Sse::open(&world.server, PATH, &viewers[n % 12].token))).collect();
    world.redis.until_subscribed(&[CHANNEL]);
    for round in 0..10 {
        let text = ["<p>tide</p>", "<p>noon</p>", "<p>tide at noon</p>", "<p>x</p>"][round % 4];
        let post = post(text);
        world.publish(CHANNEL, &message("update", &post));
        for (viewer, sse) in &mut streams {
            let event = sse.next();
            let payload: Value = serde_json::from_str(&event.data).unwrap();
            let titles: Vec<&str> = payload["filtered"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| entry["filter"]["title"].as_str().unwrap())
                .collect();
            let word = match *viewer % 3 {
                0 => "-",
                1 => "tide",
                _ => "noon",
            };
            let expected = if text.contains(word) { vec![format!("f{viewer}")] } else { Vec::new() };
            assert_eq!(titles, expected, "viewer {viewer}: {text}");
        }
    }
}
