//! The table of kinds: which executables are VMMs, their helpers, or shims, and how each shows whom it works for.
//!
//! Adding a kind is adding a row, here or in the configuration. The rows are checked against kata-containers at 3.x:
//! src/runtime/virtcontainers/{qemu,clh,fc,stratovirt}.go and src/dragonball.

use std::path::Path;

use serde::Deserialize;

/// What a process of a kind is to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It runs the guest: its vCPU threads are what the pod's CPU limits are for.
    Vmm,
    /// It serves the VMM: a file system daemon.
    Helper,
    /// It is the container runtime's own process: never placed, but its children may be.
    Shim,
}

/// Which of its arguments names the sandbox (or the VM, where a template gave it another id).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// `-name sandbox-ID[,…]`, or `-pidfile` within the sandbox's runtime directory: QEMU, StratoVirt.
    Name,
    /// `--api-socket` within the sandbox's runtime directory: Cloud Hypervisor.
    ApiSocket,
    /// `--id ID`, which Kata cuts to 32 characters, or `--api-sock` within the runtime directory: Firecracker.
    Id,
    /// `-id ID`: the shims.
    ShimId,
    /// Nothing: helpers are known by who started them or by a file of root's.
    Nobody,
    /// Any argument that is the id, `sandbox-ID`, or a path within the runtime directory: rows of the configuration.
    Anything,
}

/// A thread name with the vCPU's decimal index in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    after: String,
}

impl Pattern {
    /// A pattern from text with exactly one `*`; `None` if it has none or more.
    pub fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.split_once('*')?;
        (!after.contains('*')).then(|| Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// The index in `name`, if `name` is of this pattern.
    pub fn index_in(&self, name: &[u8]) -> Option<u32> {
        let digits = name.strip_prefix(self.before.as_bytes())?.strip_suffix(self.after.as_bytes())?;
        // parse() would take a sign as well.
        if digits.iter().all(u8::is_ascii_digit) { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Its name in logs: "qemu".
    pub name: String,
    pub role: Role,
    /// Absolute paths or bare file names.
    pub executables: Vec<String>,
    /// How its vCPU threads are called, if they are.
    pub vcpu_threads: Vec<Pattern>,
    pub named_by: NamedBy,
}

impl Kind {
    /// Whether `path` is one of its executables.
    pub fn runs(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        self.executables.iter().any(|executable| Path::new(executable) == path || Some(executable.as_str()) == name)
    }

    /// Whether `arguments` name the sandbox whose VM has the id `vm` and one of the runtime directories `dirs`.
    pub fn names(&self, arguments: &[Vec<u8>], vm: &str, dirs: &[&Path]) -> bool {
        let value_of = |option: &'static str| value_of(arguments, option);
        let within = |value: &[u8]| is_within(value, dirs);
        match self.named_by {
            NamedBy::Name => value_of("-name").any(|name| is_guest_name(name, vm)) || value_of("-pidfile").any(within),
            NamedBy::ApiSocket => value_of("--api-socket").any(within),
            NamedBy::Id => {
                let is_id = |id: &[u8]| id == vm.as_bytes() || Some(id) == vm.as_bytes().get(..32);
                value_of("--id").any(is_id) || value_of("--api-sock").any(within)
            }
            NamedBy::ShimId => value_of("-id").any(|id| id == vm.as_bytes()),
            NamedBy::Nobody => true,
            NamedBy::Anything => arguments.iter().any(|argument| is_guest_name(argument, vm) || within(argument)),
        }
    }
}

/// The values of `option` among `arguments`: the argument after it, or what follows its `=`.
fn value_of<'a>(arguments: &'a [Vec<u8>], option: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    let after = pairs.filter(move |(name, _)| *name == option.as_bytes()).map(|(_, value)| value.as_slice());
    let joined = arguments.iter().filter_map(move |argument| argument.strip_prefix(option.as_bytes())?.strip_prefix(b"="));
    after.chain(joined)
}

/// `ID`, `sandbox-ID`, or either with a comma and more behind it.
fn is_guest_name(value: &[u8], vm: &str) -> bool {
    let name = value.split(|byte| *byte == b',').next().unwrap_or_default();
    let name = name.strip_prefix(b"guest=").unwrap_or(name);
    name.strip_prefix(b"sandbox-").unwrap_or(name) == vm.as_bytes()
}

/// A path below one of `dirs`, a `key=` before it allowed; `..` in it is no way out.
fn is_within(value: &[u8], dirs: &[&Path]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let path = Path::new(text.split_once("=/").map_or(text, |(key, _)| &text[key.len() + 1..]));
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    !climbs && dirs.iter().any(|dir| path.starts_with(dir) && path != *dir)
}

/// The table.
#[derive(Debug, Clone)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Adds a row, in the place of the one of that name if there is one.
    pub fn add(&mut self, kind: Kind) {
        self.0.retain(|known| known.name != kind.name);
        self.0.push(kind);
    }

    /// The row of that name.
    pub fn of_name(&self, name: &str) -> Option<&Kind> {
        self.0.iter().find(|kind| kind.name == name)
    }

    /// Whether a VMM of `kind` lives within the runtime's shim, so that its executable alone does not tell it from one.
    pub fn is_shim_too(&self, kind: &Kind) -> bool {
        let shims = self.0.iter().filter(|other| other.role == Role::Shim);
        kind.role == Role::Vmm && shims.flat_map(|shim| &shim.executables).any(|shim| kind.runs(Path::new(shim)))
    }

    /// The rows that an executable at `path` may be.
    pub fn running<'a, 'p>(&'a self, path: &'p Path) -> impl Iterator<Item = &'a Kind> + use<'a, 'p> {
        self.0.iter().filter(move |kind| kind.runs(path))
    }
}

