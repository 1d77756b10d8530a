//! Words as a shell takes a line apart, without anything that a shell puts in their place.

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a quotation mark has no partner")]
pub struct Unbalanced;

/// Splits at white space; quotation marks and backslashes keep what would end a word.
pub fn words(text: &str) -> Result<Vec<String>, Unbalanced> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(Unbalanced)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(Unbalanced)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or(Unbalanced)? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => {
                let word = word.get_or_insert_default();
                word.extend(chars.next());
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotation_marks_keep_what_would_end_a_word() {
        let split = |text| words(text).expect(text);
        assert_eq!(split("a  b\tc"), ["a", "b", "c"]);
        assert_eq!(
            split(r#"sh -c "echo 'a b'" '$x' """#),
            ["sh", "-c", "echo 'a b'", "$x", ""]
        );
        assert_eq!(split(r#"a\ b "c\"d\e""#), ["a b", r#"c"d\e"#]);
        assert!(split(" ").is_empty());
        for wrong in ["'a", "\"a", "\"a\\"] {
            assert_eq!(words(wrong), Err(Unbalanced), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = words(&text);
        }
    }
}
