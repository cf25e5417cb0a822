//! Lists of CPUs: a printed list read again is the same, and the sets do as sets do. One list a line.
#![no_main]

use std::collections::BTreeSet;

use kata_cgroup_hook::cgroup::cpulist::CpuList;
use kata_cgroup_hook::cgroup::settings::is_same;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let lists: Vec<CpuList> = text.split('\n').take(3).filter_map(|line| line.parse().ok()).collect();
    for list in &lists {
        let printed = list.to_string();
        assert_eq!(printed.parse::<CpuList>().as_ref(), Ok(list));
        assert_eq!(list.is_empty(), printed.is_empty());
        assert!(printed.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte)));
        assert!(is_same(&printed, &printed));
    }
    if let [one, other, ..] = lists.as_slice() {
        let (ours, theirs) = (numbers(one), numbers(other));
        assert_eq!(numbers(&one.and(other)), &ours & &theirs);
        assert_eq!(numbers(&one.or(other)), &ours | &theirs);
        assert_eq!(numbers(&one.without(other)), &ours - &theirs);
        assert_eq!(one.or(other), other.or(one));
        assert_eq!(one == other, ours == theirs, "equal sets are equal lists");
    }
});

/// The numbers of a list, by its text.
fn numbers(list: &CpuList) -> BTreeSet<u32> {
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first)..=number(last)
    };
    list.to_string().split(',').filter(|part| !part.is_empty()).flat_map(range).collect()
}
