//! What Node does with the same messages and queries (observed, or read from its JavaScript semantics).

use super::*;
use crate::core::json::tests::any_text;
use crate::core::stream::Channel;
use proptest::prelude::*;

const MAX: usize = 512;

fn subscribe(text: &str) -> StreamRequest {
    match ClientMessage::parse(text) {
        ClientMessage::Subscribe(request) => request,
        other => panic!("{text}: {other:?}"),
    }
}

/// The value of `"stream":` in what comes back, or the error.
fn echo(request: &StreamRequest) -> Result<String, RequestError> {
    let mut out = Vec::new();
    request.resolve(MAX, false)?.write_json(&mut out);
    Ok(String::from_utf8(out).unwrap())
}

fn channels(request: &StreamRequest) -> String {
    let mut out = Vec::new();
    for channel in request.resolve(MAX, false).unwrap().channels(7, true) {
        channel.write_name(&mut out);
        out.push(b' ');
    }
    String::from_utf8(out).unwrap().trim_end().to_owned()
}

#[test]
fn in_hometown_public_streams_show_local_only_statuses_to_everybody() {
    for (name, both) in [
        ("public", [false, true]),
        ("public:media", [false, true]),
        ("public:allow_local_only", [true, true]),
        ("public:local", [true, true]),
        ("public:remote", [false, false]),
    ] {
        let request = StreamRequest { stream: Some(name.to_owned()), ..StreamRequest::default() };
        let shows = |hometown| request.resolve(MAX, hometown).unwrap().shows_local_only();
        assert_eq!([shows(false), shows(true)], both, "{name}");
    }
}

