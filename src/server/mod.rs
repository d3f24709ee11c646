//! Where the rooms meet: makes the parts, gives each what it needs, runs until a signal, and drains.

pub mod check;
mod database;
mod full;
pub mod health;
mod memory;
mod memory_limit;
mod pages;
mod pauses;
mod sources;
mod systemd;
mod threads;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::config::{Config, DatabaseHost, Fit, Listen, Mode, Redis};
use crate::core::counters::ReactorCounters;
use crate::core::gate::Gate;
use crate::core::handover::{Delivery, Viewer};
use crate::core::mailbox::Mailbox;
use crate::core::relay::Pressure;
use crate::db::{self, Accounts, Pool, Stage, StageHandle, StageStats};
use crate::demo::{self, Demo};
use crate::door::{self, Directory, Door, Listener, MemoryDirectory};
use crate::limits::{ADMIN_CONNECTIONS_MAX, LINGER, Limits, Waits};
use crate::logging;
use crate::reactor::{Links, Reactor, Socket};
use crate::redis::headroom::Headroom;
use crate::redis::ingest::{self, Ingest};
use crate::redis::presence;
use crate::redis::sentinel;
use crate::redis::stats::{IngestStats, LastError};
use crate::status::{self, Process, Status};
use crate::sys;
#[cfg(feature = "otel")]
use crate::telemetry::Telemetry;
use systemd::Passed;
use threads::{Thread, Threads};

/// Why the server could not start or had to end: one line for the person who started it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// File descriptors that are not for clients: listeners, PostgreSQL, Redis, the log, the polls.
const DESCRIPTORS_KEPT: u64 = 100;

/// How often it is checked whether a thread or task has ended by a panic.
const PANIC_LOOK: Duration = Duration::from_millis(500);

/// Runs the server until SIGTERM or SIGINT, then drains. A second signal ends it at once.
pub fn run(config: Config) -> Result<(), Failure> {
    sys::settle_allocator();
    let passed = Passed::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure(format!("cannot start the runtime: {error}")))?;
    let ended = runtime.block_on(serve(config, passed));
    // A name look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    ended
}

