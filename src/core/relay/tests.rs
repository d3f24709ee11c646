use std::time::Duration;

use super::{millis, since_ms};

#[test]
fn a_moment_later_in_the_turn_is_not_long_ago() {
    let now = Duration::from_millis(5_000);
    assert_eq!(since_ms(4_000, now), 1_000);
    assert_eq!(since_ms(5_001, now), 0, "noted by a write, after the turn's time was taken");
    let much_later = Duration::from_millis(u64::from(u32::MAX) + 10);
    assert_eq!(since_ms(millis(much_later - Duration::from_millis(30)), much_later), 30, "the clock wraps");
}
