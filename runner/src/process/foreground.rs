//! The caller's side of a program in a container: its terminal or streams, its signals, its exit
//! code.
//!
//! Used by `run` for a container's command and by `exec` for an added one. Input goes straight to
//! the container; output comes through pipes, so that a program can never do to the caller's
//! terminal what a terminal's owner can. Signals are passed on as they are; those that stop or
//! continue a job act on coracle itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::PollFlags;
use serde::Serialize;

use crate::failure::Failure;
use crate::poll;
use crate::printable::complain;
use crate::process::channel::Channel;
use crate::process::messages::{FromForeground, FromMonitor};
use crate::stdio::copier::Copier;
use crate::stdio::keys::DetachKeys;
use crate::stdio::terminal::{RawMode, set_window_size, window_size};
use crate::stdio::{CallerEnds, Outputs};
use crate::sys;

/// Signals that are not passed on: those that nothing can hold up, that act on coracle itself as a
/// job, that tell of its children, output or window, and those of its own faults. The C library
/// keeps 32 and 33.
const KEPT: [i32; 19] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
    libc::SIGPIPE,
    libc::SIGWINCH,
    libc::SIGURG,
    libc::SIGXFSZ,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSYS,
    32,
    33,
];

/// Signals that end coracle while there is no program yet that could have them.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// How long a program's outputs are listened to in silence when it has ended.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// How long the news that a program has started may take.
const NEWS_MAX: Duration = Duration::from_millis(200);

/// How long a program may take to end when nobody reads its output any more, as most programs do by
/// themselves.
const UNREAD_MAX: Duration = Duration::from_secs(1);

/// The exit code of a program that SIGPIPE has ended.
pub const UNREAD_EXIT_CODE: u8 = 128 + 13;

/// How often a terminal is told that its input has ended. A program that takes the terminal over in
/// between reads the first word of it as an ordinary character, or not at all.
const END_REPEATED: Duration = Duration::from_millis(100);

/// Signals taken from now on, to be passed on once there is a program to have them. Made before
/// anything else, so that a signal that comes early does not kill us half-way.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    pub fn block() -> Result<Self, Failure> {
        // What the caller ignores (`nohup`) is not passed on either.
        let is_heeded = |number: &i32| !KEPT.contains(number) && !sys::is_ignored(*number);
        let mut numbers: Vec<i32> = (1..=64).filter(is_heeded).collect();
        numbers.push(libc::SIGWINCH);
        let mask = sys::signal_set(&numbers);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        mask.thread_block()
            .and_then(|()| SignalFd::with_flags(&mask, flags))
            .map(Self)
            .map_err(Failure::context("cannot take signals"))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The caller's ends. `T` is what whoever starts or keeps the program is told.
pub struct Foreground<T> {
    signals: Signals,
    events: Channel<T, FromMonitor>,
    stdin: Copier,
    stdout: Copier,
    stderr: Copier,
    interactive: bool,
    /// Typed at the caller's terminal, they leave the program to itself.
    keys: Option<DetachKeys>,
    /// Whether somebody else keeps the program's input open as well.
    shares_input: bool,
    /// Whether signals are the program's; else they end us, and the program goes on.
    passes_signals: bool,
    reads_terminal: bool,
    terminal: Option<Terminal>,
    /// Of the program, once it runs.
    program: Option<OwnedFd>,
    /// Said when the program runs.
    greeting: Option<String>,
    /// When we leave a program whose output nobody reads.
    leave_by: Option<Instant>,
    /// When a program that has not started is given up.
    start_by: Option<Instant>,
    /// Signals that came before.
    early: Vec<i32>,
}

/// The container's terminal, while it is shown on ours.
struct Terminal {
    master: OwnedFd,
    /// Absent when neither our input nor our output is a terminal.
    _raw: Option<RawMode>,
}

/// How the program fared.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Exited(i32),
    /// It has ended with this code, and is started again without the caller.
    Restarting(i32),
    /// Nobody reads the program's output any more; the program may go on.
    Unread,
    /// Whoever was to report the end was killed.
    Lost,
    /// The caller has left, and the program goes on.
    Detached,
    /// The same, because of this signal.
    DetachedBy(i32),
}

