//! Who may sign in to the demo: an account directory in memory, in PostgreSQL's place. Plain data.

use crate::core::stream::{Id, Scopes};

/// An access token of the demo and the account behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DemoAccount {
    /// The access token. No secret: the page shows it.
    pub token: &'static str,
    /// The token's id, as in `timeline:access_token:ID`.
    pub token_id: Id,
    /// The account's id, as in `timeline:ID`.
    pub account_id: Id,
    /// The account's user name.
    pub name: &'static str,
    /// What the token may do.
    pub scopes: Scopes,
    /// The account's own lists.
    pub lists: &'static [Id],
}

/// The accounts, with different scopes so that those can be tried too.
pub fn directory() -> Vec<DemoAccount> {
    let account = |number: Id, token, name, scopes, lists| DemoAccount {
        token,
        token_id: number,
        account_id: account_id(number),
        name,
        scopes,
        lists,
    };
    vec![
        account(1, "demo-alice", "alice", Scopes::READ, &[ALICES_LIST]),
        account(2, "demo-bob", "bob", Scopes::READ, &[]),
        account(3, "demo-carol", "carol", Scopes::READ_STATUSES, &[]),
        account(4, "demo-dave", "dave", Scopes::READ_NOTIFICATIONS, &[]),
    ]
}

/// A list of alice's.
pub const ALICES_LIST: Id = 1;

/// The id of the account with that number; those of the directory come first, from 1.
pub(super) const fn account_id(number: Id) -> Id {
    115_200_000_000_000_000 + number
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tokens_and_ids_are_distinct() {
        let accounts = directory();
        assert_eq!(accounts.iter().map(|a| a.token).collect::<BTreeSet<_>>().len(), accounts.len());
        assert_eq!(accounts.iter().map(|a| a.token_id).collect::<BTreeSet<_>>().len(), accounts.len());
        assert_eq!(accounts.iter().map(|a| a.account_id).collect::<BTreeSet<_>>().len(), accounts.len());
    }
}