impl Default for Kinds {
    fn default() -> Self {
        let kind = |name: &str, role, named_by, executables: &[&str], threads: &[&str]| Kind {
            name: name.to_owned(),
            role,
            executables: executables.iter().map(|&executable| executable.to_owned()).collect(),
            vcpu_threads: threads.iter().filter_map(|&pattern| Pattern::parse(pattern)).collect(),
            named_by,
        };
        Self(vec![
            kind("qemu", Role::Vmm, NamedBy::Name, QEMU, &["CPU */KVM", "CPU */TCG"]),
            kind(
                "cloud-hypervisor",
                Role::Vmm,
                NamedBy::ApiSocket,
                &["cloud-hypervisor", "cloud-hypervisor-glibc"],
                &["vcpu*"],
            ),
            kind("firecracker", Role::Vmm, NamedBy::Id, &["firecracker"], &["fc_vcpu *", "fc_vcpu*"]),
            kind("stratovirt", Role::Vmm, NamedBy::Name, &["stratovirt"], &["CPU */KVM"]),
            // Dragonball is a library within runtime-rs's shim: the VMM is the shim itself.
            kind("dragonball", Role::Vmm, NamedBy::ShimId, SHIMS, &["db_vcpu*"]),
            kind("virtiofsd", Role::Helper, NamedBy::Nobody, &["virtiofsd"], &[]),
            kind("nydusd", Role::Helper, NamedBy::Nobody, &["nydusd"], &[]),
            kind("shim", Role::Shim, NamedBy::ShimId, SHIMS, &[]),
        ])
    }
}

/// Kata's own builds, and what distributions call theirs.
const QEMU: &[&str] = &[
    "qemu-system-x86_64",
    "qemu-system-x86_64-snp-experimental",
    "qemu-system-x86_64-tdx-experimental",
    "qemu-system-aarch64",
    "qemu-system-s390x",
    "qemu-system-ppc64",
    "qemu-system-riscv64",
    "qemu-kvm",
    "qemu-lite-system-x86_64",
    "qemu-vanilla-system-x86_64",
    "qemu-virtiofs-system-x86_64",
];

