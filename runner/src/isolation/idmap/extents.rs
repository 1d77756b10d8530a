//! The lines of an ID map: read from the kernel, put together from ranges, and written.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::IdMapError;
use super::subids::SubIdRange;

/// `count` IDs from `inside` on stand for those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub inside: u32,
    /// As the user namespace around the other one sees it.
    pub outside: u32,
    pub count: u32,
}

/// One kind of ID: decides which file is read, which tool is run and which file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    User,
    Group,
}

impl Kind {
    fn own_map(self) -> &'static str {
        match self {
            Self::User => "/proc/self/uid_map",
            Self::Group => "/proc/self/gid_map",
        }
    }
}

/// The map of the user namespace that this process is in; `outside` is as its parent namespace sees
/// it.
pub fn read_own(kind: Kind) -> Result<Vec<Extent>, IdMapError> {
    read_map(Path::new(kind.own_map()))
}

pub fn read_map(path: &Path) -> Result<Vec<Extent>, IdMapError> {
    let text = std::fs::read_to_string(path).map_err(|source| IdMapError::Read {
        path: path.into(),
        source,
    })?;
    parse_map(&text).map_err(|line| IdMapError::Malformed {
        path: path.into(),
        line,
    })
}

/// The user and group ID of root in the user namespace of process `pid`, as this process sees them.
pub fn root_of(pid: i32) -> Result<(u32, u32), IdMapError> {
    let root = |file: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        let extents = read_map(&path)?;
        let first = extents.iter().find(|extent| extent.inside == 0);
        first
            .map(|extent| extent.outside)
            .ok_or(IdMapError::NoRoot { path })
    };
    Ok((root("uid_map")?, root("gid_map")?))
}

/// The IDs that are inside, as they are.
pub fn unchanged(extents: &[Extent]) -> Vec<Extent> {
    let unchanged = |extent: &Extent| Extent {
        outside: extent.inside,
        ..*extent
    };
    extents.iter().map(unchanged).collect()
}

/// What an ID of the outside is inside; `None` where it has no place there.
pub fn inside(extents: &[Extent], outside: u32) -> Option<u32> {
    extents.iter().find_map(|extent| {
        let offset = outside.checked_sub(extent.outside)?;
        (offset < extent.count).then_some(extent.inside + offset)
    })
}

/// Whether `id`, as seen inside, is one of `extents`.
pub fn is_mapped(extents: &[Extent], id: u32) -> bool {
    extents
        .iter()
        .any(|e| id >= e.inside && id - e.inside < e.count)
}

/// Whether there is but one ID.
pub fn is_single(extents: &[Extent]) -> bool {
    extents.iter().map(|e| u64::from(e.count)).sum::<u64>() <= 1
}

/// The user IDs of the user namespace of process `pid`.
pub fn users_of(pid: i32) -> Result<Vec<Extent>, IdMapError> {
    read_map(Path::new(&format!("/proc/{pid}/uid_map")))
}

/// The group IDs of the user namespace of process `pid`.
pub fn groups_of(pid: i32) -> Result<Vec<Extent>, IdMapError> {
    read_map(Path::new(&format!("/proc/{pid}/gid_map")))
}

/// The last ID of the gapless run that starts at 0 inside.
pub fn last_contiguous(extents: &[Extent]) -> u32 {
    let mut extents = extents.to_vec();
    extents.sort_by_key(|e| e.inside);
    let mut next = 0u32;
    for extent in extents.iter().take_while(|e| e.count > 0) {
        if extent.inside != next {
            break;
        }
        next = next.saturating_add(extent.count);
    }
    next.saturating_sub(1)
}

/// The ranges one after another from 0 inside, leaving out what would map an ID twice.
pub fn in_a_row(ranges: &[SubIdRange]) -> Vec<Extent> {
    append(Vec::new(), ranges)
}

/// `id` as 0, then the ranges one after another, leaving out what would map an ID twice.
pub fn after_self(id: u32, ranges: &[SubIdRange]) -> Vec<Extent> {
    let own = Extent {
        inside: 0,
        outside: id,
        count: 1,
    };
    append(vec![own], ranges)
}

fn append(mut extents: Vec<Extent>, ranges: &[SubIdRange]) -> Vec<Extent> {
    /// `user_namespaces(7)`: lines per map since Linux 4.15.
    const EXTENTS_MAX: usize = 340;
    for range in ranges {
        let overlaps = |e: &Extent| {
            range.start < e.outside.saturating_add(e.count) && e.outside < range.start + range.count
        };
        let next = extents.last().map_or(0, |last| last.inside + last.count);
        let room = u32::MAX - next;
        if extents.len() < EXTENTS_MAX && !extents.iter().any(overlaps) && room > 0 {
            extents.push(Extent {
                inside: next,
                outside: range.start,
                count: range.count.min(room),
            });
        }
    }
    extents
}

fn parse_map(text: &str) -> Result<Vec<Extent>, String> {
    let parse_line = |line: &str| {
        let mut fields = line
            .split_ascii_whitespace()
            .map(|field| field.parse().ok());
        Some(Extent {
            inside: fields.next()??,
            outside: fields.next()??,
            count: fields.next()??,
        })
    };
    text.lines()
        .map(|line| parse_line(line).ok_or_else(|| line.to_owned()))
        .collect()
}

pub fn to_map_text(extents: &[Extent]) -> String {
    extents
        .iter()
        .map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u32, count: u32) -> SubIdRange {
        SubIdRange { start, count }
    }

    #[test]
    fn root_inside_is_the_caller_and_ranges_follow_without_gap() {
        let extents = after_self(1001, &[range(100_000, 65536), range(300_000, 10)]);
        assert_eq!(
            to_map_text(&extents),
            "0 1001 1\n1 100000 65536\n65537 300000 10\n"
        );
        assert_eq!(last_contiguous(&extents), 65546);
        assert!(is_mapped(&extents, 65546) && !is_mapped(&extents, 65547));
    }

    #[test]
    fn ranges_that_would_map_an_id_twice_are_left_out() {
        let extents = after_self(1001, &[range(1000, 10), range(5000, 100), range(5050, 100)]);
        assert_eq!(to_map_text(&extents), "0 1001 1\n1 5000 100\n");
    }

    #[test]
    fn kernel_maps_are_read() {
        let text = "         0       1001          1\n         1     100000      65536\n";
        let extents = parse_map(text).expect("a kernel map");
        assert_eq!(
            extents[1],
            Extent {
                inside: 1,
                outside: 100_000,
                count: 65536
            }
        );
        assert_eq!(parse_map("0 x 1\n"), Err("0 x 1".to_owned()));
        assert_eq!(
            last_contiguous(&parse_map("0 0 4294967295").expect("the initial map")),
            4_294_967_294
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = parse_map(&text);
        }

        #[test]
        fn extents_never_overlap(uid in 0..u32::MAX, raw in prop::collection::vec((0..u32::MAX, 1u32..100_000), 0..20)) {
            let ranges: Vec<_> = raw.into_iter().filter(|(s, c)| s.checked_add(*c).is_some()).map(|(s, c)| range(s, c)).collect();
            let extents = after_self(uid, &ranges);
            let mut next = 0;
            for (i, a) in extents.iter().enumerate() {
                prop_assert_eq!(a.inside, next);
                next += a.count;
                for b in &extents[i + 1..] {
                    prop_assert!(a.outside + a.count <= b.outside || b.outside + b.count <= a.outside);
                }
            }
        }
    }
}
