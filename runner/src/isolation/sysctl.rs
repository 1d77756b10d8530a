//! `--sysctl NAME=VALUE`: settings of the kernel's that belong to a namespace.

use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::Explained;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// With dots between its parts, `sysctl(8)`.
    pub name: String,
    pub value: String,
}

/// The namespace that a setting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Network,
    Ipc,
}

#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("expected NAME=VALUE, as net.core.somaxconn=1024")]
    Form,
    #[error(
        "{0} is a setting of the whole host, which a container cannot change: there are those of net., fs.mqueue. and, of kernel., \
         msgmax, msgmnb, msgmni, sem, shmall, shmmax, shmmni and shm_rmid_forced"
    )]
    OfHost(String),
    #[error("{name} is a setting of the host's {of}, which the container shares")]
    Shared { name: String, of: &'static str },
    #[error("cannot set {name} to {value:?} in the container: {source}")]
    Set {
        name: String,
        value: String,
        source: io::Error,
    },
}

impl Explained for SysctlError {}

impl FromStr for Sysctl {
    type Err = SysctlError;

    fn from_str(text: &str) -> Result<Self, SysctlError> {
        let (name, value) = text.split_once('=').ok_or(SysctlError::Form)?;
        let setting = Self {
            // Both spellings are in use.
            name: name.trim().replace('/', "."),
            value: value.trim().to_owned(),
        };
        let is_part = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            !part.is_empty() && part.bytes().all(allowed)
        };
        match setting.scope() {
            _ if !setting.name.split('.').all(is_part) => Err(SysctlError::Form),
            Some(_) => Ok(setting),
            None => Err(SysctlError::OfHost(setting.name)),
        }
    }
}

impl Sysctl {
    /// `None` for one of the whole host.
    pub fn scope(&self) -> Option<Scope> {
        const OF_IPC: [&str; 8] = [
            "msgmax",
            "msgmnb",
            "msgmni",
            "sem",
            "shmall",
            "shmmax",
            "shmmni",
            "shm_rmid_forced",
        ];
        match self.name.split_once('.') {
            Some(("net", _)) => Some(Scope::Network),
            Some(("fs", rest)) if rest.starts_with("mqueue.") => Some(Scope::Ipc),
            Some(("kernel", rest)) if OF_IPC.contains(&rest) => Some(Scope::Ipc),
            _ => None,
        }
    }

    /// Where it is below the root of a procfs.
    pub fn path(&self) -> String {
        format!("sys/{}", self.name.replace('.', "/"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_belong_to_a_namespace() {
        let parse = |text: &str| text.parse::<Sysctl>().expect(text);
        let setting = parse("net.ipv4.ip_forward = 1");
        assert_eq!(
            (&*setting.name, &*setting.value),
            ("net.ipv4.ip_forward", "1")
        );
        assert_eq!(setting.path(), "sys/net/ipv4/ip_forward");
        assert_eq!(setting.scope(), Some(Scope::Network));
        assert_eq!(parse("net/core/somaxconn=9").name, "net.core.somaxconn");
        assert_eq!(parse("fs.mqueue.msg_max=9").scope(), Some(Scope::Ipc));
        assert_eq!(parse("kernel.sem=1 2 3 4").value, "1 2 3 4");
        for (text, part) in [
            ("net.core.somaxconn", "expected NAME"),
            ("net.=1", "expected NAME"),
            ("net..x=1", "expected NAME"),
            ("net.../../x=1", "expected NAME"),
            ("net=1", "whole host"),
            ("kernel.panic=1", "whole host"),
            ("vm.swappiness=1", "whole host"),
        ] {
            let error = text.parse::<Sysctl>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_leads_elsewhere(text in "[a-z./=]{0,30}") {
            if let Ok(setting) = text.parse::<Sysctl>() {
                prop_assert!(!setting.path().contains(".."));
            }
        }
    }
}
