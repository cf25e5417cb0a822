//! Guests of forty bytes.
//!
//! What the guest does decides what a vCPU thread looks like from the host, so it is not left to a BIOS: one that spins is
//! always on a CPU, one that halts is always inside `ioctl(KVM_RUN)`, and one that answers the ACPI CPU hot-plug interface
//! lets QEMU take a vCPU out again, which it does only when the guest agrees.

use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// vCPU 0 halts; the others never start.
    Idle,
    /// vCPU 0 never rests; the others never start.
    Spinning,
    /// Spins, and lets go of CPU 2 as soon as QEMU asks for it.
    Unplugging,
}

impl Guest {
    /// Writes the guest as the machine's firmware: 64 KiB that end at the reset vector.
    pub(crate) fn write(self, dir: &Path) -> PathBuf {
        const CODE: usize = 0xff00;
        const RESET: usize = 0xfff0;
        let code = self.code();
        let mut rom = vec![0; 0x10000];
        rom[CODE..CODE + code.len()].copy_from_slice(code);
        rom[RESET..RESET + 3].copy_from_slice(&[0xe9, 0x0d, 0xff]); // jmp CODE
        let path = dir.join("firmware");
        std::fs::write(&path, rom).unwrap();
        path
    }

    fn code(self) -> &'static [u8] {
        match self {
            Guest::Idle => &[
                0xfa, // cli
                0xf4, // hlt
                0xeb, 0xfd, // jmp to the hlt
            ],
            Guest::Spinning => &[
                0xfa, // cli
                0xeb, 0xfe, // jmp here
            ],
            Guest::Unplugging => &[
                0xfa, // cli
                0xba, 0xd8, 0x0c, // mov dx, 0xcd8: q35's CPU hot-plug registers
                0x30, 0xc0, // xor al, al
                0xee, // out dx, al: a zero here asks for the modern interface
                0xb9, 0xff, 0xff, // again: mov cx, 0xffff
                0xe2, 0xfe, // loop here: spin a while between looks
                0xba, 0xd8, 0x0c, // mov dx, 0xcd8
                0x66, 0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, 2
                0x66, 0xef, // out dx, eax: CPU 2 it is
                0xba, 0xdc, 0x0c, // mov dx, 0xcdc: its flags
                0xec, // in al, dx
                0xa8, 0x04, // test al, 4: is it asked to go?
                0x74, 0xe8, // jz again
                0xb0, 0x08, // mov al, 8
                0xee, // out dx, al: let it go
                0xeb, 0xe3, // jmp again
            ],
        }
    }
}
