//! As much of a kubelet as it takes to run a pod: the calls of the CRI that make and end one (runtime.v1; api.proto of
//! k8s.io/cri-api).
//!
//! gRPC is HTTP/2 and protobuf. What is needed of them here, one call a connection, is less than any crate for them: headers that
//! are spelt out, one message each way, and fields that are numbers or bytes (RFC 9113, RFC 7541 section 6.2.2,
//! protobuf.dev/programming-guides/encoding).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Of DATA and HEADERS; of SETTINGS and PING the same bit means that it is an answer.
const LAST: u8 = 1;
const END_HEADERS: u8 = 4;

/// NamespaceMode: the node's own network needs no plugin.
const NODE: u64 = 2;

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u8, value: u64) -> Message {
        self.0.push(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u8, value: impl AsRef<[u8]>) -> Message {
        self.0.push(field << 3 | 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend(value.as_ref());
        self
    }

    fn message(self, field: u8, value: Message) -> Message {
        self.bytes(field, value.0)
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

/// The text in field 1, which is all that any answer here holds; ids are shorter than 128 bytes.
fn first_text(message: &[u8]) -> String {
    let [10, length, text @ ..] = message else { panic!("no text in field 1: {message:?}") };
    String::from_utf8(text[..usize::from(*length)].to_vec()).unwrap()
}

/// Where an engine listens.
pub(crate) struct Cri {
    pub socket: PathBuf,
}

/// A pod that runs.
pub(crate) struct Pod<'c> {
    cri: &'c Cri,
    pub id: String,
    parent: String,
}

impl Cri {
    pub(crate) fn is_ready(&self) -> bool {
        self.call("Version", Message::default()).is_ok()
    }

    /// RunPodSandbox with the runtime of this name, in the pod's group.
    pub(crate) fn run_pod(&self, handler: &str, parent: &str) -> Pod<'_> {
        let request = Message::default().message(1, pod_config(parent)).bytes(2, handler);
        let id = first_text(&self.must("RunPodSandbox", request));
        Pod { cri: self, id, parent: parent.to_owned() }
    }

    #[track_caller]
    fn must(&self, method: &str, request: Message) -> Vec<u8> {
        self.call(method, request).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// One call; an error where no message came back. Why, the engine's log says better than compressed headers.
    fn call(&self, method: &str, request: Message) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut headers = Vec::new();
        let path = format!("/runtime.v1.RuntimeService/{method}");
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", &*path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            headers.push(0); // A literal that is not to be remembered.
            for text in [name, value] {
                headers.push(u8::try_from(text.len()).unwrap());
                headers.extend(text.bytes());
            }
        }
        // Not compressed, and its length.
        let mut data = vec![0];
        data.extend(u32::try_from(request.0.len()).unwrap().to_be_bytes());
        data.extend(request.0);
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        for (stream_id, kind, flags, payload) in
            [(0, SETTINGS, 0, &[][..]), (1, HEADERS, END_HEADERS, &headers), (1, DATA, LAST, &data)]
        {
            stream.write_all(&frame(stream_id, kind, flags, payload))?;
        }
        read_answer(&mut stream)
    }
}

fn frame(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn read_answer(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & LAST == 0 => stream.write_all(&frame(0, SETTINGS, LAST, &[]))?,
            PING if flags & LAST == 0 => stream.write_all(&frame(0, PING, LAST, &payload))?,
            DATA => answer.extend(payload),
            HEADERS if flags & LAST != 0 => break,
            RESET | GOAWAY => break,
            _ => {}
        }
    }
    match answer.get(5..) {
        Some(message) => Ok(message.to_vec()),
        None => Err(io::Error::other("it failed")),
    }
}

/// PodSandboxConfig.
fn pod_config(parent: &str) -> Message {
    let metadata = Message::default().bytes(1, "pod").bytes(2, "uid").bytes(3, "default");
    let linux = Message::default().bytes(1, parent).message(2, security());
    Message::default().message(1, metadata).message(8, linux)
}

/// LinuxSandboxSecurityContext.
fn security() -> Message {
    Message::default().message(1, Message::default().number(1, NODE))
}

impl Pod<'_> {
    /// CreateContainer and StartContainer, with a limit in µs of each 100,000; its id.
    pub(crate) fn start(&self, name: &str, image: &str, quota: u64) -> String {
        let resources = Message::default().number(1, 100_000).number(2, quota).number(3, 512);
        let security = Message::default().message(3, Message::default().number(1, NODE));
        let config = Message::default()
            .message(1, Message::default().bytes(1, name))
            .message(2, Message::default().bytes(1, image))
            .bytes(3, "/bin/sleep")
            .bytes(4, "1000")
            .message(15, Message::default().message(1, resources).message(2, security));
        let request = Message::default().bytes(1, &self.id).message(2, config).message(3, pod_config(&self.parent));
        let id = first_text(&self.cri.must("CreateContainer", request));
        self.cri.must("StartContainer", Message::default().bytes(1, &id));
        id
    }

    pub(crate) fn stop(&self, container: &str) {
        for method in ["StopContainer", "RemoveContainer"] {
            self.cri.must(method, Message::default().bytes(1, container));
        }
    }

    pub(crate) fn end(self) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            self.cri.must(method, Message::default().bytes(1, &self.id));
        }
    }
}
