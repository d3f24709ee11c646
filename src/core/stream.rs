//! Names and channels: what a client asks for, and what Redis calls it.
//!
//! A *stream* is what a client subscribes to (`user`, `public:local`, `hashtag` with a tag …); a *channel* is
//! a Redis pub/sub channel. One stream is carried by one or two channels. Channels are typed keys of 16
//! bytes, never strings: with four channels a client and two tables that hold them, string keys would cost
//! more than everything else a client needs together. Only hashtags carry text, shared by all who hold it.

use std::sync::Arc;

/// A database id as Mastodon prints it: a positive 64-bit integer.
pub type Id = u64;

/// A hashtag, normalised as Rails does it. One pointer; clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<Box<str>>);

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl Tag {
    /// Takes text that is normalised already, as it stands in a channel's name.
    pub fn from_normalised(text: &str) -> Tag {
        Tag(Arc::new(text.into()))
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which statuses a public channel carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Origin {
    /// `timeline:public`
    Any,
    /// `timeline:public:local`
    Local,
    /// `timeline:public:remote`
    Remote,
}

/// A Redis channel (without `REDIS_NAMESPACE`).
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Channel {
    /// `timeline:public[:local|:remote][:media]`
    Public {
        /// All, local or remote statuses.
        origin: Origin,
        /// Only statuses with media.
        media: bool,
    },
    /// `timeline:hashtag:TAG[:local]`
    Hashtag {
        /// The normalised tag.
        tag: Tag,
        /// Only local statuses.
        local: bool,
    },
    /// `timeline:ACCOUNT`
    Account(Id),
    /// `timeline:ACCOUNT:notifications`
    Notifications(Id),
    /// `timeline:direct:ACCOUNT`
    Direct(Id),
    /// `timeline:list:LIST`
    List(Id),
    /// `timeline:access_token:TOKEN`, a system channel
    AccessToken(Id),
    /// `timeline:system:ACCOUNT`, a system channel
    System(Id),
}

const _: () = assert!(std::mem::size_of::<Channel>() == 16);

impl Channel {
    /// Reads a channel's name as Redis sends it, its namespace removed. Only the canonical spelling is
    /// known (decimal ids without leading zeros), so that a name and a channel are one to one.
    pub fn parse(name: &[u8]) -> Option<Channel> {
        let _ = name;
        todo!()
    }

    /// Appends the channel's name, as Rails publishes to it (without namespace).
    pub fn write_name(&self, out: &mut Vec<u8>) {
        let _ = out;
        todo!()
    }

    /// Whether `update` and `status.update` on this channel are filtered for each viewer here
    /// (public and hashtag channels; Rails filters the others).
    pub fn is_filtered(&self) -> bool {
        matches!(self, Channel::Public { .. } | Channel::Hashtag { .. })
    }

    /// Whether this is one of a connection's two system channels: no presence key, never delivered.
    pub fn is_system(&self) -> bool {
        matches!(self, Channel::AccessToken(_) | Channel::System(_))
    }
}

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
    /// The kind of that name on a WebSocket (`public:local:media` …), if there is one.
    pub fn from_name(name: &str) -> Option<StreamKind> {
        let _ = name;
        todo!()
    }

    /// The name, as clients spell it and as it comes back in every message.
    pub fn name(self) -> &'static str {
        todo!()
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
    /// glitch-soc: deliver local-only statuses too (CONTRACT of `allow_local_only`).
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
        let _ = (account, notifications);
        todo!()
    }
}

/// One or two channels.
pub type Channels = smallvec::SmallVec<[Channel; 2]>;

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
