//! Finding the VM: by each of the files a runtime writes, by the state's pid, by the shim; and never by looking around.

use std::fs;

use crate::testenv::*;

#[test]
fn by_the_pid_file_alone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    env.hook("poststart").state(env.bundle().state(0)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_persist_json_alone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    fs::remove_file(sandbox.runtime_dir("vm").join("pid")).unwrap();
    env.hook("poststart").state(env.bundle().state(0)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_persist_json_where_the_vm_has_no_directory_of_its_own() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    fs::remove_dir_all(sandbox.runtime_dir("vm")).unwrap();
    env.hook("poststart").state(env.bundle().state(0)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_the_state_json_of_runtime_rs() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().layout(Layout::RuntimeRs).virtiofsd().start();
    let state = env.bundle().state_of_runtime_rs("creating", 0);
    env.hook("createContainer").state(state).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_the_states_pid_where_no_file_names_it_yet() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().layout(Layout::Unnamed).start();
    env.hook("prestart").state(env.bundle().state(sandbox.pid)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_the_files_where_the_states_pid_is_nonsense() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let somebody = Process::sleeping();
    for pid in [0, -1, 1, i32::MAX, somebody.pid(), sandbox.vcpus()[&0]] {
        env.hook("prestart").state(bundle.state(pid)).run().succeeded().logged("placed");
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
    }
}

#[test]
fn by_the_shim_that_is_the_hooks_own_parent() {
    let Some(env) = Env::new() else { return };
    env.configure(&env.shim_row());
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().layout(Layout::Unnamed).start_in(&mut shim);
    let hook = env.hook("prestart").state(env.bundle().state(0));
    shim.run_hook(&hook).succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn by_a_thread_of_the_shim_that_is_not_its_first() {
    // Every Go Kata gives a thread id of its shim at poststart and poststop.
    let Some(env) = Env::new() else { return };
    let (mut shim, row) = env.threaded_shim(&env.name, "find::told_to_this_program_is_a_shim");
    env.configure(&row);
    let sandbox = env.sandbox().layout(Layout::Unnamed).start_in(&mut shim);
    assert_ne!(shim.thread, shim.pid());
    env.hook("poststart").state(env.bundle().state(shim.thread)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn told_to_this_program_is_a_shim() {
    be_a_shim();
}

#[test]
fn another_sandboxs_vm_under_the_same_shim_is_not_taken_for_it() {
    let Some(env) = Env::new() else { return };
    env.configure(&env.shim_row());
    let mut shim = env.shim(&env.name);
    let _other = env.sandbox().id("other").layout(Layout::Unnamed).start_in(&mut shim);
    env.make_runtime_dir("vm", &env.name);
    let hook = env.hook("prestart").state(env.bundle().state(0));
    let before = env.dump();
    let run = shim.run_hook(&hook).succeeded();
    assert!(["not-yet", "refused"].contains(&run.only_log_line().get("result")), "{run:#?}");
    before.assert_same(&env.dump(), "it is another sandbox's");
}

#[test]
fn by_the_directory_that_a_template_links_to() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().layout(Layout::Template).start();
    assert_ne!(sandbox.id, sandbox.vm_id);
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    env.hook("prestart").state(env.bundle().state(0)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_half_written_file_is_no_obstacle_where_another_names_the_vm() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    write_file(&sandbox.runtime_dir("sbs").join("persist.json"), 0o600, "{\"HypervisorState\":{\"Pid\":");
    env.hook("poststart").state(env.bundle().state(0)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn what_may_name_a_helper_and_does_not_count_is_told_though_the_vmm_is_found() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let file = sandbox.runtime_dir("sbs").join("persist.json");
    let poststart = || env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    set_mode(&file, 0o602);
    let run = poststart();
    let line = run.logged("partial");
    assert!(line.priority == 28 && line.get("msg").contains("persist.json can be written by others"), "{line:?}");
    sandbox.assert_vcpus_in(&env.group());
    // One that names somebody else in a helper's place is told as well.
    set_mode(&file, 0o600);
    let stranger = Process::sleeping();
    sandbox.write_persist_json(Some(stranger.pid()));
    let run = poststart();
    assert!(run.only_log_line().get("msg").contains(&format!("process {} named by", stranger.pid())), "{run:#?}");
    sandbox.write_persist_json(sandbox.virtiofsd_pid);
    assert_eq!(poststart().logged("placed").get("msg"), "-");
    sandbox.assert_placed(&env.group());
}

#[test]
fn nobody_elses_proc_entries_are_ever_looked_at() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let strace = Strace::inject(&env, &[]);
    let hook = env.hook("poststart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    let run = hook.run().succeeded();
    run.logged("placed");
    let own: Vec<String> =
        sandbox.processes().iter().map(i32::to_string).chain([run.only_log_line().pid.to_string()]).collect();
    let parent = nix::unistd::getpid().to_string();
    for line in strace.trace().lines().filter(|line| line.contains("open")) {
        for (at, _) in line.match_indices("\"/proc") {
            let entry = line[at + 6..].split('"').next().unwrap();
            assert!(!entry.is_empty() && entry != "/", "all of /proc is listed: {line}");
            let pid = entry.trim_start_matches('/').split('/').next().unwrap();
            let threads: Vec<String> =
                sandbox.processes().iter().flat_map(|pid| threads_of(*pid)).map(|thread| thread.tid.to_string()).collect();
            let known =
                own.contains(&pid.to_owned()) || threads.contains(&pid.to_owned()) || pid == parent || is_parent_strace(pid);
            assert!(!pid.starts_with(|digit: char| digit.is_ascii_digit()) || pid == "1" || known, "{line}");
        }
    }
}

/// Under strace, strace is the hook's parent, and may be asked whether it is a shim; it is gone by now.
fn is_parent_strace(pid: &str) -> bool {
    start_time(pid.parse().unwrap_or(0)).is_none()
}

#[test]
fn for_what_is_no_vm_sandbox_neither_proc_nor_the_bundle_is_opened() {
    let Some(env) = Env::new() else { return };
    let bundle = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c1");
    let strace = Strace::inject(&env, &[]);
    env.hook("createRuntime").state(bundle.state(1)).under(strace.wrapper()).run().was_silent();
    let trace = strace.trace();
    assert!(trace.contains("config.toml"), "strace sees what is opened: {trace}");
    assert!(!trace.contains(&bundle.dir.join("config.json").display().to_string()), "{trace}");
    assert!(!trace.lines().any(|line| line.contains("\"/proc") && !line.contains("\"/proc/self/")), "{trace}");
}

/// On a file system of a tenant's own it is he who would have to answer, and who may never do so.
#[test]
fn whoever_serves_an_executable_is_not_asked_which_file_it_is() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let calls = calls_of(&env, env.hook("createRuntime").state(env.bundle().state(sandbox.pid)));
    sandbox.assert_placed(&env.group());
    let looks = |name: &str| calls.iter().filter(|call| call.name == name && call.line.contains("\"exe\"")).collect::<Vec<_>>();
    let (asked, unasked) = (looks("newfstatat"), looks("statx"));
    assert!(asked.is_empty(), "{asked:#?}", asked = asked.iter().map(|call| &call.line).collect::<Vec<_>>());
    assert!(unasked.len() >= 2 && unasked.iter().all(|call| call.line.contains("AT_STATX_DONT_SYNC")));
}
