//! Text that may hold anything, made fit for a terminal.
//!
//! Names of files, arguments of commands and what other programs said come from anywhere. What
//! could act on the terminal, or change the order in which a line is read, is shown by its number
//! instead. Everything that coracle says on its standard error goes through [`complain`] or
//! [`put`]; tables and JSON go through [`escape`] and [`escape_json`].

use std::fmt::{Display, Write as _};
use std::io::{IsTerminal, Write as _};

/// A message for the user, on stderr, with the prefix that all have. Lines stay lines.
pub fn complain(message: impl Display) {
    put(&format!("coracle: {message}\n"));
}

/// Whole lines for stderr.
pub fn put(lines: &str) {
    let mut text = escape_but_newlines(lines);
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // Which may be in raw mode just now.
        text = text.replace('\n', "\r\n");
    }
    // There is nobody else to tell.
    let _ = stderr.write_all(text.as_bytes());
}

/// Without anything that acts on a terminal, newlines among it.
pub fn escape(text: &str) -> String {
    escape_where(text, acts)
}

/// JSON text with what serde_json leaves alone escaped as well. Such characters are within strings
/// only.
pub fn escape_json(json: &str) -> String {
    escape_but_newlines(json)
}

fn escape_but_newlines(text: &str) -> String {
    escape_where(text, |c| acts(c) && c != '\n')
}

/// As JSON writes them: `\u009b`.
fn escape_where(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\r' => escaped.push_str("\\r"),
            // Cannot fail: the target is memory.
            c => drop(write!(escaped, "\\u{:04x}", u32::from(c))),
        }
    }
    escaped
}

/// Control characters (C0, DEL and C1), those that change the direction of text, and separators of
/// lines.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_by_its_number() {
        assert_eq!(
            escape("\x1b[2J\n\tä\u{9b}\x7f"),
            "\\u001b[2J\\n\\tä\\u009b\\u007f"
        );
        assert_eq!(
            escape("a\u{202e}b\u{2066}c\u{2069}"),
            "a\\u202eb\\u2066c\\u2069"
        );
        assert_eq!(escape("日本 ﷽ é 👩"), "日本 ﷽ é 👩");
        assert_eq!(escape_but_newlines("a\nb\rc"), "a\nb\\rc");
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let text: String = (0..0x3000).filter_map(char::from_u32).collect();
        let json = escape_json(&serde_json::to_string_pretty(&[&text]).expect("JSON"));
        assert!(!json.contains(|c| acts(c) && c != '\n'), "{json}");
        assert_eq!(
            serde_json::from_str::<[String; 1]>(&json).expect("JSON"),
            [text]
        );
    }
}
