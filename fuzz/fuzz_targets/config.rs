//! The configuration file: what is accepted is within its documented bounds, what is not is told in one line.
#![no_main]

use std::time::Duration;

use kata_cgroup_hook::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Config::parse(text) {
        Ok(config) => {
            assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&config.deadline));
            assert!(config.state_dir.is_absolute() && config.runtime_dirs.iter().all(|dir| dir.is_absolute()));
            assert!(config.log_socket.is_none_or(|socket| socket.is_absolute()));
            assert!(config.kinds.of_name("virtiofsd").is_some(), "rows are added and replaced, never taken away");
        }
        Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{why:?}"),
    }
});
