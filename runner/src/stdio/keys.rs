//! The keys that leave a program behind: a sequence that is looked for in what is typed.

use std::str::FromStr;

/// What somebody types to detach from a program, `ctrl-p,ctrl-q` as in Podman and Docker. Empty: no
/// keys do that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    sequence: Vec<u8>,
    /// How many of them have been typed, and are held back.
    matched: usize,
}

impl Default for DetachKeys {
    fn default() -> Self {
        const CTRL_P: u8 = 0x10;
        const CTRL_Q: u8 = 0x11;
        Self {
            sequence: vec![CTRL_P, CTRL_Q],
            matched: 0,
        }
    }
}

impl DetachKeys {
    /// Takes what is for the program of what was typed, and says whether the sequence is complete.
    /// What follows it is nobody's.
    pub fn filter(&mut self, typed: &mut Vec<u8>) -> bool {
        if self.sequence.is_empty() {
            return false;
        }
        let mut passed = Vec::with_capacity(typed.len() + self.matched);
        for &byte in &*typed {
            if byte != self.sequence[self.matched] {
                passed.extend_from_slice(&self.sequence[..self.matched]);
                self.matched = 0;
            }
            match byte == self.sequence[self.matched] {
                true => self.matched += 1,
                false => passed.push(byte),
            }
            if self.matched == self.sequence.len() {
                self.matched = 0;
                *typed = passed;
                return true;
            }
        }
        *typed = passed;
        false
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected keys with commas between them: each a character, or ctrl- and one of a-z, @, [, \\, ], ^ and _"
)]
pub struct InvalidKeys;

impl FromStr for DetachKeys {
    type Err = InvalidKeys;

    fn from_str(text: &str) -> Result<Self, InvalidKeys> {
        let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([key], _) if key.is_ascii_graphic() => Ok(*key),
            (_, Some([letter @ b'a'..=b'z'])) => Ok(letter - b'a' + 1),
            (_, Some([sign @ (b'@' | b'['..=b'_')])) => Ok(sign & 0x1f),
            _ => Err(InvalidKeys),
        };
        let sequence = match text {
            "" => Vec::new(),
            text => text.split(',').map(key).collect::<Result<_, _>>()?,
        };
        Ok(Self {
            sequence,
            matched: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_in_podman() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.sequence);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(DetachKeys::default().sequence));
        assert_eq!(
            keys("a,ctrl-a,ctrl-[,ctrl-@,ctrl-_"),
            Ok(vec![b'a', 1, 27, 0, 31])
        );
        assert_eq!(keys(""), Ok(Vec::new()));
        for wrong in ["ctrl-", "ctrl-foo", "ab", "a,", ",", "ctrl-A", "\u{e4}"] {
            assert_eq!(keys(wrong), Err(InvalidKeys), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_the_whole_sequence_is_the_programs() {
        let mut keys: DetachKeys = "x,x,y".parse().expect("keys");
        let mut typed = |text: &str| {
            let mut typed = text.as_bytes().to_vec();
            let is_complete = keys.filter(&mut typed);
            (String::from_utf8(typed).expect("text"), is_complete)
        };
        let passed = |text: &str| (text.to_owned(), false);
        assert_eq!(typed("abc"), passed("abc"));
        assert_eq!(typed("x"), passed(""));
        assert_eq!(typed("z"), passed("xz"));
        assert_eq!(typed("xax"), passed("xa"));
        assert_eq!(typed("x"), passed(""));
        assert_eq!(typed("yrest"), (String::new(), true));
        assert_eq!(typed("rest"), passed("rest"));
    }

    #[test]
    fn no_keys_leave_nothing() {
        let mut typed = b"\x10\x11".to_vec();
        assert!(!"".parse::<DetachKeys>().expect("none").filter(&mut typed));
        assert_eq!(typed, b"\x10\x11");
        assert!(DetachKeys::default().filter(&mut typed));
    }
}
