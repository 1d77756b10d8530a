//! An image's configuration, as it is changed while the image is made.
//!
//! What is not known here is kept as it is: Docker's and later fields have a way through. Written
//! in one order, so that the same image has the same id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::images::digest::Digest;

/// The OCI image specification's "image configuration".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub config: RunConfig,
    pub rootfs: RootFs,
    #[serde(default)]
    pub history: Vec<Step>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// How the image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub user: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub volumes: BTreeMap<String, Empty>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub working_dir: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub stop_signal: String,
    /// Docker's, as are those that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub on_build: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub shell: Vec<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Go's `struct{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Durations in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`; `CMD` and words; `CMD-SHELL` and a line.
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

/// A step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(skip_serializing_if = "is_false", default)]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Of an image that is made of nothing.
    pub fn scratch() -> Self {
        Self {
            created: None,
            author: None,
            architecture: oci_spec::image::Arch::default().to_string(),
            os: "linux".to_owned(),
            config: RunConfig::default(),
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: Vec::new(),
            },
            history: Vec::new(),
            other: Map::new(),
        }
    }

    /// Of an image that is made of another, whose configuration this is.
    pub fn of_base(text: &[u8]) -> serde_json::Result<Self> {
        /// What Docker says of how it made the image.
        const OF_THE_BASE: [&str; 5] = [
            "container",
            "container_config",
            "docker_version",
            "id",
            "parent",
        ];
        let mut config: Self = serde_json::from_slice(text)?;
        for field in OF_THE_BASE {
            config.other.remove(field);
        }
        Ok(config)
    }

    /// Whether two say the same but for the times at which they were made.
    pub fn is_like(&self, other: &Self) -> bool {
        let timeless = |step: &Step| Step {
            created: None,
            author: None,
            ..step.clone()
        };
        let history = |config: &Self| config.history.iter().map(timeless).collect::<Vec<_>>();
        self.config == other.config
            && self.author == other.author
            && (&self.architecture, &self.os) == (&other.architecture, &other.os)
            && history(self) == history(other)
    }
}

impl RunConfig {
    /// Sets a variable, in the place where it is set already.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.env.iter_mut().find(|entry| is_of(entry, name)) {
            Some(there) => *there = entry,
            None => self.env.push(entry),
        }
    }

    pub fn remove_env(&mut self, name: &str) {
        self.env.retain(|entry| !is_of(entry, name));
    }

    /// Where a relative path begins.
    pub fn working_dir(&self) -> std::path::PathBuf {
        std::path::Path::new("/").join(&self.working_dir)
    }
}

fn is_of(entry: &str, name: &str) -> bool {
    entry.split_once('=').map_or(entry, |(key, _)| key) == name
}

/// A port with its protocol, as configurations have it.
pub fn port(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected PORT[-PORT][/tcp|/udp|/sctp]";
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let is_range = match ports.split_once('-') {
        Some((first, last)) => is_port(first) && is_port(last),
        None => is_port(ports),
    };
    match is_range && matches!(&*protocol, "tcp" | "udp" | "sctp") {
        true => Ok(format!("{ports}/{protocol}")),
        false => Err(EXPECTED),
    }
}

/// A list in JSON, if it is one.
pub fn json_list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// Go writes null for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde calls it with"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde calls it with"
)]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_kept() {
        let text = br#"{"architecture":"arm64","variant":"v8","os":"linux","docker_version":"20","config":{"Env":null,
            "Cmd":["sh"],"ArgsEscaped":true,"Healthcheck":{"Test":["NONE"]}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageConfig::of_base(text).expect("a configuration");
        let written = serde_json::to_value(&config).expect("JSON");
        assert_eq!(written["variant"], "v8");
        assert_eq!(written["config"]["ArgsEscaped"], true);
        assert_eq!(written["config"]["Healthcheck"]["Test"][0], "NONE");
        assert_eq!(written.get("docker_version"), None);
        assert_eq!(written["config"].get("Env"), None);
    }

    #[test]
    fn a_variable_keeps_its_place() {
        let mut config = RunConfig::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3")] {
            config.set_env(name, value);
        }
        assert_eq!(config.env, ["A=3", "B=2"]);
        config.remove_env("A");
        assert_eq!(config.env, ["B=2"]);
    }

    #[test]
    fn ports_have_a_protocol() {
        assert_eq!(port("80"), Ok("80/tcp".to_owned()));
        assert_eq!(port("8000-8010/UDP"), Ok("8000-8010/udp".to_owned()));
        for wrong in ["", "0", "x", "80/", "70000", "80/icmp", "1-"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
