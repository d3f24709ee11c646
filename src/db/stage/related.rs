//! The other channels that Rails publishes a status on: it is asked about for their viewers, too.

use serde::Deserialize;

use crate::core::event::Event;
use crate::core::hashtag::normalise;
use crate::core::stream::{Channel, Origin};

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    tags: Vec<StatusTag>,
    #[serde(default)]
    media_attachments: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct StatusTag {
    name: String,
}

/// Tags that are looked at. A status with more of them is asked about more than once.
const TAGS_MAX: usize = 32;

/// The filtered channels that carry copies of this status, as far as it says itself; a guess that costs a
/// question more where it is wrong, and nothing else.
pub(super) fn related(event: &Event) -> Vec<Channel> {
    let Some(Ok(fields)) = event.status() else { return Vec::new() };
    let status: Option<Status> = serde_json::from_slice(event.payload()).ok();
    let has_media = status.as_ref().is_none_or(|status| !status.media_attachments.is_empty());
    let mut channels = Vec::new();
    let by_origin = if fields.local { Origin::Local } else { Origin::Remote };
    for origin in [Origin::Any, by_origin] {
        channels.push(Channel::Public { origin, media: false });
        if has_media {
            channels.push(Channel::Public { origin, media: true });
        }
    }
    for tag in status.iter().flat_map(|status| &status.tags).take(TAGS_MAX) {
        let tag = normalise(&tag.name);
        if fields.local {
            channels.push(Channel::Hashtag { tag: tag.clone(), local: true });
        }
        channels.push(Channel::Hashtag { tag, local: false });
    }
    channels
}