async fn serve(mut config: Config, passed: Passed) -> Result<(), Failure> {
    let clock = Clock::start();
    let mut signals = Signals::new()?;
    let descriptors = raise_descriptor_limit();
    let process = Process::starting();
    let demo = match config.mode {
        Mode::Demo => {
            Some(Demo::start().map_err(|error| Failure(format!("cannot start the demo: {error}")))?)
        }
        Mode::Serve | Mode::NoDatabase => None,
    };
    if let Some(demo) = &demo {
        config.redis = Redis::at(demo.broker_address());
    }
    let redis = redis_options(&config)?;
    match config.fit_memory(memory_limit::own().as_ref()) {
        Fit::Fits => {}
        Fit::Reduced(text) => tracing::info!("{text}"),
        Fit::TooSmall(text) => tracing::warn!("{text}"),
    }
    let mut limits = config.limits.clone();
    limits.sockets_max = usize::try_from(clients_allowed(descriptors)).unwrap_or(usize::MAX);
    if limits.connections_max == 0 {
        limits.connections_max = limits.sockets_max;
    }

    #[cfg_attr(not(feature = "otel"), allow(unused_mut))]
    let mut ingest = Ingest::<Socket>::new().map_err(|error| no_poll(&error))?;
    #[cfg(feature = "otel")]
    let telemetry = telemetry(&config)?;
    #[cfg(feature = "otel")]
    if let Some(trails) = telemetry.as_ref().and_then(|telemetry| telemetry.trails(clock)) {
        ingest.follow(trails);
    }
    let reactors = (0..limits.reactors)
        .map(|number| Reactor::new(number as u16))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| no_poll(&error))?;
    let gate = {
        let (ingest, reactors) = (ingest.waker(), reactors.iter().map(Reactor::waker).collect::<Vec<_>>());
        let (high, low) = (limits.backpressure_high_bytes, limits.backpressure_high_bytes / 2);
        Gate::new(high, low, move || {
            ingest();
            reactors.iter().for_each(|wake| wake());
        })
    };
    let mailboxes: Vec<Arc<Mailbox<Delivery<Socket>>>> = reactors.iter().map(Reactor::inbox).collect();
    let clients: Arc<[AtomicUsize]> = reactors.iter().map(|_| AtomicUsize::new(0)).collect();

    let (presence_requests, presence) = presence::new(redis.clone(), &limits, clock);
    let headroom = presence.headroom();
    let database = database_options(&config)?;
    let pool = |options: &db::Options| Pool::new(options).map_err(|error| Failure(error.to_string()));
    let audience = match &database {
        Some(options) => {
            let options = Stage::options(options, &limits);
            let stage = Stage::default();
            let inbox = stage.inbox();
            let pool = pool(&options)?;
            let patience = patience(Arc::clone(&headroom), ingest.stats(), clock);
            let running = stage.start(db::stage::Setup {
                pool,
                connections: options.pool_size,
                limits: limits.clone(),
                gate: Arc::clone(&gate),
                redis_is_pressed: Box::new(move || patience().1),
                clock,
                reactors: mailboxes.clone(),
            });
            Some((running.map_err(|error| no_thread(&error))?, inbox))
        }
        None => None,
    };
    let pool = match &database {
        // The stage's share comes out of DB_POOL.
        Some(options) => Some(pool(&db::Options {
            pool_size: options.pool_size.saturating_sub(Stage::connections(options.pool_size)).max(1),
            ..options.clone()
        })?),
        None => None,
    };
    let (audience, stage_inbox) = match (audience, &demo) {
        (Some((running, inbox)), _) => (Some(running), Some(inbox)),
        (None, Some(_)) => {
            (None, Some(demo::stage::start(mailboxes.clone()).map_err(|error| no_thread(&error))?))
        }
        (None, None) => (None, None),
    };
    let database_obstacle = Arc::<LastError>::default();
    if pool.is_some() {
        database_obstacle.set("PostgreSQL has not been asked yet");
    }
    if let Some(pool) = &pool {
        tokio::spawn(database::watch(pool.clone(), limits.clone(), Arc::clone(&database_obstacle)));
    }
    let directory: Option<Arc<dyn Directory>> = match (&pool, &demo) {
        (Some(pool), _) => Some(Arc::new(FromDatabase(Accounts::new(pool.clone())))),
        (None, Some(_)) => Some(Arc::new(demo_directory())),
        (None, None) => None,
    };
    let counters: Vec<_> = reactors.iter().map(Reactor::counters).collect();
    let holders = {
        let (counters, stage) =
            (counters.clone(), audience.as_ref().map(|audience| Arc::clone(&audience.stats)));
        move || {
            let sum = |gauge: fn(&ReactorCounters) -> &AtomicU64| {
                counters.iter().map(|counters| gauge(counters).load(Ordering::Relaxed)).sum()
            };
            pauses::Holders {
                log_bytes: sum(|counters| &counters.log_bytes),
                half_written_bytes: sum(|counters| &counters.half_written_bytes),
                audience_bytes: stage.as_ref().map_or(0, |stats| stats.waiting_bytes.load(Ordering::Relaxed)),
            }
        }
    };
    let draining = Arc::new(AtomicBool::new(false));
    let mut threads: Vec<Thread> = reactors
        .iter()
        .enumerate()
        .map(|(number, reactor)| Thread::reactor(number, reactor.counters(), reactor.inbox()))
        .collect();
    let of_ingest = ingest.stats();
    threads.push(Thread {
        name: "ingest".to_owned(),
        turns: Box::new(move || of_ingest.turns.load(Ordering::Relaxed)),
        wake: Box::new(ingest.waker()),
    });
    if let Some(audience) = &audience {
        let stats = Arc::clone(&audience.stats);
        threads.push(Thread {
            name: "audience".to_owned(),
            turns: Box::new(move || stats.turns.load(Ordering::Relaxed)),
            wake: Box::new(audience.waker()),
        });
    }
    let threads = Arc::new(Threads::new(threads));
    let the_door = Arc::new(OnceLock::new());
    let status = Status::new(
        Arc::new(sources::Sources {
            clock,
            counters,
            mailboxes: mailboxes.clone(),
            ingest: ingest.stats(),
            gate: Arc::clone(&gate),
            headroom: Arc::clone(&headroom),
            presence: presence.stats(),
            database_obstacle,
            door: Arc::clone(&the_door),
            pool,
            audience: audience.as_ref().map(|audience| (Arc::clone(&audience.stats), audience.pool.clone())),
            draining: Arc::clone(&draining),
            threads: Arc::clone(&threads),
        }),
        status::Options {
            status_public: config.monitoring.status_public,
            metrics_on_main: config.monitoring.metrics_main_port,
            metrics_prefix: config.monitoring.metrics_prefix.clone(),
        },
        process,
    );

    // It waits for nothing that clients wait for, and no crowd of clients takes its places.
    let admin = match (passed.admin, &config.monitoring.admin) {
        (Some(socket), _) => Some(
            Listener::passed(socket, systemd::ADMIN_NAME, door::Origin::Admin)
                .map_err(|error| Failure(error.to_string()))?,
        ),
        (None, Some(at)) => Some(listen(&door::Address::Admin(at.host.clone(), at.port))?),
        (None, None) => None,
    };
    let admin = admin.map(|listener| {
        (
            Door::<Socket>::new(door::Setup {
                limits: Limits { door_connections_max: ADMIN_CONNECTIONS_MAX, ..limits.clone() },
                directory: None,
                trusted: Arc::new(|_| false),
                commands: ingest.commands(),
                clients: Arc::new([]),
                pages: door::Pages {
                    source: Some(pages::source(Arc::clone(&status), status::Listener::Admin)),
                    demo: None,
                },
                streams: false,
            }),
            listener,
        )
    });
    let door = Door::new(door::Setup {
        limits: limits.clone(),
        directory,
        trusted: {
            let proxies = config.trusted_proxies.clone();
            Arc::new(move |address| proxies.trusts(address))
        },
        commands: ingest.commands(),
        clients: Arc::clone(&clients),
        pages: door::Pages {
            source: Some(pages::source(status, status::Listener::Main)),
            demo: demo.as_ref().map(|demo| door::DemoPage {
                html: demo::page::html(demo.broker_address()).into(),
                security_policy: demo::page::CONTENT_SECURITY_POLICY,
            }),
        },
        streams: true,
    });
    #[cfg(feature = "otel")]
    if let Some(telemetry) = &telemetry {
        door.follow(telemetry.arrivals());
    }
    // Set once, here.
    let _ = the_door.set(Arc::clone(&door));
    let listener = match passed.main {
        Some((socket, name)) => {
            tracing::info!(
                "systemd passes the listening socket {name:?}: BIND, PORT and SOCKET are not used"
            );
            Listener::passed(socket, &name, door::Origin::Main).map_err(|error| Failure(error.to_string()))?
        }
        None => listen(&listen_address(&config.listen))?,
    };

    let (requests, requests_end) = mpsc::unbounded_channel();
    let mut reactor_threads = Vec::new();
    let counters = reactors.iter().map(Reactor::counters).collect();
    for reactor in reactors {
        let requests = requests.clone();
        let full_door = Arc::clone(&door);
        let links = Links {
            commands: ingest.commands(),
            // The receiver ends with the process.
            requests: Box::new(move |request| drop(requests.send(request))),
            gate: Arc::clone(&gate),
            pressure: pressure(
                Arc::clone(&gate),
                audience.as_ref().map(|audience| Arc::clone(&audience.stats)),
                patience(Arc::clone(&headroom), ingest.stats(), clock),
            ),
            load: Arc::clone(&clients),
            client_left: Box::new(move || full_door.client_left()),
            clock,
        };
        reactor_threads.push(reactor.start(limits.clone(), links).map_err(|error| no_thread(&error))?);
    }
    tokio::spawn(memory::watch(Arc::clone(&door), Arc::clone(&gate), counters, limits.clone()));
    tokio::spawn(full::watch(Arc::clone(&door), limits.clone(), clock));
    tokio::spawn(pauses::watch(ingest.stats(), Arc::clone(&gate), holders, limits.clone(), clock));
    let presence = tokio::spawn(presence.run(ingest.commands()));
    if let Some(sentinels) = redis.sentinels() {
        sentinel::watch(sentinels, limits.redis_ping, ingest.waker());
    }
    let subscribing =
        tokio::spawn(door::subscribe::serve(Arc::clone(&door), requests_end, mailboxes.clone().into()));
    let ingest = ingest
        .start(ingest::Setup {
            options: redis,
            limits: limits.clone(),
            gate,
            reactors: mailboxes.clone(),
            stage: stage_inbox,
            presence: presence_requests,
            clock,
        })
        .map_err(|error| no_thread(&error))?;
    if config.mode == Mode::NoDatabase {
        tracing::warn!(
            "running without a database: NO ACCESS CONTROL, public and hashtag streams for anyone"
        );
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        threads = limits.reactors,
        clients_max = limits.connections_max,
        descriptors,
        "Tidegate starts"
    );
    full::warn_if_small(&limits);

    if let Some(demo) = &demo {
        logging::print(&format!("{}\n", demo::banner(listener.address(), demo.broker_address())));
    }
    let (stop, stopped) = watch::channel(());
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move {
            // An error is the sender's end, which means the same.
            let _ = stopped.changed().await;
        }
    };
    let admin = admin.map(|(door, listener)| tokio::spawn(door::serve(door, listener, until_stopped())));
    let serving = tokio::spawn(door::serve(Arc::clone(&door), listener, until_stopped()));
    systemd::tell(NotifyState::Ready);
    tokio::spawn(systemd::watchdog(threads));
    // None of them ends by itself.
    let part_ended = || {
        ingest.has_ended()
            || reactor_threads.iter().any(JoinHandle::is_finished)
            || audience.as_ref().is_some_and(StageHandle::has_ended)
            || [&serving, &presence, &subscribing].into_iter().any(|task| task.is_finished())
    };
    tokio::select! {
        () = signals.next() => {}
        // A part that panicked cannot be missed and is not to be hidden: whoever watches the process starts it
        // again, and clients come back.
        () = until(limits.every(PANIC_LOOK), part_ended) => {
            return Err(Failure("a part of the server has ended by a panic, which is said above".to_owned()));
        }
    }
    systemd::tell(NotifyState::Stopping);
    // The listening sockets close first, so that a successor can bind at once.
    draining.store(true, Ordering::Relaxed);
    drop(stop);
    for door in [Some(serving), admin].into_iter().flatten() {
        if let Err(error) = door.await {
            tracing::error!(%error, "the door ended badly");
        }
    }
    tokio::select! {
        () = drain(&mailboxes, &clients, limits.drain) => {}
        () = signals.next() => tracing::info!("a second signal: ending at once"),
    }
    ingest.stop();
    #[cfg(feature = "otel")]
    if let Some(telemetry) = telemetry {
        flush(telemetry, &mut signals).await;
    }
    Ok(())
}

