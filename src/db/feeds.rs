//! What decides about public streams besides relationships: chosen languages, the permission to see feeds that
//! are closed, and which feeds are closed.
//!
//! Rails says nothing when these change, so they are read again every so often, in one batch for all
//! connected accounts (`preferences`). Tested in `tests/db_audience.rs`.

use crate::core::event::{StatusFields, Withheld};
use crate::core::stream::Channel;

/// The role permission `view_feeds`. The administrator bit alone does not imply it, as in Node.
pub(super) const VIEW_FEEDS: i64 = 1 << 20;

/// What an account's settings say about public streams. The default is that of an account without any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// The languages that the user wants to see; none for all.
    pub languages: Option<Box<[Box<str>]>>,
    /// Whether closed feeds are open to this account.
    pub sees_closed_feeds: bool,
}

/// Which feeds are closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct FeedAccess {
    pub live_local_closed: bool,
    pub live_remote_closed: bool,
    pub topic_local_closed: bool,
    pub topic_remote_closed: bool,
}

impl FeedAccess {
    /// Takes a row of `settings`. A feed is closed if its value is exactly Rails' YAML for `disabled`.
    pub fn set(&mut self, var: &str, value: Option<&str>) {
        let closed = value == Some("--- disabled\n");
        match var {
            "local_live_feed_access" => self.live_local_closed = closed,
            "remote_live_feed_access" => self.live_remote_closed = closed,
            "local_topic_feed_access" => self.topic_local_closed = closed,
            "remote_topic_feed_access" => self.topic_remote_closed = closed,
            _ => {}
        }
    }

    /// Whether that channel's feed is closed to statuses from here, or from elsewhere.
    pub fn is_closed(&self, channel: &Channel, local: bool) -> bool {
        match (channel, local) {
            (Channel::Hashtag { .. }, true) => self.topic_local_closed,
            (Channel::Hashtag { .. }, false) => self.topic_remote_closed,
            (_, true) => self.live_local_closed,
            (_, false) => self.live_remote_closed,
        }
    }
}

impl Settings {
    /// Why these settings keep a status from their account, if they do; `closed` says whether the feed it
    /// came by is closed.
    pub fn withhold(&self, status: &StatusFields, closed: bool) -> Option<Withheld> {
        if closed && !self.sees_closed_feeds {
            return Some(Withheld::FeedAccess);
        }
        let languages = self.languages.as_ref()?;
        let chosen = status
            .language
            .as_ref()
            .is_some_and(|language| languages.iter().any(|chosen| chosen == language));
        (!chosen).then_some(Withheld::Language)
    }
}
