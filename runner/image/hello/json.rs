//! As much JSON as the server needs: reading the helper's status, and quoting strings for its own.
//!
//! The reader takes every valid document that is not nested too deeply, and a few invalid ones.

use std::collections::HashMap;

/// How deep arrays and objects may nest; the reader recurses.
const MAX_DEPTH: usize = 32;

/// A JSON value. Numbers are exact up to 2^53, which as bytes is 9 PB.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    Array(Vec<Self>),
    Object(HashMap<String, Self>),
}

impl Value {
    /// Reads one document; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text };
        let value = reader.value(MAX_DEPTH)?;
        reader.skip_space();
        reader.rest.is_empty().then_some(value)
    }

    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.get(key),
            _ => None,
        }
    }

    /// The string at `key`.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number at `key` if it is not negative, without its fraction.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Self::Number(number) if *number >= 0.0 => Some(*number as u64),
            _ => None,
        }
    }

    /// The elements of the array at `key`; none when there is no such array.
    pub fn elements(&self, key: &str) -> &[Self] {
        match self.get(key) {
            Some(Self::Array(elements)) => elements,
            _ => &[],
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.skip_space();
        match self.rest.chars().next()? {
            '{' => {
                let mut members = HashMap::new();
                self.list('{', '}', |reader| {
                    reader.skip_space();
                    let key = reader.string()?;
                    reader.skip_space();
                    reader.take(":")?;
                    members.insert(key, reader.value(depth)?);
                    Some(())
                })?;
                Some(Value::Object(members))
            }
            '[' => {
                let mut elements = Vec::new();
                self.list('[', ']', |reader| {
                    elements.push(reader.value(depth)?);
                    Some(())
                })?;
                Some(Value::Array(elements))
            }
            '"' => self.string().map(Value::String),
            't' => self.take("true").map(|()| Value::Bool(true)),
            'f' => self.take("false").map(|()| Value::Bool(false)),
            'n' => self.take("null").map(|()| Value::Null),
            _ => self.number().map(Value::Number),
        }
    }

    /// Items between brackets, with commas between them.
    fn list(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.rest = self.rest.strip_prefix(open)?;
        self.skip_space();
        if let Some(rest) = self.rest.strip_prefix(close) {
            self.rest = rest;
            return Some(());
        }
        loop {
            item(self)?;
            self.skip_space();
            if let Some(rest) = self.rest.strip_prefix(close) {
                self.rest = rest;
                return Some(());
            }
            self.take(",")?;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.take("\"")?;
        let mut text = String::new();
        loop {
            let special = self.rest.find(['"', '\\'])?;
            text.push_str(&self.rest[..special]);
            let is_end = self.rest[special..].starts_with('"');
            self.rest = &self.rest[special + 1..];
            if is_end {
                return Some(text);
            }
            let escape = self.rest.chars().next()?;
            self.rest = &self.rest[escape.len_utf8()..];
            text.push(match escape {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => self.code_point()?,
                itself => itself,
            });
        }
    }

    /// What follows `\u`: four digits, or a surrogate pair of them. Half a pair becomes the
    /// replacement character.
    fn code_point(&mut self) -> Option<char> {
        let first = self.four_digits()?;
        if !(0xd800..0xdc00).contains(&first) {
            return Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let after_first = self.rest;
        if self.take("\\u").is_some()
            && let Some(second @ 0xdc00..0xe000) = self.four_digits()
        {
            return char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
        }
        self.rest = after_first;
        Some(char::REPLACEMENT_CHARACTER)
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits = self
            .rest
            .get(..4)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        self.rest = &self.rest[4..];
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self) -> Option<f64> {
        let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits.parse().ok()
    }

    fn take(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }
}

/// `text` as a JSON string, quotes included. Safe inside HTML's `<script>` too.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '<' | '\0'..' ' | '\u{2028}' | '\u{2029}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_status_document() {
        let document = Value::parse(
            r#" {"version":"0.1.0", "guest":["10.0.2.100","fd00::100"], "connections_total":17, "none":null, "yes":true,
                "flows":[{"protocol":"tcp","age_ms":1.5e3},{}], "empty":[], "debt":-1} "#,
        )
        .unwrap();
        assert_eq!(document.str("version"), Some("0.1.0"));
        assert_eq!(document.u64("connections_total"), Some(17));
        assert_eq!(
            document.elements("guest")[1],
            Value::String("fd00::100".into())
        );
        assert_eq!(document.elements("flows")[0].u64("age_ms"), Some(1500));
        assert_eq!(document.get("none"), Some(&Value::Null));
        assert_eq!(document.get("yes"), Some(&Value::Bool(true)));
        assert!(document.elements("empty").is_empty() && document.elements("missing").is_empty());
        assert_eq!(
            (
                document.u64("debt"),
                document.u64("version"),
                document.str("flows")
            ),
            (None, None, None)
        );
    }

    #[test]
    fn reads_strings_with_every_escape() {
        let read = |text| match Value::parse(text) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        assert_eq!(
            read(r#""a\"\\\/\b\f\n\r\t\u00e9""#).unwrap(),
            "a\"\\/\u{8}\u{c}\n\r\té"
        );
        assert_eq!(
            read(r#""\ud83d\udea3 \ud83d\u0041 \udea3""#).unwrap(),
            "\u{1f6a3} \u{fffd}A \u{fffd}"
        );
        for wrong in [r#"""#, r#""\"#, r#""\u12"#, r#""\u12é4""#, r#""\u+123""#] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn refuses_what_is_no_document() {
        for wrong in [
            "", " ", "{", "[1,", "[1,]", "{\"a\"}", "{\"a\":}", "{1:2}", "tru", "1 2", "-", "]",
            "é",
        ] {
            assert_eq!(Value::parse(wrong), None, "{wrong:?}");
        }
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Value::parse(&nested(MAX_DEPTH)).is_some());
        assert_eq!(Value::parse(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(Value::parse(&"[".repeat(1_000_000)), None);
    }

    #[test]
    fn quotes_what_it_can_read_again() {
        let text = "\u{0}\n\"\\</script>é\u{2028}\u{1f6a3}";
        let quoted = quote(text);
        assert!(!quoted.contains('<'));
        assert_eq!(Value::parse(&quoted), Some(Value::String(text.into())));
    }
}
