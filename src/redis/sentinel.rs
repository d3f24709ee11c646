//! Sentinel: who the master is, and when that changes.
//!
//! Whoever connects asks the sentinels one after the other, beginning with the one that answered last; each
//! has its share of the time, so that dead ones cost little. What they name is believed only if it says itself
//! that it is the master (ROLE), as Redis's guide for clients has it: right after a failover some still name the
//! old one, and one that is cut off from the others does for as long as that lasts. Where what was named is no
//! master or not there, the next attempt begins with the next sentinel.
//!
//! A change is noticed in two ways: the old master's connections end (it died, or was made a replica, which
//! drops its clients), or a sentinel announces it (`+switch-master`), which also finds a master that was cut off
//! from them and not from us. [`watch`] listens to all of them.
//!
//! An announcement may be missed while a sentinel is not listened to. So whenever it is listened to again it is
//! asked who the master is; a sentinel that was cut off from the others names an old one, of a lower configuration
//! epoch, and is not believed.
//!
//! Bounds: a connection to each sentinel; what they send is read 4 KiB at a time.
//! Tested with three sentinels, a master and a replica in `tests/redis_sentinel.rs`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use redis_protocol::resp2::types::OwnedFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::config::{self, HostPort, Secret};
use crate::limits::CONNECT_TIMEOUT;
use crate::redis::backoff::Backoff;
use crate::redis::command::{decode_answer, encode};
use crate::redis::connect::{ConnectError, Greeting, Role, connect_async, dialogue, tell};
use crate::redis::{Address, Options};
use crate::tls::Client;

/// Longest message of a sentinel's; more is not its protocol.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The sentinels, and what is known from them.
pub struct Sentinels {
    master: String,
    sentinels: Vec<HostPort>,
    user: Option<String>,
    password: Option<Secret>,
    tls: Option<Client>,
    /// Which of them is asked first: the one that answered last. Counts on beyond their number.
    first: AtomicUsize,
    /// The epoch of the master that was named last; `u64::MAX` where the sentinel did not tell.
    epoch: AtomicU64,
    /// The master that was connected to last.
    current: ArcSwapOption<HostPort>,
    /// The master that a sentinel has announced since somebody looked.
    announced: ArcSwapOption<HostPort>,
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sentinels({self})")
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(HostPort { host, port }) = self.current() {
            return write!(f, "{} (master {})", Address::Tcp { host, port }, self.master);
        }
        write!(f, "master {} of the sentinels", self.master)?;
        for (n, at) in self.sentinels.iter().enumerate() {
            write!(f, "{} {}", if n > 0 { "," } else { "" }, address(at))?;
        }
        Ok(())
    }
}

impl PartialEq for Sentinels {
    fn eq(&self, other: &Sentinels) -> bool {
        self.master == other.master && self.sentinels == other.sentinels
    }
}

impl Eq for Sentinels {}

fn address(at: &HostPort) -> Address {
    Address::Tcp { host: at.host.clone(), port: at.port }
}

impl Sentinels {
    /// As configured; `tls` is for the sentinels themselves.
    pub fn new(config: &config::Sentinel, tls: Option<Client>) -> Sentinels {
        Sentinels {
            master: config.master.clone(),
            sentinels: config.sentinels.clone(),
            user: config.user.clone(),
            password: config.password.clone(),
            tls,
            first: AtomicUsize::new(0),
            epoch: AtomicU64::new(u64::MAX),
            current: ArcSwapOption::empty(),
            announced: ArcSwapOption::empty(),
        }
    }

    /// The master that was connected to last.
    pub fn current(&self) -> Option<HostPort> {
        self.current.load().as_deref().cloned()
    }

    /// The master's name.
    pub fn master(&self) -> &str {
        &self.master
    }

    pub(super) fn set_current(&self, at: HostPort) {
        self.current.store(Some(Arc::new(at)));
    }

