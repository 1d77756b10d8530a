//! Patterns of paths, as Go's `filepath.Match` reads them and Containerfiles use them: `*` and `?`
//! stop at slashes, `[a-z]` and `[^a-z]` mean one character, `\` takes the next one as it is.
//!
//! In a [`Pattern`], for whole paths, `**` stands for any number of directories, as Docker has it.
//! Matching takes time in proportion to the lengths of both, whatever the pattern.

/// A pattern of a whole path.
#[derive(Debug, Clone)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone)]
enum Token {
    /// One character, as this part of a pattern of one has it.
    One(Vec<char>),
    /// `*`
    Star,
    /// `**` at the end: anything.
    Deep,
    /// `**` elsewhere is nothing or, with [`Token::Inside`] behind it, anything that ends in a
    /// slash.
    Dirs,
    Inside,
}

impl Pattern {
    /// `None` where it is malformed.
    pub fn new(text: &str) -> Option<Self> {
        let chars: Vec<char> = text.chars().collect();
        let mut rest = &chars[..];
        let mut tokens = Vec::new();
        while let Some(first) = rest.first() {
            match rest {
                ['*', '*', tail @ ..] => {
                    rest = tail.strip_prefix(&['/']).unwrap_or(tail);
                    match rest.is_empty() {
                        true => tokens.push(Token::Deep),
                        false => tokens.extend([Token::Dirs, Token::Inside]),
                    }
                    continue;
                }
                ['*', tail @ ..] => {
                    tokens.push(Token::Star);
                    rest = tail;
                    continue;
                }
                _ => {}
            }
            let len = match first {
                '\\' => (rest.len() > 1).then_some(2)?,
                '[' => class_len(rest)?,
                _ => 1,
            };
            tokens.push(Token::One(rest[..len].to_vec()));
            rest = &rest[len..];
        }
        Some(Self(tokens))
    }

    /// Whether it says just this path.
    pub fn matches(&self, path: &str) -> bool {
        let end = self.0.len();
        let mut here = vec![false; end + 1];
        here[0] = true;
        self.skip(&mut here);
        for c in path.chars() {
            let mut next = vec![false; end + 1];
            for (at, token) in self.0.iter().enumerate().filter(|(at, _)| here[*at]) {
                match token {
                    Token::One(one) => {
                        next[at + 1] |=
                            (c != '/' || one[..] == ['/']) && match_one(one, c).is_some();
                    }
                    Token::Star => next[at] |= c != '/',
                    Token::Deep => next[at] = true,
                    Token::Inside => {
                        next[at] = true;
                        next[at + 1] |= c == '/';
                    }
                    // Its alternatives are where it is skipped to.
                    Token::Dirs => {}
                }
            }
            self.skip(&mut next);
            here = next;
        }
        here[end]
    }

    /// Adds the places that are reached without a character.
    fn skip(&self, places: &mut [bool]) {
        for (at, token) in self.0.iter().enumerate() {
            if !places[at] {
                continue;
            }
            match token {
                Token::Star | Token::Deep => places[at + 1] = true,
                Token::Dirs => {
                    places[at + 1] = true;
                    places[at + 2] = true;
                }
                Token::One(_) | Token::Inside => {}
            }
        }
    }
}

/// How long `[...]` is, if it has an end.
fn class_len(pattern: &[char]) -> Option<usize> {
    let negated = usize::from(pattern.get(1) == Some(&'^'));
    let class = &pattern[1 + negated..];
    let end = class.iter().skip(1).position(|c| *c == ']')? + 1;
    Some(1 + negated + end + 1)
}

/// Whether a text means more than itself.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
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
            let len = class_len(pattern)?;
            let negated = rest.first() == Some(&'^');
            let mut set = &pattern[1 + usize::from(negated)..len - 1];
            let mut found = false;
            while let [low, tail @ ..] = set {
                (found, set) = match tail {
                    ['-', high, tail @ ..] => (found || (*low..=*high).contains(&c), tail),
                    tail => (found || *low == c, tail),
                };
            }
            (found != negated).then_some(len)
        }
        [plain, ..] => (*plain == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).is_some_and(|pattern| pattern.matches(path))
    }

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
            ("**", "a/b"),
            ("**.log", "a/b/.log"),
            ("a/**/c", "a/c"),
            ("a/**/c", "a/b/b/c"),
            ("a**c", "ac"),
            ("a**c", "ab/c"),
            ("[!a]", "!"),
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
            ("a/**/c", "a/bc"),
            ("**.log", "a.log"),
            ("?", "/"),
            ("[^a]", "/"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_has_no_end_is_no_pattern() {
        for wrong in ["[", "a[b", "\\", "[^]", "a/[]"] {
            assert!(Pattern::new(wrong).is_none(), "{wrong}");
        }
        // Ends soon, where trying each way would not.
        let long = "**/a*".repeat(30);
        assert!(!matches(&long, &"a/".repeat(200)));
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
