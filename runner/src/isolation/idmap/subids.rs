//! Subordinate IDs: what `/etc/subuid` and `/etc/subgid` grant to whom (`subuid(5)`), and which IDs
//! are nobody's yet.

use std::ops::Range;

use nix::unistd::User;

use super::Kind;

impl Kind {
    pub(super) fn subid_file(self) -> &'static str {
        match self {
            Self::User => "/etc/subuid",
            Self::Group => "/etc/subgid",
        }
    }

    /// An absent or unreadable file grants nothing, as for newuidmap itself.
    pub(super) fn read_subids(self) -> String {
        let text = std::fs::read(self.subid_file()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// A range of subordinate IDs as `/etc/subuid` grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubIdRange {
    pub start: u32,
    pub count: u32,
}

/// The ranges that the lines for `name` or for the number `uid` grant, in file order. Comments,
/// empty lines and lines that are no `owner:start:count` grant nothing, as with newuidmap; neither
/// do ranges beyond 32 bits.
pub fn parse_subids(text: &str, name: Option<&str>, uid: u32) -> Vec<SubIdRange> {
    let parse_line = |line: &str| {
        let mut fields = line.trim_end().split(':');
        let (owner, start, count) = (fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_some() || !(Some(owner) == name || parse_id(owner) == Some(uid)) {
            return None;
        }
        let (start, count) = (parse_id(start)?, parse_id(count)?);
        // u32::MAX is no ID (`chown(2)` reads it as "leave alone"), so that a range must end below
        // it.
        (count > 0 && start.checked_add(count).is_some()).then_some(SubIdRange { start, count })
    };
    text.lines().filter_map(parse_line).collect()
}

/// How root gives a user sub-IDs that nobody has. usermod itself does not look whether they are
/// free.
pub(super) fn remedy(name: Option<&str>, uid: u32) -> String {
    let texts =
        [Kind::User, Kind::Group].map(|kind| std::fs::read(kind.subid_file()).unwrap_or_default());
    let texts = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    let Some(free) = first_free(&texts.each_ref().map(String::as_str), OF_USERS) else {
        return "and all ranges are given away".to_owned();
    };
    let (first, last) = (free.start, free.start + (free.count - 1));
    match name {
        Some(name) => format!(
            "`usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {name}` as root gives \
             free ones"
        ),
        // usermod wants a name.
        None => format!(
            "the line `{uid}:{first}:{}` in /etc/subuid and in /etc/subgid gives free ones",
            free.count
        ),
    }
}

/// How many IDs users and containers get: as many as images use, and SUB_UID_COUNT of
/// `login.defs(5)`.
const RANGE_LEN: u32 = 65536;

/// Where useradd begins to look, SUB_UID_MIN of `login.defs(5)`. u32::MAX is no ID.
const OF_USERS: Range<u32> = 100_000..u32::MAX;

/// Where the IDs of the host's root's containers are looked for when nobody has granted any: a part
/// of the 32 bits that distributions, and systemd for its machines and services, leave alone.
const OF_ROOT: Range<u32> = 0x7000_0000..0x8000_0000;

/// IDs for the containers of the host's root: those that the sub-ID file `text` grants to the user
/// `coracle` or `containers`. The host's root is never one of them.
pub(super) fn granted_to_root(text: &str) -> Option<Vec<SubIdRange>> {
    let granted = |owner| parse_subids(text, Some(owner), u32::MAX);
    let is_safe =
        |ranges: &Vec<SubIdRange>| !ranges.is_empty() && ranges.iter().all(|r| r.start > 0);
    ["coracle", "containers"]
        .map(granted)
        .into_iter()
        .find(is_safe)
}

/// IDs for the containers of the host's root that neither a line of the sub-ID files `texts` nor an
/// account has.
pub(super) fn free_for_root(texts: &[String]) -> Option<SubIdRange> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut within = OF_ROOT;
    while let Some(range) = first_free(&texts, within.clone()) {
        if matches!(User::from_uid(range.start.into()), Ok(None)) {
            return Some(range);
        }
        within.start = range.start + range.count;
    }
    None
}

/// The first range within these IDs that overlaps no line of the sub-ID files `texts`, whoever the
/// lines are for.
fn first_free(texts: &[&str], within: Range<u32>) -> Option<SubIdRange> {
    let parse_line = |line: &str| {
        let mut fields = line.trim_end().split(':').skip(1);
        let (start, count): (u64, u64) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((start, start.saturating_add(count)))
    };
    let mut taken: Vec<(u64, u64)> = texts
        .iter()
        .flat_map(|text| text.lines().filter_map(parse_line))
        .collect();
    taken.sort_unstable();
    let mut start = u64::from(within.start);
    for (from, to) in taken {
        if from < start + u64::from(RANGE_LEN) && to > start {
            start = to;
        }
    }
    let start = u32::try_from(start).ok()?;
    let end = start.checked_add(RANGE_LEN)?;
    (end <= within.end).then_some(SubIdRange {
        start,
        count: RANGE_LEN,
    })
}

/// Digits only: `u32::from_str` would take a leading `+` as well.
pub(super) fn parse_id(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u32, count: u32) -> SubIdRange {
        SubIdRange { start, count }
    }

    #[test]
    fn subids_are_found_by_name_and_by_number() {
        let file = "# comment\nrhel:165536:65536\nalice:100000:65536\n\n1001:300000:10\ngke-930957db5604c7804fbd:296608:65536\n";
        assert_eq!(
            parse_subids(file, Some("alice"), 1001),
            [range(100_000, 65536), range(300_000, 10)]
        );
        assert_eq!(
            parse_subids(file, Some("gke-930957db5604c7804fbd"), 7),
            [range(296_608, 65536)]
        );
        assert_eq!(parse_subids(file, None, 1001), [range(300_000, 10)]);
        assert_eq!(parse_subids(file, Some("bob"), 1002), []);
    }

    #[test]
    fn the_range_that_is_proposed_is_free() {
        let free =
            |texts: &[&str]| first_free(texts, OF_USERS).map(|range| (range.start, range.count));
        assert_eq!(free(&["", ""]), Some((100_000, 65536)));
        // Either file, any owner, in any order; gaps that are too small are passed over.
        assert_eq!(free(&["a:100000:65536", ""]), Some((165_536, 65536)));
        assert_eq!(free(&["", "a:100000:65536"]), Some((165_536, 65536)));
        assert_eq!(
            free(&["a:100000:1", "b:165535:65536\n"]),
            Some((231_071, 65536))
        );
        assert_eq!(
            free(&["b:165536:65536\na:100000:65536", "c:231072:1"]),
            Some((231_073, 65536))
        );
        assert_eq!(free(&["a:165536:65536", "# b:1"]), Some((100_000, 65536)));
        assert_eq!(free(&["a:0:1000000\nb:5:5"]), Some((1_000_000, 65536)));
        assert_eq!(free(&["a:99999:2\nbad\n7:x:5"]), Some((100_001, 65536)));
        // To the end, and beyond it.
        assert_eq!(free(&["a:100000:4294801759"]), Some((4_294_901_759, 65536)));
        assert_eq!(free(&["a:100000:4294801760"]), None);
        assert_eq!(free(&["a:100000:18446744073709551615"]), None);
    }

    #[test]
    fn the_remedy_for_no_sub_ids_is_one_command() {
        let said = remedy(Some("alice"), 1001);
        assert_eq!(said.matches("usermod").count(), 1, "{said}");
        assert!(
            said.contains("--add-subuids")
                && said.contains("--add-subgids")
                && said.contains(" alice`"),
            "{said}"
        );
        assert!(remedy(None, 1001).contains("`1001:"));
    }

    #[test]
    fn bad_lines_grant_nothing() {
        for line in [
            "alice",
            "alice:1",
            "alice:1:",
            "alice::5",
            "alice:x:5",
            "alice:1:5:6",
            "alice:1:0",
            "alice:-1:5",
            "alice:+1:5",
            "alice:4294967295:1",
            "alice:4294967000:400",
            "alice:99999999999:5",
            " alice:1:5",
            "#alice:1:5",
            ":1:5",
        ] {
            assert_eq!(parse_subids(line, Some("alice"), 1001), [], "{line}");
        }
    }

    #[test]
    fn containers_of_root_get_ids_that_nobody_has() {
        assert_eq!(granted_to_root("alice:100000:65536\n"), None);
        let text = "containers:200000:65536\ncoracle:300000:10\n";
        assert_eq!(granted_to_root(text), Some(vec![range(300_000, 10)]));
        assert_eq!(
            granted_to_root("coracle:0:65536\n"),
            None,
            "root would be among them"
        );
        let start = OF_ROOT.start;
        assert_eq!(free_for_root(&[]), Some(range(start, RANGE_LEN)));
        let taken = format!("bob:{}:10\n", start + 5);
        assert_eq!(free_for_root(&[taken]), Some(range(start + 15, RANGE_LEN)));
        assert_eq!(free_for_root(&["bob:0:4294967295\n".to_owned()]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", uid: u32) {
            parse_subids(&text, Some("alice"), uid);
            let _ = (granted_to_root(&text), free_for_root(&[text]));
        }
    }
}
