//! How many old points of a replica are kept, and for how long.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most points that a replica keeps: each is one more image that qemu and libvirt go through at a start.
pub const MOST_POINTS: usize = 32;

const HOUR: u64 = 3600;
/// The units of an age.
const UNITS: [(char, u64); 3] = [('h', HOUR), ('d', 24 * HOUR), ('w', 7 * 24 * HOUR)];

/// What becomes of the old points of a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safety {
    /// `--safety-snapshot`: the point before this sync is kept.
    pub keep: bool,
    /// Which of the kept points stay.
    pub retention: Retention,
}

/// Which kept points stay: those that break neither limit. Where there is no limit, all stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// So many, the newest.
    pub count: Option<u32>,
    /// None that is older, in seconds.
    pub age: Option<u64>,
}

impl Retention {
    /// How many points stay, given the age of each in seconds, the newest first. One whose age is not known counts as young.
    ///
    /// Points go from the oldest on: one that stands between two that stay, stays.
    #[must_use]
    pub fn kept(&self, ages: &[Option<u64>]) -> usize {
        let counted = self.count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
        let is_young = |age: &Option<u64>| age.is_none_or(|age| self.age.is_none_or(|most| age <= most));
        let young = ages.iter().rposition(is_young).map_or(0, |last| last + 1);
        young.min(counted)
    }
}

impl FromStr for Retention {
    type Err = Error;

    /// `all`, a count (`7`), an age (`36h`, `14d`, `8w`), or both (`7,14d`).
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::validation(format!("{text:?} does not say which points are kept"))
                .help(format!("Write a count up to {MOST_POINTS} (7), an age (36h, 14d, 8w), both (7,14d), or all"))
        };
        let mut retention = Self::default();
        if text == "all" {
            return Ok(retention);
        }
        for part in text.split(',').map(str::trim) {
            match (limit(part).ok_or_else(refuse)?, retention) {
                (Limit::Count(count), Self { count: None, .. }) => retention.count = Some(count),
                (Limit::Age(age), Self { age: None, .. }) => retention.age = Some(age),
                _ => return Err(refuse()),
            }
        }
        Ok(retention)
    }
}

enum Limit {
    Count(u32),
    Age(u64),
}

fn limit(text: &str) -> Option<Limit> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let unit = UNITS.iter().find_map(|(letter, seconds)| Some((text.strip_suffix(*letter)?, *seconds)));
    match unit {
        None => number(text).filter(|count| *count as usize <= MOST_POINTS).map(Limit::Count),
        Some((count, seconds)) => {
            number(count).filter(|count| *count > 0).map(|count| Limit::Age(u64::from(count) * seconds))
        }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = |seconds: u64| {
            let fits = UNITS.iter().rev().find(|(_, unit)| seconds.is_multiple_of(*unit));
            fits.map_or_else(
                || format!("{}h", seconds.div_ceil(HOUR)),
                |(letter, unit)| format!("{}{letter}", seconds / unit),
            )
        };
        match (self.count, self.age) {
            (None, None) => f.write_str("all"),
            (Some(count), None) => count.fmt(f),
            (None, Some(seconds)) => f.write_str(&age(seconds)),
            (Some(count), Some(seconds)) => write!(f, "{count},{}", age(seconds)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Retention> {
        text.parse()
    }

    #[test]
    fn it_is_read_and_written_as_people_say_it() {
        for (text, count, age) in [
            ("all", None, None),
            ("0", Some(0), None),
            ("7", Some(7), None),
            ("36h", None, Some(36 * 3600)),
            ("15d", None, Some(15 * 86_400)),
            ("8w", None, Some(56 * 86_400)),
            ("32,15d", Some(32), Some(15 * 86_400)),
        ] {
            let retention = parse(text).unwrap();
            assert_eq!((retention.count, retention.age), (count, age), "{text}");
            assert_eq!(retention.to_string(), text);
        }
        assert_eq!(parse("14d, 7").unwrap().to_string(), "7,2w");
        for text in ["", ",", "7,8", "1d,2d", "-1", "33", "0d", "1y", "d", "7,", "7 14d", "99999999999d", "ALL"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn points_go_by_count_and_by_age() {
        let ages = [Some(10), Some(7200), None, Some(90_000)];
        for (text, kept) in
            [("all", 4), ("2", 2), ("0", 0), ("9", 4), ("25h", 4), ("24h", 3), ("1h,2", 2), ("24h,1", 1)]
        {
            assert_eq!(parse(text).unwrap().kept(&ages), kept, "{text}");
        }
        assert_eq!(parse("1h").unwrap().kept(&[Some(3600), Some(3601)]), 1);
        assert_eq!(parse("1h").unwrap().kept(&[]), 0);
    }

    proptest! {
        #[test]
        fn what_goes_is_old_or_too_many_and_what_stays_is_neither(
            count in prop::option::of(0u32..8), age in prop::option::of(0u64..20), mut ages in prop::collection::vec(0u64..30, 0..8),
        ) {
            ages.sort_unstable();
            let retention = Retention { count, age };
            let kept = retention.kept(&ages.iter().copied().map(Some).collect::<Vec<_>>());
            prop_assert!(kept <= ages.len());
            for (index, old) in ages.iter().enumerate() {
                let stays = count.is_none_or(|count| index < count as usize) && age.is_none_or(|age| *old <= age);
                prop_assert_eq!(index < kept, stays);
            }
        }

        #[test]
        fn what_is_written_is_read_back(count in prop::option::of(0u32..33), hours in prop::option::of(1u64..9999)) {
            let retention = Retention { count, age: hours.map(|hours| hours * 3600) };
            prop_assert_eq!(parse(&retention.to_string()).unwrap(), retention);
        }
    }
}
