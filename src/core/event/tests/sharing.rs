//! What is shared: bodies by frames, frames by threads, contents by copies; and what of that is kept.

use super::*;

#[test]
fn both_usual_names_are_whole_and_other_spellings_share_the_body() {
    let status = status_with(|_| {});
    let event_on = |channel| event(channel, &status);
    let usual = [
        (Channel::Notifications(1), StreamKind::User),
        (Channel::Notifications(1), StreamKind::UserNotification),
        (PUBLIC, StreamKind::Public),
        (PUBLIC, StreamKind::PublicAllowLocalOnly),
        (Channel::Public { origin: Origin::Any, media: true }, StreamKind::PublicMedia),
        (Channel::Public { origin: Origin::Remote, media: true }, StreamKind::PublicRemoteMedia),
        (Channel::Direct(1), StreamKind::Direct),
        (HOME, StreamKind::User),
    ];
    for (channel, kind) in usual {
        for outcome in [0, UNCHANGED] {
            let frame = event_on(channel.clone()).frame(Transport::WebSocket, &stream(kind), outcome);
            assert!(frame.body.is_empty() && frame.tail.is_empty(), "{kind:?}");
            assert!(
                ws_text(&frame).starts_with(&format!(r#"{{"stream":["{}"],"event":"update""#, kind.name()))
            );
        }
    }

    let event = event_on(Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false });
    let usual = event.frame(Transport::WebSocket, &hashtag("rust", None), 0);
    let spelled = event.frame(Transport::WebSocket, &hashtag("rust", Some("Rüst\"")), 0);
    assert_eq!(ws_text(&spelled), ws_text(&usual).replace(r#""rust""#, r#""Rüst\"""#));
    let shared = usual.head.as_ptr_range();
    assert!(shared.contains(&spelled.body.as_ptr()), "the body is a part of the usual frame");
    let again = event.frame(Transport::WebSocket, &hashtag("rust", Some("Rüst\"")), 0);
    assert_eq!(again.head.as_ptr(), spelled.head.as_ptr(), "a kept variant is not rendered again");
}

#[test]
fn what_filters_found_is_held_once_for_all_frames_of_an_account() {
    let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
    let event = event(channel, &status_with(|_| {}));
    let found = json!([{"filter": "x".repeat(10_000)}]).to_string();
    event.set_audience(Audience { outcomes: outcomes(&[&found]), ..Audience::default() });
    let before = event.held_bytes();
    let frame = |n: usize| event.frame(Transport::WebSocket, &hashtag("rust", Some(&format!("Rust{n}"))), 1);
    let frames: Vec<Frame> = (0..FRAME_VARIANTS_MAX).map(frame).collect();
    for frame in &frames {
        assert_eq!(frame.filtered.as_ptr(), frames[0].filtered.as_ptr());
        assert!(ws_text(frame).contains(&"x".repeat(10_000)));
    }
    let held = event.held_bytes() - before;
    assert!(held < 2000 + FRAME_VARIANTS_MAX * 400, "{held} bytes for {} frames", frames.len());
}

#[test]
fn variants_are_bounded_and_the_rest_is_rendered_alike() {
    let gate = gate();
    let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
    let message = Bytes::from(status_with(|status| status["content"] = "x".repeat(100_000).into()));
    let Parsed::Event(event) = Event::parse(channel, AT, message, &gate) else { panic!() };
    let frame = |n: usize| event.frame(Transport::WebSocket, &hashtag("rust", Some(&format!("Rust{n}"))), 0);
    let first: Vec<_> = (0..5000).map(|n| bytes(&frame(n))).collect();
    assert!(event.held_bytes() < 250_000 + FRAME_VARIANTS_MAX * 500, "{}", event.held_bytes());
    let held = event.held_bytes();
    for (n, rendered) in first.iter().enumerate().step_by(7) {
        assert_eq!(&bytes(&frame(n)), rendered);
    }
    assert_eq!(ws_text(&frame(4999)), ws_text(&frame(3)).replace("Rust3", "Rust4999"));
    assert_eq!(event.held_bytes(), held);
    assert_eq!(gate.held_bytes(), held);
    drop(event);
    assert_eq!(gate.held_bytes(), 0);
}

#[test]
fn threads_that_ask_at_once_get_the_same_frame() {
    let event = event(PUBLIC, &status_with(|_| {}));
    let frames: Vec<_> = std::thread::scope(|scope| {
        let ask = || event.frame(Transport::WebSocket, &stream(StreamKind::Public), 0).head.as_ptr() as usize;
        (0..4)
            .map(|_| scope.spawn(ask))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(frames.iter().all(|frame| *frame == frames[0]));
}

#[test]
fn copies_in_home_timelines_are_one_content_while_it_is_under_way() {
    let gate = gate();
    let mut copies = Copies::default();
    let mut parse = |channel: Channel, message: &str| {
        let parsed = copies.parse(channel, AT, Payload::Slice(message.as_bytes()), &gate);
        let Parsed::Event(event) = parsed else { panic!("{parsed:?}") };
        event
    };
    let frame = |event: &Event, kind| event.frame(Transport::WebSocket, &stream(kind), 0);
    let message = status_with(|status| status["content"] = "x".repeat(10_000).into());

    let first = parse(Channel::Account(1), &message);
    let rendered = frame(&first, StreamKind::User);
    let held = gate.held_bytes();
    let second = parse(Channel::Account(2), &message);
    assert_eq!(second.channel(), &Channel::Account(2));
    assert_eq!(frame(&second, StreamKind::User).head.as_ptr(), rendered.head.as_ptr());
    assert!(gate.held_bytes() < held + 1000, "{held} bytes, then {}", gate.held_bytes());

    // A byte that differs, another kind of channel: a content of its own.
    let other = parse(Channel::Account(3), &message.replacen('x', "y", 1));
    assert_eq!(ws_text(&frame(&other, StreamKind::User)), ws_text(&rendered).replacen('x', "y", 1));
    let list = parse(Channel::Notifications(1), &message);
    let as_notification = frame(&list, StreamKind::UserNotification);
    assert!(ws_text(&as_notification).contains("user:notification"));

    // Nothing is held by remembering it.
    drop((first, second, other, list));
    assert_eq!(gate.held_bytes(), 0);
    let again = parse(Channel::Account(1), &message);
    assert_eq!(bytes(&frame(&again, StreamKind::User)), bytes(&rendered));
}

proptest! {
    #[test]
    fn every_outcome_and_order_of_asking_gives_the_same_bytes(
        keys in prop::collection::vec((0usize..3, 0usize..4, 0u16..4), 1..40),
        members in prop::collection::vec((any_text(), any_json()), 0..4),
    ) {
        let payload: Value = Value::Object(members.into_iter().filter(|(name, _)| name != "filtered").collect());
        let message = json!({"event": "update", "payload": payload}).to_string();
        let json: Vec<String> = (0..3).map(|n| json!(vec!["\"\\"; n]).to_string()).collect();
        let outcomes = outcomes(&json[1..].iter().map(String::as_str).collect::<Vec<_>>());
        let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
        let spellings = [None, Some("Rust"), Some("R\u{fc}st\n"), Some("ＲＵＳＴ")];
        let fresh = || {
            let event = event(channel.clone(), &message);
            event.set_audience(Audience { outcomes: outcomes.clone(), ..Audience::default() });
            event
        };
        let shared = fresh();
        for (transport, spelling, outcome) in keys {
            let outcome = if outcome == 3 { UNCHANGED } else { outcome };
            let stream = hashtag("rust", spellings[spelling]);
            let frame = shared.frame(TRANSPORTS[transport], &stream, outcome);
            prop_assert_eq!(bytes(&frame), bytes(&fresh().frame(TRANSPORTS[transport], &stream, outcome)));

            let data = match TRANSPORTS[transport] {
                Transport::WebSocket => {
                    let back: Value = serde_json::from_str(&ws_text(&frame)).unwrap();
                    prop_assert_eq!(&back["stream"], &json!(["hashtag", spellings[spelling].unwrap_or("rust")]));
                    back["payload"].as_str().unwrap().to_owned()
                }
                transport => sse_event(transport, &frame).1,
            };
            let mut expected = payload.clone();
            if outcome != UNCHANGED {
                expected["filtered"] = serde_json::from_str(&json[usize::from(outcome)]).unwrap();
            }
            prop_assert_eq!(serde_json::from_str::<Value>(&data).unwrap(), expected);
        }
    }
}
