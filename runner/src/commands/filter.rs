//! What `--filter` leaves of a list. As with Podman, all keys have to be satisfied, each by one of
//! its values; of labels all values, and of those that are negated none may be had.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use regex_lite::Regex;

use crate::cli::Filter;
use crate::failure::Failure;

/// Whether a thing is shown. `has` says whether it has the value of a filter's key.
pub fn admits(
    filters: &[Filter],
    mut has: impl FnMut(&Filter) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let mut of_keys: BTreeMap<&str, bool> = BTreeMap::new();
    let mut all = true;
    for filter in filters {
        let has_it = has(filter)?;
        match (filter.is_negated, &*filter.key) {
            (true, _) => all &= !has_it,
            (false, "label") => all &= has_it,
            (false, key) => *of_keys.entry(key).or_default() |= has_it,
        }
    }
    Ok(all && of_keys.into_values().all(|has_one| has_one))
}

/// Refuses the keys that are not `known`, before anything is listed.
pub fn check(filters: &[Filter], command: &str, known: &[&str]) -> Result<(), Failure> {
    const NEGATABLE: &[&str] = &["label", "reference", "id"];
    for filter in filters {
        if !known.contains(&&*filter.key) {
            return Err(Failure::runner(format!(
                "{command} has no filter {:?}; there are {}",
                filter.key,
                known.join(", ")
            )));
        }
        if filter.is_negated && !NEGATABLE.contains(&&*filter.key) {
            return Err(Failure::runner(format!(
                "{command}: the filter {0:?} cannot be negated: expected {0}=VALUE",
                filter.key
            )));
        }
    }
    Ok(())
}

/// Whether labels have `KEY` or `KEY=VALUE`.
pub fn has_label<'a>(
    mut labels: impl Iterator<Item = (&'a String, &'a String)>,
    wanted: &str,
) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.any(|label| (&**label.0, &**label.1) == (key, value)),
        None => labels.any(|(key, _)| key == wanted),
    }
}

/// `true` and `false`, as Podman reads them.
pub fn truth(filter: &Filter) -> Result<bool, Failure> {
    match &*filter.value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(wrong(filter, "expected true or false")),
    }
}

/// The moment that is meant, in seconds since 1970: a time, or how long ago it was.
pub fn moment(filter: &Filter) -> Result<i64, Failure> {
    let text = &filter.value;
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_second());
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(seconds);
    }
    let ago: Result<SignedDuration, _> = text.parse();
    match ago {
        Ok(ago) if !ago.is_negative() => Ok(Timestamp::now().as_second() - ago.as_secs()),
        _ => Err(wrong(
            filter,
            "expected a time, or how long ago it was, as 24h",
        )),
    }
}

/// The same of an option, where it is given.
pub fn time_option(name: &str, text: Option<&str>) -> Result<Option<i64>, Failure> {
    let meant = text.map(|text| Filter {
        key: name.to_owned(),
        value: text.to_owned(),
        is_negated: false,
    });
    meant.as_ref().map(moment).transpose()
}

/// As Podman reads names: a regular expression, which need not match the whole.
pub fn pattern(filter: &Filter) -> Result<Regex, Failure> {
    Regex::new(&filter.value).map_err(|error| wrong(filter, &error.to_string()))
}

/// As the shell matches file names: `*` and `?` stop at a slash.
pub fn glob(filter: &Filter) -> Result<Regex, Failure> {
    let mut pattern = String::from("^");
    for c in filter.value.chars() {
        match c {
            '*' => pattern += "[^/]*",
            '?' => pattern += "[^/]",
            '[' | ']' => pattern.push(c),
            c => pattern += &regex_lite::escape(c.encode_utf8(&mut [0; 4])),
        }
    }
    pattern.push('$');
    Regex::new(&pattern).map_err(|error| wrong(filter, &error.to_string()))
}

pub fn wrong(filter: &Filter, why: &str) -> Failure {
    Failure::runner(format!(
        "{:?} cannot be the value of the filter {}: {why}",
        filter.value, filter.key
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        let parse = |text: &&str| text.parse().expect("a filter");
        texts.iter().map(parse).collect()
    }

    #[test]
    fn keys_are_joined_by_and_and_values_by_or() {
        let shown = |texts: &[&str]| {
            let has = |filter: &Filter| Ok(["a", "b"].contains(&&*filter.value));
            admits(&filters(texts), has).expect("no key is unknown")
        };
        assert!(shown(&[]) && shown(&["id=a"]) && shown(&["id=x", "id=a"]));
        assert!(!shown(&["id=a", "name=x"]) && shown(&["id=a", "name=b"]));
        assert!(!shown(&["label=a", "label=x"]) && shown(&["label=a", "label=b"]));
        assert!(!shown(&["label!=a"]) && shown(&["label!=x"]));
    }

    #[test]
    fn keys_are_checked_by_name() {
        check(&filters(&["id=1", "label!=x"]), "images", &["id", "label"]).expect("known");
        for (text, said) in [
            ("nope=1", "\"nope\"; there are id"),
            ("until!=1h", "negated"),
        ] {
            let error = check(&filters(&[text]), "images", &["id", "until"]);
            let error = error.expect_err(text).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn values() {
        let filter = |text: &str| text.parse::<Filter>().expect("a filter");
        assert_eq!(
            moment(&filter("until=2024-01-02T03:04:05Z")).expect("a time"),
            1_704_164_645
        );
        let ago = Timestamp::now().as_second() - moment(&filter("until=1h30m")).expect("ago");
        assert!((5400..5410).contains(&ago), "{ago}");
        moment(&filter("until=soon")).expect_err("no time");
        assert!(truth(&filter("dangling=1")).expect("true"));
        truth(&filter("dangling=x")).expect_err("neither");
        assert!(
            glob(&filter("r=a*:?"))
                .expect("a pattern")
                .is_match("abc:1")
        );
        assert!(!glob(&filter("r=a*")).expect("a pattern").is_match("a/b"));
        assert!(!glob(&filter("r=a.c")).expect("a pattern").is_match("abc"));
        assert!(
            pattern(&filter("name=^w.b$"))
                .expect("a pattern")
                .is_match("web")
        );
        pattern(&filter("name=(")).expect_err("no pattern");
    }

    #[test]
    fn labels_have_a_key_or_both() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(has_label(labels.iter(), "a") && has_label(labels.iter(), "a=b"));
        assert!(!has_label(labels.iter(), "a=") && !has_label(labels.iter(), "b"));
    }
}
