//! How the helper is linked.

mod unwinder;

fn main() {
    println!("cargo::rerun-if-changed=build");
    unwinder::link();
}