impl<T: From<FromForeground> + Serialize> Foreground<T> {
    /// `interactive` says whether the caller's standard input goes to the container.
    pub fn new(
        signals: Signals,
        events: Channel<T, FromMonitor>,
        ends: CallerEnds,
        interactive: bool,
    ) -> Result<Self, Failure> {
        let stdin = match ends.stdin {
            Some(to) => stdin_to(to)?,
            None => Copier::closed(),
        };
        let reads_terminal = ends.outputs.is_none();
        let (stdout, stderr) = match ends.outputs {
            Some(Outputs { stdout, stderr }) => (
                Copier::new(stdout, own(rustix::stdio::stdout())),
                Copier::new(stderr, own(rustix::stdio::stderr())),
            ),
            None => (Copier::closed(), Copier::closed()),
        };
        let terminal = None;
        Ok(Self {
            signals,
            events,
            stdin,
            stdout,
            stderr,
            interactive,
            keys: None,
            shares_input: false,
            passes_signals: true,
            reads_terminal,
            terminal,
            program: None,
            greeting: None,
            leave_by: None,
            start_by: None,
            early: Vec::new(),
        })
    }

    /// Tells the caller this once the program runs.
    pub fn greeting(mut self, text: String) -> Self {
        self.greeting = Some(text);
        self
    }

    /// Lets the caller leave the program to itself: by these keys, typed at a terminal for the
    /// program's, and where signals are not passed on, by a signal.
    pub fn leaving_by(mut self, keys: Option<DetachKeys>, passes_signals: bool) -> Self {
        self.keys = keys;
        self.passes_signals = passes_signals;
        self
    }

    /// Gives a program up that has not started in time, which a process of its container may bring
    /// about.
    pub fn starting_within(mut self, limit: Duration) -> Self {
        self.start_by = Some(Instant::now() + limit);
        self
    }

    /// Serves the program until it has ended and its output is written.
    pub fn serve(mut self) -> Result<Outcome, Failure> {
        let mut outcome = None;
        loop {
            if let Some(outcome) =
                outcome.take_if(|_| self.stdout.is_closed() && self.stderr.is_closed())
            {
                return self.conclude(outcome);
            }
            let events = outcome
                .is_none()
                .then(|| (self.events.as_fd(), PollFlags::IN));
            let interests = [
                Some((self.signals.0.as_fd(), PollFlags::IN)),
                events,
                self.stdin.interest(),
                self.stdout.interest(),
                self.stderr.interest(),
            ];
            let limit = self.patience(outcome.is_some());
            let ready = poll::wait(interests, limit)
                .map_err(Failure::context("cannot wait for the program"))?;
            let Some(ready) = ready else {
                match outcome.take() {
                    Some(outcome) => return self.conclude(outcome),
                    None if is_due(self.leave_by) => return Ok(Outcome::Unread),
                    None if self.is_overdue() => {
                        return Err(Failure::runner(
                            "the command did not start in time: a process of the container may have stopped it",
                        ));
                    }
                    None => self.end_terminal_input(),
                }
                continue;
            };
            let [signal, event, stdin, stdout, stderr] = ready;

            if signal && let Some(signal) = self.take_signals() {
                if self.program.is_some() {
                    self.detach()?;
                    return Ok(Outcome::DetachedBy(signal));
                }
                self.early.push(signal);
                outcome = self.expect_program()?;
                if self.program.is_none() && outcome.is_none() {
                    // Whoever is setting the program up notices that we are gone, and undoes it.
                    return Ok(Outcome::Exited(128 + signal));
                }
                continue;
            }
            // Before output: the news of a terminal came first, and says how output is shown.
            if event {
                outcome = self.take_event()?;
            }
            if stdin {
                self.stdin.advance(|_| {});
                if self.stdin.is_closed() {
                    self.end_terminal_input();
                    if self.shares_input {
                        // Who does not listen has gone.
                        let _ = self.events.send(&FromForeground::InputEnded.into(), &[]);
                    }
                }
            }
            if self.stdin.keys_have_come() && self.program.is_some() && outcome.is_none() {
                self.detach()?;
                return Ok(Outcome::Detached);
            }
            if stdout {
                self.stdout.advance(|_| {});
                if self.stdout.has_lost_reader() && self.leave_by.is_none() {
                    self.leave_by = Some(Instant::now() + UNREAD_MAX);
                }
            }
            if stderr {
                self.stderr.advance(|_| {});
            }
        }
    }

    /// How long the next event may take.
    fn patience(&self, has_ended: bool) -> Option<Duration> {
        if has_ended {
            // What the program left running in the background may hold its outputs open.
            return Some(DRAIN_MAX);
        }
        let until_start = self
            .start_by
            .filter(|_| self.program.is_none())
            .map(|by| by.saturating_duration_since(Instant::now()));
        let until_leaving = self
            .leave_by
            .map(|by| by.saturating_duration_since(Instant::now()));
        let repeated = self.input_has_ended().then_some(END_REPEATED);
        [until_start, until_leaving, repeated]
            .into_iter()
            .flatten()
            .min()
    }