#[test]
fn messages_are_told_apart() {
    assert_eq!(subscribe(r#"{"type":"subscribe","stream":"user"}"#).kind(), Some(StreamKind::User));
    let ClientMessage::Unsubscribe(request) =
        ClientMessage::parse(r#"{"type":"unsubscribe","stream":"list","list":"12"}"#)
    else {
        panic!()
    };
    assert_eq!(channels(&request), "timeline:list:12");
    let ignored = [
        "",
        "x",
        "null",
        "false",
        "0",
        "1",
        "\"subscribe\"",
        "[]",
        "[{\"type\":\"subscribe\"}]",
        "{}",
        "{\"type\":null}",
        "{\"type\":\"ping\"}",
        "{\"type\":\"Subscribe\"}",
        "{\"type\":[\"subscribe\"],\"stream\":\"user\"}",
        "{\"stream\":\"user\"}",
        "{\"type\":\"subscribe\",\"stream\":\"user\"",
        "{\"type\":\"subscribe\"} x",
        "{\"type\":\"subscribe\",\"type\":\"x\"}",
    ];
    for text in ignored {
        assert_eq!(ClientMessage::parse(text), ClientMessage::Ignored, "{text}");
    }
}

#[test]
fn the_stream_is_text_or_the_first_of_an_array() {
    let name = |value: &str| subscribe(&format!(r#"{{"type":"subscribe","stream":{value}}}"#)).stream;
    assert_eq!(name(r#""public""#).as_deref(), Some("public"));
    assert_eq!(name(r#""pub\u006cic""#).as_deref(), Some("public"));
    assert_eq!(name(r#"["public","user"]"#).as_deref(), Some("public"));
    assert_eq!(name(r#""public","stream":"user""#).as_deref(), Some("user"));
    for unknown in ["[]", "[[\"user\"]]", "[1,\"user\"]", "null", "1", "{}"] {
        assert_eq!(name(unknown), None, "{unknown}");
    }
    let missing = subscribe(r#"{"type":"subscribe"}"#);
    assert_eq!(missing.resolve(MAX, false), Err(RequestError::UnknownStream));
}

#[test]
fn tags_find_their_channel_and_come_back_as_written() {
    let cases = [
        (r#""rust""#, "timeline:hashtag:rust", r#"["hashtag","rust"]"#),
        (r#""Ünïcode""#, "timeline:hashtag:unicode", r#"["hashtag","Ünïcode"]"#),
        (r#""a\"b\\c\nd""#, "timeline:hashtag:abcd", r#"["hashtag","a\"b\\c\nd"]"#),
        (r#""local""#, "timeline:hashtag:local", r#"["hashtag","local"]"#),
        (r#""a:b""#, "timeline:hashtag:ab", r#"["hashtag","a:b"]"#),
        (r#""!""#, "timeline:hashtag:", r#"["hashtag","!"]"#),
        ("2024", "timeline:hashtag:2024", r#"["hashtag",2024]"#),
        ("2024.0", "timeline:hashtag:2024", r#"["hashtag",2024]"#),
        ("-20.50", "timeline:hashtag:205", r#"["hashtag",-20.5]"#),
    ];
    for (tag, channel, back) in cases {
        let request = subscribe(&format!(r#"{{"type":"subscribe","stream":"hashtag","tag":{tag}}}"#));
        assert_eq!(channels(&request), channel, "{tag}");
        assert_eq!(echo(&request).as_deref(), Ok(back), "{tag}");
        // Whatever the tag, its channel's name is read back as the same channel.
        let channel = request.resolve(MAX, false).unwrap().channels(0, false).pop();
        assert_eq!(Channel::parse(channels(&request).as_bytes()), channel);
    }
}

#[test]
fn lists_are_numbers_in_any_form() {
    let list = |list: &str| subscribe(&format!(r#"{{"type":"subscribe","stream":"list","list":{list}}}"#));
    let cases = [
        (r#""12""#, r#"["list","12"]"#),
        ("12", r#"["list",12]"#),
        ("12.0", r#"["list",12]"#),
        ("1.2e1", r#"["list",12]"#),
        (r#""0012""#, r#"["list","0012"]"#),
    ];
    for (value, back) in cases {
        assert_eq!(channels(&list(value)), "timeline:list:12", "{value}");
        assert_eq!(echo(&list(value)).as_deref(), Ok(back), "{value}");
    }
    assert_eq!(channels(&list("109876543210987654")), "timeline:list:109876543210987654");
    for foreign in
        ["\"x\"", "\"12a\"", "\"-1\"", "\"+1\"", "\"0\"", "1.5", "-1", "1e30", "\"9223372036854775808\""]
    {
        assert_eq!(echo(&list(foreign)), Err(RequestError::ForeignList), "{foreign}");
    }
}

#[test]
fn parameters_are_missing_or_wrong() {
    let tag =
        |tag: &str| subscribe(&format!(r#"{{"type":"subscribe","stream":"hashtag:local","tag":{tag}}}"#));
    for missing in ["null", "\"\"", "0", "false"] {
        assert_eq!(echo(&tag(missing)), Err(RequestError::MissingTag), "{missing}");
    }
    for wrong in ["true", "[]", "[\"rust\"]", "{}"] {
        assert_eq!(echo(&tag(wrong)), Err(RequestError::BadTag), "{wrong}");
    }
    assert!(echo(&tag(&format!("\"{}\"", "a".repeat(MAX)))).is_ok());
    assert_eq!(echo(&tag(&format!("\"{}\"", "a".repeat(MAX + 1)))), Err(RequestError::BadTag));

    // However long a parameter may be: what Redis says about its channel has to be understood.
    let resolve = |bytes: usize| tag(&format!("\"{}\"", "a".repeat(bytes))).resolve(1 << 20, false).map(drop);
    assert_eq!(resolve(6 << 10), Ok(()));
    assert_eq!(resolve((6 << 10) + 1), Err(RequestError::BadTag));

    let list = |rest: &str| subscribe(&format!(r#"{{"type":"subscribe","stream":"list"{rest}}}"#));
    assert_eq!(echo(&list("")), Err(RequestError::MissingList));
    assert_eq!(echo(&list(r#","list":{"id":1}"#)), Err(RequestError::BadList));
    assert_eq!(echo(&list(&format!(r#","list":{}"#, "1".repeat(MAX + 1)))), Err(RequestError::BadList));
}

#[test]
fn a_tag_is_measured_as_written_and_normalised() {
    let tag = |tag: &str| {
        subscribe(&serde_json::json!({"type": "subscribe", "stream": "hashtag", "tag": tag}).to_string())
    };
    // U+FDFA has 3 bytes and becomes 33, without the blanks between its words.
    assert!(echo(&tag(&"\u{fdfa}".repeat(MAX / 33))).is_ok());
    assert_eq!(echo(&tag(&"\u{fdfa}".repeat(MAX / 3))), Err(RequestError::BadTag));
}

#[test]
fn what_waits_is_short_and_answered_alike() {
    let long = "1".repeat(60_000);
    let values = ["null", "0", "12", "\"12\"", "\"rust\"", "[]", "[1]", &long, &format!("\"{long}\"")];
    let names = ["user", "public", "public:media", "hashtag", "hashtag:local", "list", "nonsense", &long];
    let both = || values.iter().flat_map(|value| [("null", *value), (*value, "null"), (*value, *value)]);
    for (name, (tag, list)) in names.iter().flat_map(|name| both().map(move |both| (name, both))) {
        let text = format!(
            r#"{{"type":"subscribe","stream":["{name}"],"tag":{tag},"list":{list},"allow_local_only":1}}"#
        );
        let request = subscribe(&text);
        let short = request.clone().shortened(MAX);
        assert_eq!(
            (short.kind(), short.resolve(MAX, false)),
            (request.kind(), request.resolve(MAX, false)),
            "{text:.200}"
        );
        assert!(format!("{short:?}").len() < MAX + 200, "{text:.200}");
    }
}

#[test]
fn errors_say_what_node_says() {
    let told = |error: RequestError| (error.text(), error.status());
    assert_eq!(told(RequestError::UnknownStream), ("Unknown stream type", 400));
    assert_eq!(told(RequestError::MissingTag), ("Missing tag name parameter", 400));
    assert_eq!(told(RequestError::MissingList), ("Missing list name parameter", 400));
    assert_eq!(told(RequestError::ForeignList), ("Not authorized to stream this list", 401));
    assert_eq!(told(RequestError::Scope), ("Access token does not have the required scopes", 401));
    assert_eq!((RequestError::BadTag.status(), RequestError::BadList.status()), (400, 400));
}

#[test]
fn local_only_statuses_are_for_those_who_ask() {
    let allowed = |rest: &str| {
        let stream = subscribe(&format!(r#"{{"type":"subscribe",{rest}}}"#)).resolve(MAX, false).unwrap();
        (stream.allow_local_only, stream.shows_local_only())
    };
    assert_eq!(allowed(r#""stream":"public""#), (false, false));
    for truthy in ["true", "1", "\"1\"", "\"no\"", "\"False\"", "[]", "{}"] {
        assert_eq!(
            allowed(&format!(r#""stream":"public","allow_local_only":{truthy}"#)),
            (true, true),
            "{truthy}"
        );
    }
    for falsy in [
        "false",
        "0",
        "null",
        "\"\"",
        "\"0\"",
        "\"f\"",
        "\"F\"",
        "\"false\"",
        "\"FALSE\"",
        "\"off\"",
        "\"OFF\"",
    ] {
        assert_eq!(
            allowed(&format!(r#""stream":"public:media","allow_local_only":{falsy}"#)),
            (false, false),
            "{falsy}"
        );
    }
    assert_eq!(allowed(r#""stream":"public:allow_local_only""#), (true, true));
    assert_eq!(allowed(r#""stream":"public:allow_local_only:media""#), (true, true));
    assert_eq!(allowed(r#""stream":"public:remote","allow_local_only":true"#), (false, false));
    assert_eq!(allowed(r#""stream":"public:local""#), (false, true));
    assert_eq!(allowed(r#""stream":"hashtag","tag":"a""#), (false, true));
}

#[test]
fn queries_are_decoded_as_node_does() {
    let query = StreamRequest::from_query;
    assert_eq!(query(""), StreamRequest::default());
    assert_eq!(
        echo(&query("stream=hashtag&tag=caf%C3%A9+x&access_token=t")).as_deref(),
        Ok(r#"["hashtag","café x"]"#)
    );
    assert_eq!(query("tag=%zz%4").tag, Given::Text("%zz%4".into()));
    assert_eq!(query("tag=%ff%41").tag, Given::Text("\u{FFFD}A".into()));
    assert_eq!(query("t%61g=a%26b").tag, Given::Text("a&b".into()));
    assert_eq!(query("tag=a=b").tag, Given::Text("a=b".into()));
    assert_eq!(query("tag=1&&list").tag, Given::Text("1".into()));
    assert_eq!(query("tag").tag, Given::Missing);
    assert_eq!(query("tag=a&tag=a").tag, Given::Wrong);
    assert_eq!(query("list=1&list=").list, Given::Wrong);
    assert_eq!(echo(&query("stream=list&list=12")).as_deref(), Ok(r#"["list","12"]"#));

    assert_eq!(query("stream=").stream, None);
    assert_eq!(query("stream=user&stream=public").stream.as_deref(), Some("user"));
    assert_eq!(query("stream=&stream=public").stream.as_deref(), Some(""));

    assert!(query("allow_local_only=0&allow_local_only=0").allow_local_only);
    assert!(!query("allow_local_only=off").allow_local_only && !query("allow_local_only").allow_local_only);
    assert!(query("allow_local_only=1").allow_local_only);

    let behind = |pairs: usize| query(&format!("{}tag=a", "x=1&".repeat(pairs))).tag;
    assert_eq!(behind(999), Given::Text("a".into()));
    assert_eq!(behind(1000), Given::Missing);
}

#[test]
fn deep_messages_do_no_harm() {
    for depth in [300, 100_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let request = subscribe(&format!(r#"{{"type":"subscribe","stream":"user","x":{deep}}}"#));
        assert_eq!(request.kind(), Some(StreamKind::User));
        let request = subscribe(&format!(r#"{{"type":"subscribe","stream":{deep},"tag":{deep}}}"#));
        assert_eq!((request.kind(), request.tag), (None, Given::Wrong));
    }
}

#[test]
fn a_bucket_gives_a_burst_and_then_its_rate() {
    let mut bucket = Bucket::default();
    let at = Duration::from_millis;
    let start = 5_000_000_000; // beyond 32 bits of milliseconds
    let taken =
        |bucket: &mut Bucket, ms: u64| (0..1000).filter(|_| bucket.take(1, at(start + ms), 20, 200)).count();
    assert_eq!(taken(&mut bucket, 0), 200);
    assert_eq!(taken(&mut bucket, 49), 0);
    assert_eq!(taken(&mut bucket, 50), 1);
    assert_eq!(taken(&mut bucket, 1050), 20);
    assert_eq!(taken(&mut bucket, 100_000), 200);
    assert!(!bucket.is_full(at(start + 109_999), 20));
    assert!(bucket.is_full(at(start + 110_000), 20));
    let mut bucket = Bucket::default();
    assert!(bucket.take(190, at(start), 20, 200));
    assert!(!bucket.take(11, at(start), 20, 200), "all or nothing");
    assert!(bucket.take(10, at(start), 20, 200));
    assert!(!Bucket::default().take(1, at(0), 20, 0));
    assert_eq!((0..9).filter(|_| bucket.take(1, at(start + 1_000_000), 0, 3)).count(), 0);
}

proptest! {
    #[test]
    fn any_message_and_any_query_is_read_without_harm(text in any::<String>(), query in "[a-z%=&+0-9]{0,60}") {
        let _ = ClientMessage::parse(&text);
        let request = StreamRequest::from_query(&query);
        let _ = request.resolve(MAX, false);
    }

    #[test]
    fn tags_echo_what_was_written(tag in any_text()) {
        prop_assume!(!tag.is_empty());
        let message = serde_json::json!({"type": "subscribe", "stream": "hashtag", "tag": &tag}).to_string();
        let back = echo(&subscribe(&message)).unwrap();
        let expected = serde_json::json!(["hashtag", tag]).to_string();
        prop_assert_eq!(back, expected);
    }
}
