//! What WebSocket clients ask for by message, where the reactor needs PostgreSQL or Redis for the answer.
//!
//! Each request gets exactly one answer in its reactor's mailbox from here: `Delivery::Answer` or
//! `Delivery::Refused`. The subscription itself the reactor gets from the ingest, before it is confirmed: a message
//! that Redis sends from its confirmation on is owed. A client has one request under way, so the tasks here are
//! bounded by the clients, and they end within `DOOR_TIMEOUT`.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::errors::{Refusal, unsubscribe_frame};
use super::{Door, Socket};
use crate::core::handover::{ClientId, Delivery, NewSubscription, SessionRequest, Viewer, Want};
use crate::core::mailbox::Mailbox;
use crate::core::stream::{Param, Stream, StreamKind};

/// The reactors' mailboxes, by their numbers.
pub type Mailboxes<S> = Arc<[Arc<Mailbox<Delivery<S>>>]>;

/// Answers requests until their senders are gone. Dropped, it gives up what is under way and releases it.
/// The queue needs no bound of its own: each client has at most one request under way.
pub async fn serve<S: Socket>(
    door: Arc<Door<S>>,
    mut requests: mpsc::UnboundedReceiver<SessionRequest>,
    mailboxes: Mailboxes<S>,
) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            request = requests.recv() => match request {
                Some(request) => {
                    tasks.spawn(answer(Arc::clone(&door), request, Arc::clone(&mailboxes)));
                }
                None => break,
            },
        }
    }
}

async fn answer<S: Socket>(door: Arc<Door<S>>, request: SessionRequest, mailboxes: Mailboxes<S>) {
    let SessionRequest { client, viewer, want } = request;
    match want {
        Want::Subscribe(stream) => {
            tracing::debug!(%client, kind = stream.kind.name(), "subscribing");
            match subscribe(&door, client, viewer, stream.clone()).await {
                Ok(()) => push(&mailboxes, Delivery::Answer(client, None), client),
                Err(refusal) => {
                    door.counters.count(refusal.reason);
                    let (status, reason) = (refusal.status, refusal.reason.label());
                    tracing::debug!(%client, status, reason, "not subscribed");
                    push(&mailboxes, Delivery::Refused(client, stream, refusal.frame()), client);
                }
            }
        }
        Want::UnsubscribeList(list) => {
            let stream = Stream {
                kind: StreamKind::List,
                allow_local_only: false,
                param: Param::List(list),
                spelling: None,
            };
            let owner = door.in_time(door.check_owner(&stream, viewer)).await;
            push(&mailboxes, Delivery::Answer(client, owner.is_err().then(unsubscribe_frame)), client);
        }
    }
}

/// Subscribes a viewer who may have the stream.
async fn subscribe<S: Socket>(
    door: &Door<S>,
    client: ClientId,
    viewer: Viewer,
    stream: Stream,
) -> Result<(), Refusal> {
    door.in_time(async {
        door.check_owner(&stream, viewer).await?;
        let channels = stream.channels(viewer.account, viewer.scopes.notifications());
        let subscription = NewSubscription { stream, channels, account: viewer.account };
        Ok(door.holds.subscribe(client, subscription).await?)
    })
    .await
}

fn push<S>(mailboxes: &Mailboxes<S>, answer: Delivery<S>, client: ClientId) {
    if let Some(mailbox) = mailboxes.get(usize::from(client.reactor)) {
        mailbox.push(answer);
    }
}
