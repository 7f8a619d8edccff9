//! Each start of the agent reads its whole program, and each controller sums it up: without what only a debugger reads it is a
//! fifth as long in development builds, and tests start it thousands of times.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--strip-debug");
}