/// Traces, where they are asked for.
#[cfg(feature = "otel")]
fn telemetry(config: &Config) -> Result<Option<Telemetry>, Failure> {
    let traces = config.traces.as_ref();
    traces.map(|traces| Telemetry::start(traces, &config.tls).map_err(Failure)).transpose()
}

/// Sends the last spans, in the time that the telemetry gives itself.
#[cfg(feature = "otel")]
async fn flush(telemetry: Telemetry, signals: &mut Signals) {
    let (done, flushed) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("traces-end".into()).spawn(move || {
        telemetry.stop();
        drop(done);
    });
    if thread.is_ok() {
        tokio::select! {
            _ = flushed => {}
            () = signals.next() => {}
        }
    }
}

/// Resolves within `interval` of `condition` becoming true.
async fn until(interval: Duration, condition: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        if condition() {
            return;
        }
    }
}

/// Sends every client away, spread over `spread`, and waits until they are gone.
async fn drain(mailboxes: &[Arc<Mailbox<Delivery<Socket>>>], clients: &[AtomicUsize], spread: Duration) {
    let count = || clients.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>();
    tracing::info!(clients = count(), "draining over {} s", spread.as_secs_f32());
    for mailbox in mailboxes {
        mailbox.push(Delivery::Drain(spread.as_millis() as u64));
    }
    let deadline = Instant::now() + spread + LINGER;
    while count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure(format!("cannot listen for signals: {error}")));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn no_poll(error: &std::io::Error) -> Failure {
    Failure(format!("cannot create an epoll instance: {error}; raise RLIMIT_NOFILE"))
}

