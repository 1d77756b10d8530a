//! `coracle exec`: another command in a running container.

use std::fs;
use std::io::{Seek, Write};
use std::os::fd::AsFd;

use nix::sys::wait::waitpid;
use rustix::fs::{MemfdFlags, memfd_create};

use super::{open_store, running_init};
use crate::channel::{self};
use crate::cli::ExecArgs;
use crate::exec;
use crate::failure::Failure;
use crate::foreground::{Ends, Foreground, Outcome, Signals, output_pipes};
use crate::init::Streams;
use crate::messages::{FromMonitor, ToLauncher};
use crate::spec::{ContainerSpec, ProcessSpec, environment};
use crate::sys::{self, NewNamespaces};

pub fn exec(args: ExecArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let store = open_store()?;
    let container = store.find(&args.container)?;
    let init = running_init(&container)?;
    let spec = ContainerSpec::load(&store.dir(&container).data)?;
    let spec = added(&args, spec.process);

    let ((our_stdout, our_stderr), (stdout, stderr)) = output_pipes()?;
    let (our_stdin, stdin) = match args.process.interactive && !args.process.tty {
        true => {
            let (stdin, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (Some(ours), stdin)
        }
        false => (None, fs::File::open("/dev/null")?.into()),
    };
    let streams = Streams {
        stdin,
        stdout,
        stderr,
    };
    let (main, theirs) = channel::pair::<ToLauncher, FromMonitor>()?;
    let Some(launcher) = sys::clone_process(NewNamespaces::NONE)? else {
        drop((main, our_stdin, our_stdout, our_stderr));
        let failure = exec::launch(&streams, &theirs.as_fd().try_clone_to_owned()?, &init);
        let _ = theirs.send(&FromMonitor::Failed(failure), &[]);
        std::process::exit(125)
    };
    drop((theirs, streams));

    let mut task = fs::File::from(memfd_create("coracle-exec", MemfdFlags::CLOEXEC)?);
    task.write_all(&serde_json::to_vec(&spec)?)?;
    task.rewind()?;
    // A launcher that failed at once has said so; what it said comes next.
    let _ = main.send(&ToLauncher::Run, &[init.as_fd(), task.as_fd()]);
    let ends = Ends {
        stdin: our_stdin,
        outputs: (!args.process.tty).then_some((our_stdout, our_stderr)),
    };
    let outcome = Foreground::new(
        signals,
        main.into_receiver(),
        ends,
        args.process.interactive,
    )?
    .serve();
    waitpid(launcher.pid, None)?;
    match outcome? {
        Outcome::Exited(code) => Ok(code as u8),
        // The launcher dies with the container's other processes only when somebody kills it.
        Outcome::Lost => Err(Failure::runner(
            "the command's launcher was killed, and the command with it",
        )),
    }
}

/// The container's own process with what was typed in its place.
fn added(args: &ExecArgs, container: ProcessSpec) -> ProcessSpec {
    let inherited: Vec<_> = container
        .env
        .iter()
        .filter_map(|entry| entry.to_str()?.split_once('='))
        .collect();
    let terminal = args.process.tty.then_some(("TERM", "xterm"));
    ProcessSpec {
        args: args.command.clone(),
        env: environment(inherited.into_iter().chain(terminal), &args.process.env),
        workdir: args.process.workdir.clone().unwrap_or(container.workdir),
        user: args.process.user.clone().unwrap_or(container.user),
        terminal: args.process.tty,
        ..container
    }
}
