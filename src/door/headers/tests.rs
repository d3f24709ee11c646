use std::sync::Arc;

use super::*;

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    map
}

#[test]
fn a_websocket_is_an_upgrade_to_exactly_that() {
    let cases = [
        ("Upgrade", "websocket", true),
        ("keep-alive, Upgrade", "WebSocket", true),
        ("upgrade", "h2c", false),
        ("keep-alive", "websocket", false),
        ("upgrade", "websocket, h2c", false),
    ];
    for (connection, upgrade, expected) in cases {
        let map = headers(&[("connection", connection), ("upgrade", upgrade)]);
        assert_eq!(is_websocket(&map), expected, "{connection} {upgrade}");
    }
}

#[test]
fn a_handshake_is_checked_and_echoes_the_first_protocol() {
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("sec-websocket-version", "13");
    let read = |list: &[(&'static str, &str)]| Handshake::read(&Method::GET, &headers(list));
    assert_eq!(read(&[key]).unwrap_err(), Refusal::BAD_VERSION);
    assert_eq!(read(&[key, ("sec-websocket-version", "7")]).unwrap_err(), Refusal::BAD_VERSION);
    assert_eq!(read(&[version]).unwrap_err(), Refusal::NO_KEY);
    assert_eq!(read(&[version, ("sec-websocket-key", "short==")]).unwrap_err(), Refusal::NO_KEY);
    assert_eq!(
        read(&[version, key, ("sec-websocket-protocol", "not a token")]).unwrap_err(),
        Refusal::BAD_PROTOCOL
    );
    assert_eq!(Handshake::read(&Method::POST, &headers(&[version, key])).unwrap_err(), Refusal::METHOD);

    let id = RequestId::new();
    let head = read(&[version, key, ("sec-websocket-protocol", "one, two")]).unwrap().head(&id);
    assert_eq!(
        String::from_utf8(head).unwrap(),
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: one\r\n\
             X-Request-Id: {}\r\n\r\n",
            id.as_str()
        )
    );
}

#[test]
fn request_ids_are_fresh_and_of_version_4() {
    let (one, other) = (RequestId::new(), RequestId::new());
    assert_ne!(one.as_str(), other.as_str());
    assert_eq!(Uuid::parse_str(one.as_str()).unwrap().get_version_num(), 4);
}

#[test]
fn an_old_client_gets_no_chunks() {
    let id = RequestId::new();
    let new = event_stream(&id, Version::HTTP_11, Some(Duration::from_secs(5)));
    let text = std::str::from_utf8(&new).unwrap();
    assert!(text.contains("\r\nTransfer-Encoding: chunked\r\n"));
    assert!(text.contains("\r\nKeep-Alive: timeout=5\r\n"));
    assert!(text.ends_with("\r\n\r\n3\r\n:)\n\r\n"));
    let old = event_stream(&id, Version::HTTP_10, None);
    let text = std::str::from_utf8(&old).unwrap();
    assert!(!text.contains("Transfer-Encoding"));
    assert!(text.contains("\r\nConnection: close\r\n"));
    assert!(text.ends_with("\r\n\r\n:)\n"));
}

#[test]
fn only_trusted_proxies_say_whose_a_request_is() {
    let trusted: TrustedProxies =
        Arc::new(|address| address.is_loopback() || address.to_string().starts_with("10."));
    let of = |peer: Peer, forwarded: &[&str]| {
        let list: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
        client_address(peer, &headers(&list), &trusted).map(|address| address.to_string())
    };
    let of_bytes = |peer: Peer, forwarded: &[u8]| {
        let headers = HeaderMap::from_iter([(X_FORWARDED_FOR, HeaderValue::from_bytes(forwarded).unwrap())]);
        client_address(peer, &headers, &trusted).map(|address| address.to_string())
    };
    let tcp = |text: &str| Peer::Tcp(text.parse().unwrap());
    let is = |text: &str| Some(text.to_owned());
    // A stranger's claim is not believed.
    assert_eq!(of(tcp("203.0.113.9"), &["198.51.100.1"]), is("203.0.113.9"));
    // The nearest address that no trusted proxy has; what stands before it may be invented.
    assert_eq!(of(tcp("127.0.0.1"), &["1.2.3.4, 198.51.100.1"]), is("198.51.100.1"));
    assert_eq!(of(tcp("127.0.0.1"), &["198.51.100.1, 10.0.0.5"]), is("198.51.100.1"));
    assert_eq!(of(tcp("::ffff:127.0.0.1"), &["198.51.100.1", "10.0.0.5"]), is("198.51.100.1"));
    assert_eq!(of(tcp("127.0.0.1"), &["[2001:db8::1]:443"]), is("2001:db8::1"));
    assert_eq!(of(tcp("127.0.0.1"), &["nonsense, 10.0.0.5"]), is("10.0.0.5"));
    assert_eq!(of(tcp("127.0.0.1"), &[]), is("127.0.0.1"));
    assert_eq!(of(Peer::Unix, &["198.51.100.1"]), is("198.51.100.1"));
    assert_eq!(of(Peer::Unix, &[]), None);
    // Whoever sends what is no text does not escape what the proxy adds to it.
    for junk in [&b"\xff, 198.51.100.1"[..], b"caf\xc3\xa9,198.51.100.1", b"\t,,\x80,198.51.100.1\t"] {
        assert_eq!(of_bytes(tcp("127.0.0.1"), junk), is("198.51.100.1"), "{junk:?}");
        assert_eq!(of_bytes(Peer::Unix, junk), is("198.51.100.1"), "{junk:?}");
    }
}

#[test]
fn what_a_proxy_passes_on_is_not_direct() {
    for name in
        ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-anything", "forwarded", "via", "x-real-ip"]
    {
        assert!(is_forwarded(&headers(&[("host", "x"), (name, "")])), "{name}");
    }
    assert!(is_forwarded(&headers(&[("cf-connecting-ip", "198.51.100.1")])));
    assert!(!is_forwarded(&headers(&[("host", "x"), ("accept", "via"), ("x-forward", "x")])));
}
