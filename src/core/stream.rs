//! Names and channels: what a client asks for, and what Redis calls it.
//!
//! A *stream* is what a client subscribes to (`user`, `public:local`, `hashtag` with a tag …); a *channel* is
//! a Redis pub/sub channel. One stream is carried by one or two channels. Channels are typed keys of 16
//! bytes, never strings: with four channels a client and two tables of them, string keys would cost more than
//! everything else a client needs together. Neither table holds even these: the ingest's has them as words
//! ([`Channel::packed`]), a reactor's leaves them to its clients. Only hashtags carry text, shared by all who hold it.

mod channel;

use std::sync::Arc;

use smallvec::smallvec;

use crate::core::json;

pub use channel::{Channel, Channels, Id, Origin, Tag};

/// The streams, as clients name them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum StreamKind {
    User,
    UserNotification,
    Public,
    PublicMedia,
    PublicLocal,
    PublicLocalMedia,
    PublicRemote,
    PublicRemoteMedia,
    PublicAllowLocalOnly,
    PublicAllowLocalOnlyMedia,
    Hashtag,
    HashtagLocal,
    List,
    Direct,
}

impl StreamKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [StreamKind; 14] = [
        StreamKind::User,
        StreamKind::UserNotification,
        StreamKind::Public,
        StreamKind::PublicMedia,
        StreamKind::PublicLocal,
        StreamKind::PublicLocalMedia,
        StreamKind::PublicRemote,
        StreamKind::PublicRemoteMedia,
        StreamKind::PublicAllowLocalOnly,
        StreamKind::PublicAllowLocalOnlyMedia,
        StreamKind::Hashtag,
        StreamKind::HashtagLocal,
        StreamKind::List,
        StreamKind::Direct,
    ];

    /// The kind of that name on a WebSocket (`public:local:media` …), if there is one.
    pub fn from_name(name: &str) -> Option<StreamKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name, as clients spell it and as it comes back in every message.
    pub fn name(self) -> &'static str {
        match self {
            StreamKind::User => "user",
            StreamKind::UserNotification => "user:notification",
            StreamKind::Public => "public",
            StreamKind::PublicMedia => "public:media",
            StreamKind::PublicLocal => "public:local",
            StreamKind::PublicLocalMedia => "public:local:media",
            StreamKind::PublicRemote => "public:remote",
            StreamKind::PublicRemoteMedia => "public:remote:media",
            StreamKind::PublicAllowLocalOnly => "public:allow_local_only",
            StreamKind::PublicAllowLocalOnlyMedia => "public:allow_local_only:media",
            StreamKind::Hashtag => "hashtag",
            StreamKind::HashtagLocal => "hashtag:local",
            StreamKind::List => "list",
            StreamKind::Direct => "direct",
        }
    }
}

/// What a stream is about besides its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Param {
    /// Nothing more.
    None,
    /// A list's id.
    List(Id),
    /// A hashtag.
    Tag(Tag),
}

/// A stream as one client asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stream {
    /// Which stream.
    pub kind: StreamKind,
    /// glitch-soc: deliver local-only statuses too. Set for the kinds of that name, and for `public` and
    /// `public:media` by the parameter of that name, or always (`LOCAL_ONLY_ON_PUBLIC`); false where it decides
    /// nothing.
    pub allow_local_only: bool,
    /// The list or the tag.
    pub param: Param,
    /// The parameter as the client wrote it, as JSON text (`"Ünïcode"`, `12`), where that differs from the
    /// normal spelling: a list's id as a decimal string, a tag in its normalised form.
    pub spelling: Option<Arc<Box<str>>>,
}

impl Stream {
    /// The channels that carry this stream for `account`: one, or two for `user` when the token may read
    /// notifications. Two streams with the same channels are one subscription (kept in sent order),
    /// except `public` and `public:allow_local_only`, which are two.
    pub fn channels(&self, account: Id, notifications: bool) -> Channels {
        let one = match self.kind {
            StreamKind::User if notifications => {
                return smallvec![Channel::Account(account), Channel::Notifications(account)];
            }
            StreamKind::User => Channel::Account(account),
            StreamKind::UserNotification => Channel::Notifications(account),
            StreamKind::Public | StreamKind::PublicAllowLocalOnly => {
                Channel::Public { origin: Origin::Any, media: false }
            }
            StreamKind::PublicMedia | StreamKind::PublicAllowLocalOnlyMedia => {
                Channel::Public { origin: Origin::Any, media: true }
            }
            StreamKind::PublicLocal => Channel::Public { origin: Origin::Local, media: false },
            StreamKind::PublicLocalMedia => Channel::Public { origin: Origin::Local, media: true },
            StreamKind::PublicRemote => Channel::Public { origin: Origin::Remote, media: false },
            StreamKind::PublicRemoteMedia => Channel::Public { origin: Origin::Remote, media: true },
            StreamKind::Hashtag => Channel::Hashtag { tag: self.tag(), local: false },
            StreamKind::HashtagLocal => Channel::Hashtag { tag: self.tag(), local: true },
            StreamKind::List => Channel::List(self.list()),
            StreamKind::Direct => Channel::Direct(account),
        };
        smallvec![one]
    }

    /// The bytes of text that a subscription of this stream holds: the tag, and the client's spelling.
    pub fn text_bytes(&self) -> usize {
        let tag = match &self.param {
            Param::Tag(tag) => tag.as_str().len(),
            Param::List(_) | Param::None => 0,
        };
        tag + self.spelling.as_ref().map_or(0, |spelling| spelling.len())
    }

