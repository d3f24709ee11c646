//! Every bound and every interval, with its default, its variable and its reason, in one place.
//!
//! The defaults are what production runs; tests shorten intervals through the same variables. Values are
//! read by [`crate::config`]. Times that clients or Rails rely on carry the reason; a test pins them all.

use std::time::Duration;

/// The ring: the reusable buffer of a Redis subscriber connection, in bytes. Two average statuses; a longer
/// message is read into a buffer of its own.
pub const RING_BYTES: usize = 8 * 1024;

/// Frame variants kept per event; further ones are rendered when they are written. Otherwise one message to
/// 5,000 spellings of a tag would be an amplification attack on the budget.
pub const FRAME_VARIANTS_MAX: usize = 64;

/// Custom filters of one account that are looked at, in bytes: keywords with their filters' titles, and 64 for
/// each. Ten thousand ordinary keywords take half of it.
pub const FILTERS_BYTES_MAX: usize = 2 << 20;

/// What one account's custom filters may cost one status, in bytes searched. A thousand keywords that all seem
/// to occur cost a status of 32 KiB so much; it takes some ten milliseconds.
pub const FILTER_WORK_MAX: usize = 32 << 20;

/// What one account's custom filters may always cost one status, in bytes searched, however much others cost. A
/// thousand keywords, of which a hundred seem to occur in an ordinary status, take as much.
pub const FILTER_WORK_FREE: usize = 64 << 10;

/// What all accounts' free work may be together for one status, in bytes searched: some twenty milliseconds. With
/// more accounts each has less, but never under [`FILTER_WORK_FREE_MIN`].
pub const FILTER_WORK_FREE_SUM: usize = 64 << 20;

/// See [`FILTER_WORK_FREE_SUM`]: two hundred keywords, of which few seem to occur.
pub const FILTER_WORK_FREE_MIN: usize = 4 << 10;

/// What custom filters may cost beyond the free work in a second, all accounts and statuses together, in bytes
/// searched: about a tenth of a core.
pub const FILTER_WORK_PER_SECOND: usize = 256 << 20;

/// Once the results of one account's custom filters for one status take so many bytes, no further filter is
/// looked at. They are held and sent with the status: fifty filters that match take two thirds of it.
pub const FILTER_RESULT_BYTES: usize = 16 * 1024;

/// How often the wall clock is compared with the time at which a client's token expires: a connection outlives its
/// token by no more after the clock was set or the machine was suspended.
pub const EXPIRY_CHECK: Duration = Duration::from_secs(60);

/// How long a connection whose close is written waits for its peer's end.
pub const LINGER: Duration = Duration::from_secs(2);

/// How often Redis is asked for what it holds for us while reading is paused, and slow clients are looked at.
pub const HEADROOM_INTERVAL: Duration = Duration::from_millis(20);

/// How long the kernel may take no byte for a client that has messages waiting before the client counts as stalled
/// and is closed for room. Losses on a mobile network are repaired within this; a page in the background reads on.
pub const STALLED_AFTER: Duration = Duration::from_secs(1);

/// How long after a client's socket was full it is written to once more, whether the poll reports room or not.
pub const PROBE_AFTER: Duration = Duration::from_millis(100);

/// A reactor that had no turn for so long was asleep, or the machine did not let it run …
pub const REACTOR_AWAY_AFTER: Duration = Duration::from_millis(500);

/// … and waits so long before it tells stalled clients from others: a machine that stood still has to receive its
/// clients' acknowledgements first.
pub const SECOND_LOOK_AFTER: Duration = Duration::from_millis(100);

/// Messages given up with closed clients in one turn, at most, and at least one client's; a write to a client counts
/// as some. They take a millisecond, for which a message to another client may have to wait.
pub const EVICT_TURN_MESSAGES: usize = 8192;

/// A client socket's send buffer as asked of the kernel, in bytes (Linux books twice that). It is a private
/// copy of what the shared log already holds: small, so that lag stays where it is bounded and visible.
pub const SOCKET_SEND_BYTES: u32 = 64 * 1024;

/// Bytes not yet sent by the kernel above which a client's socket is not writable: what lies in the send
/// buffer beyond the network's need is lag out of sight.
pub const SOCKET_NOTSENT_BYTES: u32 = 16 * 1024;

/// A client socket's receive buffer, in bytes: clients send requests and short messages only.
pub const SOCKET_RECEIVE_BYTES: u32 = 16 * 1024;

