//! Lists of CPUs and memory nodes, as cpuset files hold them: "0-3,5" (cpuset(7), "List format").

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The kernel knows no more CPUs or nodes than this (CONFIG_NR_CPUS is at most 8,192).
const MOST: u32 = 1 << 16;

/// A set of CPUs or memory nodes. Its text is the kernel's own: sorted, without duplicates, ranges joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

impl CpuList {
    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// What is in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromStr for CpuList {
    type Err = String;

    /// Parses a list; blanks and empty parts are allowed as engines leave them, anything else is not.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| match digits.parse::<u32>() {
            Ok(number) if number < MOST && digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(format!("{digits:?} is no number below {MOST}")),
        };
        let mut set = BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} runs backwards"));
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn what_kata_1_9_concatenated_is_normalised() {
        for (text, normal) in [("0,1", "0-1"), ("0-3,5,", "0-3,5"), ("5,0-3,2-4,", "0-5"), (" 1 ,, 2\n", "1-2"), ("", "")] {
            assert_eq!(list(text).to_string(), normal, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["a", "1-", "-1", "3-1", "1-2-3", "+1", "65536", "99999999999", "0x1", "1 2"] {
            assert!(text.parse::<CpuList>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn lists_are_joined_met_and_subtracted() {
        assert_eq!(list("0-3").and(&list("2-5")).to_string(), "2-3");
        assert_eq!(list("0-1").or(&list("1,3")).to_string(), "0-1,3");
        assert_eq!(list("0-3").without(&list("1")).to_string(), "0,2-3");
        assert!(list("0").and(&list("1")).is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<CpuList>();
        }

        #[test]
        fn a_list_is_read_back_as_it_was_written(numbers in proptest::collection::btree_set(0..200_u32, 0..40)) {
            let list = CpuList(numbers);
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }
    }
}
