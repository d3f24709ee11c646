//! What a message carries for its reader: its number, and when it was published.
//!
//! Both are digits of fixed length, so that they are found in any frame and written anew in place. The time is of one
//! clock for all processes of the bench: the wall clock when a process began, and from then on a steady one.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Numbers begin here: with 18 digits, the first nine of which mark them.
pub const BASE: u64 = 777_000_000_000_000_000;
const MARK: &[u8] = b"777000000";
const NUMBER_DIGITS: usize = 18;

/// Nanoseconds since 1970 have 19 digits until the year 2286.
const TIME_DIGITS: usize = 19;

/// Members of a JSON object that hold a number and a time, to be overwritten.
pub fn members() -> String {
    format!("\"id\":\"{BASE}\",\"sent\":\"{}\",", "1".repeat(TIME_DIGITS))
}

/// The time.
pub fn now_ns() -> u64 {
    static BEGAN: LazyLock<(u64, Instant)> = LazyLock::new(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (wall.as_nanos() as u64, Instant::now())
    });
    let (wall_ns, began) = &*BEGAN;
    wall_ns + began.elapsed().as_nanos() as u64
}

/// A message or frame with a place for both.
#[derive(Clone)]
pub struct Stamped {
    bytes: Vec<u8>,
    number_at: usize,
    time_at: usize,
}

impl Stamped {
    pub fn new(bytes: Vec<u8>) -> Stamped {
        let (number_at, time_at) = places(&bytes).expect("a number and a time");
        Stamped { bytes, number_at, time_at }
    }

    /// The bytes with this number and time.
    pub fn with(&mut self, number: u64, sent_ns: u64) -> &[u8] {
        digits(&mut self.bytes[self.number_at..self.number_at + NUMBER_DIGITS], number);
        digits(&mut self.bytes[self.time_at..self.time_at + TIME_DIGITS], sent_ns);
        &self.bytes
    }
}

/// A message's number and time.
pub fn read(body: &[u8]) -> Option<(u64, u64)> {
    let (number_at, time_at) = places(body)?;
    let parse = |at: usize, digits: usize| std::str::from_utf8(body.get(at..at + digits)?).ok()?.parse().ok();
    Some((parse(number_at, NUMBER_DIGITS)?, parse(time_at, TIME_DIGITS)?))
}

/// Where they stand; the text between them depends on how quotes are written.
fn places(bytes: &[u8]) -> Option<(usize, usize)> {
    let number_at = memchr::memmem::find(&bytes[..bytes.len().min(400)], MARK)?;
    let end = number_at + NUMBER_DIGITS;
    let between = bytes.get(end..end + 24)?.iter().position(u8::is_ascii_digit)?;
    Some((number_at, end + between))
}

fn digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}
