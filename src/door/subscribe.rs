//! What WebSocket clients ask for by message, where the reactor needs PostgreSQL or Redis for the answer.
//!
//! Each request gets exactly one answer in its reactor's mailbox: the ingest's `Delivery::Subscription`, or a
//! `Delivery::Answer` from here. A client has one request under way, so the tasks here are bounded by the
//! clients, and they end within `DOOR_TIMEOUT`.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::errors::{Refusal, unsubscribe_frame};
use super::handover::Ticket;
use super::{Door, Socket};
use crate::core::handover::{Attachment, ClientId, Delivery, NewSubscription, SessionRequest, Viewer, Want};
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
            match hold(&door, viewer, stream).await {
                Ok((ticket, subscription)) => {
                    let attachment = Attachment::Subscription(client, subscription);
                    ticket.attach(client.reactor, attachment, move |error, _| {
                        refuse(&door, &mailboxes, client, error.into());
                    });
                }
                Err(refusal) => refuse(&door, &mailboxes, client, refusal),
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
            push(&mailboxes, client, owner.is_err().then(unsubscribe_frame));
        }
    }
}

/// Holds the stream's channels for a viewer who may have it.
async fn hold<S: Socket>(
    door: &Door<S>,
    viewer: Viewer,
    stream: Stream,
) -> Result<(Ticket<S>, NewSubscription), Refusal> {
    door.in_time(async {
        door.check_owner(&stream, viewer).await?;
        let channels = stream.channels(viewer.account, viewer.scopes.notifications());
        let ticket = door.holds.hold(channels.iter().cloned().collect::<SmallVec<_>>()).await?;
        Ok((ticket, NewSubscription { stream, channels, account: viewer.account }))
    })
    .await
}

fn refuse<S>(door: &Door<S>, mailboxes: &Mailboxes<S>, client: ClientId, refusal: Refusal) {
    door.counters.count(refusal.reason);
    tracing::debug!(%client, status = refusal.status, reason = refusal.reason.label(), "not subscribed");
    push(mailboxes, client, Some(refusal.frame()));
}

fn push<S>(mailboxes: &Mailboxes<S>, client: ClientId, json: Option<Bytes>) {
    if let Some(mailbox) = mailboxes.get(usize::from(client.reactor)) {
        mailbox.push(Delivery::Answer(client, json));
    }
}
