//! The opening handshake's key (RFC 6455, sections 4.2.1 and 4.2.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// What the key is joined with before it is hashed.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Whether a `Sec-WebSocket-Key` is one: 16 bytes in base64. Unused bits of its last letter may be set, as
/// other servers allow.
pub fn is_key(key: &str) -> bool {
    let Some(letters) = key.strip_suffix("==") else { return false };
    letters.len() == 22 && letters.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::handshake::derive_accept_key;

    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ=="));
    }

    #[test]
    fn what_is_no_key() {
        for key in
            ["", "==", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZ===", "dGhlIHNhbXBsZSBub25j ZQ=="]
        {
            assert!(!is_key(key), "{key}");
        }
    }

    proptest! {
        #[test]
        fn as_tungstenite_answers(nonce in any::<[u8; 16]>()) {
            let key = STANDARD.encode(nonce);
            prop_assert!(is_key(&key));
            prop_assert_eq!(accept_key(&key), derive_accept_key(key.as_bytes()));
        }
    }
}
