//! The few fields of a status that decide who may see it.
//!
//! Everything else in it stays opaque. Where Node would stumble over a field's type (and end), or PostgreSQL would
//! refuse it, the status is malformed and nobody gets it.

use super::StatusFields;
use crate::core::json::{self, Kind};
use crate::core::stream::Id;

/// A status on a filtered channel.
#[derive(Debug)]
pub(super) struct Status {
    /// What decides, or what is wrong.
    pub(super) fields: Result<StatusFields, &'static str>,
    /// Whether it is for local accounts only; known even of a malformed one.
    pub(super) local_only: bool,
    /// Whether the outcome of filters is to be appended: an object without a `filtered` member.
    pub(super) is_extensible: bool,
}

impl Status {
    pub(super) fn read(payload: &str) -> Status {
        let (mut account, mut mentions, mut language) = (None, None, None);
        let (mut has_filtered, mut local_only) = (false, false);
        let is_object = json::members(payload, |name, token| match name {
            "account" => account = Some(token),
            "mentions" => mentions = Some(token),
            "language" => language = Some(token),
            "filtered" => has_filtered = true,
            "local_only" => local_only = json::is_truthy(token),
            _ => {}
        });
        let fields = || {
            if !is_object {
                return Err("its payload is not an object");
            }
            let author = Author::read(account.ok_or("it has no account")?)?;
            let mentions = read_mentions(mentions.ok_or("it has no mentions")?)?;
            let language = language.and_then(json::text).map(Box::from);
            let Author { id: author, domain, local } = author;
            Ok(StatusFields { author, domain, local, mentions, language, has_filtered, local_only })
        };
        Status { fields: fields(), local_only, is_extensible: is_object && !has_filtered }
    }

    /// What it takes on the heap, itself included.
    pub(super) fn held_bytes(&self) -> usize {
        let of_fields = self.fields.as_ref().map_or(0, |fields| {
            std::mem::size_of_val(&*fields.mentions)
                + fields.domain.as_ref().map_or(0, |domain| domain.len())
                + fields.language.as_ref().map_or(0, |language| language.len())
        });
        std::mem::size_of::<Status>() + of_fields
    }
}

struct Author {
    id: Id,
    domain: Option<Box<str>>,
    local: bool,
}

impl Author {
    fn read(account: &str) -> Result<Author, &'static str> {
        let (mut id, mut username, mut acct) = (None, None, None);
        let is_object = json::members(account, |name, token| match name {
            "id" => id = Some(token),
            "username" => username = json::text(token),
            "acct" => acct = json::text(token),
            _ => {}
        });
        if !is_object {
            return Err("its account is not an object");
        }
        let id = id.and_then(read_id).filter(|id| *id > 0).ok_or("its account's id is not a number")?;
        let username = username.ok_or("its account's username is not text")?;
        let acct = acct.ok_or("its account's acct is not text")?;
        let domain = acct.split('@').nth(1).filter(|domain| !domain.is_empty()).map(Box::from);
        Ok(Author { id: id.unsigned_abs(), domain, local: username == acct })
    }
}

fn read_mentions(mentions: &str) -> Result<Box<[i64]>, &'static str> {
    let mut ids = Vec::new();
    let is_array = json::elements(mentions, |mention| {
        let mut id = None;
        json::members(mention, |name, token| {
            if name == "id" {
                id = read_id(token);
            }
        });
        ids.push(id);
    });
    if !is_array {
        return Err("its mentions are not an array");
    }
    let ids: Option<Box<[i64]>> = ids.into_iter().collect();
    ids.ok_or("one of its mentions has no id that is a number")
}

/// An id as Rails prints it, a string of digits, or as a number; a `bigint` for PostgreSQL.
fn read_id(token: &str) -> Option<i64> {
    let digits = match json::kind(token) {
        Kind::Text => json::text(token)?,
        Kind::Number => token.into(),
        _ => return None,
    };
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}
