//! `.containerignore` and `.dockerignore`: what of a build's context stays out.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use super::copy::LeftOut;
use super::pattern::matches;
use crate::rootfs::lookup::open_in_root;

/// Patterns, of which the last that fits decides.
#[derive(Debug, Default)]
pub struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    text: String,
    /// Whether what fits stays in after all.
    keeps: bool,
}

impl Ignore {
    /// The file of a context, if it has one.
    pub fn of_context(context: &OwnedFd) -> io::Result<Self> {
        for name in ["/.containerignore", "/.dockerignore"] {
            match open_in_root(context, Path::new(name), OFlags::RDONLY | OFlags::NONBLOCK) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    let text = io::read_to_string(std::fs::File::from(file))?;
                    return Ok(Self::parse(&text));
                }
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str) -> Self {
        let patterns = text.lines().filter_map(|line| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (text, keeps) = match line.strip_prefix('!') {
                Some(text) => (text, true),
                None => (line, false),
            };
            let parts = text
                .split('/')
                .filter(|part| !part.is_empty() && *part != ".");
            let text = parts.collect::<Vec<_>>().join("/");
            (!text.is_empty()).then_some(Pattern { text, keeps })
        });
        Self(patterns.collect())
    }

    fn says(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let above = |pattern: &str| {
            let ends = path.match_indices('/').map(|(end, _)| end);
            ends.chain([path.len()])
                .any(|end| matches(pattern, &path[..end]))
        };
        let decides = self.0.iter().rev().find(|pattern| above(&pattern.text));
        decides.is_some_and(|pattern| !pattern.keeps)
    }
}

impl LeftOut for Ignore {
    fn is_left_out(&self, path: &Path, is_directory: bool) -> bool {
        // Something below may be kept.
        let may_hold = is_directory && self.0.iter().any(|pattern| pattern.keeps);
        !may_hold && self.says(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let ignore = Ignore::parse("# comment\n*.log\n/build/\n**/tmp\n!keep.log\n");
        let says = |path: &str| ignore.says(Path::new(path));
        for out in ["a.log", "build", "build/x/y", "a/b/tmp", "tmp/c"] {
            assert!(says(out), "{out}");
        }
        for kept in ["keep.log", "a", "sub/a.log", "builds"] {
            assert!(!says(kept), "{kept}");
        }
        assert!(!ignore.is_left_out(Path::new("build"), true));
        assert!(ignore.is_left_out(Path::new("build/x"), false));
    }
}