    /// Whether statuses that are for local accounts only go to this stream. Node's rule: to all but the
    /// remote ones, and to the public ones only where the client asked for them.
    pub fn shows_local_only(&self) -> bool {
        match self.kind {
            StreamKind::Public | StreamKind::PublicMedia => self.allow_local_only,
            StreamKind::PublicRemote | StreamKind::PublicRemoteMedia => false,
            _ => true,
        }
    }

    /// Appends the value of `"stream":` in a WebSocket message: the name, and the list or tag as the client
    /// wrote it.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"[\"");
        out.extend_from_slice(self.kind.name().as_bytes());
        out.push(b'"');
        match (&self.spelling, &self.param) {
            (_, Param::None) => {}
            (Some(spelling), _) => {
                out.push(b',');
                out.extend_from_slice(spelling.as_bytes());
            }
            (None, Param::List(id)) => {
                out.extend_from_slice(b",\"");
                channel::write_id(*id, out);
                out.push(b'"');
            }
            (None, Param::Tag(tag)) => {
                out.push(b',');
                json::write_text(tag.as_str(), out);
            }
        }
        out.push(b']');
    }

    // A hashtag stream without a tag, or a list without an id, cannot come out of a request; if one were
    // made by hand it would listen where nothing is ever published.
    fn tag(&self) -> Tag {
        match &self.param {
            Param::Tag(tag) => tag.clone(),
            _ => Tag::from_normalised(""),
        }
    }

    fn list(&self) -> Id {
        match self.param {
            Param::List(id) => id,
            _ => 0,
        }
    }
}

/// What a token may do, from its scopes: `read`, `read:statuses`, `read:notifications`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// The scope `read`, which opens everything.
    pub const READ: Scopes = Scopes(1);
    /// The scope `read:statuses`.
    pub const READ_STATUSES: Scopes = Scopes(2);
    /// The scope `read:notifications`.
    pub const READ_NOTIFICATIONS: Scopes = Scopes(4);

    /// Reads the column `oauth_access_tokens.scopes`: names separated by spaces; others are ignored.
    pub fn parse(column: &str) -> Scopes {
        column.split(' ').fold(Scopes(0), |scopes, name| match name {
            "read" => Scopes(scopes.0 | Self::READ.0),
            "read:statuses" => Scopes(scopes.0 | Self::READ_STATUSES.0),
            "read:notifications" => Scopes(scopes.0 | Self::READ_NOTIFICATIONS.0),
            _ => scopes,
        })
    }

    /// Whether a token with these scopes may open that stream.
    pub fn allow(self, kind: StreamKind) -> bool {
        let needed = if kind == StreamKind::UserNotification {
            Self::READ.0 | Self::READ_NOTIFICATIONS.0
        } else {
            Self::READ.0 | Self::READ_STATUSES.0
        };
        self.0 & needed != 0
    }

    /// Whether `user` also carries the account's notifications.
    pub fn notifications(self) -> bool {
        self.0 & (Self::READ.0 | Self::READ_NOTIFICATIONS.0) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(channel: &Channel) -> String {
        let mut out = Vec::new();
        channel.write_name(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn tag(text: &str) -> Tag {
        Tag::from_normalised(text)
    }

    fn stream(kind: StreamKind, param: Param) -> Stream {
        Stream { kind, allow_local_only: false, param, spelling: None }
    }

    #[test]
    fn kinds_and_their_names_are_one_to_one() {
        for kind in StreamKind::ALL {
            assert_eq!(StreamKind::from_name(kind.name()), Some(kind));
        }
        for unknown in
            ["", "local", "User", "public:allow_local_only:local", "user:notifications", "hashtag:media"]
        {
            assert_eq!(StreamKind::from_name(unknown), None);
        }
    }

    #[test]
    fn streams_are_carried_by_their_channels() {
        let channels = |kind, param, notifications| {
            stream(kind, param).channels(7, notifications).iter().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(channels(StreamKind::User, Param::None, true), "timeline:7 timeline:7:notifications");
        assert_eq!(channels(StreamKind::User, Param::None, false), "timeline:7");
        assert_eq!(channels(StreamKind::UserNotification, Param::None, true), "timeline:7:notifications");
        assert_eq!(
            channels(StreamKind::PublicAllowLocalOnlyMedia, Param::None, true),
            "timeline:public:media"
        );
        assert_eq!(
            channels(StreamKind::PublicRemoteMedia, Param::None, true),
            "timeline:public:remote:media"
        );
        assert_eq!(
            channels(StreamKind::HashtagLocal, Param::Tag(tag("rust")), true),
            "timeline:hashtag:rust:local"
        );
        assert_eq!(channels(StreamKind::List, Param::List(9), true), "timeline:list:9");
        assert_eq!(channels(StreamKind::Direct, Param::None, true), "timeline:direct:7");
    }

    #[test]
    fn a_stream_comes_back_as_it_was_asked_for() {
        let json = |stream: &Stream| {
            let mut out = Vec::new();
            stream.write_json(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(json(&stream(StreamKind::PublicLocal, Param::None)), r#"["public:local"]"#);
        assert_eq!(json(&stream(StreamKind::Hashtag, Param::Tag(tag("rust")))), r#"["hashtag","rust"]"#);
        let mut list = stream(StreamKind::List, Param::List(12));
        assert_eq!(json(&list), r#"["list","12"]"#);
        list.spelling = Some(Arc::new("12".into()));
        assert_eq!(json(&list), r#"["list",12]"#);
    }
}
