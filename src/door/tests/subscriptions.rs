use super::*;
use crate::core::handover::{ClientId, Delivery, NewSubscription, SessionRequest, Want};
use crate::core::session::{Given, StreamRequest};
use crate::core::stream::Stream;

const CLIENT: ClientId = ClientId { reactor: 1, index: 5, generation: 2 };

/// The second reactor, which asks and gets answers.
struct Reactor {
    requests: mpsc::UnboundedSender<SessionRequest>,
    mailbox: Arc<Mailbox<Delivery<Fake>>>,
    woken: Arc<Notify>,
}

impl Reactor {
    fn new(world: &World) -> Reactor {
        let (requests, asked) = mpsc::unbounded_channel();
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        let mailbox = Arc::new(Mailbox::new(move || wake.notify_one()));
        let other = Arc::new(Mailbox::new(|| panic!("the wrong reactor")));
        let mailboxes: subscribe::Mailboxes<Fake> = [other, Arc::clone(&mailbox)].into();
        tokio::spawn(subscribe::serve(Arc::clone(&world.door), asked, mailboxes));
        Reactor { requests, mailbox, woken }
    }

    async fn want(&self, want: Want) {
        self.requests.send(SessionRequest { client: CLIENT, viewer: ALICE, want }).unwrap();
    }

    async fn answer(&self) -> Option<String> {
        let mut drained = Vec::new();
        while drained.is_empty() {
            self.woken.notified().await;
            self.mailbox.drain(&mut drained);
        }
        match drained.as_slice() {
            [Delivery::Answer(CLIENT, json)] => {
                json.as_ref().map(|json| String::from_utf8(json.to_vec()).unwrap())
            }
            [Delivery::Refused(CLIENT, _, json)] => Some(String::from_utf8(json.to_vec()).unwrap()),
            other => panic!("{other:?} instead of one answer"),
        }
    }
}

impl World {
    /// What the ingest is asked for a client's subscription.
    async fn subscribed(&mut self) -> (Ticket, NewSubscription, Reply) {
        match self.command().await {
            Command::Subscribe { ticket, client: CLIENT, subscription, reply } => {
                (ticket, subscription, reply)
            }
            other => panic!("{other:?} instead of a subscription"),
        }
    }
}

fn stream(name: &str, list: Option<u64>) -> Stream {
    let list = list.map_or(Given::Missing, |list| Given::Text(list.to_string()));
    StreamRequest { stream: Some(name.into()), list, ..StreamRequest::default() }.resolve(512, false).unwrap()
}

#[tokio::test]
async fn a_subscription_is_answered_once_it_is_confirmed() {
    let mut world = World::new();
    let reactor = Reactor::new(&world);
    reactor.want(Want::Subscribe(stream("list", Some(77)))).await;
    let (_, subscription, reply) = world.subscribed().await;
    assert_eq!(subscription.channels.to_vec(), [Channel::List(77)]);
    reply(Ok(()));
    assert_eq!(reactor.answer().await, None);
    assert!(world.commands.is_empty(), "nothing is left to be cancelled");
}

#[tokio::test]
async fn a_subscription_that_fails_is_an_error_message() {
    let mut world = World::with(|setup| setup.limits.door_timeout = std::time::Duration::from_secs(3600));
    let reactor = Reactor::new(&world);
    let foreign = r#"{"error":"Not authorized to stream this list","status":401}"#;
    reactor.want(Want::Subscribe(stream("list", Some(78)))).await;
    assert_eq!(reactor.answer().await.as_deref(), Some(foreign));
    world.directory.is_down.store(true, Ordering::Relaxed);
    let unasked = r#"{"error":"The database is not available, try again later","status":503}"#;
    reactor.want(Want::Subscribe(stream("list", Some(77)))).await;
    assert_eq!(reactor.answer().await.as_deref(), Some(unasked));

    let away = r#"{"error":"The connection to Redis is lost, try again later","status":503}"#;
    reactor.want(Want::Subscribe(stream("user", None))).await;
    let (ticket, _, reply) = world.subscribed().await;
    reply(Err(HoldError::RedisAway));
    assert_eq!(reactor.answer().await.as_deref(), Some(away));
    assert_eq!(world.cancelled().await, ticket);
}

#[tokio::test]
async fn a_subscription_must_be_confirmed_in_time() {
    let mut world = World::with(|setup| setup.limits.door_timeout = std::time::Duration::from_millis(1));
    let reactor = Reactor::new(&world);
    reactor.want(Want::Subscribe(stream("user", None))).await;
    let answer = reactor.answer().await.unwrap();
    assert!(answer.ends_with(r#","status":503}"#), "{answer}");
    let (ticket, ..) = world.subscribed().await;
    assert_eq!(world.cancelled().await, ticket);
}

#[tokio::test]
async fn unsubscribing_from_ones_own_list_is_silent() {
    let world = World::new();
    let reactor = Reactor::new(&world);
    reactor.want(Want::UnsubscribeList(77)).await;
    assert_eq!(reactor.answer().await, None);
    reactor.want(Want::UnsubscribeList(78)).await;
    assert_eq!(reactor.answer().await.as_deref(), Some(r#"{"error":"Error unsubscribing from channel"}"#));
}

#[tokio::test]
async fn whoever_stops_serving_releases_what_is_under_way() {
    let mut world = World::new();
    let reactor = Reactor::new(&world);
    reactor.want(Want::Subscribe(stream("user", None))).await;
    let (ticket, ..) = world.subscribed().await;
    drop(reactor);
    assert_eq!(world.cancelled().await, ticket);
}
