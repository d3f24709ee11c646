//! No more than twice the budget is held, whatever is published, whoever watches, whatever their filters find, and
//! however they spell the stream's name.

use super::*;

const HIGH: usize = 64 << 10;

#[derive(Clone, Debug)]
enum Step {
    /// A status of so many bytes, for so many accounts that must not see it, and results of so many bytes for others.
    Read { bytes: usize, escapes: bool, hidden: usize, results: Vec<usize> },
    /// A frame of one of the live statuses.
    Frame { event: usize, transport: usize, spelling: Option<u8>, outcome: u16 },
    /// One of them is delivered.
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let results = prop::collection::vec(1usize..8000, 0..20);
    prop_oneof![
        2 => (0usize..4000, any::<bool>(), 0usize..200, results)
            .prop_map(|(bytes, escapes, hidden, results)| Step::Read { bytes, escapes, hidden, results }),
        6 => (0usize..64, 0usize..3, prop::option::of(any::<u8>()), 0u16..20)
            .prop_map(|(event, transport, spelling, outcome)| Step::Frame { event, transport, spelling, outcome }),
        1 => (0usize..64).prop_map(Step::Drop),
    ]
}

proptest! {
    #[test]
    fn twice_the_budget_is_never_exceeded(steps in prop::collection::vec(step(), 1..400)) {
        let gate = Gate::new(HIGH, HIGH / 2, || {});
        let budget = OutcomeBudget::new(&gate);
        let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
        // Statuses that wait for their audience, and those that have it.
        let (mut waiting, mut live) = (std::collections::VecDeque::new(), Vec::new());
        for step in steps {
            match step {
                Step::Read { bytes, escapes, hidden, results } if gate.may_read() => {
                    let content = if escapes { "\"".repeat(bytes / 2) } else { "x".repeat(bytes) };
                    let message = status_with(|status| status["content"] = content.into());
                    let Parsed::Event(event) = Event::parse(channel.clone(), AT, message.into(), &gate) else {
                        panic!("a status")
                    };
                    waiting.push_back((event, hidden, results));
                }
                Step::Read { .. } => {}
                Step::Frame { event, transport, spelling, outcome } if event < live.len() => {
                    let event: &Arc<Event> = &live[event];
                    let spelling = spelling.map(|spelling| format!("Rust{spelling}"));
                    let stream = hashtag("rust", spelling.as_deref());
                    let frame = event.frame(TRANSPORTS[transport], &stream, outcome);
                    let again = event.frame(TRANSPORTS[transport], &stream, outcome);
                    prop_assert_eq!(frame.parts().concat(), again.parts().concat());
                }
                Step::Drop(at) if at < live.len() => drop(live.swap_remove(at)),
                Step::Frame { .. } | Step::Drop(_) => {}
            }
            // As the audience stage does it.
            while !waiting.is_empty() && gate.announce_below(HIGH / 2 * 3) {
                let Some((event, hidden, results)) = waiting.pop_front() else { break };
                let outcomes = results.iter().filter_map(|bytes| budget.outcome(&vec![b'1'; *bytes])).collect();
                let withheld = Verdict::Withheld(Withheld::Language);
                let verdicts = (0..hidden as u64).map(|id| (id, withheld)).collect();
                event.set_audience(Audience { outcomes, verdicts, ..Audience::default() });
                live.push(event);
            }
            prop_assert!(budget.held_bytes() <= HIGH / 4);
            prop_assert!(gate.held_bytes() <= 2 * HIGH, "{} of {HIGH}", gate.held_bytes());
        }
        drop((waiting, live));
        prop_assert_eq!((gate.held_bytes(), budget.held_bytes()), (0, 0));
    }
}
