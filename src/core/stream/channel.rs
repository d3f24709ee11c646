//! Redis's pub/sub channels: typed keys of 16 bytes, one to one with their names.

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

/// Its name, as Redis has it.
impl std::fmt::Display for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut name = Vec::new();
        self.write_name(&mut name);
        f.write_str(&String::from_utf8_lossy(&name))
    }
}

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

/// Appends an id as it stands in a channel's name.
pub(super) fn write_id(id: Id, out: &mut Vec<u8>) {
    out.extend_from_slice(id.to_string().as_bytes());
}

fn write_named_id(name: &[u8], id: Id, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    write_id(id, out);
}

/// One or two channels.
pub type Channels = smallvec::SmallVec<[Channel; 2]>;

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
            assert_eq!(channel.to_string(), text);
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