    fn is_overdue(&self) -> bool {
        self.program.is_none() && is_due(self.start_by)
    }

    /// The outcome, unless the caller did not get all of the output.
    fn conclude(&self, outcome: Outcome) -> Result<Outcome, Failure> {
        let outputs = [
            (&self.stdout, "standard output"),
            (&self.stderr, "standard error"),
        ];
        for (copier, name) in outputs {
            if let Some(error) = copier.write_error() {
                return Err(Failure::runner(format!("cannot write to {name}: {error}")));
            }
        }
        Ok(outcome)
    }

    /// Waits for the program a moment: it may run already, and the news of it be on its way.
    fn expect_program(&mut self) -> Result<Option<Outcome>, Failure> {
        let news = |events: &Channel<T, FromMonitor>| {
            poll::wait([Some((events.as_fd(), PollFlags::IN))], Some(NEWS_MAX))
                .map_err(Failure::context("cannot wait for the program"))
        };
        while self.program.is_none() && news(&self.events)?.is_some() {
            if let Some(outcome) = self.take_event()? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    fn take_event(&mut self) -> Result<Option<Outcome>, Failure> {
        let Some((event, mut descriptors)) = self.events.receive()? else {
            return Ok(Some(Outcome::Lost));
        };
        match event {
            // Whoever has executed the monitor has heard of its birth.
            FromMonitor::Born(_) => {}
            FromMonitor::Warning(text) => warn(&text),
            FromMonitor::Terminal => {
                let master = descriptors
                    .pop()
                    .ok_or_else(|| Failure::runner("no terminal came with the news of one"))?;
                self.show_terminal(master)?;
            }
            FromMonitor::Started => {
                self.program = descriptors.pop();
                if let Some(greeting) = self.greeting.take() {
                    say(&greeting);
                }
                if let Some(program) = &self.program {
                    self.early
                        .drain(..)
                        .for_each(|signal| forward(program, signal));
                }
            }
            FromMonitor::Input => {
                let to = descriptors
                    .pop()
                    .ok_or_else(|| Failure::runner("no input came with the news of one"))?;
                self.stdin = stdin_to(to)?;
                self.shares_input = true;
            }
            FromMonitor::Failed(failure) => return Err(failure),
            FromMonitor::Exited(code) => return Ok(Some(Outcome::Exited(code))),
            FromMonitor::Restarting(code) => return Ok(Some(Outcome::Restarting(code))),
        }
        Ok(None)
    }

    /// Leaves the program to itself, and to whoever keeps it.
    fn detach(&self) -> Result<(), Failure> {
        let outputs = [&self.stdout, &self.stderr].map(|output| output.ends().0);
        let input = match &self.terminal {
            Some(terminal) => Some(terminal.master.as_fd()),
            None => self.stdin.ends().1,
        };
        let ends: Vec<_> = outputs.into_iter().chain([input]).flatten().collect();
        Ok(self.events.send(&FromForeground::Detached.into(), &ends)?)
    }

    fn show_terminal(&mut self, master: OwnedFd) -> Result<(), Failure> {
        let raw = match self.interactive {
            true => RawMode::enter(rustix::stdio::stdin()).ok(),
            false => None,
        };
        // Where nothing is typed for the container, our terminal only shows what the container's
        // has made ready.
        let raw = raw.or_else(|| RawMode::for_output(rustix::stdio::stdout()).ok());
        if self.interactive
            && let Some(stdin) = own(rustix::stdio::stdin())
        {
            let keys = self.keys.take().filter(|_| rustix::termios::isatty(&stdin));
            self.stdin = Copier::new(stdin, Some(duplicate(&master)?)).watching_for(keys);
        }
        if self.reads_terminal {
            self.stdout = Copier::new(duplicate(&master)?, own(rustix::stdio::stdout()));
        }
        self.terminal = Some(Terminal { master, _raw: raw });
        self.resize();
        Ok(())
    }

    /// Whether what was typed for the container's terminal has come to its end, as input from a
    /// file does.
    fn input_has_ended(&self) -> bool {
        self.interactive && self.terminal.is_some() && self.stdin.is_closed()
    }

    /// A terminal says that there is no more input with a character, once for each time that it is
    /// read.
    fn end_terminal_input(&self) {
        /// Ctrl-D, which `termios(3)` has as VEOF unless the program chose another.
        const END_OF_INPUT: &[u8] = b"\x04";
        if let Some(terminal) = self.terminal.as_ref().filter(|_| self.input_has_ended()) {
            let writable = [Some((terminal.master.as_fd(), PollFlags::OUT))];
            // One that is full has been told already. Fails only when the program has closed its
            // end.
            if let Ok(Some([true])) = poll::wait(writable, Some(Duration::ZERO)) {
                let _ = rustix::io::write(&terminal.master, END_OF_INPUT);
            }
        }
    }

    /// Passes signals on. Returns one that ends us, because there is no program yet to have it, or
    /// it is not to have any.
    fn take_signals(&mut self) -> Option<i32> {
        while let Ok(Some(info)) = self.signals.0.read_signal() {
            match (info.ssi_signo.cast_signed(), &self.program) {
                (libc::SIGWINCH, _) => self.resize(),
                (signal, Some(_)) if !self.passes_signals => {
                    if ENDING.contains(&signal) {
                        return Some(signal);
                    }
                }
                (signal, Some(program)) => forward(program, signal),
                (signal, None) if ENDING.contains(&signal) => return Some(signal),
                (signal, None) => self.early.push(signal),
            }
        }
        None
    }

    /// Gives the container's terminal the size of ours, where ours is one.
    fn resize(&self) {
        if let Some(terminal) = &self.terminal
            && let Ok(size) = window_size(rustix::stdio::stdout())
                .or_else(|_| window_size(rustix::stdio::stdin()))
        {
            let _ = set_window_size(&terminal.master, size);
        }
    }
}

/// From the caller's input to the program's. A program that does not read must not keep its signals
/// from being passed on.
fn stdin_to(to: OwnedFd) -> Result<Copier, Failure> {
    rustix::io::ioctl_fionbio(&to, true)
        .map_err(Failure::context("cannot set up the program's input"))?;
    let stdin = own(rustix::stdio::stdin());
    Ok(stdin.map_or_else(Copier::closed, |stdin| Copier::new(stdin, Some(to))))
}

fn is_due(by: Option<Instant>) -> bool {
    by.is_some_and(|by| by <= Instant::now())
}

fn forward(program: &OwnedFd, signal: i32) {
    // Fails only when the program has ended.
    let _ = sys::send_signal(program, signal);
}

/// For the user, on stderr.
pub fn warn(text: &str) {
    complain(format_args!("warning: {text}"));
}

/// For the user, on stderr, where nothing is wrong.
pub fn say(text: &str) {
    eprintln!("coracle: {text}");
}

fn duplicate(terminal: &OwnedFd) -> Result<OwnedFd, Failure> {
    terminal
        .try_clone()
        .map_err(Failure::context("cannot duplicate the terminal"))
}

/// Our own duplicate of a standard stream, unless the caller closed it.
fn own(stream: BorrowedFd) -> Option<OwnedFd> {
    stream.try_clone_to_owned().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::thread;

    use nix::sys::signal::Signal;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::process::channel;
    use crate::process::messages::ToMonitor;
    use crate::stdio;

    fn serve(events: Channel<ToMonitor, FromMonitor>) -> Outcome {
        let signals = Signals::block().unwrap();
        // To this thread only. Not SIGINT: shells start background jobs with that ignored, and what
        // the caller ignores is left alone.
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        let (ends, _) = stdio::pipes(stdio::Input::Empty).unwrap();
        let foreground = Foreground::new(signals, events, ends, false).unwrap();
        foreground.serve().unwrap()
    }

    #[test]
    fn a_signal_that_overtakes_the_news_of_the_program_is_the_programs() {
        let (monitor, events) = channel::pair::<FromMonitor, ToMonitor>().unwrap();
        let monitor = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            let mut program = Command::new("sleep");
            let mut program = program.arg("60").stdout(Stdio::null()).spawn().unwrap();
            let pid = Pid::from_raw(program.id().cast_signed()).unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            monitor
                .send(&FromMonitor::Started, &[pidfd.as_fd()])
                .unwrap();
            let ended_by = program.wait().unwrap().signal();
            monitor.send(&FromMonitor::Exited(7), &[]).unwrap();
            ended_by
        });
        assert_eq!(serve(events), Outcome::Exited(7));
        assert_eq!(monitor.join().unwrap(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn without_a_program_a_signal_is_the_end() {
        let (_monitor, events) = channel::pair::<FromMonitor, ToMonitor>().unwrap();
        assert_eq!(serve(events), Outcome::Exited(143));
    }
}
