//! What is read of a status, who gets it, and with which outcome of filters.

use super::*;

#[test]
fn a_status_on_a_filtered_channel_is_read() {
    let event_of = |change: fn(&mut Value)| event(PUBLIC, &status_with(change));
    let fields = |event: &Event| event.status().unwrap().unwrap().clone();
    let plain = event_of(|_| {});
    assert!(plain.needs_audience());
    let expected = StatusFields {
        author: 12,
        domain: Some("example.org".into()),
        local: false,
        mentions: Box::new([13, 14, -99]),
        language: Some("de".into()),
        has_filtered: false,
        local_only: false,
    };
    assert_eq!(fields(&plain), expected);

    let local = fields(&event_of(|status| {
        status["account"]["acct"] = "ada".into();
        status["language"] = Value::Null;
        status["local_only"] = true.into();
        status["filtered"] = json!([]);
        status["mentions"] = json!([]);
    }));
    let expected = StatusFields {
        domain: None,
        local: true,
        mentions: Box::new([]),
        language: None,
        has_filtered: true,
        local_only: true,
        ..expected
    };
    assert_eq!(local, expected);
    assert_eq!(fields(&event_of(|status| status["account"]["acct"] = "ada@".into())).domain, None);
    assert_eq!(
        fields(&event_of(|status| status["account"]["acct"] = "a@b@c".into())).domain.as_deref(),
        Some("b")
    );

    // Elsewhere, and in other events, a status is opaque.
    assert!(!event(HOME, &status_with(|_| {})).needs_audience());
    assert!(!event(PUBLIC, r#"{"event":"delete","payload":"5"}"#).needs_audience());
    assert!(event(PUBLIC, &status_with(|_| {}).replace("update", "status.update")).needs_audience());
    assert!(event(PUBLIC, &status_with(|_| {}).replace("update", "upd\\u0061te")).needs_audience());
}

#[test]
fn a_malformed_status_says_what_is_wrong() {
    let wrong = |change: fn(&mut Value)| event(PUBLIC, &status_with(change)).status().unwrap().unwrap_err();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 15] = [
        ("its payload is not an object", |status| *status = "text".into()),
        ("its payload is not an object", |status| *status = json!([1])),
        ("it has no account", |status| *status = json!({"mentions": []})),
        ("its account is not an object", |status| status["account"] = Value::Null),
        ("its account is not an object", |status| status["account"] = "ada".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "x".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "-1".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = 1.5.into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "9223372036854775808".into()),
        ("its account's username is not text", |status| status["account"]["username"] = 5.into()),
        ("its account's acct is not text", |status| status["account"]["acct"] = Value::Null),
        ("its mentions are not an array", |status| status["mentions"] = Value::Null),
        ("its mentions are not an array", |status| status["mentions"] = json!({"id": "1"})),
        ("one of its mentions has no id that is a number", |status| {
            status["mentions"] = json!([{"id": "1"}, null])
        }),
    ];
    for (text, change) in cases {
        assert_eq!(wrong(change), text);
    }
    let event = event(PUBLIC, &status_with(|status| status["mentions"] = Value::Null));
    assert_eq!(event.verdict(&stream(StreamKind::Public), 1), Verdict::Withheld(Withheld::Malformed));
}

#[test]
fn verdicts_join_audience_and_stream() {
    let public = stream(StreamKind::Public);
    let event_of = |change: fn(&mut Value)| event(PUBLIC, &status_with(change));
    let plain = event_of(|_| {});
    assert_eq!(plain.verdict(&public, 1), Verdict::Withheld(Withheld::NotAsked));
    assert_eq!(plain.verdict(&public, 0), Verdict::Deliver(UNCHANGED));
    let before = plain.held_bytes();
    let verdicts =
        vec![(1, Verdict::Deliver(0)), (2, Verdict::Withheld(Withheld::Language)), (3, Verdict::Deliver(1))];
    let outcomes = outcomes(&[r#"[{"x":1}]"#]);
    assert!(plain.set_audience(Audience { verdicts, outcomes, ..Audience::default() }));
    assert!(plain.held_bytes() >= before + 3 * 16);
    assert!(!plain.set_audience(Audience::default()));
    assert_eq!(plain.verdict(&public, 1), Verdict::Deliver(0));
    assert_eq!(plain.verdict(&public, 2), Verdict::Withheld(Withheld::Language));
    assert_eq!(plain.verdict(&public, 3), Verdict::Deliver(1));
    assert_eq!(plain.verdict(&public, 4), Verdict::Withheld(Withheld::NotAsked));

    let local = event_of(|status| status["local_only"] = true.into());
    local.set_audience(Audience { verdicts: vec![(1, Verdict::Deliver(0))], ..Audience::default() });
    let allowing = Stream { allow_local_only: true, ..public.clone() };
    for account in [0, 1] {
        assert_eq!(local.verdict(&public, account), Verdict::Withheld(Withheld::LocalOnly));
        assert!(matches!(local.verdict(&allowing, account), Verdict::Deliver(_)));
    }
    assert!(matches!(local.verdict(&hashtag("a", None), 1), Verdict::Deliver(0)));
    let remote = stream(StreamKind::PublicRemote);
    assert_eq!(local.verdict(&remote, 1), Verdict::Withheld(Withheld::LocalOnly));

    let deletion = event(PUBLIC, r#"{"event":"delete","payload":"5"}"#);
    assert_eq!(deletion.verdict(&remote, 9), Verdict::Deliver(0));
    let nobody = event_of(|_| {});
    nobody.set_audience(Audience { nobody: Some(Withheld::AudienceTimeout), ..Audience::default() });
    assert_eq!(nobody.verdict(&public, 1), Verdict::Withheld(Withheld::AudienceTimeout));
}

#[test]
fn outcomes_are_the_last_member() {
    let event = event(PUBLIC, r#"{"event":"update","payload":{"a": "\"" }}"#);
    let outcomes = outcomes(&[r#"[{"k":["\"x\\"]}]"#]);
    event.set_audience(Audience { outcomes, ..Audience::default() });
    let public = stream(StreamKind::Public);
    let payload = |outcome| {
        let frame = event.frame(Transport::WebSocket, &public, outcome);
        let message: Value = serde_json::from_str(&ws_text(&frame)).unwrap();
        let on_ws = message["payload"].as_str().unwrap().to_owned();
        for transport in [Transport::SseChunked, Transport::SsePlain] {
            let (_, on_sse) = sse_event(transport, &event.frame(transport, &public, outcome));
            assert_eq!(on_sse, on_ws);
        }
        on_ws
    };
    assert_eq!(payload(0), r#"{"a":"\"","filtered":[]}"#);
    assert_eq!(payload(1), r#"{"a":"\"","filtered":[{"k":["\"x\\"]}]}"#);
    assert_eq!(payload(UNCHANGED), r#"{"a":"\""}"#);
    assert_eq!(payload(77), payload(0), "an outcome that nobody set matches nothing");
}

#[test]
fn outcomes_are_added_where_filters_apply_and_nowhere_else() {
    let text = |channel: Channel, message: &str| ws(channel, StreamKind::Public, message);
    assert!(
        text(PUBLIC, r#"{"event":"update","payload":{ }}"#).ends_with(r#""payload":"{\"filtered\":[]}"}"#)
    );
    assert!(text(PUBLIC, r#"{"event":"update","payload":[1]}"#).ends_with(r#""payload":"[1]"}"#));
    assert!(text(PUBLIC, r#"{"event":"update","payload":"x"}"#).ends_with(r#""payload":"x"}"#));
    assert!(text(PUBLIC, r#"{"event":"delete","payload":{}}"#).ends_with(r#""payload":"{}"}"#));
    assert!(
        text(PUBLIC, r#"{"event":"update","payload":{"filtered":null}}"#)
            .ends_with(r#""payload":"{\"filtered\":null}"}"#)
    );
    let home = event(HOME, r#"{"event":"update","payload":{"a":1}}"#).frame(
        Transport::WebSocket,
        &stream(StreamKind::User),
        3,
    );
    assert!(ws_text(&home).ends_with(r#""payload":"{\"a\":1}"}"#));
}
