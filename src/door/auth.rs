//! Who a request speaks for: where its token stands, what is known of it, and the query string.
//!
//! Precedence as in Mastodon's server: the Authorization header wins even when it is wrong, then
//! `access_token` in the query, then the whole Sec-WebSocket-Protocol header. A token is never logged, and
//! text that no token can be is refused without a look-up.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;

use hyper::header::{AUTHORIZATION, HeaderMap, SEC_WEBSOCKET_PROTOCOL};

use super::errors::Refusal;
use crate::core::handover::Viewer;
use crate::core::session::{decode, is_true_text};
use crate::core::stream::Id;

/// A good token, as far as the door needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// Whose it is and what it may do.
    pub viewer: Viewer,
    /// When it expires, in seconds since 1970.
    pub expires_at: Option<u64>,
}

/// Why the directory has no answer; only for the log.
pub type DirectoryError = Box<dyn std::error::Error + Send + Sync>;

/// An answer on its way.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DirectoryError>> + Send + 'a>>;

/// What is known of accounts: PostgreSQL, or a list in memory. Dropping an answer gives it up.
pub trait Directory: Send + Sync {
    /// The token of that text, if it is good: not revoked, not expired, its user neither disabled nor
    /// suspended.
    fn look_up<'a>(&'a self, token: &'a str) -> Answer<'a, Option<Token>>;

    /// Whether that list is that account's.
    fn owns_list(&self, account: Id, list: Id) -> Answer<'_, bool>;
}

/// A directory in memory, for the demo and for tests.
#[derive(Clone, Debug, Default)]
pub struct MemoryDirectory {
    /// Tokens by their text.
    pub tokens: HashMap<String, Token>,
    /// Lists with their owners: account, list.
    pub lists: HashSet<(Id, Id)>,
}

impl Directory for MemoryDirectory {
    fn look_up<'a>(&'a self, token: &'a str) -> Answer<'a, Option<Token>> {
        let found = self.tokens.get(token).copied();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn owns_list(&self, account: Id, list: Id) -> Answer<'_, bool> {
        let owns = self.lists.contains(&(account, list));
        Box::pin(std::future::ready(Ok(owns)))
    }
}

/// Looks a token up: none if it is not good.
pub(crate) async fn look_up(directory: &dyn Directory, token: &str) -> Result<Token, Refusal> {
    match directory.look_up(token).await {
        Ok(Some(token)) => Ok(token),
        Ok(None) => Err(Refusal::INVALID_TOKEN),
        Err(error) => {
            tracing::debug!(%error, "token look-up failed");
            Err(Refusal::DATABASE_AWAY)
        }
    }
}

/// Whether the account may have that list. A question that could not be asked says nothing about the list.
pub(crate) async fn check_list(directory: &dyn Directory, account: Id, list: Id) -> Result<(), Refusal> {
    match directory.owns_list(account, list).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal::FOREIGN_LIST),
        Err(error) => {
            tracing::debug!(%error, list, "list look-up failed");
            Err(Refusal::DATABASE_AWAY)
        }
    }
}

/// The token that a request presents.
pub(crate) fn token<'a>(headers: &'a HeaderMap, query: &'a str) -> Result<Cow<'a, str>, Refusal> {
    if let Some(value) = headers.get(AUTHORIZATION).filter(|value| !value.is_empty()) {
        let text = value.to_str().map_err(|_| Refusal::INVALID_TOKEN)?;
        return usable(Cow::Borrowed(text.strip_prefix("Bearer ").unwrap_or(text)));
    }
    let mut values = values(query, "access_token");
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => return Err(Refusal::INVALID_TOKEN),
        (Some(token), None) if !token.is_empty() => return usable(token),
        _ => {}
    }
    drop(values);
    let mut protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    match (protocols.next(), protocols.next()) {
        (Some(_), Some(_)) => Err(Refusal::INVALID_TOKEN),
        (Some(value), None) if !value.is_empty() => {
            usable(Cow::Borrowed(value.to_str().map_err(|_| Refusal::INVALID_TOKEN)?))
        }
        _ => Err(Refusal::MISSING_TOKEN),
    }
}

fn usable(token: Cow<'_, str>) -> Result<Cow<'_, str>, Refusal> {
    if token.bytes().any(|byte| byte.is_ascii_control()) { Err(Refusal::INVALID_TOKEN) } else { Ok(token) }
}

/// The values of a query parameter, decoded.
pub(crate) fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(move |(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
}

/// Whether a query parameter is given and says yes. Given twice it does.
pub(crate) fn is_true(query: &str, name: &str) -> bool {
    let mut values = values(query, name);
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => true,
        (Some(value), None) => is_true_text(&value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn present(list: &[(&'static str, &str)], query: &str) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        token(&headers, query).map(Cow::into_owned)
    }

    #[test]
    fn a_token_is_taken_from_the_first_place_that_has_one() {
        const AUTH: &str = "authorization";
        const PROTOCOL: &str = "sec-websocket-protocol";
        type Case<'a> = (&'a [(&'static str, &'a str)], &'a str, Result<&'a str, Refusal>);
        let cases: &[Case] = &[
            (&[], "", Err(Refusal::MISSING_TOKEN)),
            (&[(AUTH, "Bearer good")], "", Ok("good")),
            (&[(AUTH, "bare")], "", Ok("bare")),
            // Looked up as it stands, so refused.
            (&[(AUTH, "bearer good")], "", Ok("bearer good")),
            (&[(AUTH, "Bearer  good")], "", Ok(" good")),
            (&[(AUTH, "Bearer wrong")], "access_token=good", Ok("wrong")),
            (&[(AUTH, "")], "access_token=good", Ok("good")),
            (&[], "stream=user&access_token=good", Ok("good")),
            (&[], "access%5Ftoken=g%6Fod", Ok("good")),
            (&[], "access_token=a&access_token=a", Err(Refusal::INVALID_TOKEN)),
            (&[(PROTOCOL, "good")], "access_token=", Ok("good")),
            (&[(PROTOCOL, "other")], "access_token=good", Ok("good")),
            (&[(PROTOCOL, "one, two")], "", Ok("one, two")),
            (&[(PROTOCOL, "one"), (PROTOCOL, "two")], "", Err(Refusal::INVALID_TOKEN)),
            (&[], "access_token=good%00", Err(Refusal::INVALID_TOKEN)),
            (&[(AUTH, "")], "", Err(Refusal::MISSING_TOKEN)),
        ];
        for (headers, query, expected) in cases {
            assert_eq!(present(headers, query).as_deref(), expected.as_ref().copied(), "{headers:?} {query}");
        }
    }

    #[test]
    fn what_counts_as_true() {
        for no in ["", "only_media", "only_media=", "only_media=0", "only_media=f", "only_media=OFF", "x=1"] {
            assert!(!is_true(no, "only_media"), "{no}");
        }
        for yes in [
            "only_media=1",
            "only_media=true",
            "x=0&only_media=no",
            "only_media=0&only_media=0",
            "only_media=False",
        ] {
            assert!(is_true(yes, "only_media"), "{yes}");
        }
    }

    #[test]
    fn queries_are_decoded_as_forms_are() {
        let all = |query: &str| values(query, "tag").map(Cow::into_owned).collect::<Vec<_>>();
        assert_eq!(all("tag=a+b%20c&tag=%C3%BC&tag=100%&x=y"), ["a b c", "ü", "100%"]);
        assert_eq!(all(""), Vec::<String>::new());
    }
}
