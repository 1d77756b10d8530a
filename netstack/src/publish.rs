//! What a user writes behind `--publish`: a rule of [`portfwd::spec`], with the address in the
//! guest before its port where that is not the guest's own:
//! `[[IP:][HOST]:][GUEST_IP:]GUEST[/tcp|/udp]`.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use portfwd::{Publish, SpecError};

/// Host ports, and whose ports they lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishTo {
    pub rule: Publish,
    /// `None` is the guest's own address, of the family that a client comes over.
    pub guest: Option<IpAddr>,
}

/// To the guest itself.
impl From<Publish> for PublishTo {
    fn from(rule: Publish) -> Self {
        Self { rule, guest: None }
    }
}

impl FromStr for PublishTo {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match split_guest(text) {
            Some((host, guest, ports)) => Ok(Self {
                rule: format!("{host}:{ports}").parse()?,
                guest: Some(guest),
            }),
            None => Ok(text.parse::<Publish>()?.into()),
        }
    }
}

impl Display for PublishTo {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rule = self.rule.to_string();
        let Some(guest) = self.guest else {
            return f.write_str(&rule);
        };
        let (host, ports) = rule.rsplit_once(':').unwrap_or(("", &rule));
        match guest {
            IpAddr::V4(ip) => write!(f, "{host}:{ip}:{ports}"),
            IpAddr::V6(ip) => write!(f, "{host}:[{ip}]:{ports}"),
        }
    }
}

/// Takes the address out that is between the ports of host and guest: what is in its place is
/// otherwise the host's port, or at the rule's beginning the host's address.
fn split_guest(text: &str) -> Option<(&str, IpAddr, &str)> {
    let (front, ports) = text.rsplit_once(':')?;
    match front.strip_suffix(']') {
        Some(front) => {
            let (host, guest) = front.rsplit_once(":[")?;
            let guest: Ipv6Addr = guest.parse().ok()?;
            Some((host, guest.to_canonical(), ports))
        }
        None => {
            let (host, guest) = front.rsplit_once(':')?;
            let guest: Ipv4Addr = guest.parse().ok()?;
            Some((host, guest.into(), ports))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<(String, Option<String>), SpecError> {
        let PublishTo { rule, guest } = text.parse()?;
        Ok((rule.to_string(), guest.map(|guest| guest.to_string())))
    }

    #[test]
    fn the_guests_address_is_between_the_ports() {
        for (text, rule, guest) in [
            ("8080:80", "8080:80/tcp", None),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp", None),
            ("[::1]:53:53/udp", "[::1]:53:53/udp", None),
            ("80", "80/tcp", None),
            ("8080:10.89.0.5:80", "8080:80/tcp", Some("10.89.0.5")),
            (":10.89.0.5:80", "80/tcp", Some("10.89.0.5")),
            (
                "127.0.0.1:8080:10.89.0.5:80",
                "127.0.0.1:8080:80/tcp",
                Some("10.89.0.5"),
            ),
            (
                "[::1]:8000-8001:[fd89::5]:80-81/udp",
                "[::1]:8000-8001:80-81/udp",
                Some("fd89::5"),
            ),
        ] {
            let expected = (rule.to_owned(), guest.map(str::to_owned));
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for bad in [
            "10.89.0.5:80",
            "127.0.0.1:10.89.0.5:80",
            "8080:10.89.0.5:",
            "8080:fd89::5:80",
            "8080:[fd89::x]:80",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_never_panics_and_what_is_read_is_written(text in "[0-9a-f.:/\\[\\]-]{0,40}") {
            if let Ok(published) = text.parse::<PublishTo>() {
                prop_assert_eq!(published.to_string().parse(), Ok(published));
            }
        }
    }
}