fn no_thread(error: &std::io::Error) -> Failure {
    Failure(format!("cannot start a thread: {error}"))
}

/// So many clients fit into so many descriptors: one at least, since 0 would stand for no bound.
fn clients_allowed(descriptors: u64) -> u64 {
    descriptors.saturating_sub(DESCRIPTORS_KEPT).max(1)
}

/// Raises RLIMIT_NOFILE to the hard limit; returns what it is then.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "RLIMIT_NOFILE cannot be raised to its hard limit");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn redis_options(config: &Config) -> Result<crate::redis::Options, Failure> {
    let options = crate::redis::Options::new(&config.redis, &config.tls);
    options.map_err(|error| Failure(format!("Redis: {error}")))
}

fn database_options(config: &Config) -> Result<Option<db::Options>, Failure> {
    let Some(database) = &config.database else { return Ok(None) };
    let encryption = match database.host {
        DatabaseHost::Tcp(_) => db::Encryption::new(&database.tls, &config.tls)
            .map_err(|error| Failure(format!("PostgreSQL: {error}")))?,
        DatabaseHost::SocketDir(_) => db::Encryption::default(),
    };
    let waits = config.limits.door_waits();
    Ok(Some(db::Options {
        host: match &database.host {
            DatabaseHost::Tcp(host) => db::Host::Tcp(host.clone()),
            DatabaseHost::SocketDir(dir) => db::Host::Unix(dir.clone()),
        },
        port: database.port,
        user: database.user.clone(),
        password: database.password.as_ref().map(|secret| secret.expose().to_owned()),
        dbname: database.name.clone(),
        pool_size: database.pool_size,
        waits: Waits {
            connect: database.connect_timeout.map_or(waits.connect, |given| given.min(waits.connect)),
            ..waits
        },
        session_options: database.options.clone(),
        channel_binding: database.channel_binding,
        encryption,
    }))
}