/// How long written bytes may stay unacknowledged, and a silent peer unasked, before the kernel gives a
/// client's connection up. Longer than two WebSocket pings.
pub const SOCKET_DEAD_AFTER: Duration = Duration::from_secs(75);

/// The largest `MAX_SUBSCRIPTIONS`. A subscription's index has 16 bits, of which the highest value stands for the
/// system channels. A subscribe message compares its stream with each of the client's: at this bound it takes
/// some 0.3 ms.
pub const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Connections to the listener of `ADMIN_BIND` at once: every live view, and some scrapers beside them.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// `Retry-After` of a 503 or 429, in seconds.
pub const RETRY_AFTER_SECONDS: u32 = 5;

/// How long `tidegate check` waits for an answer of systemd: it answers within milliseconds, and a bus that hangs
/// must not hang the check.
pub const CHECK_SYSTEMD_TIME: Duration = Duration::from_secs(5);

/// The most that `tidegate check` reads of an answer of systemd, in bytes: properties of a hundred units take a
/// tenth.
pub const CHECK_SYSTEMD_BYTES_MAX: u64 = 256 * 1024;

/// What a listener's backlog asks for: more than the kernel gives. It caps it at `net.core.somaxconn`, which is for the
/// operator to raise. What exceeds the queue waits a second for its client's kernel to try again.
pub const LISTEN_BACKLOG: i32 = 65_535;

/// How long accepting pauses after the kernel had no file descriptor or memory for a connection.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Connections that have room at the door even when the clients take up all that RLIMIT_NOFILE allows: those who
/// look whether the server is well.
pub const DOOR_CONNECTIONS_MIN: usize = 32;

/// How often, at most, the log says that no connection can be accepted.
pub const ACCEPT_SAID_EVERY: Duration = Duration::from_secs(60);

/// How long a connection may keep its place at a full door without having sent a request: in a rush of
/// newcomers, requests that are here wait to be read.
pub const DOOR_GRACE: Duration = Duration::from_secs(1);

/// Bytes that a client may still send after its last response before its connection is dropped: reading them
/// lets the response arrive, where a reset would destroy it.
pub const LINGER_BYTES_MAX: usize = 256 * 1024;

/// What the program takes without any budget, in bytes: 8 MiB, and as much for some thousand idle clients.
pub const PROGRAM_BYTES: usize = 16 << 20;

/// How many times `BACKPRESSURE_HIGH_BYTES` the messages may take in the worst case: what is being read, and the tails
/// of frames, come on top.
pub const HELD_BYTES_FACTOR: usize = 2;

/// The least that a budget is made by itself, however little memory there is: a few hundred usual messages.
pub const BUDGET_BYTES_MIN: usize = 1 << 20;

/// Header lines of a request (431): as many as Node reads. hyper's parser takes two blocks of 32 bytes a line while
/// it runs; each is below the 64 KiB from which the allocator makes a mapping.
pub const HEADER_LINES_MAX: usize = 2000;

/// Of a request with more headers than this, only those that are read are kept while it is served: a table of
/// [`HEADER_LINES_MAX`] takes 300 KiB, and `MAX_DOOR_CONNECTIONS` requests may wait at once.
pub const WAITING_HEADERS_MAX: usize = 100;

/// How much longer than it was told an idle connection at the door stays open: a request that a client sends
/// in the last moment still finds it so.
pub const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);

/// Pieces of answers (pongs, errors) that may wait for a client whose socket is full: who goes on asking and does
/// not read is closed. Some 50 KiB.
pub const ANSWERS_WAITING_MAX: usize = 256;

/// How long the program waits before it tries again to reach Redis or a sentinel, after the first failure …
pub const RETRY_DELAY_FIRST: Duration = Duration::from_millis(100);

/// … and after many: the delays double in between.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// How long a connection that no client waits for may take: the subscriber connection and those to sentinels. Much
/// shorter than `REDIS_AWAY_CLOSE`, so that several attempts fit before clients are closed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried; a name has a few.
pub const ADDRESSES_MAX: usize = 16;

/// Silence after which the kernel asks whether the other side of an outgoing connection is there. Routers and load
/// balancers forget silent connections after 240 s (Azure), 350 s (AWS) or more.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// How long after a question without an answer the next one follows …
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// … and how many of them there are.
pub const TCP_KEEPALIVE_RETRIES: u32 = 3;

