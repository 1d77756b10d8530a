//! The two C functions that the standard library does not offer.

#![allow(unsafe_code, reason = "the one file of the crate that may")]

use std::ffi::c_int;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(code: c_int) -> !;
}

/// Makes SIGTERM and SIGINT end the process with code 0. Without a handler they would not: the
/// kernel spares PID 1 of a namespace the default action (pid_namespaces(7)). Nothing has to be
/// saved, so there is nothing to wait for.
pub fn end_on_signals() {
    for number in [SIGTERM, SIGINT] {
        // SAFETY: `signal` wants a signal's number and a function that takes one, does only what is
        // safe in a signal handler, and stays; all hold for `end`.
        unsafe { signal(number, end) };
    }
}

extern "C" fn end(_: c_int) {
    // SAFETY: `_exit` is safe in a signal handler (signal-safety(7)); it runs no destructors and no
    // exit handlers.
    unsafe { _exit(0) }
}