    /// What was named cannot be used as the master: another sentinel may know better than the one that named it.
    pub(super) fn doubt(&self) {
        self.first.fetch_add(1, Relaxed);
    }

    /// Whether another master than the one that was connected to last was announced since this was asked last. Not to
    /// be asked while a connection is being made: it may be to the old one, or to the new one already.
    pub(super) fn has_moved(&self) -> bool {
        let announced = self.announced.swap(None);
        announced.is_some_and(|master| self.current.load().as_ref() != Some(&master))
    }

    /// Whether that is a newer master than the one that was connected to last.
    fn is_newer(&self, named: &Named) -> bool {
        let (master, epoch) = named;
        self.current().is_some_and(|current| current != *master)
            && epoch.is_some_and(|epoch| epoch > self.epoch.load(Relaxed))
    }

    fn options(&self, at: &HostPort) -> Options {
        Options {
            address: address(at),
            tls: self.tls.clone(),
            username: self.user.clone(),
            password: self.password.clone(),
            ..Options::default()
        }
    }

    /// Asks who the master is.
    pub(super) fn find(&self, deadline: Instant) -> Result<HostPort, ConnectError> {
        let count = self.sentinels.len();
        let first = self.first.load(Relaxed);
        let mut failures = Vec::new();
        for tried in 0..count {
            let number = first.wrapping_add(tried) % count;
            let Some(at) = self.sentinels.get(number) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            // One that swallows everything must not eat the time of the others.
            let share = left / u32::try_from(count - tried + 1).unwrap_or(2);
            match self.ask(at, Instant::now() + share) {
                Ok(Some((master, epoch))) => {
                    self.first.store(number, Relaxed);
                    self.epoch.store(epoch.unwrap_or(u64::MAX), Relaxed);
                    return Ok(master);
                }
                Ok(None) => failures.push(format!("{} knows no master of that name", address(at))),
                Err(error) => failures.push(self.told(&error)),
            }
        }
        Err(ConnectError::NoMaster { name: self.master.clone(), failures: failures.join("; ") })
    }

    fn ask(&self, at: &HostPort, deadline: Instant) -> Result<Option<Named>, ConnectError> {
        let options = self.options(at);
        let (mut out, mut greeting) = Greeting::new(&options, Role::Sentinel);
        greeting.ask_for_master(&mut out, &self.master);
        dialogue(&options, &out, &mut greeting, deadline)?;
        let epoch = greeting.epoch();
        Ok(greeting.into_master().map(|master| (master, epoch)))
    }

    /// An error in words; the variables for the sentinels have names of their own.
    fn told(&self, error: &ConnectError) -> String {
        match error {
            ConnectError::Refused { address, command, text, .. }
                if text.starts_with("WRONGPASS") || text.starts_with("NOAUTH") =>
            {
                format!(
                    "{address} refuses {command}: {text}; check REDIS_SENTINEL_USERNAME and \
                     REDIS_SENTINEL_PASSWORD (where these are not set, REDIS_USER and REDIS_PASSWORD count)"
                )
            }
            ConnectError::Unreachable(address, error) | ConnectError::Resolve(address, error) => {
                format!("{address}: {error}")
            }
            other => other.to_string(),
        }
    }
}

/// A master as a sentinel names it, with its epoch if the sentinel tells.
type Named = (HostPort, Option<u64>);

