//! Bounds of what one client may have, and what clients that left leave behind.

use super::*;
use crate::limits::SUBSCRIPTIONS_MAX;

fn list(id: u64) -> NewSubscription {
    let stream =
        Stream { kind: StreamKind::List, allow_local_only: false, param: Param::List(id), spelling: None };
    NewSubscription { channels: stream.channels(1, true), stream, account: 1 }
}

#[test]
fn last_subscription_that_the_setting_allows_gets_its_messages() {
    let (wire, gate) = (Wire::default(), Gate::new(1 << 20, 1 << 19, || {}));
    let limits = Limits { subscriptions_max: SUBSCRIPTIONS_MAX, ..Limits::default() };
    let mut relay = Relay::new(0, limits, Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    relay.deliver(client(Tape(1, Rc::clone(&wire)), Transport::WebSocket, 1), now);
    let id = relay.clients[0].id(0, 0);
    // The stream in the request is one of them.
    let lists = SUBSCRIPTIONS_MAX as u64 - 1;
    (1..=lists).for_each(|n| relay.deliver(Delivery::Subscription(id, list(n), 0), now));
    relay.flush(&mut || now);
    wire.borrow_mut().clear();

    let at = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };
    let bytes = Bytes::from_static(br#"{"event":"delete","payload":"1"}"#);
    let Parsed::Event(event) = Event::parse(Channel::List(lists), at, bytes, &gate) else {
        panic!("no event")
    };
    relay.deliver(Delivery::Event(event), now);
    relay.flush(&mut || now);
    let got = wire.borrow_mut().drain(..).flat_map(|(_, bytes)| bytes).collect::<Vec<u8>>();
    assert!(String::from_utf8_lossy(&got).contains(&format!(r#""stream":["list","{lists}"]"#)));
}
