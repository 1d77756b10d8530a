//! `--filter KEY=VALUE`, and `KEY!=VALUE` where Podman has that.

use std::str::FromStr;

/// One condition. Which keys there are is the command's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub key: String,
    pub value: String,
    pub is_negated: bool,
}

impl FromStr for Filter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
        let (key, is_negated) = match key.strip_suffix('!') {
            Some(key) => (key, true),
            None => (key, false),
        };
        if key.is_empty() {
            return Err("expected KEY=VALUE");
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            is_negated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_have_a_key_and_a_value() {
        let filter: Filter = "label!=a=b".parse().expect("a condition");
        assert_eq!((&*filter.key, &*filter.value), ("label", "a=b"));
        assert!(filter.is_negated);
        let filter: Filter = "name=".parse().expect("a condition");
        assert_eq!((&*filter.value, filter.is_negated), ("", false));
        for wrong in ["", "name", "=x", "!=x"] {
            wrong.parse::<Filter>().expect_err(wrong);
        }
    }
}
