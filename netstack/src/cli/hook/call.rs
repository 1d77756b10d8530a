//! What a hook is called for, in the words of whoever calls it.
//!
//! An OCI runtime writes the container's state to the hook's standard input (runtime-spec,
//! "State"). LXC passes `NAME lxc TYPE` behind the arguments, or with `lxc.hook.version = 1`
//! LXC_HOOK_TYPE in the environment, and in both cases LXC_NAME, LXC_CONFIG_FILE and, once there is
//! one, LXC_PID (lxc.container.conf(5)).

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read};

use rustix::process::Pid;
use serde::Deserialize;

use crate::process::claim;

/// A call.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    pub container: Container,
    pub event: Event,
}

/// Whom it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// IDs are unique for one root directory of one runtime: the bundle, or the configuration.
    home: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The container has its namespaces and does not run yet.
    Created {
        process: Pid,
        annotations: BTreeMap<String, String>,
    },
    Stopped,
}

/// A call that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("cannot read the container's state from standard input: {0}")]
    Read(#[source] io::Error),
    #[error("the container's state on standard input has more than {MAX_STATE} bytes")]
    Long,
    #[error(
        "what is on standard input is not the state of a container: {0}; this program is for the \
         createRuntime and poststop hooks of an OCI runtime, which write it there"
    )]
    NotState(#[source] serde_json::Error),
    #[error("the container's state has an ID of {0} bytes; {MAX_ID} are the most")]
    LongId(usize),
    #[error(
        "the state of container {0:?} has no process ID; this program is for createRuntime hooks, \
         when there is a process"
    )]
    NoProcess(String),
    #[error(
        "LXC's hook {0:?} is not one to have this program in: give the network in \
         lxc.hook.start-host, and take it away in lxc.hook.post-stop"
    )]
    LxcHook(String),
    #[error("LXC has passed no {0} that can be used in the environment")]
    LxcVariable(&'static str),
    #[error("{0:?}: unexpected argument; options alone are for you to give")]
    Words(String),
}

impl Call {
    /// `words` are those beside the options.
    pub fn read(words: &[String]) -> Result<Self, CallError> {
        match (words, env::var("LXC_HOOK_TYPE")) {
            ([], Err(_)) => Self::of_oci(io::stdin().lock()),
            ([], Ok(hook)) => Self::of_lxc(&hook, |name| env::var(name).ok()),
            ([_, section, hook, ..], _) if section == "lxc" => {
                Self::of_lxc(hook, |name| env::var(name).ok())
            }
            ([word, ..], _) => Err(CallError::Words(word.clone())),
        }
    }

    fn of_oci(state: impl Read) -> Result<Self, CallError> {
        let mut text = Vec::new();
        let mut limited = state.take(MAX_STATE + 1);
        limited.read_to_end(&mut text).map_err(CallError::Read)?;
        if text.len() as u64 > MAX_STATE {
            return Err(CallError::Long);
        }
        let state: State = serde_json::from_slice(&text).map_err(CallError::NotState)?;
        if state.id.len() > MAX_ID {
            return Err(CallError::LongId(state.id.len()));
        }
        let event = match state.status {
            Status::Stopped => Event::Stopped,
            Status::Creating | Status::Created | Status::Running => Event::Created {
                process: (state.pid.filter(|pid| *pid > 0).and_then(Pid::from_raw))
                    .ok_or_else(|| CallError::NoProcess(state.id.clone()))?,
                annotations: state.annotations.unwrap_or_default(),
            },
        };
        Ok(Self {
            container: Container {
                id: state.id,
                home: state.bundle,
            },
            event,
        })
    }

    fn of_lxc(hook: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, CallError> {
        let needed = |name| variable(name).ok_or(CallError::LxcVariable(name));
        let event = match hook {
            "start-host" => {
                let process = needed("LXC_PID")?.parse().ok();
                let process = process.filter(|pid| *pid > 0).and_then(Pid::from_raw);
                Event::Created {
                    process: process.ok_or(CallError::LxcVariable("LXC_PID"))?,
                    annotations: BTreeMap::new(),
                }
            }
            "post-stop" => Event::Stopped,
            other => return Err(CallError::LxcHook(other.to_owned())),
        };
        Ok(Self {
            container: Container {
                id: needed("LXC_NAME")?,
                home: needed("LXC_CONFIG_FILE")?,
            },
            event,
        })
    }
}

impl Container {
    /// What the process that serves the container is found by.
    pub fn claim(&self) -> claim::Name {
        claim::Name::of([&self.home, &self.id])
    }
}

/// The state of a container, with what is of use here.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    status: Status,
    pid: Option<i32>,
    bundle: String,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

/// In bytes; annotations are all of it that may be long.
const MAX_STATE: u64 = 1 << 20;
/// In bytes, as with runc.
const MAX_ID: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn oci(state: &str) -> Result<Call, String> {
        Call::of_oci(state.as_bytes()).map_err(|error| error.to_string())
    }

