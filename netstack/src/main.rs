//! `coracle-net`: the network helper. See `coracle-net --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    netstack::cli::main()
}
