//! Rows of PostgreSQL's answers, read column by column.
//!
//! Nothing about a row is taken on trust: a column that is missing, null or of another type than Mastodon's is
//! an error of the statement, as are bytes that are no value of its type. Fuzzed (target `pg_rows`), which is
//! why the rows are a trait.

use std::error::Error;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Kind, Type};

use super::pool::DbError;

/// A row whose columns can be read.
pub trait Columns {
    /// The column at that place, from 0.
    ///
    /// # Errors
    /// When it is not there, or is no such value.
    fn column<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, DbError>;
}

impl Columns for Row {
    fn column<'a, T: FromSql<'a>>(&'a self, at: usize) -> Result<T, DbError> {
        self.try_get(at).map_err(|error| unreadable(error.to_string()))
    }
}

/// A column of another type than Mastodon's.
pub fn unreadable(cause: String) -> DbError {
    DbError::statement(&cause)
}

/// An array of text; its entries that are null are left out.
///
/// The usual reader of arrays reserves memory for as many entries as the array claims to have, so that one
/// false number ends the process. Here memory grows with the bytes that are there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Texts(pub Vec<String>);

impl<'a> FromSql<'a> for Texts {
    /// PostgreSQL's `array_send`: dimensions, a flag, the entries' type; for each dimension its length and
    /// first index; each entry with its length in front, -1 for null. All numbers have four bytes.
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Texts, Box<dyn Error + Sync + Send>> {
        let Kind::Array(of) = kind.kind() else { return Err("not an array".into()) };
        let mut rest = raw;
        let mut number = || -> Result<i32, Box<dyn Error + Sync + Send>> {
            let (number, after) = rest.split_first_chunk::<4>().ok_or("an array breaks off in its head")?;
            rest = after;
            Ok(i32::from_be_bytes(*number))
        };
        let (dimensions, _has_nulls, _type) = (number()?, number()?, number()?);
        let count = match dimensions {
            0 => 0,
            1 => {
                let count = number()?;
                number()?;
                count
            }
            _ => return Err("an array of arrays, or none".into()),
        };
        let mut texts = Vec::new();
        for _ in 0..count {
            let (length, after) = rest.split_first_chunk::<4>().ok_or("an array has too few entries")?;
            rest = after;
            // Negative for null.
            if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
                let (text, after) = rest.split_at_checked(length).ok_or("an entry breaks off")?;
                rest = after;
                texts.push(<&str>::from_sql(of, text)?.to_owned());
            }
        }
        if rest.is_empty() && count >= 0 {
            Ok(Texts(texts))
        } else {
            Err("an array has too many entries".into())
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(kind.kind(), Kind::Array(of) if <&str>::accepts(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An array's head that claims `count` entries of text, and what follows.
    fn array(dimensions: i32, count: i32, entries: &[u8]) -> Vec<u8> {
        let head: Vec<u8> =
            [dimensions, 0, 25, count, 1].iter().flat_map(|number| number.to_be_bytes()).collect();
        [&head[..], entries].concat()
    }

    fn read(raw: &[u8]) -> Option<Vec<String>> {
        Texts::from_sql(&Type::TEXT_ARRAY, raw).ok().map(|texts| texts.0)
    }

    #[test]
    fn arrays_of_text() {
        assert_eq!(read(&[0; 12]), Some(vec![]));
        assert_eq!(read(&array(1, 0, b"")), Some(vec![]));
        let entries = b"\0\0\0\x02de\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(read(&array(1, 3, entries)), Some(vec!["de".to_owned(), String::new()]));
        assert!(Texts::accepts(&Type::VARCHAR_ARRAY) && !Texts::accepts(&Type::INT8_ARRAY));
    }

    /// Found by the fuzz target `pg_rows`: the process ended for want of 48 GiB.
    #[test]
    fn an_array_that_claims_billions_of_entries_is_an_error() {
        assert_eq!(read(&array(1, i32::MAX, b"\0\0\0\x02de")), None);
        assert_eq!(read(&array(i32::MAX, 1, b"\0\0\0\x02de")), None);
        assert_eq!(read(&array(1, -1, b"")), None);
        assert_eq!(read(&array(1, 1, b"\x7f\xff\xff\xffde")), None);
        assert_eq!(read(&array(1, 1, b"\0\0\0\x02dexx")), None);
        assert_eq!(read(&array(1, 1, b"\0\0\0\x01\xff")), None);
        assert_eq!(read(b"\0\0\0"), None);
    }
}
