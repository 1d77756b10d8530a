//! Signals as people type them: names as Podman has them, and numbers.
//!
//! `TERM`, `SIGTERM`, `sigterm` and `15` are the same. Real-time signals are `RTMIN` to `RTMAX`
//! with a distance from either end: `RTMIN+3`, `RTMAX-1`. Neither nix nor rustix can hold one of
//! these, so that the type is our own.

use std::fmt;
use std::str::FromStr;

/// A signal that can be sent, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// There is no signal of this name or number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no signal {0:?}; `kill -l` lists them, numbers are 1 to 64")]
pub struct UnknownSignal(String);

/// `signal(7)`: the kernel's first real-time signals, 32 and 33, are the C library's.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Where two names share a number the first is printed.
const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

impl Signal {
    pub const KILL: Self = Self(libc::SIGKILL);
    pub const TERM: Self = Self(libc::SIGTERM);

    /// The signal with this number, if there can be one.
    pub fn from_raw(number: i32) -> Option<Self> {
        (1..=RTMAX).contains(&number).then_some(Self(number))
    }

    pub fn as_raw(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let known = NAMES.iter().find(|(known, _)| *known == name);
        // `15` and not `SIG15`.
        digits(text)
            .or(known.map(|(_, number)| *number))
            .or_else(|| real_time(name))
            .and_then(Self::from_raw)
            .ok_or_else(|| UnknownSignal(text.to_owned()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some((name, _)) = NAMES.iter().find(|(_, number)| *number == self.0) {
            return write!(f, "SIG{name}");
        }
        match self.0 {
            RTMIN => f.write_str("SIGRTMIN"),
            RTMAX => f.write_str("SIGRTMAX"),
            // From the nearer end, as `kill -l` has it.
            number @ RTMIN..=49 => write!(f, "SIGRTMIN+{}", number - RTMIN),
            number @ 50..=RTMAX => write!(f, "SIGRTMAX-{}", RTMAX - number),
            number => write!(f, "{number}"),
        }
    }
}

/// `RTMIN`, `RTMIN+N`, `RTMAX` or `RTMAX-N`.
fn real_time(name: &str) -> Option<i32> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => RTMIN,
        (_, Some("")) => RTMAX,
        (Some(distance), _) => RTMIN.checked_add(digits(distance.strip_prefix('+')?)?)?,
        (_, Some(distance)) => RTMAX - digits(distance.strip_prefix('-')?)?,
        (None, None) => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// Digits only: `i32::from_str` would take a sign as well.
fn digits(text: &str) -> Option<i32> {
    let is_digit = |byte: u8| byte.is_ascii_digit();
    (!text.is_empty() && text.bytes().all(is_digit))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("Term", 15),
            ("15", 15),
            ("1", 1),
            ("33", 33),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmin+30", 64),
            ("RTMAX", 64),
            ("sigrtmax-1", 63),
            ("RTMAX-30", 34),
            ("POLL", 29),
            ("CLD", 17),
        ] {
            assert_eq!(text.parse(), Ok(Signal(number)), "{text}");
        }
        for text in [
            "",
            "SIG",
            "0",
            "-9",
            "+9",
            "65",
            "99",
            "99999999999",
            "NOPE",
            "SIG15",
            "SIGSIGTERM",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN+31",
            "RTMAX-31",
            "RTMIN+",
            "RTMIN+-1",
            "RTMIN+2147483647",
        ] {
            assert_eq!(
                text.parse::<Signal>(),
                Err(UnknownSignal(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        for number in 1..=64 {
            let signal = Signal::from_raw(number).expect("a signal");
            assert_eq!(signal.to_string().parse(), Ok(signal));
        }
        let printed = [9, 6, 32, 34, 37, 49, 50, 64].map(|number| Signal(number).to_string());
        assert_eq!(
            printed,
            [
                "SIGKILL",
                "SIGABRT",
                "32",
                "SIGRTMIN",
                "SIGRTMIN+3",
                "SIGRTMIN+15",
                "SIGRTMAX-14",
                "SIGRTMAX"
            ]
        );
    }
}
