//! `--ulimit NAME=SOFT[:HARD]`: limits of the container's processes, `setrlimit(2)`.

use std::io;
use std::str::FromStr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::failure::Explained;

/// One limit. `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// One of [`NAMES`].
    name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// As `prlimit(1)` has them, which are those of Podman and Docker.
const NAMES: [(&str, Resource); 16] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

#[derive(Debug, thiserror::Error)]
pub enum UlimitError {
    #[error("expected NAME=SOFT or NAME=SOFT:HARD, or host")]
    Form,
    #[error("there is no limit {0:?}; there are {names}", names = names())]
    Name(String),
    #[error("{0:?} is no number, nor unlimited")]
    Number(String),
    #[error("the soft limit {soft} of {name} is above the hard one, {hard}")]
    SoftAboveHard {
        name: String,
        soft: String,
        hard: String,
    },
    #[error(
        "cannot set the limit {name} to {wanted}: the caller's own hard limit is {own}, and only the host's root may go beyond"
    )]
    AboveCallers {
        name: String,
        wanted: String,
        own: String,
    },
    #[error("cannot set the limit {name}: {source}")]
    Set { name: String, source: io::Error },
}

impl Explained for UlimitError {}

impl FromStr for Ulimit {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let (name, values) = text.split_once('=').ok_or(UlimitError::Form)?;
        let name = name.to_ascii_lowercase();
        if !NAMES.iter().any(|(known, _)| *known == name) {
            return Err(UlimitError::Name(name));
        }
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if !is_within(soft, hard) {
            return Err(UlimitError::SoftAboveHard {
                name,
                soft: shown(soft),
                hard: shown(hard),
            });
        }
        Ok(Self { name, soft, hard })
    }
}

impl Ulimit {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets it for this process and what comes of it.
    pub fn apply(&self) -> Result<(), UlimitError> {
        let known = NAMES.iter().find(|(name, _)| *name == self.name);
        let (_, resource) = known.ok_or_else(|| UlimitError::Name(self.name.clone()))?;
        let own = getrlimit(*resource).maximum;
        let limit = Rlimit {
            current: self.soft,
            maximum: self.hard,
        };
        setrlimit(*resource, limit).map_err(|errno| match is_within(self.hard, own) {
            false => UlimitError::AboveCallers {
                name: self.name.clone(),
                wanted: shown(self.hard),
                own: shown(own),
            },
            true => UlimitError::Set {
                name: self.name.clone(),
                source: errno.into(),
            },
        })
    }
}

fn is_within(lower: Option<u64>, upper: Option<u64>) -> bool {
    match (lower, upper) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(lower), Some(upper)) => lower <= upper,
    }
}

fn number(text: &str) -> Result<Option<u64>, UlimitError> {
    match text {
        "-1" | "unlimited" => Ok(None),
        text => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(UlimitError::Number(text.to_owned())),
        },
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_soft_and_hard() {
        let parse = |text: &str| {
            let limit: Ulimit = text.parse().expect(text);
            (limit.name, limit.soft, limit.hard)
        };
        let named = |name: &str, soft, hard| (name.to_owned(), soft, hard);
        assert_eq!(parse("nofile=10:20"), named("nofile", Some(10), Some(20)));
        assert_eq!(parse("core=0"), named("core", Some(0), Some(0)));
        assert_eq!(parse("NPROC=7:-1"), named("nproc", Some(7), None));
        assert_eq!(parse("stack=unlimited"), named("stack", None, None));
        for (text, part) in [
            ("nofile", "expected NAME"),
            ("files=1", "no limit \"files\""),
            ("nofile=", "no number"),
            ("nofile=1:x", "no number"),
            ("nofile=1:2:3", "no number"),
            ("nofile=2:1", "above the hard one"),
            ("nofile=-1:1", "unlimited of nofile"),
            ("nofile=-2", "no number"),
        ] {
            let error = text.parse::<Ulimit>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_limit_beyond_the_callers_names_it() {
        let own = getrlimit(Resource::Nofile).maximum;
        let limit = Ulimit {
            name: "nofile".to_owned(),
            soft: Some(1),
            hard: Some(u64::MAX - 1),
        };
        let said = limit.apply().expect_err("beyond fs.nr_open").to_string();
        let named = own.is_none() || said.contains("the caller's own hard limit");
        assert!(named, "{said}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", value in "[0-9:-]{0,10}") {
            let _ = (text.parse::<Ulimit>(), format!("core={value}").parse::<Ulimit>());
        }
    }
}
