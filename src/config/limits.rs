//! The variables of [`Limits`], with the range of each. Lower ends are what still works (tests use small
//! values), upper ends are what is certainly a mistake.

use super::memory::BudgetsSet;
use super::read::Reader;
use super::variables as v;
use crate::limits::{Limits, SUBSCRIPTIONS_MAX};

const HOUR_MS: u64 = 3_600_000;
const GIB: usize = 1 << 30;

pub(super) fn budgets_set(read: &Reader) -> BudgetsSet {
    BudgetsSet {
        backpressure: read.text(&v::BACKPRESSURE_HIGH_BYTES).is_some(),
        filters: read.text(&v::FILTER_CACHE_BYTES).is_some(),
    }
}

pub(super) fn limits(read: &mut Reader) -> Limits {
    let d = Limits::default();
    // Whoever may subscribe so often may send as many messages.
    let subscribe_rate = read.number(&v::SUBSCRIBE_RATE, d.subscribe_rate, 1..=1_000_000);
    let subscribe_burst = read.number(&v::SUBSCRIBE_BURST, d.subscribe_burst, 1..=1_000_000);
    let client_message_rate = read.number(&v::CLIENT_MESSAGE_RATE, d.client_message_rate, 1..=1_000_000);
    let client_message_burst = read.number(&v::CLIENT_MESSAGE_BURST, d.client_message_burst, 1..=1_000_000);
    Limits {
        backpressure_high_bytes: read.bytes(
            &v::BACKPRESSURE_HIGH_BYTES,
            d.backpressure_high_bytes,
            4096..=64 * GIB,
        ),
        // Redis itself takes no string over 512 MiB.
        message_bytes_max: read.bytes(&v::MAX_MESSAGE_BYTES, d.message_bytes_max, 1024..=GIB / 2),
        slow_client_grace: read.seconds(&v::SLOW_CLIENT_GRACE, d.slow_client_grace, 10..=HOUR_MS),
        door_timeout: read.seconds(&v::DOOR_TIMEOUT, d.door_timeout, 10..=HOUR_MS),
        gap_close_spread: read.seconds(&v::GAP_CLOSE_SPREAD, d.gap_close_spread, 0..=HOUR_MS),
        redis_away_close: read.seconds(&v::REDIS_AWAY_CLOSE, d.redis_away_close, 0..=24 * HOUR_MS),
        drain: read.seconds(&v::DRAIN_SECONDS, d.drain, 0..=HOUR_MS),
        audience_timeout: read.seconds(&v::AUDIENCE_TIMEOUT, d.audience_timeout, 10..=HOUR_MS),
        local_only_on_public: read.flag(&v::LOCAL_ONLY_ON_PUBLIC, d.local_only_on_public),
        filter_cache_bytes: read.bytes(&v::FILTER_CACHE_BYTES, d.filter_cache_bytes, 0..=64 * GIB),
        settings_refresh: read.seconds(&v::SETTINGS_REFRESH_SECONDS, d.settings_refresh, 10..=HOUR_MS),
        sse_heartbeat: read.seconds(&v::SSE_HEARTBEAT_SECONDS, d.sse_heartbeat, 10..=HOUR_MS),
        ws_ping: read.seconds(&v::WS_PING_SECONDS, d.ws_ping, 10..=HOUR_MS),
        presence_refresh: read.seconds(&v::PRESENCE_REFRESH_SECONDS, d.presence_refresh, 10..=24 * HOUR_MS),
        redis_ping: read.seconds(&v::REDIS_PING_SECONDS, d.redis_ping, 10..=HOUR_MS),
        write_stall: read.seconds(&v::WRITE_STALL_SECONDS, d.write_stall, 10..=HOUR_MS),
        close_flush: d.close_flush,
        client_message_bytes_max: read.bytes(
            &v::MAX_CLIENT_MESSAGE_BYTES,
            d.client_message_bytes_max,
            125..=64 << 20,
        ),
        subscriptions_max: read.number(&v::MAX_SUBSCRIPTIONS, d.subscriptions_max, 1..=SUBSCRIPTIONS_MAX),
        client_message_rate: client_message_rate.max(subscribe_rate),
        client_message_burst: client_message_burst.max(subscribe_burst),
        subscribe_rate,
        subscribe_burst,
        param_bytes_max: read.bytes(&v::MAX_PARAM_BYTES, d.param_bytes_max, 1..=64 << 10),
        unfinished_bytes_max: read.bytes(&v::MAX_UNFINISHED_BYTES, d.unfinished_bytes_max, 1024..=64 * GIB),
        unfinished_timeout: read.seconds(&v::UNFINISHED_SECONDS, d.unfinished_timeout, 10..=HOUR_MS),
        connections_max: read.number(&v::MAX_CONNECTIONS, d.connections_max, 0..=100_000_000),
        connections_per_address_max: read.number(
            &v::MAX_CONNECTIONS_PER_ADDRESS,
            d.connections_per_address_max,
            0..=100_000_000,
        ),
        sockets_max: d.sockets_max,
        door_connections_max: read.number(&v::MAX_DOOR_CONNECTIONS, d.door_connections_max, 1..=10_000_000),
        request_head_bytes_max: read.bytes(&v::REQUEST_HEAD_BYTES, d.request_head_bytes_max, 8192..=GIB),
        request_head_timeout: read.seconds(&v::REQUEST_HEAD_SECONDS, d.request_head_timeout, 10..=HOUR_MS),
        keep_alive: read.seconds(&v::KEEP_ALIVE_SECONDS, d.keep_alive, 0..=HOUR_MS),
        // The audience stage names reactors by the bits of a u16.
        reactors: read.number(&v::STREAMING_THREADS, d.reactors, 1..=16),
        periodic_timers: read.flag(&v::PERIODIC_TIMERS, d.periodic_timers),
    }
}