/// How long what was sent to a server may stay unacknowledged before the kernel gives the connection up.
pub const TCP_DEAD_AFTER: Duration = Duration::from_secs(30);

/// The waits that a waiting client contains, each shorter than the one around it. A retry on a new connection fits
/// into the whole: `answer + RETRY_DELAY_FIRST + connect + answer <= question < whole`.
///
/// | wait | share of the whole | for 10 s |
/// |---|---|---|
/// | `whole`: `DOOR_TIMEOUT` for a newcomer, `AUDIENCE_TIMEOUT` for a status | | 10 s |
/// | `question`: a statement or a batch of presence keys, with its retry | 97 % | 9.7 s |
/// | `answer`: one attempt, from sending to the last byte of the answer | 33 %, at most 10 s | 3.3 s |
/// | `connect`: a new connection with name look-up, TLS and login | 25 %, at most 5 s | 2.5 s |
/// | [`Race::address`]: TCP to one address of a name | four fifths of `connect` | 2 s |
/// | [`Race::stagger`]: before the next address is tried beside it | a tenth of `connect`, at most 250 ms | 250 ms |
///
/// A whole under [`Waits::WHOLE_MIN`] has the waits of that, and ends first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Waits {
    pub question: Duration,
    pub answer: Duration,
    pub connect: Duration,
}

impl Waits {
    /// Under this, `RETRY_DELAY_FIRST` leaves no room for a retry.
    pub const WHOLE_MIN: Duration = Duration::from_secs(2);

    /// What fits into that.
    pub fn within(whole: Duration) -> Waits {
        let whole = whole.max(Waits::WHOLE_MIN);
        let share =
            |per_mille: u32, most_ms: u64| (whole * per_mille / 1000).min(Duration::from_millis(most_ms));
        Waits { question: share(970, u64::MAX), answer: share(330, 10_000), connect: share(250, 5_000) }
    }
}

/// What connecting to a name with several addresses consists of (RFC 8305).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Race {
    /// How long one address has to take the connection: what comes after that needs time too.
    pub address: Duration,
    /// How long after an address the next one is tried.
    pub stagger: Duration,
}

impl Race {
    /// What fits into a connection's time.
    pub fn within(connect: Duration) -> Race {
        Race { address: connect * 4 / 5, stagger: (connect / 10).min(Duration::from_millis(250)) }
    }
}

impl Limits {
    /// What fits into `DOOR_TIMEOUT`.
    pub fn door_waits(&self) -> Waits {
        Waits::within(self.door_timeout)
    }

    /// What fits into `AUDIENCE_TIMEOUT`.
    pub fn audience_waits(&self) -> Waits {
        Waits::within(self.audience_timeout)
    }
}

/// With room for fewer clients than this the start warns: an instance of 50,000 accounts has about as many streams.
pub const CLIENTS_FEW: usize = 1000;

/// How long `/ready` waits for each thread to begin another turn. A turn takes milliseconds, even of a crowd.
pub const THREAD_PATIENCE: Duration = Duration::from_secs(2);

/// Lines of the log that wait for its reader, in bytes; further ones are dropped and counted. Some 2,000 lines: more
/// than a start, an outage and an end write together.
pub const LOG_QUEUE_BYTES: usize = 256 * 1024;

/// How long the end of the process waits for the reader of the log. A service manager's patience is longer.
pub const LOG_FLUSH_MAX: Duration = Duration::from_secs(1);

/// What a periodic timer waits for where `PERIODIC_TIMERS` is false: longer than any test.
const PERIODIC_OFF: Duration = Duration::from_secs(3600);

/// Bytes of tags and of their spellings that one client may hold, for each subscription that it may have
/// (`MAX_SUBSCRIPTIONS`), on average: 25 KiB by default. Without it two hundred tags of `MAX_PARAM_BYTES`, each as
/// normalised and as JSON of up to six times its length, would be 750 KiB. One tag is always allowed. Messages that
/// wait for an earlier one may hold as much for each of `SUBSCRIBE_BURST`.
pub const SUBSCRIPTION_TEXT_BYTES: usize = 128;