const SHIMS: &[&str] = &["containerd-shim-kata-v2"];

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|argument| argument.as_bytes().to_vec()).collect()
    }

    fn names(kind: &str, line: &str) -> bool {
        let dirs = [Path::new("/run/vc/vm/abc")];
        Kinds::default().of_name(kind).unwrap().names(&arguments(line), "abc", &dirs)
    }

    #[test]
    fn a_pattern_holds_the_index_and_nothing_else() {
        let pattern = Pattern::parse("CPU */KVM").unwrap();
        assert_eq!(pattern.index_in(b"CPU 12/KVM"), Some(12));
        for other in ["CPU /KVM", "CPU x/KVM", "CPU -1/KVM", "CPU +1/KVM", "CPU 1/KVMx", "CPU 99999999999/KVM", "qemu"] {
            assert_eq!(pattern.index_in(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Pattern::parse("vcpu"), None);
        assert_eq!(Pattern::parse("v*c*"), None);
    }

    #[test]
    fn qemu_shows_its_sandbox_by_name_or_pid_file() {
        assert!(names("qemu", "qemu -name sandbox-abc,debug-threads=on -m 1"));
        assert!(names("qemu", "qemu -name sandbox-abc"));
        assert!(names("qemu", "qemu -name x -pidfile /run/vc/vm/abc/pid"));
        assert!(!names("qemu", "qemu -name sandbox-abcd"));
        assert!(!names("qemu", "qemu -name sandbox-ab,abc"));
        assert!(!names("qemu", "qemu -append sandbox-abc"));
        assert!(!names("qemu", "qemu -pidfile /run/vc/vm/abc/../other/pid"));
        assert!(!names("qemu", "qemu -pidfile /run/vc/vm/abcd/pid"));
        assert!(!names("qemu", "qemu -pidfile /run/vc/vm/abc"));
    }

    #[test]
    fn the_other_kinds_show_theirs_in_their_own_way() {
        assert!(names("cloud-hypervisor", "clh --api-socket /run/vc/vm/abc/clh-api.sock"));
        assert!(names("cloud-hypervisor", "clh --api-socket path=/run/vc/vm/abc/clh-api.sock"));
        assert!(names("cloud-hypervisor", "clh --api-socket=/run/vc/vm/abc/clh-api.sock"));
        assert!(!names("cloud-hypervisor", "clh --api-socket /run/vc/vm/other/clh-api.sock"));
        assert!(names("firecracker", "firecracker --id abc"));
        assert!(!names("firecracker", "firecracker --id abd"));
        assert!(names("stratovirt", "stratovirt -name sandbox-abc"));
        assert!(names("dragonball", "containerd-shim-kata-v2 -namespace k8s.io -id abc"));
        assert!(!names("shim", "containerd-shim-kata-v2 -namespace abc -id other"));
    }

    #[test]
    fn firecracker_ids_are_cut_to_32_characters_by_kata() {
        let (vm, cut) = ("a".repeat(64), "a".repeat(32));
        let firecracker = Kinds::default().of_name("firecracker").unwrap().clone();
        assert!(firecracker.names(&arguments(&format!("fc --id {cut}")), &vm, &[]));
        assert!(!firecracker.names(&arguments(&format!("fc --id {}", "a".repeat(31))), &vm, &[]));
    }

    #[test]
    fn a_vmm_that_shares_an_executable_with_a_shim_is_one_however_the_rows_are_written() {
        let mut kinds = Kinds::default();
        let mut shim = kinds.of_name("shim").unwrap().clone();
        shim.executables = vec!["/opt/kata/bin/containerd-shim-kata-v2".into()];
        kinds.add(shim);
        assert!(kinds.is_shim_too(kinds.of_name("dragonball").unwrap()));
        assert!(!kinds.is_shim_too(kinds.of_name("qemu").unwrap()));
        assert!(!kinds.is_shim_too(kinds.of_name("shim").unwrap()));
    }

    #[test]
    fn a_row_of_the_same_name_replaces_the_built_in_one() {
        let mut kinds = Kinds::default();
        let mut qemu = kinds.of_name("qemu").unwrap().clone();
        qemu.executables = vec!["/opt/q".into()];
        kinds.add(qemu);
        assert_eq!(kinds.running(Path::new("/usr/bin/qemu-system-x86_64")).count(), 0);
        assert_eq!(kinds.running(Path::new("/opt/q")).count(), 1);
        assert_eq!(kinds.running(Path::new("/other/q")).count(), 0);
        let shim = Path::new("/opt/kata/bin/containerd-shim-kata-v2");
        assert_eq!(kinds.running(shim).map(|kind| kind.role).collect::<Vec<_>>(), [Role::Vmm, Role::Shim]);
    }
}
