//! The audience stage of the demo: everyone in the [`directory`](super::directory()) sees every
//! status, and nobody has custom filters. It stands where PostgreSQL is asked otherwise, so that reactors need
//! not know that this is a demo.
//!
//! One thread, which ends with the last holder of its mailbox. It never waits for anything else, so its queue
//! holds no more than what ingest hands over between two turns.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};

use super::directory::directory;
use crate::core::event::{Audience, Verdict};
use crate::core::handover::{Delivery, StageItem};
use crate::core::mailbox::Mailbox;

/// Starts the stage; the mailbox is for ingest. `reactors` in the order of the bits that name them.
pub fn start<S: Send + 'static>(
    reactors: Vec<Arc<Mailbox<Delivery<S>>>>,
) -> io::Result<Arc<Mailbox<StageItem>>> {
    let (wake, woken) = sync_channel(1);
    // A wake that finds another one waiting is that one.
    let mailbox = Arc::new(Mailbox::new(move || {
        let _ = wake.try_send(());
    }));
    let inbox = Arc::downgrade(&mailbox);
    std::thread::Builder::new().name("demo-audience".to_owned()).spawn(move || {
        let mut items = Vec::new();
        while woken.recv().is_ok() {
            let Some(inbox) = Weak::upgrade(&inbox) else { break };
            inbox.drain(&mut items);
            pass(&mut items, &reactors);
        }
    })?;
    Ok(mailbox)
}

/// Hands all events on to the reactors that their bits name, in order, each with its audience.
fn pass<S>(items: &mut Vec<StageItem>, reactors: &[Arc<Mailbox<Delivery<S>>>]) {
    let mut batches: Vec<Vec<Delivery<S>>> = reactors.iter().map(|_| Vec::new()).collect();
    for item in items.drain(..) {
        let (mask, delivery): (u16, &dyn Fn() -> Delivery<S>) = match &item {
            StageItem::Event(event, mask) => {
                if event.needs_audience() {
                    event.audience().get_or_init(everyone);
                }
                (*mask, &|| Delivery::Event(Arc::clone(event)))
            }
            StageItem::ChannelGap(channel, mask) => (*mask, &|| Delivery::ChannelGap(channel.clone())),
            StageItem::Join(..) | StageItem::Leave(..) | StageItem::FiltersChanged(_) => continue,
        };
        for (number, batch) in batches.iter_mut().enumerate() {
            if mask >> number & 1 == 1 {
                batch.push(delivery());
            }
        }
    }
    for (reactor, batch) in reactors.iter().zip(&mut batches) {
        reactor.push_all(batch);
    }
}

fn everyone() -> Audience {
    let mut verdicts: Vec<_> =
        directory().iter().map(|account| (account.account_id, Verdict::Deliver(0))).collect();
    verdicts.sort_unstable_by_key(|(account, _)| *account);
    Audience { verdicts, ..Audience::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Event, Parsed, Position};
    use crate::core::gate::Gate;
    use crate::core::stream::{Channel, Param, Stream, StreamKind};
    use crate::demo::publisher::Script;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn every_account_gets_every_event_in_order_on_the_reactors_that_are_named() {
        let (ready, told) = channel();
        let reactors: Vec<Arc<Mailbox<Delivery<()>>>> = (0..2)
            .map(|number| {
                let ready = ready.clone();
                Arc::new(Mailbox::new(move || ready.send(number).unwrap()))
            })
            .collect();
        let stage = start(reactors.clone()).unwrap();
        let gate = Gate::new(1 << 30, 1 << 29, || {});
        let mut script = Script::new(1);
        let mut sent = 0;
        while sent < 20 {
            for message in script.step(1_785_529_845_123) {
                let Some(channel) = Channel::parse(message.channel.as_bytes()).filter(Channel::is_filtered)
                else {
                    continue;
                };
                sent += 1;
                let at = Position { epoch: 1, seq: sent, read_at: Duration::ZERO };
                let Parsed::Event(event) = Event::parse(channel, at, message.body.into(), &gate) else {
                    panic!("{}", message.channel)
                };
                stage.push(StageItem::Event(event, 0b10));
            }
        }
        let stream =
            Stream { kind: StreamKind::Public, allow_local_only: false, param: Param::None, spelling: None };
        let mut seen = 0;
        while seen < sent {
            assert_eq!(told.recv().unwrap(), 1);
            let mut batch = Vec::new();
            reactors[1].drain(&mut batch);
            for delivery in batch {
                let Delivery::Event(event) = delivery else { panic!("{delivery:?}") };
                seen += 1;
                assert_eq!(event.position().seq, seen);
                for account in directory() {
                    assert_eq!(event.verdict(&stream, account.account_id), Verdict::Deliver(0));
                }
            }
        }
    }
}
