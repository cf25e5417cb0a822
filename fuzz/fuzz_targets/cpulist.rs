//! Lists of CPUs: a printed list read again is the same, and the sets do as sets do. One list a line.
#![no_main]

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
        assert_eq!(numbers(&one.and(other)), each(&ours, &theirs, |ours, theirs| ours && theirs));
        assert_eq!(numbers(&one.or(other)), each(&ours, &theirs, |ours, theirs| ours || theirs));
        assert_eq!(numbers(&one.without(other)), each(&ours, &theirs, |ours, theirs| ours && !theirs));
        assert_eq!(one.or(other), other.or(one));
        assert_eq!(one == other, ours == theirs, "equal sets are equal lists");
    }
});

/// Of each number that a list can hold whether it does, by its text.
fn numbers(list: &CpuList) -> Vec<bool> {
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let mut held = vec![false; 1 << 16];
    let text = list.to_string();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        held[number(first)..=number(last)].fill(true);
    }
    held
}

fn each(ours: &[bool], theirs: &[bool], of: impl Fn(bool, bool) -> bool) -> Vec<bool> {
    ours.iter().zip(theirs).map(|(ours, theirs)| of(*ours, *theirs)).collect()
}
