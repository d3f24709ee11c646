//! Rows of PostgreSQL's answers: columns of any type, null or missing, with any bytes in them, are a value or an
//! error; what they become goes on to where it is used.
//!
//! Only what Tidegate does with a row is driven here, with postgres-types' own decoders. How messages of the
//! protocol become rows is tokio-postgres' work.
//!
//! Input: a byte for the statement, then for each column a byte for its type and its value.

use tidegate::core::filter::{Filters, SearchText};
use tidegate::db::feeds::FeedAccess;
use tidegate::db::pool::DbError;
use tidegate::db::preferences::{Preference, read_preference};
use tidegate::db::rows::{Columns, unreadable};
use tidegate::db::{accounts, audience};
use tidegate::limits::FILTER_WORK_MAX;
use tokio_postgres::types::{FromSql, Type};

use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (text, int, flag) = (Type::TEXT, Type::INT8, Type::BOOL);
    let texts = Type::VARCHAR_ARRAY;
    match input.below(6) {
        0 => {
            let row = Row::read(&mut input, &[text, int.clone(), int.clone(), Type::VARCHAR, int]);
            if let Ok((name, token)) = accounts::read_token(&row) {
                assert_eq!(name.as_bytes(), row.bytes(0));
                assert_eq!((token.id, token.account), (row.id(1), row.id(2)));
                assert!(token.expires_at.is_none_or(|at| i64::try_from(at).is_ok()));
            }
        }
        1 => {
            let row = Row::read(&mut input, &[int.clone(), int]);
            if let Ok(list) = accounts::read_list(&row) {
                assert_eq!(list, (row.id(0), row.id(1)));
            }
        }
        2 => {
            let row = Row::read(&mut input, &[int, flag]);
            if let Ok((id, _)) = audience::read_hidden(&row) {
                assert_eq!(id, row.id(0));
            }
        }
        _ => {
            let types = [
                Type::INT4,
                int.clone(),
                texts,
                int.clone(),
                text.clone(),
                Type::INT4,
                text,
                flag,
                int.clone(),
            ];
            let row = Row::read(&mut input, &types);
            let filter = match read_preference(&row) {
                Ok(Preference::Settings(id, _)) => return assert_eq!(id, row.id(1)),
                Ok(Preference::Feed(var, value)) => {
                    let mut feeds = FeedAccess::default();
                    feeds.set(&var, value.as_deref());
                    let is_closed = feeds != FeedAccess::default();
                    assert!(!is_closed || row.bytes(6) == b"--- disabled\n");
                    return;
                }
                Ok(Preference::DomainsReadable(readable)) => {
                    return assert_eq!(readable, row.bytes(7) != [0]);
                }
                Ok(Preference::Keyword(_, filter)) => filter,
                Err(_) => return,
            };
            assert_eq!((filter.title.as_bytes(), filter.keyword.as_bytes()), (row.bytes(4), row.bytes(6)));
            let searched = SearchText::new(format!("a {} b", filter.keyword));
            let is_empty = filter.keyword.is_empty();
            let expires_at = filter.expires_at.unwrap_or_default();
            let mut out = Vec::new();
            let found =
                Filters::compile(&[filter]).apply(&searched, expires_at, &mut { FILTER_WORK_MAX }, &mut out);
            assert_eq!(found, Ok(!is_empty), "a keyword between blanks is found");
            assert!(is_empty || serde_json::from_slice::<serde_json::Value>(&out).is_ok());
        }
    }
}

/// A row as it comes over the wire.
struct Row {
    columns: Vec<(Type, Option<Vec<u8>>)>,
}

impl Columns for Row {
    /// As tokio-postgres does it.
    fn column<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, DbError> {
        let (kind, value) = self.columns.get(at).ok_or_else(|| unreadable("no such column".to_owned()))?;
        if !T::accepts(kind) {
            return Err(unreadable(format!("no {kind}")));
        }
        T::from_sql_nullable(kind, value.as_deref()).map_err(|error| unreadable(error.to_string()))
    }
}

impl Row {
    /// Nearly always columns of these types.
    fn read(input: &mut Input<'_>, types: &[Type]) -> Row {
        let mut columns = Vec::new();
        for expected in types {
            let choice = input.byte();
            let kind = match choice >> 4 {
                15 => input.of(&[0, 1, 2, 3, 4]),
                14 => break,
                _ => 5,
            };
            let kind = [Type::INT4, Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::BYTEA, Type::NAME]
                .get(kind)
                .unwrap_or(expected)
                .clone();
            let value = match choice & 15 {
                0 => None,
                1 | 2 => Some(input.bytes(40).to_vec()),
                _ => Some(value(input, &kind)),
            };
            columns.push((kind, value));
        }
        Row { columns }
    }

    fn bytes(&self, at: usize) -> &[u8] {
        self.columns[at].1.as_deref().unwrap_or_default()
    }

    fn id(&self, at: usize) -> u64 {
        i64::from_be_bytes(self.bytes(at).try_into().expect("eight bytes")).unsigned_abs()
    }
}

/// A value as PostgreSQL would send it, more or less.
fn value(input: &mut Input<'_>, kind: &Type) -> Vec<u8> {
    match *kind {
        Type::INT8 => match input.below(4) {
            0 => i64::MIN.to_be_bytes().to_vec(),
            1 => (253_402_300_800_000 * i64::from(input.byte())).to_be_bytes().to_vec(),
            _ => i64::from(input.byte()).to_be_bytes().to_vec(),
        },
        Type::INT4 => i32::from(input.byte() % 5).to_be_bytes().to_vec(),
        Type::BOOL => vec![input.byte() & 1],
        Type::VARCHAR_ARRAY | Type::TEXT_ARRAY | Type::INT8_ARRAY => array(input),
        _ => match input.below(8) {
            0 => b"--- disabled\n".to_vec(),
            1 => b"local_live_feed_access".to_vec(),
            2 => b"read read:statuses".to_vec(),
            3 => input.bytes(20).to_vec(),
            _ => input.text(40).into_bytes(),
        },
    }
}

/// Dimensions, whether there are nulls, the elements' type; each dimension's length and first index; elements.
fn array(input: &mut Input<'_>) -> Vec<u8> {
    let count = input.below(4);
    let mut out = Vec::new();
    let lie = input.byte();
    let number = |honest: i32, lie: bool| if lie { i32::MAX - honest } else { honest }.to_be_bytes();
    out.extend([1, 1, 1, 1, 1, 1, 0, 2].map(i32::to_be_bytes)[usize::from(lie & 7)]);
    out.extend(number(1, lie & 8 != 0));
    out.extend(25i32.to_be_bytes());
    out.extend(number(count as i32, lie & 0x30 == 0x30));
    out.extend(number(1, lie & 0xc0 == 0xc0));
    for _ in 0..count {
        match input.below(5) {
            0 => out.extend((-1i32).to_be_bytes()),
            1 => out.extend(input.bytes(12)),
            _ => {
                let element = input.text(10);
                out.extend((element.len() as i32).to_be_bytes());
                out.extend(element.as_bytes());
            }
        }
    }
    out
}
