//! What a container's annotations may ask for.
//!
//! They come with an image, or from whoever wrote the container's configuration, and are not to be
//! trusted: tools that make a configuration copy the annotations of an image into it. So they get
//! what any user of the host could have, some published ports, and nothing else: no file, no
//! socket, no port that takes a privilege. What they say and nobody understands is an error.

use std::collections::BTreeMap;

use portfwd::Publish;
use portfwd::publish::unprivileged_port_start;

use crate::config::ConfigError;

/// Ports to publish: rules as behind `--publish`, with commas or white space between them.
const PUBLISH: &str = "coracle.publish";

/// All keys that begin so are ours.
const OURS: &str = "coracle.";

/// A value that cannot work, or that goes too far. Texts have a bounded length, whatever it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error("annotation {0:?} is unknown; there is {PUBLISH}")]
    Unknown(String),
    #[error("annotation {PUBLISH}: {0}")]
    Publish(#[from] ConfigError),
    #[error("annotation {PUBLISH}: a rule of {0} bytes; none has more than {MAX_RULE}")]
    LongRule(usize),
    #[error("annotation {PUBLISH} asks for more than {MAX_PORTS} ports; give them by --publish")]
    TooManyPorts,
    #[error(
        "annotation {PUBLISH}: {rule} asks for a port below {floor}, which takes a privilege that \
         no annotation has; give it by --publish"
    )]
    Privileged { rule: Publish, floor: u16 },
}

/// What to publish.
pub fn publish(annotations: &BTreeMap<String, String>) -> Result<Vec<Publish>, AnnotationError> {
    wishes(annotations, unprivileged_port_start())
}

fn wishes(
    annotations: &BTreeMap<String, String>,
    floor: u16,
) -> Result<Vec<Publish>, AnnotationError> {
    let mut ours = annotations.iter().filter(|(key, _)| key.starts_with(OURS));
    if let Some((key, _)) = ours.find(|(key, _)| *key != PUBLISH) {
        return Err(AnnotationError::Unknown(
            key.chars().take(MAX_RULE).collect(),
        ));
    }
    let text = annotations.get(PUBLISH).map_or("", String::as_str);
    let mut ports = 0;
    let mut rules = Vec::new();
    for word in text.split(|c: char| c == ',' || c.is_ascii_whitespace()) {
        if word.is_empty() {
            continue;
        }
        if word.len() > MAX_RULE {
            return Err(AnnotationError::LongRule(word.len()));
        }
        // At no address: the container has no say in what else there is in its network namespace.
        let rule: Publish = word
            .parse()
            .map_err(|error| ConfigError::Publish(word.to_owned(), error))?;
        ports += rule.guest_ports.len();
        if ports > MAX_PORTS {
            return Err(AnnotationError::TooManyPorts);
        }
        if rule.pairs().any(|(host, _)| (1..floor).contains(&host)) {
            return Err(AnnotationError::Privileged { rule, floor });
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// Of one container's; more than any service has, and less than would be missed.
const MAX_PORTS: usize = 256;
/// Bytes of the longest rule that makes sense, an IPv6 address and two ranges, and some to spare.
const MAX_RULE: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let wishes = wishes(&annotations.iter().map(own).collect(), 1024);
        match wishes {
            Ok(rules) => Ok(rules.iter().map(Publish::to_string).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn rules_are_listed_with_commas_or_white_space() {
        assert_eq!(of(&[]), Ok(vec![]));
        let others = [("org.opencontainers.image.title", "x"), ("coracle", "y")];
        assert_eq!(of(&others), Ok(vec![]));
        assert_eq!(of(&[("coracle.publish", " ,\n")]), Ok(vec![]));
        let list = "8080:80, 127.0.0.1:5353:53/udp\n[fd00::1]:7000-7002:1-3 90";
        let rules = [
            "8080:80/tcp",
            "127.0.0.1:5353:53/udp",
            "[fd00::1]:7000-7002:1-3/tcp",
            "90/tcp",
        ];
        let expected = rules.map(str::to_owned).to_vec();
        assert_eq!(of(&[("coracle.publish", list)]), Ok(expected));
    }

    #[test]
    fn what_goes_too_far_is_refused_in_few_words() {
        let long = "9".repeat(500_000);
        let many = "8080:80,".repeat(257);
        for (key, value, part) in [
            (
                "coracle.status-socket",
                "/x",
                "\"coracle.status-socket\" is unknown",
            ),
            ("coracle.\u{1b}[2J", "", r#""coracle.\u{1b}[2J" is unknown"#),
            (&format!("coracle.{long}"), "", "is unknown"),
            ("coracle.publish", "x", "\"x\" is not a publishing rule"),
            ("coracle.publish", &long, "500000 bytes"),
            ("coracle.publish", &many, "more than 256 ports"),
            (
                "coracle.publish",
                "1024-65535:1024-65535",
                "more than 256 ports",
            ),
            ("coracle.publish", "80:80", "below 1024"),
            ("coracle.publish", "1000-1030:1-31/udp", "below 1024"),
        ] {
            let error = of(&[(key, value)]).unwrap_err();
            assert!(error.contains(part) && error.len() < 300, "{error}");
        }
    }
}