/// Asks one sentinel who the master is, on a connection of its own; none where it does not say.
async fn ask_again(sentinels: &Sentinels, options: &Options) -> Option<Named> {
    let mut stream = connect_async(options, Role::Sentinel, CONNECT_TIMEOUT).await.ok()?.stream;
    let (mut out, mut input) = (BytesMut::new(), BytesMut::with_capacity(4096));
    let mut greeting = Greeting::more(Role::Sentinel);
    greeting.ask_for_master(&mut out, &sentinels.master);
    stream.write_all(&out).await.ok()?;
    while !greeting.take(options, &mut input).ok()? {
        if stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
    let epoch = greeting.epoch();
    greeting.into_master().map(|master| (master, epoch))
}

/// Listens to every sentinel for as long as the runtime lives; `wake` is called after a change of the master.
/// To be called on a runtime.
pub fn watch(sentinels: &Arc<Sentinels>, patience: Duration, wake: impl Fn() + Send + Sync + 'static) {
    let wake = Arc::new(wake);
    for (number, at) in sentinels.sentinels.clone().into_iter().enumerate() {
        let (sentinels, wake) = (Arc::clone(sentinels), Arc::clone(&wake));
        tokio::spawn(async move {
            let mut backoff = Backoff::default();
            let mut refused = None;
            loop {
                let changed = |master| {
                    // That one knows; others may still name the old one.
                    sentinels.first.store(number, Relaxed);
                    sentinels.announced.store(Some(Arc::new(master)));
                    wake();
                };
                let deaf = listen(&sentinels, &at, patience, changed, &mut backoff).await;
                let at = address(&at);
                match deaf {
                    Deaf::Refused(text) if refused.as_ref() != Some(&text) => {
                        tracing::warn!(
                            "the sentinel at {at} refuses to be listened to: {text}; its user needs the command \
                             subscribe and the channel +switch-master. Without it another master is noticed only when \
                             the old one's connection ends"
                        );
                        refused = Some(text);
                    }
                    other => tracing::debug!("the sentinel at {at} is not heard: {other}"),
                }
                sleep(backoff.next_delay()).await;
            }
        });
    }
}

/// Why a sentinel is not heard any more.
#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection broke ({0})")]
    Broken(#[from] io::Error),
    #[error("it does not answer")]
    Silent,
    #[error("it does not speak as a sentinel does")]
    Strange,
    #[error("it refuses that: {0}")]
    Refused(String),
}

async fn listen(
    sentinels: &Sentinels,
    at: &HostPort,
    patience: Duration,
    changed: impl Fn(HostPort),
    backoff: &mut Backoff,
) -> Deaf {
    let options = sentinels.options(at);
    let connected = match connect_async(&options, Role::Sentinel, CONNECT_TIMEOUT).await {
        Ok(connected) => connected,
        Err(error) => return error.into(),
    };
    let mut stream = connected.stream;
    let mut out = BytesMut::new();
    encode(&mut out, &[b"SUBSCRIBE", b"+switch-master"]);
    let mut input = BytesMut::with_capacity(4096);
    let (mut is_subscribed, mut pinged) = (false, false);
    loop {
        if let Err(error) = stream.write_all(&out).await {
            return error.into();
        }
        out.clear();
        match timeout(patience, stream.read_buf(&mut input)).await {
            Ok(Ok(0)) => return Deaf::Broken(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) => pinged = false,
            Ok(Err(error)) => return error.into(),
            Err(_) if pinged => return Deaf::Silent,
            Err(_) => {
                encode(&mut out, &[b"PING"]);
                pinged = true;
            }
        }
        loop {
            match take_pushed(&mut input, &sentinels.master) {
                Pushed::Nothing => break,
                Pushed::Strange => return Deaf::Strange,
                // An error later on is an answer all the same: to PING.
                Pushed::Error(text) if !is_subscribed => return Deaf::Refused(tell(&options, &text)),
                pushed => {
                    if !std::mem::replace(&mut is_subscribed, true)
                        && let Ok(Some(named)) =
                            timeout(CONNECT_TIMEOUT, ask_again(sentinels, &options)).await
                        && sentinels.is_newer(&named)
                    {
                        changed(named.0);
                    }
                    backoff.reset();
                    if let Pushed::Master(master) = pushed {
                        changed(master);
                    }
                }
            }
        }
    }
}

/// What a sentinel sent next on a connection that listens to it.
#[doc(hidden)]
#[derive(PartialEq, Eq, Debug)]
pub enum Pushed {
    /// Nothing whole yet.
    Nothing,
    /// That is our master now.
    Master(HostPort),
    /// Something else.
    Other,
    /// An error.
    Error(String),
    /// Bytes that are not its protocol, or too many of them.
    Strange,
}

/// Takes the next message off `input`. Public for the fuzz target.
#[doc(hidden)]
pub fn take_pushed(input: &mut BytesMut, master: &str) -> Pushed {
    let (frame, used) = match decode_answer(input) {
        Ok(Some(found)) => found,
        Ok(None) if input.len() <= MESSAGE_BYTES_MAX => return Pushed::Nothing,
        _ => return Pushed::Strange,
    };
    let _ = input.split_to(used);
    match frame {
        OwnedFrame::Error(text) => Pushed::Error(text.to_string()),
        frame => announced(&frame, master).map_or(Pushed::Other, Pushed::Master),
    }
}

/// Who the master of that name is now, if that message says it.
fn announced(frame: &OwnedFrame, master: &str) -> Option<HostPort> {
    let OwnedFrame::Array(parts) = frame else { return None };
    let [OwnedFrame::BulkString(kind), _, OwnedFrame::BulkString(text)] = parts.as_slice() else {
        return None;
    };
    // NAME OLD-ADDRESS OLD-PORT NEW-ADDRESS NEW-PORT
    let text = String::from_utf8_lossy(text);
    let words: Vec<&str> = text.split(' ').collect();
    let [name, _, _, host, port] = words.as_slice() else { return None };
    let is_ours = kind == b"message" && *name == master;
    is_ours.then_some(HostPort { host: (*host).to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels() -> Sentinels {
        Sentinels::new(
            &config::Sentinel {
                master: "mymaster".into(),
                sentinels: vec![HostPort { host: "::1".into(), port: 1 }],
                user: None,
                password: Some(Secret::new("hunter2")),
                tls: false,
                master_tls: false,
            },
            None,
        )
    }

    fn message(text: &str) -> OwnedFrame {
        let words = ["message", "+switch-master", text];
        OwnedFrame::Array(words.iter().map(|word| OwnedFrame::BulkString(word.as_bytes().to_vec())).collect())
    }

    #[test]
    fn only_a_change_of_our_own_master_counts() {
        let sentinels = sentinels();
        assert_eq!(sentinels.to_string(), "master mymaster of the sentinels [::1]:1");
        let master = |host: &str, port| HostPort { host: host.into(), port };
        sentinels.set_current(master("10.0.0.2", 6379));
        assert_eq!(sentinels.to_string(), "10.0.0.2:6379 (master mymaster)");
        let announced = |text| announced(&message(text), sentinels.master());
        assert_eq!(announced("other 10.0.0.1 6379 10.0.0.3 6379"), None);
        assert_eq!(announced("mymaster 10.0.0.1"), None);
        assert_eq!(announced("mymaster 10.0.0.2 6379 10.0.0.2 x"), None);
        let (here, there) = (master("10.0.0.2", 6379), master("10.0.0.2", 6380));
        assert_eq!(announced("mymaster 10.0.0.1 6379 10.0.0.2 6379"), Some(here.clone()));
        assert_eq!(announced("mymaster 10.0.0.2 6379 10.0.0.2 6380"), Some(there.clone()));

        let moved = |to: &HostPort| {
            sentinels.announced.store(Some(Arc::new(to.clone())));
            (sentinels.has_moved(), sentinels.has_moved())
        };
        assert_eq!(moved(&here), (false, false), "we are there already");
        assert_eq!(moved(&there), (true, false), "said once");
        assert!(!format!("{sentinels:?}").contains("hunter2"));
    }

    #[test]
    fn sentinels_that_are_all_dead_are_named() {
        let error = sentinels().find(Instant::now() + Duration::from_secs(5)).unwrap_err().to_string();
        assert!(
            error.contains("mymaster") && error.contains("[::1]:1") && error.contains("REDIS_SENTINELS"),
            "{error}"
        );
    }
}