    fn lxc(hook: &str, variables: &[(&str, &str)]) -> Result<Call, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Call::of_lxc(hook, find).map_err(|error| error.to_string())
    }

    fn created(process: i32, annotations: &[(&str, &str)]) -> Event {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Event::Created {
            process: Pid::from_raw(process).unwrap(),
            annotations: annotations.iter().map(own).collect(),
        }
    }

    #[test]
    fn states_of_runtimes_are_understood() {
        let runc = oci(
            r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":4711,"bundle":"/b"}"#,
        );
        let runc = runc.unwrap();
        assert_eq!(runc.event, created(4711, &[]));
        let crun = oci(
            r#"{"ociVersion":"1.0","id":"web","pid":4711,"root":"rootfs","bundle":"/b",
                "status":"created","annotations":{"a":"b"}}"#,
        );
        assert_eq!(crun.unwrap().event, created(4711, &[("a", "b")]));
        for state in [
            r#"{"ociVersion":"1.0","id":"web","pid":0,"bundle":"/b","status":"stopped"}"#,
            r#"{"ociVersion":"1.0.2-dev","id":"web","status":"stopped","bundle":"/b"}"#,
        ] {
            let stopped = oci(state).unwrap();
            assert_eq!(stopped.event, Event::Stopped);
            assert_eq!(stopped.container.claim(), runc.container.claim());
        }
        let elsewhere = oci(r#"{"id":"web","status":"stopped","bundle":"/c"}"#).unwrap();
        assert_ne!(elsewhere.container.claim(), runc.container.claim());
    }

    #[test]
    fn what_is_no_state_is_told() {
        for (state, part) in [
            ("", "standard input is not the state"),
            ("null", "standard input is not the state"),
            ("{", "standard input is not the state"),
            (r#"{"id":"web"}"#, "status"),
            (
                r#"{"id":"web","bundle":"/b","status":"paused","pid":1}"#,
                "paused",
            ),
            (
                r#"{"id":"web","bundle":"/b","status":"created"}"#,
                "\"web\" has no process",
            ),
            (
                r#"{"id":"web","bundle":"/b","status":"created","pid":0}"#,
                "\"web\" has no process",
            ),
            (
                r#"{"id":"web","bundle":"/b","status":"created","pid":-7}"#,
                "\"web\" has no process",
            ),
            (
                r#"{"id":"web","bundle":"/b","status":"created","pid":4294967297}"#,
                "standard input is not the state",
            ),
            (
                r#"{"id":"w","bundle":"/b","status":"created","pid":1,"annotations":{"a":1}}"#,
                "standard input is not the state",
            ),
        ] {
            let error = oci(state).unwrap_err();
            assert!(error.contains(part), "{state}: {error}");
        }
        let long = format!(
            r#"{{"id":"{}","bundle":"/b","status":"stopped"}}"#,
            "x".repeat(1025)
        );
        assert!(oci(&long).unwrap_err().contains("1025 bytes"));
        let error = Call::of_oci(io::repeat(b' ')).unwrap_err();
        assert!(matches!(error, CallError::Long), "{error}");
        let deep = format!(r#"{{"x":{}"#, "[".repeat(1 << 19));
        assert!(oci(&deep).unwrap_err().contains("is not the state"));
    }

    #[test]
    fn lxcs_hooks_are_understood() {
        let all = [
            ("LXC_NAME", "web"),
            ("LXC_CONFIG_FILE", "/c"),
            ("LXC_PID", "4711"),
        ];
        let start = lxc("start-host", &all).unwrap();
        assert_eq!(start.event, created(4711, &[]));
        let stop = lxc("post-stop", &all[..2]).unwrap();
        assert_eq!(
            (stop.container, stop.event),
            (start.container, Event::Stopped)
        );
        for (hook, variables, part) in [
            ("pre-start", &all[..], "lxc.hook.start-host"),
            ("start-host", &all[..2], "LXC_PID"),
            ("start-host", &all[1..], "LXC_NAME"),
            ("start-host", &[all[0], all[1], ("LXC_PID", "0")], "LXC_PID"),
        ] {
            let error = lxc(hook, variables).unwrap_err();
            assert!(error.contains(part), "{hook}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Call::of_oci(&bytes[..]);
        }
    }
}
