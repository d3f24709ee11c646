//! An ingest under test, with the test itself in the reactor's place.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use tidegate::clock::Clock;
use tidegate::core::event::{Event, Transport};
use tidegate::core::gate::Gate;
use tidegate::core::handover::{Command, Delivery, HoldError, NewClient, StageItem, Ticket, Viewer};
use tidegate::core::mailbox::Mailbox;
use tidegate::core::stream::{Channel, Scopes};
use tidegate::limits::Limits;
use tidegate::redis::headroom::Headroom;
use tidegate::redis::ingest::{Handle, Ingest, Setup};
use tidegate::redis::stats::{IngestStats, PresenceStats};
use tidegate::redis::{Address, Options, presence};

use super::machine::{PATIENCE, wait_for};
use super::redis::Redis;

/// An ingest with one reactor, which is the test itself. Its clients' sockets are numbers.
pub struct World {
    ingest: Option<Handle>,
    presence: Option<JoinHandle<()>>,
    pub commands: Arc<Mailbox<Command<u32>>>,
    pub inbox: Inbox<Delivery<u32>>,
    pub stage: Option<Inbox<StageItem>>,
    pub gate: Arc<Gate>,
    pub stats: Arc<IngestStats>,
    pub presence_stats: Arc<PresenceStats>,
    pub headroom: Arc<Headroom>,
    pub clock: Clock,
    next_ticket: Mutex<Ticket>,
}

/// A mailbox, read one by one.
pub struct Inbox<T> {
    pub mailbox: Arc<Mailbox<T>>,
    woken: Receiver<()>,
    pub taken: std::collections::VecDeque<T>,
}

impl<T> Inbox<T> {
    pub fn new() -> Inbox<T> {
        let (wake, woken) = channel();
        let mailbox = Arc::new(Mailbox::new(move || wake.send(()).unwrap_or_default()));
        Inbox { mailbox, woken, taken: Default::default() }
    }

    #[track_caller]
    pub fn next(&mut self) -> T {
        while self.taken.is_empty() {
            self.woken.recv_timeout(PATIENCE).expect("something is delivered");
            let mut batch = Vec::new();
            self.mailbox.drain(&mut batch);
            self.taken.extend(batch);
        }
        self.taken.pop_front().unwrap()
    }
}

pub struct Plan {
    pub options: Options,
    pub limits: Limits,
    pub budget: usize,
    pub stage: bool,
}

pub fn plan(redis: &Redis) -> Plan {
    let address = Address::Tcp { host: "127.0.0.1".into(), port: redis.port };
    let options = Options { address, ..Options::default() };
    let limits = Limits { message_bytes_max: 2 << 20, ..Limits::default() };
    Plan { options, limits, budget: 64 << 20, stage: false }
}

impl World {
    pub fn start(plan: Plan) -> World {
        let clock = Clock::start();
        let ingest: Ingest<u32> = Ingest::new().unwrap();
        let gate = Gate::new(plan.budget, plan.budget / 2, ingest.waker());
        let inbox = Inbox::new();
        let stage = plan.stage.then(Inbox::new);
        let (requests, presence) = presence::new(plan.options.clone(), &plan.limits, clock);
        let (commands, stats) = (ingest.commands(), ingest.stats());
        let (presence_stats, headroom) = (presence.stats(), presence.headroom());
        let to_ingest = Arc::clone(&commands);
        let presence = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(presence.run(to_ingest));
        });
        let setup = Setup {
            options: plan.options,
            limits: plan.limits,
            gate: Arc::clone(&gate),
            reactors: vec![Arc::clone(&inbox.mailbox)],
            stage: stage.as_ref().map(|stage| Arc::clone(&stage.mailbox)),
            presence: requests,
            clock,
        };
        let ingest = Some(ingest.start(setup).unwrap());
        let presence = Some(presence);
        let next_ticket = Mutex::new(0);
        World {
            ingest,
            presence,
            commands,
            inbox,
            stage,
            gate,
            stats,
            presence_stats,
            headroom,
            clock,
            next_ticket,
        }
    }

    /// Asks for a ticket; its answer comes through the receiver.
    pub fn ask(&self, channels: &[Channel]) -> (Ticket, Receiver<Result<(), HoldError>>) {
        let mut ticket = self.next_ticket.lock().unwrap();
        *ticket += 1;
        let (answer, receiver) = channel();
        let reply = Box::new(move |result| answer.send(result).unwrap_or_default());
        self.commands.push(Command::Hold {
            ticket: *ticket,
            channels: channels.iter().cloned().collect(),
            reply,
        });
        (*ticket, receiver)
    }

    #[track_caller]
    pub fn try_hold(&self, channels: &[Channel]) -> Result<Ticket, HoldError> {
        let (ticket, answer) = self.ask(channels);
        answer.recv_timeout(PATIENCE).expect("a hold is answered").map(|()| ticket)
    }

    /// Holds as soon as Redis is there.
    #[track_caller]
    pub fn hold(&self, channels: &[Channel]) -> Ticket {
        wait_for("Redis takes subscriptions", PATIENCE, || match self.try_hold(channels) {
            Ok(ticket) => Some(ticket),
            Err(HoldError::RedisAway) => None,
            Err(error) => panic!("{error}"),
        })
    }

    pub fn attach(&self, ticket: Ticket, socket: u32) -> Receiver<HoldError> {
        let (refusal, receiver) = channel();
        self.commands.push(Command::Attach {
            ticket,
            reactor: 0,
            client: Box::new(client(socket)),
            refused: Box::new(move |error, _| refusal.send(error).unwrap_or_default()),
        });
        receiver
    }

    /// A client on these channels, attached. The sequence number it lives after.
    #[track_caller]
    pub fn client(&mut self, channels: &[Channel]) -> u64 {
        let ticket = self.hold(channels);
        self.attach(ticket, 7);
        match self.inbox.next() {
            Delivery::Client(client, seq) => {
                assert_eq!(client.socket, 7);
                seq
            }
            other => panic!("expected the client, got {other:?}"),
        }
    }

    #[track_caller]
    pub fn event(&mut self) -> Arc<Event> {
        match self.inbox.next() {
            Delivery::Event(event) => event,
            other => panic!("expected an event, got {other:?}"),
        }
    }

    pub fn release(&self, channels: &[Channel]) {
        self.commands.push(Command::Release(channels.iter().map(|channel| (channel.clone(), 1)).collect()));
    }

    /// Expects the end of one connection and the next one's beginning.
    #[track_caller]
    pub fn expect_gap(&mut self, epoch: u32) {
        match self.inbox.next() {
            Delivery::Gap(next) => assert_eq!(next, epoch),
            other => panic!("expected the gap, got {other:?}"),
        }
    }

    #[track_caller]
    pub fn expect_regained(&mut self) {
        match self.inbox.next() {
            Delivery::Regained => {}
            other => panic!("expected everything to be back, got {other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(ingest) = self.ingest.take() {
            ingest.stop();
        }
        // Without the ingest the presence task has nothing to do.
        if let Some(presence) = self.presence.take()
            && presence.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the presence task panicked");
        }
    }
}

pub fn client(socket: u32) -> NewClient<u32> {
    NewClient {
        socket,
        transport: Transport::WebSocket,
        viewer: Viewer { account: 1, token: 1, scopes: Scopes::READ },
        expires_at: None,
        head: Bytes::new(),
        read_ahead: Bytes::new(),
        subscription: None,
        address: None,
        request: None,
    }
}

pub fn message(text: &str) -> String {
    format!(r#"{{"event":"update","payload":"{text}"}}"#)
}
