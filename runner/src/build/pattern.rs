//! Patterns of paths, as Go's `filepath.Match` reads them and Containerfiles use them: `*` and `?`
//! stop at slashes, `[a-z]` and `[^a-z]` mean one character, `\` takes the next one as it is. A
//! part that is `**` stands for any number of parts.

/// Whether `path` is what `pattern` says.
pub fn matches(pattern: &str, path: &str) -> bool {
    let parts = |text: &'_ str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
    match_parts(&parts(pattern), &parts(path))
}

/// Whether a text means more than itself.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

fn match_parts(pattern: &[String], path: &[String]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [first, rest @ ..] if first == "**" => {
            (0..=path.len()).any(|skipped| match_parts(rest, &path[skipped..]))
        }
        [first, rest @ ..] => match path {
            [name, below @ ..] => match_name(first, name) && match_parts(rest, below),
            [] => false,
        },
    }
}

/// Whether one part of a path is what one part of a pattern says.
pub fn match_name(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut in_name) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&'*') {
            at += 1;
            retry = Some((at, in_name));
            continue;
        }
        let fits = match name.get(in_name) {
            None if at == pattern.len() => return true,
            None => None,
            Some(c) => match_one(&pattern[at..], *c),
        };
        match (fits, retry) {
            (Some(len), _) => {
                at += len;
                in_name += 1;
            }
            (None, Some((after_star, taken))) if taken < name.len() => {
                at = after_star;
                in_name = taken + 1;
                retry = Some((after_star, in_name));
            }
            _ => return false,
        }
    }
}

/// How much of the pattern stands for the character, if it does.
fn match_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', rest @ ..] => {
            let negated = matches!(rest.first(), Some('^' | '!'));
            let class = &rest[usize::from(negated)..];
            let end = class.iter().skip(1).position(|c| *c == ']')? + 1;
            let mut set = &class[..end];
            let mut found = false;
            while let [low, tail @ ..] = set {
                (found, set) = match tail {
                    ['-', high, tail @ ..] => (found || (*low..=*high).contains(&c), tail),
                    tail => (found || *low == c, tail),
                };
            }
            (found != negated).then_some(1 + usize::from(negated) + end + 1)
        }
        [plain, ..] => (*plain == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_go() {
        for (pattern, path) in [
            ("a", "a"),
            ("*.txt", "b.txt"),
            ("a*b*c", "axxbyybzc"),
            ("?x", "ax"),
            ("[a-c]1", "b1"),
            ("[^a-c]1", "d1"),
            (r"\*", "*"),
            ("a/*/c", "a/b/c"),
            ("**/x", "x"),
            ("**/x", "a/b/x"),
            ("a/**", "a/b/c"),
            ("*", ""),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("a", "b"),
            ("*", "a/b"),
            ("*.txt", "b.txt.gz"),
            ("[a-c]", "d"),
            ("[a", "a"),
            ("", "a"),
            ("a/*", "a"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_ends(pattern in "[ab*?\\[\\]^\\\\/-]{0,12}", path in "[ab/]{0,12}") {
            let _ = matches(&pattern, &path);
        }

        #[test]
        fn a_star_takes_anything(name in "[a-z.]{0,20}") {
            prop_assert!(match_name("*", &name) && match_name(&name, &name));
        }
    }
}