/// Bounds and intervals that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// `BACKPRESSURE_HIGH_BYTES`, 16 MiB: all undelivered messages and their frames together. Over it
    /// reading from Redis pauses; at half of it, it goes on.
    pub backpressure_high_bytes: usize,
    /// `MAX_MESSAGE_BYTES`, 8 MiB: a longer message is skipped on the wire, its channel's clients are told.
    pub message_bytes_max: usize,
    /// `SLOW_CLIENT_GRACE`, 5 s: how long a client may hold old messages without finishing a frame, and how
    /// long any pause may last.
    pub slow_client_grace: Duration,
    /// `DOOR_TIMEOUT`, 10 s: how long a newcomer or a subscription waits for Redis and PostgreSQL.
    pub door_timeout: Duration,
    /// `GAP_CLOSE_SPREAD`, 10 s: closing everybody after a gap is spread over this, since web clients are
    /// back within 200 ms.
    pub gap_close_spread: Duration,
    /// `REDIS_AWAY_CLOSE`, 30 s: when Redis stays away longer, clients are closed so that they poll.
    pub redis_away_close: Duration,
    /// `DRAIN_SECONDS`, 10 s: how long the closes of a shutdown are spread.
    pub drain: Duration,
    /// `AUDIENCE_TIMEOUT`, 10 s: how long PostgreSQL may give no answer about who may see a status before it is withheld.
    pub audience_timeout: Duration,
    /// `LOCAL_ONLY_ON_PUBLIC`, false: whether `public` and `public:media` show local-only statuses, as in Hometown.
    pub local_only_on_public: bool,
    /// `FILTER_CACHE_BYTES`, 32 MiB: compiled custom filters of all accounts together.
    pub filter_cache_bytes: usize,
    /// `SETTINGS_REFRESH_SECONDS`, 60 s: chosen languages, permissions and feed settings are read again.
    pub settings_refresh: Duration,
    /// `SSE_HEARTBEAT_SECONDS`, 15 s: the `:thump` comment, as Node sends it.
    pub sse_heartbeat: Duration,
    /// `WS_PING_SECONDS`, 30 s: WebSocket pings, as Node sends them; no pong until the next one: cut.
    pub ws_ping: Duration,
    /// `PRESENCE_REFRESH_SECONDS`, 360 s: how often `subscribed:` keys are set again. They live three times
    /// as long (1080 s): Rails publishes personal events only while they exist.
    pub presence_refresh: Duration,
    /// `REDIS_PING_SECONDS`, 10 s: silence on the Redis connection after which a PING asks whether it lives;
    /// after twice that without an answer it is taken for dead.
    pub redis_ping: Duration,
    /// `WRITE_STALL_SECONDS`, 60 s: how long a client with bytes waiting may finish no frame, even while the
    /// budget is free.
    pub write_stall: Duration,
    /// 1 s: how long a closing client's socket may take to accept the reason; then it is reset.
    pub close_flush: Duration,
    /// `MAX_CLIENT_MESSAGE_BYTES`, 64 KiB: one message from a WebSocket client (close 1009).
    pub client_message_bytes_max: usize,
    /// `MAX_SUBSCRIPTIONS`, 200: streams on one WebSocket, at most [`SUBSCRIPTIONS_MAX`].
    pub subscriptions_max: usize,
    /// `CLIENT_MESSAGE_RATE`, 50: frames per second and connection, of whatever kind, and reads that finish
    /// none. Subscribing takes up to 20 of them; who pings does it once in a second at most, and apps once a
    /// minute. At 50 a client costs a few hundredths of a percent of a core …
    pub client_message_rate: u32,
    /// `CLIENT_MESSAGE_BURST`, 1000: … after so many at once: the web client sends all its subscriptions, and
    /// a proxy may deliver in one piece what waited for a slow network. At least `SUBSCRIBE_BURST`.
    pub client_message_burst: u32,
    /// `SUBSCRIBE_RATE`, 20: subscribe and unsubscribe messages per second and connection …
    pub subscribe_rate: u32,
    /// `SUBSCRIBE_BURST`, 200: … after so many at once.
    pub subscribe_burst: u32,
    /// `MAX_PARAM_BYTES`, 512 bytes: a tag or list parameter (400).
    pub param_bytes_max: usize,
    /// `MAX_UNFINISHED_BYTES`, 4 MiB: all unfinished incoming WebSocket messages together.
    pub unfinished_bytes_max: usize,
    /// `UNFINISHED_SECONDS`, 30 s: the time in which each incoming message must be whole.
    pub unfinished_timeout: Duration,
    /// `MAX_CONNECTIONS`, 0 (what RLIMIT_NOFILE allows): clients in all.
    pub connections_max: usize,
    /// `MAX_CONNECTIONS_PER_ADDRESS`, 0 (off): clients of one address.
    pub connections_per_address_max: usize,
    /// `MAX_DOOR_CONNECTIONS`, 4096: connections that have not yet become a stream.
    pub door_connections_max: usize,
    /// What RLIMIT_NOFILE allows: clients and connections at the door together. The door is as full as that leaves it,
    /// and at least [`DOOR_CONNECTIONS_MIN`].
    pub sockets_max: usize,
    /// `REQUEST_HEAD_BYTES`, 16 KiB: a request's head (431).
    pub request_head_bytes_max: usize,
    /// `REQUEST_HEAD_SECONDS`, 10 s: the time in which a request's head must be whole, and the end of an empty
    /// body in chunks must follow, from the connection's beginning or the head's first byte.
    pub request_head_timeout: Duration,
    /// `KEEP_ALIVE_SECONDS`, 5 s: how long clients are told that a connection may stay without a request after
    /// its last response; it is closed [`KEEP_ALIVE_GRACE`] later.
    pub keep_alive: Duration,
    /// `STREAMING_THREADS`, number of cores, at most 4: reactor threads.
    pub reactors: usize,
    /// `PERIODIC_TIMERS`, true: whether [`every`](Self::every) gives the intervals that it is asked for.
    pub periodic_timers: bool,
}

