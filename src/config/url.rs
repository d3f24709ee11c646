//! Connection URLs: `scheme://user:password@host:port/path?name=value`, percent-decoded.
//!
//! Lenient as the libraries of Mastodon's own server are: a stray `%` is literal, the password may hold `@`.
//! Problems are described in fixed words and never quote the URL, since any part of it may be a piece of a
//! password whose special characters were not encoded.

use percent_encoding::percent_decode_str;

/// A URL in its parts; none of them is empty text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Url {
    /// In lower case.
    pub scheme: String,
    pub user: Option<String>,
    pub password: Option<String>,
    /// Decoded, without an IPv6 address's brackets.
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Decoded, with the slash that it begins with.
    pub path: Option<String>,
    /// Names and values, decoded, in their order.
    pub query: Vec<(String, String)>,
}

pub(super) const PORT_PROBLEM: &str = "the URL's port must be a number from 1 to 65535; in a user name or password, write : / ? # @ as %3A %2F %3F %23 %40";

/// Splits a URL; the error says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Url, &'static str> {
    let text = text.trim();
    let (scheme, rest) = text.split_once(':').ok_or("a URL is expected, such as redis://host:6379")?;
    if scheme.is_empty()
        || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    {
        return Err("a URL is expected: scheme://host…");
    }
    let rest = rest.split('#').next().unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    let mut url = Url { scheme: scheme.to_ascii_lowercase(), path: decode(path)?, ..Url::default() };
    let host = match authority.rsplit_once('@') {
        Some((login, host)) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            url.user = decode(user)?;
            url.password = decode(password)?;
            host
        }
        None => authority,
    };
    let (host, port) = host_and_port(host)?;
    url.host = decode(host)?;
    url.port = port;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        url.query.push((decode(name)?.unwrap_or_default(), decode(value)?.unwrap_or_default()));
    }
    Ok(url)
}

impl Url {
    /// The last value of a query parameter, if it is not empty.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().rev().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; the host may be empty.
pub(super) fn host_and_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, after) =
            bracketed.split_once(']').ok_or("an IPv6 address's closing bracket is missing")?;
        (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or(PORT_PROBLEM)?)
    } else {
        text.split_once(':').unwrap_or((text, ""))
    };
    if host.contains(',') {
        return Err("several hosts in one URL are not supported");
    }
    if !text.starts_with('[') && port.contains(':') {
        return Err(
            "an IPv6 address must stand in square brackets; in a user name or password, write @ as %40",
        );
    }
    let port = match port {
        "" => None,
        port => Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(PORT_PROBLEM)?),
    };
    Ok((host, port))
}

fn decode(text: &str) -> Result<Option<String>, &'static str> {
    let text =
        percent_decode_str(text).decode_utf8().map_err(|_| "the URL is not UTF-8 when percent-decoded")?;
    if text.contains('\0') {
        return Err("the URL holds a NUL character");
    }
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts() {
        let url = parse("Redis://us%65r:p%40s%2Fs@ex.example:6380/2?a=b%20c&a=d&e").unwrap();
        assert_eq!(url.scheme, "redis");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("user"), Some("p@s/s")));
        assert_eq!((url.host.as_deref(), url.port), (Some("ex.example"), Some(6380)));
        assert_eq!(url.path.as_deref(), Some("/2"));
        assert_eq!((url.parameter("a"), url.parameter("e"), url.parameter("f")), (Some("d"), None, None));

        let url = parse("redis://a:b@c@[::1]:1/").unwrap();
        assert_eq!(
            (url.password.as_deref(), url.host.as_deref(), url.port),
            (Some("b@c"), Some("::1"), Some(1))
        );
        let url = parse("postgresql://%2Fvar%2Frun/db").unwrap();
        assert_eq!((url.host.as_deref(), url.path.as_deref()), (Some("/var/run"), Some("/db")));
        let url = parse("unix:/run/redis.sock?db=1").unwrap();
        assert_eq!((url.host, url.path.as_deref()), (None, Some("/run/redis.sock")));
        assert_eq!(parse("redis://h/100%").unwrap().path.as_deref(), Some("/100%"));
        assert_eq!(parse("redis://").unwrap(), Url { scheme: "redis".into(), ..Url::default() });
    }

    #[test]
    fn problems() {
        for text in [
            "",
            "redis",
            "://h",
            "a b://h",
            "r://h:x",
            "r://h:0",
            "r://h:65536",
            "r://::1",
            "r://[::1",
            "r://[::1]x",
            "r://a:1,b:2",
            "r://%ff",
            "r://h/%00",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_a_problem(text in "[a-z:/@%?#\\[\\]&=,0-9 ]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn encoded_parts_come_back(user in ".{1,8}", password in ".{1,8}") {
            prop_assume!(!user.contains('\0') && !password.contains('\0'));
            let encode = |text: &str| {
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
            };
            let url = parse(&format!("x://{}:{}@h", encode(&user), encode(&password))).unwrap();
            prop_assert_eq!((url.user, url.password), (Some(user), Some(password)));
        }
    }
}
