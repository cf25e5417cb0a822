//! QEMU's own word on its vCPUs: the oracle that the hook, whose runtime holds this one connection, never has.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// `None` while nobody listens there.
    pub(crate) fn connect(path: &Path) -> Option<Qmp> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        qmp.read(); // the greeting
        qmp.execute("qmp_capabilities", &json!({}));
        Some(qmp)
    }

    /// What a command returns; events that come first are passed over, and a second greeting, which a QEMU may send that has been
    /// connected to while it starts.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        loop {
            let mut answer = self.read();
            if answer.get("event").or(answer.get("QMP")).is_none() {
                assert!(answer.get("return").is_some(), "{request}: {answer}");
                return answer["return"].take();
            }
        }
    }

    /// The thread of each vCPU.
    pub(crate) fn vcpus(&mut self) -> BTreeMap<u64, i32> {
        let answer = self.execute("query-cpus-fast", &json!({}));
        let cpus = answer.as_array().unwrap().iter();
        cpus.map(|cpu| (cpu["cpu-index"].as_u64().unwrap(), cpu["thread-id"].as_i64().unwrap().try_into().unwrap())).collect()
    }

    /// Adds the third CPU, as Kata does for a container that asks for more.
    pub(crate) fn plug_cpu_2(&mut self) {
        let cpu = json!({ "driver": "qemu64-x86_64-cpu", "id": "cpu2", "socket-id": 0, "core-id": 2, "thread-id": 0 });
        self.execute("device_add", &cpu);
    }

    /// Takes the third CPU out again: its thread ends, its KVM descriptor stays behind ("parked"). KVM knows the thread of a vCPU
    /// only once it has run.
    pub(crate) fn unplug_cpu_2(&mut self) {
        let thread = self.vcpus()[&2];
        super::wait_until("CPU 2 to run", || {
            fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap().contains(" 0xae80 ")
        });
        self.execute("device_del", &json!({ "id": "cpu2" }));
        super::wait_until("the guest to let go of CPU 2", || self.vcpus().len() == 2);
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QMP said {line:?}: {error}"))
    }
}
