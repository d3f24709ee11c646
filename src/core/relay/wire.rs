//! The few bytes a relay sends that are no messages.

use bytes::Bytes;

use crate::core::counters::CloseReason;
use crate::core::event::Transport;
use crate::proto::{sse, ws};

/// RFC 6455, 7.4.1.
pub(super) const GOING_AWAY: u16 = 1001;
pub(super) const UNSUPPORTED_DATA: u16 = 1003;
pub(super) const POLICY_VIOLATION: u16 = 1008;
pub(super) const MESSAGE_TOO_BIG: u16 = 1009;
/// IANA's registry of close codes.
pub(super) const SERVICE_RESTART: u16 = 1012;
pub(super) const TRY_AGAIN_LATER: u16 = 1013;

/// The reason of a close after a binary message, word for word as Node's: clients may compare it.
pub(super) const BINARY: &str = "The mastodon streaming server does not support binary messages";

const PONG_FIRST_BYTE: u8 = 0x8a;

/// What a peer is told at the end, by reason; none where there is nobody to tell.
///
/// Codes are below 3000, so that the web client comes back, and not 1000, so that megalodon does. A kill is
/// an empty close frame and a plain end, as Node's.
pub(super) fn farewell(reason: CloseReason, transport: Transport) -> Option<Bytes> {
    let told: Option<(u16, &str)> = match reason {
        CloseReason::Killed | CloseReason::TokenExpired => None,
        CloseReason::TooSlow => Some((TRY_AGAIN_LATER, "too slow to keep up")),
        CloseReason::Gap => Some((SERVICE_RESTART, "messages may have been missed")),
        CloseReason::RedisAway => Some((SERVICE_RESTART, "messages cannot be delivered now")),
        CloseReason::Drain => Some((GOING_AWAY, "the server is shutting down")),
        CloseReason::RateLimited => Some((POLICY_VIOLATION, "too many messages")),
        CloseReason::Unfinished => Some((POLICY_VIOLATION, "message not finished in time")),
        CloseReason::ServerError => Some((SERVICE_RESTART, "server error")),
        CloseReason::WriteStalled => Some((TRY_AGAIN_LATER, "no progress")),
        // The decoder's own codes are sent by who found the error; the others have nobody to listen.
        CloseReason::Binary
        | CloseReason::TooBig
        | CloseReason::ProtocolError
        | CloseReason::ClientLeft
        | CloseReason::NoPong
        | CloseReason::SocketError => return None,
    };
    Some(match transport {
        Transport::WebSocket => close_frame(told),
        Transport::SseChunked => {
            let mut bytes = Vec::with_capacity(64);
            if let Some((_, text)) = told {
                let mut comment = Vec::new();
                sse::comment(&mut comment, text);
                sse::chunk(&mut bytes, &comment);
            }
            bytes.extend_from_slice(sse::LAST_CHUNK);
            bytes.into()
        }
        Transport::SsePlain => {
            let mut bytes = Vec::new();
            if let Some((_, text)) = told {
                sse::comment(&mut bytes, text);
            }
            bytes.into()
        }
    })
}

/// A close frame, empty without a code.
pub(super) fn close_frame(close: Option<(u16, &str)>) -> Bytes {
    match close {
        None => Bytes::from_static(&ws::encode::CLOSE_WITHOUT_CODE),
        Some((code, reason)) => Bytes::copy_from_slice(&ws::encode::close(code, reason)),
    }
}

pub(super) fn ping() -> Bytes {
    Bytes::from_static(&ws::encode::PING)
}

pub(super) fn pong(payload: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&ws::encode::pong(payload))
}

pub(super) fn is_pong(frame: &[u8]) -> bool {
    frame.first() == Some(&PONG_FIRST_BYTE)
}

/// A text frame with that JSON.
pub(super) fn text(json: &[u8]) -> Bytes {
    let header = ws::encode::text_header(json.len());
    [&header[..], json].concat().into()
}

/// The sign of life of an SSE stream.
pub(super) fn heartbeat(transport: Transport) -> Bytes {
    const CHUNKED: &[u8] = b"8\r\n:thump\n\n\r\n";
    const _: () = assert!(sse::HEARTBEAT.len() == 8);
    match transport {
        Transport::SseChunked => Bytes::from_static(CHUNKED),
        Transport::SsePlain | Transport::WebSocket => Bytes::from_static(sse::HEARTBEAT),
    }
}
