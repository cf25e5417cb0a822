//! Has the binary that ships linked without tables for unwinding, by src/link.ld: it does not unwind (`panic = "abort"`, src/sys.rs).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=src/link.ld");
    // Cargo does not tell how the profile has panics, only what it is derived from.
    if env::var("PROFILE").as_deref() == Ok("release") {
        let top = env::var("CARGO_MANIFEST_DIR").unwrap();
        // Understood by the C compiler as a linker and by rustc's own linker alike.
        println!("cargo::rustc-link-arg-bins=-T{top}/src/link.ld");
    }
}
