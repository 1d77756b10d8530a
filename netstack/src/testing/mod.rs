//! What unit tests stand on: namespaces of a test's own, and devices that are no tap.
//!
//! For a test in namespaces the test binary runs itself again, alone with one test, in a fresh user
//! and network namespace. Works as root and as a normal user, and needs no program.

mod faults;
mod memory;

use std::env;
use std::process::Command;

use crate::sys;

pub use faults::{FaultInjector, Faults};
pub use memory::{MemoryDevice, MemoryGuest};

/// Set in the inner run, to the name of the one test that is run there.
const INNER: &str = "CORACLE_INNER_TEST";

/// Runs `body` as root of new user and network namespaces, in a process of its own. `module` is
/// `module_path!()`, `test` the name of the calling test function. Where the system forbids user
/// namespaces, says so and passes.
pub fn in_namespaces(module: &str, test: &str, body: impl FnOnce()) {
    let (_crate, module) = module
        .split_once("::")
        .expect("a test module is inside the crate");
    let name = format!("{module}::{test}");
    if env::var(INNER).is_ok_and(|inner| inner == name) {
        return body();
    }
    let mut command = Command::new(env::current_exe().expect("the test binary has a path"));
    command
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INNER, &name);
    sys::start_in_namespaces(&mut command);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("skipped {name}: no new namespaces: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    assert!(
        output.status.success() && text.contains("1 passed"),
        "in its namespaces {name} failed:\n{text}{errors}"
    );
}
