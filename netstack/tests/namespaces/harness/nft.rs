//! The `nft` program, as engines and administrators of a guest use it.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{Netns, skip};

/// Runs `nft` with `args` in `netns`, with `input` on its standard input, and returns what it
/// prints. It must succeed; where it is not installed the case is skipped.
pub fn nft(netns: &Netns, args: &[&str], input: &str) -> String {
    let run = || -> std::io::Result<_> {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        child.wait_with_output()
    };
    let output = match netns.run(run) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => skip("nft is not installed"),
        output => output.expect("nft"),
    };
    assert!(output.status.success(), "nft {args:?}");
    String::from_utf8(output.stdout).expect("text")
}