fn demo_directory() -> MemoryDirectory {
    let mut directory = MemoryDirectory::default();
    for account in demo::directory() {
        let viewer = Viewer { account: account.account_id, token: account.token_id, scopes: account.scopes };
        directory.tokens.insert(account.token.to_owned(), door::Token { viewer, expires_at: None });
        directory.lists.extend(account.lists.iter().map(|list| (account.account_id, *list)));
    }
    directory
}

/// The door's view of PostgreSQL.
struct FromDatabase(Accounts);

impl Directory for FromDatabase {
    fn look_up<'a>(&'a self, token: &'a str) -> door::Answer<'a, Option<door::Token>> {
        Box::pin(async move {
            let found = self.0.look_up(token).await?;
            Ok(found.map(|token| door::Token {
                viewer: Viewer { account: token.account, token: token.id, scopes: token.scopes },
                expires_at: token.expires_at,
            }))
        })
    }

    fn owns_list(&self, account: u64, list: u64) -> door::Answer<'_, bool> {
        Box::pin(async move { Ok(self.0.owns_list(account, list).await?) })
    }
}

fn listen(address: &door::Address) -> Result<Listener, Failure> {
    Listener::bind(address).map_err(|error| Failure(error.to_string()))
}

fn listen_address(listen: &Listen) -> door::Address {
    match listen {
        Listen::Tcp(at) => door::Address::Tcp(at.host.clone(), at.port),
        Listen::Unix(path) => door::Address::Unix(path.clone()),
    }
}

/// How long reading has been paused, and whether Redis holds half of what it is willing to hold for us.
fn patience(
    headroom: Arc<Headroom>,
    stats: Arc<IngestStats>,
    clock: Clock,
) -> impl Fn() -> (Duration, bool) + Send {
    move || {
        let now = clock.now();
        let Some(paused) = stats.pause(now) else { return (Duration::ZERO, false) };
        let rate = stats.rate_before_pause.load(Ordering::Relaxed);
        (paused, headroom.read().is_half_used(now, paused, rate))
    }
}

/// What slow clients are judged by.
fn pressure(
    gate: Arc<Gate>,
    audience: Option<Arc<StageStats>>,
    patience: impl Fn() -> (Duration, bool) + Send + 'static,
) -> Box<dyn Fn() -> Pressure + Send> {
    Box::new(move || {
        let waiting = audience.as_ref().map_or(0, |stats| stats.waiting_bytes.load(Ordering::Relaxed));
        let audience_bytes = usize::try_from(waiting).unwrap_or(usize::MAX);
        let mut pressure = Pressure { audience_bytes, ..Pressure::default() };
        if gate.is_closed() {
            (pressure.paused_for, pressure.headroom_half_used) = patience();
        }
        pressure
    })
}
