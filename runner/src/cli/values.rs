//! Values of single options, from bytes or from text. A value that is wrong is named together with
//! its option.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, ArgAction};
use jiff::SignedDuration;
use portfwd::spec::{PortRange, Protocol};

use super::{AttachStream, UserNamespace};

/// What clap shows of an error.
type Reason = Box<dyn std::error::Error + Send + Sync>;

/// For options that may hold any bytes, as file names do.
pub fn bytes<T, E>(parse: fn(&OsStr) -> Result<T, E>) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
    E: Into<Reason> + 'static,
{
    OsStringValueParser::new()
        .try_map(move |value: OsString| -> Result<T, Reason> { parse(&value).map_err(Into::into) })
}

/// For options that hold text. Clap's own parsers do not say which argument it is that is none.
pub fn text<T, E>(parse: fn(&str) -> Result<T, E>) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
    E: Into<Reason> + 'static,
{
    OsStringValueParser::new().try_map(move |value: OsString| -> Result<T, Reason> {
        let text = value.to_str().ok_or("it is not valid UTF-8")?;
        parse(text).map_err(Into::into)
    })
}

/// What every switch is made of.
pub trait Switch: Sized {
    /// It may have a value, as with Podman: `--rm`, `--rm=false`. Behind `=` only: else the word
    /// that follows would be taken for the value.
    fn switch(self) -> Self;

    /// One that is on unless it is told otherwise.
    fn on(self) -> Self;
}

impl Switch for Arg {
    fn switch(self) -> Self {
        self.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(text(parse_bool))
    }

    fn on(self) -> Self {
        self.switch().default_value("true").hide_default_value(true)
    }
}

/// As Podman reads the value of a switch, `--rm=false`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err("there are true and false".into()),
    }
}

/// Told apart from a misspelling: others exist elsewhere, and people will try them.
pub fn parse_user_namespace(text: &str) -> Result<UserNamespace, String> {
    match text {
        "default" | "" => Ok(UserNamespace::Default),
        "host" => Ok(UserNamespace::Host),
        _ => Err(format!(
            "coracle does not have the user namespace {text:?} yet; there are default and host"
        )),
    }
}

/// Whole seconds.
pub fn parse_seconds(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "expected a number of seconds")
}

/// As Go writes a time: `250ms`, `1.5s`, `1m30s`; and whole milliseconds without a unit, as Podman.
pub fn parse_interval(text: &str) -> Result<Duration, &'static str> {
    if let Ok(millis) = text.parse() {
        return Ok(Duration::from_millis(millis));
    }
    let time: Option<SignedDuration> = text.parse().ok();
    let time = time.and_then(|time| Duration::try_from(time).ok());
    time.ok_or("expected a number and ms, s, m or h")
}

pub fn parse_count(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "expected a number")
}

pub fn parse_attach(text: &str) -> Result<AttachStream, String> {
    match &*text.to_ascii_lowercase() {
        "stdin" => Ok(AttachStream::Stdin),
        "stdout" => Ok(AttachStream::Stdout),
        "stderr" => Ok(AttachStream::Stderr),
        _ => Err("there are stdin, stdout and stderr".into()),
    }
}

/// How many lines from the end; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailLines(pub Option<usize>);

impl fmt::Display for TailLines {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Some(lines) => write!(f, "{lines}"),
            None => f.write_str("all"),
        }
    }
}

/// `all` and a negative number are the same, as with Docker and Podman.
pub fn parse_tail(text: &str) -> Result<TailLines, String> {
    if text == "all" {
        return Ok(TailLines(None));
    }
    let lines: i64 = text.parse().map_err(|_| "expected a number, or all")?;
    Ok(TailLines(usize::try_from(lines).ok()))
}

/// `PORT` or `PORT/PROTOCOL` of the container; TCP when not said.
pub fn parse_port(text: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port
        .parse()
        .ok()
        .and_then(|port| PortRange::new(port, port).ok())
        .ok_or("expected PORT or PORT/tcp or PORT/udp")?;
    let protocol = protocol.parse().map_err(|error| format!("{error}"))?;
    Ok((port.first(), protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_have_the_values_that_podman_takes() {
        for text in ["1", "t", "true", "TRUE"] {
            assert_eq!(parse_bool(text), Ok(true));
        }
        for text in ["0", "F", "false", "False"] {
            assert_eq!(parse_bool(text), Ok(false));
        }
        for text in ["", "no", "2", "tRUE"] {
            parse_bool(text).expect_err(text);
        }
    }

    #[test]
    fn intervals_are_written_as_in_go() {
        for (text, millis) in [("250ms", 250), ("1.5s", 1500), ("1m30s", 90_000), ("7", 7)] {
            assert_eq!(
                parse_interval(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "x", "-1s", "1 day", "s"] {
            parse_interval(text).expect_err(text);
        }
    }

    #[test]
    fn tails() {
        assert_eq!(parse_tail("3"), Ok(TailLines(Some(3))));
        assert_eq!(parse_tail("0"), Ok(TailLines(Some(0))));
        assert_eq!(parse_tail("all"), Ok(TailLines(None)));
        assert_eq!(parse_tail("-1"), Ok(TailLines(None)));
        parse_tail("x").expect_err("no number");
    }
}
