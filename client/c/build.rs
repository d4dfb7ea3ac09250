//! Gives the library the name by which programs that are linked with it look for it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // It changes where the interface changes so that programs built before could not go on.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libfdstash.so.0");
}