impl Limits {
    /// The interval of a periodic timer that only looks after the server itself (memory, gauges, whether PostgreSQL is
    /// still there). A test turns all of them off, to show that no client waits for one of them.
    pub fn every(&self, interval: Duration) -> Duration {
        if self.periodic_timers { interval } else { PERIODIC_OFF }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            backpressure_high_bytes: 16 << 20,
            message_bytes_max: 8 << 20,
            slow_client_grace: Duration::from_secs(5),
            door_timeout: Duration::from_secs(10),
            gap_close_spread: Duration::from_secs(10),
            redis_away_close: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            audience_timeout: Duration::from_secs(10),
            local_only_on_public: false,
            filter_cache_bytes: 32 << 20,
            settings_refresh: Duration::from_secs(60),
            sse_heartbeat: Duration::from_secs(15),
            ws_ping: Duration::from_secs(30),
            presence_refresh: Duration::from_secs(360),
            redis_ping: Duration::from_secs(10),
            write_stall: Duration::from_secs(60),
            close_flush: Duration::from_secs(1),
            client_message_bytes_max: 64 << 10,
            subscriptions_max: 200,
            client_message_rate: 50,
            client_message_burst: 1000,
            subscribe_rate: 20,
            subscribe_burst: 200,
            param_bytes_max: 512,
            unfinished_bytes_max: 4 << 20,
            unfinished_timeout: Duration::from_secs(30),
            connections_max: 0,
            connections_per_address_max: 0,
            door_connections_max: 4096,
            sockets_max: usize::MAX,
            request_head_bytes_max: 16 << 10,
            request_head_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(5),
            reactors: std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4)),
            periodic_timers: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_is_shorter_than_the_wait_that_contains_it() {
        let wholes = (2_000..60_000).step_by(250).chain([100_000, 3_600_000]);
        for whole in wholes.map(Duration::from_millis) {
            let Waits { question, answer, connect } = Waits::within(whole);
            let Race { address, stagger } = Race::within(connect);
            let nested = [Duration::ZERO, stagger, address, connect, answer, question, whole];
            assert!(nested.is_sorted_by(|inner, outer| inner < outer), "{whole:?}: {nested:?}");
            let retried = answer + RETRY_DELAY_FIRST + connect + answer;
            assert!(retried <= question, "{whole:?}: a retry ends after {retried:?} of {question:?}");
            assert!(stagger * 4 < address, "{whole:?}: four dead addresses leave no time for the fifth");
        }
        let defaults = Limits::default();
        assert_eq!(defaults.door_waits(), Waits::within(Duration::from_secs(10)));
        assert!(RETRY_DELAY_MAX + CONNECT_TIMEOUT < defaults.redis_away_close / 2, "two attempts fit");
        assert_eq!(Waits::within(Duration::from_millis(10)), Waits::within(Waits::WHOLE_MIN));
    }
}
