//! How many instructions single operations take, counted by callgrind: the same on a busy machine
//! and on an idle one. `cargo bench -p coracle-benches --bench instructions`
//!
//! The program runs itself under valgrind, once for each case, and has callgrind count inside
//! [`counted`] only.

mod cases;

use std::process::{Command, ExitCode};

/// Enough for what happens now and then, such as a table that grows, to be spread thin.
const REPETITIONS: u64 = 1_000;
/// Before counting, so that what happens once is over.
const WARM_UP: u64 = 100;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if let (Some("--case"), Some(name)) = (args.next().as_deref(), args.next()) {
        return run(&name);
    }
    println!("{:<36}instructions", "");
    for case in cases::all() {
        match count(case.name) {
            Ok(instructions) => println!("{:<36}{instructions:>12.0}", case.name),
            Err(reason) => {
                println!("skipped {}: {reason}", case.name);
                return ExitCode::SUCCESS;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Instructions per operation of the case.
fn count(name: &str) -> Result<f64, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*counted*"])
        .arg(own)
        .args(["--case", name])
        .output()
        .map_err(|e| format!("failed to run valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(collected);
    match collected {
        Some(total) => Ok(total as f64 / REPETITIONS as f64),
        None => Err(format!("valgrind counted nothing: {said}")),
    }
}

/// The number in callgrind's closing line, `==PID== Collected : NUMBER`.
fn collected(line: &str) -> Option<u64> {
    let (_, number) = line.split_once("Collected :")?;
    number.trim().parse().ok()
}

fn run(name: &str) -> ExitCode {
    let Some(mut case) = cases::all().into_iter().find(|case| case.name == name) else {
        eprintln!("there is no case {name}");
        return ExitCode::FAILURE;
    };
    for _ in 0..WARM_UP {
        (case.run)();
    }
    counted(&mut case.run);
    ExitCode::SUCCESS
}

/// What callgrind counts, by this function's name.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    for _ in 0..REPETITIONS {
        run();
    }
}
