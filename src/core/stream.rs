//! Names and channels: what a client asks for, and what Redis calls it.
//!
//! A *stream* is what a client subscribes to (`user`, `public:local`, `hashtag` with a tag …); a *channel* is
//! a Redis pub/sub channel. One stream is carried by one or two channels. Channels are typed keys of 16
//! bytes, never strings: with four channels a client and two tables of them, string keys would cost more than
//! everything else a client needs together. Neither table holds even these: the ingest's has them as words
//! ([`Channel::packed`]), a reactor's leaves them to its clients. Only hashtags carry text, shared by all who hold it.

use std::sync::Arc;

use smallvec::smallvec;

use crate::core::json;

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
        let name = std::str::from_utf8(name).ok()?.strip_prefix("timeline:")?;
        let (first, rest) = match name.split_once(':') {
            Some((first, rest)) => (first, Some(rest)),
            None => (name, None),
        };
        match (first, rest) {
            ("public", rest) => Self::parse_public(rest),
            ("hashtag", Some(rest)) => {
                // A tag has no colon, so what follows one is `local`, and a tag of that name is no suffix.
                let (tag, local) = rest.strip_suffix(":local").map_or((rest, false), |tag| (tag, true));
                (!tag.contains(':')).then(|| Channel::Hashtag { tag: Tag::from_normalised(tag), local })
            }
            ("direct", Some(id)) => parse_id(id).map(Channel::Direct),
            ("list", Some(id)) => parse_id(id).map(Channel::List),
            ("access_token", Some(id)) => parse_id(id).map(Channel::AccessToken),
            ("system", Some(id)) => parse_id(id).map(Channel::System),
            (id, None) => parse_id(id).map(Channel::Account),
            (id, Some("notifications")) => parse_id(id).map(Channel::Notifications),
            _ => None,
        }
    }

    fn parse_public(rest: Option<&str>) -> Option<Channel> {
        let (origin, media) = match rest {
            None => (Origin::Any, false),
            Some("media") => (Origin::Any, true),
            Some("local") => (Origin::Local, false),
            Some("local:media") => (Origin::Local, true),
            Some("remote") => (Origin::Remote, false),
            Some("remote:media") => (Origin::Remote, true),
            Some(_) => return None,
        };
        Some(Channel::Public { origin, media })
    }

    /// Appends the channel's name, as Rails publishes to it (without namespace).
    pub fn write_name(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"timeline:");
        match self {
            Channel::Public { origin, media } => {
                out.extend_from_slice(match origin {
                    Origin::Any => b"public",
                    Origin::Local => b"public:local",
                    Origin::Remote => b"public:remote",
                });
                if *media {
                    out.extend_from_slice(b":media");
                }
            }
            Channel::Hashtag { tag, local } => {
                out.extend_from_slice(b"hashtag:");
                out.extend_from_slice(tag.as_str().as_bytes());
                if *local {
                    out.extend_from_slice(b":local");
                }
            }
            Channel::Account(id) => write_id(*id, out),
            Channel::Notifications(id) => {
                write_id(*id, out);
                out.extend_from_slice(b":notifications");
            }
            Channel::Direct(id) => write_named_id(b"direct:", *id, out),
            Channel::List(id) => write_named_id(b"list:", *id, out),
            Channel::AccessToken(id) => write_named_id(b"access_token:", *id, out),
            Channel::System(id) => write_named_id(b"system:", *id, out),
        }
    }

    /// The channel as one word, where it fits: a kind and an id, or which public channel. Hashtags don't, nor do
    /// ids of more than 61 bits, which no Mastodon makes before the year 3000. Different channels have different
    /// words.
    pub fn packed(&self) -> Option<u64> {
        let (kind, id) = match self {
            Channel::Account(id) => (0, *id),
            Channel::Notifications(id) => (1, *id),
            Channel::Direct(id) => (2, *id),
            Channel::List(id) => (3, *id),
            Channel::AccessToken(id) => (4, *id),
            Channel::System(id) => (5, *id),
            Channel::Public { origin, media } => (6, (*origin as u64) << 1 | u64::from(*media)),
            Channel::Hashtag { .. } => return None,
        };
        (id < 1 << PACKED_ID_BITS).then_some(kind << PACKED_ID_BITS | id)
    }

    /// The channel of that word; none if [`packed`](Self::packed) makes no such word.
    pub fn unpacked(word: u64) -> Option<Channel> {
        let id = word & ((1 << PACKED_ID_BITS) - 1);
        Some(match word >> PACKED_ID_BITS {
            0 => Channel::Account(id),
            1 => Channel::Notifications(id),
            2 => Channel::Direct(id),
            3 => Channel::List(id),
            4 => Channel::AccessToken(id),
            5 => Channel::System(id),
            6 => {
                let origin =
                    [Origin::Any, Origin::Local, Origin::Remote].get(usize::try_from(id >> 1).ok()?)?;
                Channel::Public { origin: *origin, media: id & 1 == 1 }
            }
            _ => return None,
        })
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

/// Bits of an id in a packed channel; the kind has the others.
const PACKED_ID_BITS: u32 = 61;

/// An id as it stands in a channel's name: positive, decimal, no sign and no leading zero.
fn parse_id(text: &str) -> Option<Id> {
    match text.as_bytes() {
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => text.parse().ok(),
        _ => None,
    }
}

fn write_id(id: Id, out: &mut Vec<u8>) {
    out.extend_from_slice(id.to_string().as_bytes());
}

fn write_named_id(name: &[u8], id: Id, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    write_id(id, out);
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
    /// `public:media` by the parameter of that name; false where it decides nothing.
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
                write_id(*id, out);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn any_channel() -> impl Strategy<Value = Channel> {
        let id = prop_oneof![1..5u64, any::<u64>(), ((1u64 << 61) - 2)..((1 << 61) + 2)];
        (id, 0..8).prop_map(|(id, kind)| match kind {
            0 => Channel::Account(id),
            1 => Channel::Notifications(id),
            2 => Channel::Direct(id),
            3 => Channel::List(id),
            4 => Channel::AccessToken(id),
            5 => Channel::System(id),
            6 => Channel::Public {
                origin: [Origin::Any, Origin::Local, Origin::Remote][(id % 3) as usize],
                media: id % 2 == 0,
            },
            _ => Channel::Hashtag { tag: tag(&(id % 5).to_string()), local: id % 2 == 0 },
        })
    }

    #[test]
    fn channels_have_the_names_that_rails_publishes_to() {
        use Channel::*;
        let cases = [
            ("timeline:public", Public { origin: Origin::Any, media: false }),
            ("timeline:public:media", Public { origin: Origin::Any, media: true }),
            ("timeline:public:local", Public { origin: Origin::Local, media: false }),
            ("timeline:public:local:media", Public { origin: Origin::Local, media: true }),
            ("timeline:public:remote", Public { origin: Origin::Remote, media: false }),
            ("timeline:public:remote:media", Public { origin: Origin::Remote, media: true }),
            ("timeline:hashtag:rust", Hashtag { tag: tag("rust"), local: false }),
            ("timeline:hashtag:rust:local", Hashtag { tag: tag("rust"), local: true }),
            ("timeline:hashtag:local", Hashtag { tag: tag("local"), local: false }),
            ("timeline:hashtag:local:local", Hashtag { tag: tag("local"), local: true }),
            ("timeline:hashtag:", Hashtag { tag: tag(""), local: false }),
            ("timeline:hashtag::local", Hashtag { tag: tag(""), local: true }),
            ("timeline:hashtag:ไม่", Hashtag { tag: tag("ไม่"), local: false }),
            ("timeline:1", Account(1)),
            ("timeline:18446744073709551615", Account(u64::MAX)),
            ("timeline:12:notifications", Notifications(12)),
            ("timeline:direct:12", Direct(12)),
            ("timeline:list:12", List(12)),
            ("timeline:access_token:12", AccessToken(12)),
            ("timeline:system:12", System(12)),
        ];
        for (text, channel) in cases {
            assert_eq!(Channel::parse(text.as_bytes()), Some(channel.clone()), "{text}");
            assert_eq!(name(&channel), text);
        }
    }

    #[test]
    fn other_names_are_unknown() {
        let names = [
            "",
            "timeline",
            "timeline:",
            "public",
            "Timeline:public",
            "timeline:public:",
            "timeline:public:media:local",
            "timeline:0",
            "timeline:01",
            "timeline:+1",
            "timeline:-1",
            "timeline:1 ",
            "timeline:18446744073709551616",
            "timeline:1:",
            "timeline:1:home",
            "timeline:direct",
            "timeline:direct:",
            "timeline:direct:x",
            "timeline:list:1:2",
            "timeline:hashtag",
            "timeline:hashtag:a:b",
            "timeline:hashtag:a:b:local",
            "timeline:access_token:0",
            "timeline:system:",
            "timeline:conversations:1",
            "ns:timeline:1",
        ];
        for name in names {
            assert_eq!(Channel::parse(name.as_bytes()), None, "{name}");
        }
        assert_eq!(Channel::parse(b"timeline:hashtag:\xFF"), None);
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

    proptest! {
        #[test]
        fn known_names_are_canonical(bytes in "timeline:(public|hashtag|[0-9]{0,3}|list)?(:[a-z0-9:]{0,8})?") {
            if let Some(channel) = Channel::parse(bytes.as_bytes()) {
                prop_assert_eq!(name(&channel), bytes);
            }
        }

        #[test]
        fn a_packed_channel_comes_back(channel in any_channel(), other in any_channel()) {
            if let Some(word) = channel.packed() {
                prop_assert_eq!(Channel::unpacked(word), Some(channel.clone()));
                prop_assert_eq!(other.packed() == Some(word), other == channel);
            }
        }

        #[test]
        fn a_word_is_one_channels(word in any::<u64>()) {
            if let Some(channel) = Channel::unpacked(word) {
                prop_assert_eq!(channel.packed(), Some(word));
            }
        }

        #[test]
        fn any_bytes_are_parsed_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Channel::parse(&bytes);
        }
    }
}
