//! Variables in a Containerfile's instructions: `$NAME`, `${NAME}`, `${NAME:-value}`,
//! `${NAME:+value}` and the same without the colon, with quotation marks as in a shell.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("a quotation mark has no partner")]
    Unbalanced,
    #[error(
        "{0:?} is no variable: expected $NAME, ${{NAME}}, ${{NAME:-value}} or ${{NAME:+value}}"
    )]
    Malformed(String),
}

/// Where variables have their values from.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits at white space that is not quoted, and puts values in the place of variables.
pub fn words(text: &str, escape: char, lookup: Lookup) -> Result<Vec<String>, ExpandError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(ExpandError::Unbalanced)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(ExpandError::Unbalanced)? {
                        '"' => break,
                        '$' => word.push_str(&variable(&mut chars, lookup)?),
                        c if c == escape => match chars.next().ok_or(ExpandError::Unbalanced)? {
                            c if c == '"' || c == '$' || c == escape => word.push(c),
                            c => word.extend([escape, c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '$' => {
                let value = variable(&mut chars, lookup)?;
                word.get_or_insert_default().push_str(&value);
            }
            c if c == escape => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// As [`words`], for a text that is one word.
pub fn one(text: &str, escape: char, lookup: Lookup) -> Result<String, ExpandError> {
    Ok(words(text, escape, lookup)?.join(" "))
}

/// Puts values in the place of variables in a text whose quotation marks mean themselves, as in a
/// here-document.
pub fn text(text: &str, escape: char, lookup: Lookup) -> Result<String, ExpandError> {
    let mut expanded = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '$' => expanded.push_str(&variable(&mut chars, lookup)?),
            // As Docker has it, before whatever stands there.
            c if c == escape => expanded.extend(chars.next()),
            c => expanded.push(c),
        }
    }
    Ok(expanded)
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// What stands behind a dollar sign.
fn variable(chars: &mut Chars, lookup: Lookup) -> Result<String, ExpandError> {
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if !braced {
        return Ok(match &*name {
            // A dollar sign of its own.
            "" => "$".to_owned(),
            name => lookup(name).unwrap_or_default(),
        });
    }
    let mut operation = String::new();
    let mut depth = 1;
    for c in chars.by_ref() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        operation.push(c);
    }
    let malformed = || ExpandError::Malformed(format!("${{{name}{operation}}}"));
    if depth > 0 || name.is_empty() {
        return Err(malformed());
    }
    let value = lookup(&name);
    let (kind, word) = match &*operation {
        "" => return Ok(value.unwrap_or_default()),
        operation => match operation.strip_prefix(':') {
            // What is empty is as good as not set.
            Some(rest) => (value.filter(|value| !value.is_empty()), rest),
            None => (value, operation),
        },
    };
    let expand = |word: &str| one(word, '\\', lookup);
    match (word.chars().next(), kind) {
        (Some('-'), Some(value)) => Ok(value),
        (Some('-'), None) => expand(&word[1..]),
        (Some('+'), Some(_)) => expand(&word[1..]),
        (Some('+'), None) => Ok(String::new()),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a b".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_have_values_and_defaults() {
        for (text, expected) in [
            ("x$A.y", &["xa b.y"][..]),
            ("${A}c \"$A\" '$A'", &["a bc", "a b", "$A"]),
            (r"\$A \ x", &["$A", " x"]),
            ("${NONE:-d} ${EMPTY:-d} ${EMPTY-d}", &["d", "d", ""]),
            ("${A:+set} ${NONE:+set} $NONE", &["set", "", ""]),
            ("${NONE:-${A}}", &["a b"]),
            ("k=\"v w\" $", &["k=v w", "$"]),
        ] {
            assert_eq!(words(text, '\\', &lookup).expect(text), expected, "{text}");
        }
        for wrong in ["'a", "\"a", "${A", "${}", "${A:?x}", "${A%x}"] {
            assert!(words(wrong, '\\', &lookup).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quotation_marks_of_a_document_are_its_own() {
        let expanded = text("\"$A\" 'x\n\\$A \\\\ ${NONE:-d}\n", '\\', &lookup).expect("a text");
        assert_eq!(expanded, "\"a b\" 'x\n$A \\ d\n");
        text("${", '\\', &lookup).expect_err("no variable");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", odd in "[${}:+\\-A'\" \\\\]{0,20}") {
            let _ = (words(&text, '\\', &lookup), words(&odd, '`', &lookup));
            let _ = super::text(&odd, '\\', &lookup);
        }
    }
}
