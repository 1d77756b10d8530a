//! `.containerignore` and `.dockerignore`: what of a build's context stays out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::copy::LeftOut;
use super::pattern::Pattern;
use crate::rootfs::lookup::{file_type, open_in_root};

/// In bytes; longer ones are no such files.
const LEN_MAX: u64 = 1 << 20;

/// Patterns, of which the last that fits decides.
#[derive(Debug, Default)]
pub struct Ignore(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// Whether what fits stays in after all.
    keeps: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum IgnoreError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: line {line}: {text:?} is no pattern", path.display())]
    Pattern {
        path: PathBuf,
        line: usize,
        text: String,
    },
}

impl Ignore {
    /// What is beside the Containerfile, which need not be in the context and has its own, or else
    /// the context's.
    pub fn beside(containerfile: &str, context: &OwnedFd) -> Result<Self, IgnoreError> {
        for name in ["containerignore", "dockerignore"] {
            let path = PathBuf::from(format!("{containerfile}.{name}"));
            if path.exists() {
                return Self::read(&path);
            }
        }
        Self::of_context(context)
    }

    /// The file of a context, if it has one.
    fn of_context(context: &OwnedFd) -> Result<Self, IgnoreError> {
        for name in ["/.containerignore", "/.dockerignore"] {
            let path = Path::new(name);
            match open_in_root(context, path, OFlags::RDONLY | OFlags::NONBLOCK) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return Self::read_opened(Path::new(&name[1..]), opened),
            }
        }
        Ok(Self::default())
    }

    pub fn read(path: &Path) -> Result<Self, IgnoreError> {
        Self::read_opened(path, File::open(path).map(OwnedFd::from))
    }

    fn read_opened(path: &Path, opened: io::Result<OwnedFd>) -> Result<Self, IgnoreError> {
        let read = || {
            let opened = opened?;
            if file_type(&opened)? != FileType::RegularFile {
                return Err(io::Error::other("it is no file"));
            }
            let mut text = String::new();
            let mut file = File::from(opened).take(LEN_MAX + 1);
            file.read_to_string(&mut text)?;
            match text.len() as u64 > LEN_MAX {
                true => Err(io::Error::other("it is too long")),
                false => Ok(text),
            }
        };
        let text = read().map_err(|source| IgnoreError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|(line, text)| IgnoreError::Pattern {
            path: path.to_owned(),
            line,
            text,
        })
    }

    /// The error is a line that has no pattern, and its number.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            // Only there: a pattern may begin with white space that is not the line's.
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let line = line.trim();
            let (text, keeps) = match line.strip_prefix('!') {
                Some(text) => (text.trim(), true),
                None => (line, false),
            };
            let malformed = || (index + 1, line.to_owned());
            if text.is_empty() {
                return Err(malformed());
            }
            let text = cleaned(text);
            // The context itself is always there.
            if !text.is_empty() {
                let pattern = Pattern::new(&text).ok_or_else(malformed)?;
                rules.push(Rule { pattern, keeps });
            }
        }
        Ok(Self(rules))
    }

    fn says(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let above = |pattern: &Pattern| {
            let ends = path.match_indices('/').map(|(end, _)| end);
            ends.chain([path.len()])
                .any(|end| pattern.matches(&path[..end]))
        };
        let decides = self.0.iter().rev().find(|rule| above(&rule.pattern));
        decides.is_some_and(|rule| !rule.keeps)
    }
}

/// Without empty parts and `.`, and `..` taken by its word.
fn cleaned(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl LeftOut for Ignore {
    fn is_left_out(&self, path: &Path, is_directory: bool) -> bool {
        // Something below may be kept.
        let may_hold = is_directory && self.0.iter().any(|rule| rule.keeps);
        !may_hold && self.says(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let ignore =
            Ignore::parse("\u{feff}# comment\n*.log\n/build/\n**/tmp\n! keep.log\n\nx/../y\n.\n")
                .expect("patterns");
        let says = |path: &str| ignore.says(Path::new(path));
        for out in ["a.log", "build", "build/x/y", "a/b/tmp", "tmp/c", "y"] {
            assert!(says(out), "{out}");
        }
        for kept in ["keep.log", "a", "sub/a.log", "builds", "x"] {
            assert!(!says(kept), "{kept}");
        }
        assert!(!ignore.is_left_out(Path::new("build"), true));
        assert!(ignore.is_left_out(Path::new("build/x"), false));
    }
    #[test]
    fn what_is_no_pattern_is_told_by_its_line() {
        for (text, line) in [("a\n[b\n", 2), ("!\n", 1), ("a\\\n", 1)] {
            let (found, _) = Ignore::parse(text).expect_err(text);
            assert_eq!(found, line, "{text}");
        }
    }
}
