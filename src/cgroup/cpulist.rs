//! Lists of CPUs and memory nodes, as cpuset files hold them: "0-3,5" (cpuset(7), "List format").

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The kernel knows no more CPUs or nodes than this (CONFIG_NR_CPUS is at most 8,192).
const MOST: u32 = 1 << 16;

/// The longest text that is taken for a list, in bytes: every second of 8,192 CPUs by itself is 20 KiB.
const LONGEST: usize = 64 << 10;

/// A set of CPUs or memory nodes. Its text is the kernel's own: sorted, without duplicates, ranges joined.
///
/// A bit for each, without empty words at the end: however often a list repeats a range, it costs what the range is long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(Vec<u64>);

impl CpuList {
    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self::of(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours & theirs).collect())
    }

    /// What is in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let (long, short) = if self.0.len() < other.0.len() { (other, self) } else { (self, other) };
        let rest = std::iter::repeat_n(&0, long.0.len() - short.0.len());
        Self::of(long.0.iter().zip(short.0.iter().chain(rest)).map(|(ours, theirs)| ours | theirs).collect())
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let theirs = other.0.iter().chain(std::iter::repeat(&0));
        Self::of(self.0.iter().zip(theirs).map(|(ours, theirs)| ours & !theirs).collect())
    }

    fn of(mut words: Vec<u64>) -> Self {
        let used = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        words.truncate(used);
        Self(words)
    }

    /// Adds a range of numbers, word by word.
    fn insert(&mut self, range: &RangeInclusive<u32>) {
        let (first, last) = (*range.start() / 64, *range.end() / 64);
        let needed = last as usize + 1;
        if self.0.len() < needed {
            self.0.resize(needed, 0);
        }
        for (index, word) in (first..=last).zip(self.0.iter_mut().skip(first as usize)) {
            let from = if index == first { range.start() % 64 } else { 0 };
            let to = if index == last { range.end() % 64 } else { 63 };
            *word |= (u64::MAX << from) & (u64::MAX >> (63 - to));
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.0)
            .flat_map(|(index, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit))
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
        if text.len() > LONGEST {
            return Err(format!("longer than {LONGEST} bytes"));
        }
        let mut set = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} runs from high to low"));
            }
            set.insert(&(first..=last));
        }
        Ok(set)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.numbers().peekable();
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
    fn a_list_that_repeats_itself_for_ever_is_cut_short() {
        assert_eq!(list(&"0-65535,".repeat(5000)).to_string(), "0-65535");
        assert!("0-65535,".repeat(9000).parse::<CpuList>().unwrap_err().contains("longer than"));
    }

    #[test]
    fn lists_are_joined_met_and_subtracted() {
        assert_eq!(list("0-3").and(&list("2-5")).to_string(), "2-3");
        assert_eq!(list("0-1").or(&list("1,3")).to_string(), "0-1,3");
        assert_eq!(list("0-3").without(&list("1")).to_string(), "0,2-3");
        assert!(list("0").and(&list("1")).is_empty() && list("64").without(&list("64")).is_empty());
        assert_eq!(list("1").or(&list("64-128")).to_string(), "1,64-128");
        assert_eq!(list("60-70,127").and(&list("64-200")).to_string(), "64-70,127");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<CpuList>();
        }

        #[test]
        fn a_list_is_read_back_as_it_was_written(numbers in proptest::collection::btree_set(0..200_u32, 0..40)) {
            let text = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let list: CpuList = text.parse().unwrap();
            prop_assert_eq!(list.numbers().collect::<std::collections::BTreeSet<u32>>(), numbers);
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }
    }
}
