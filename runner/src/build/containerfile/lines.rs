//! The lines of a Containerfile: those that go on put together, comments left out, and behind an
//! instruction the here-documents that it names.

use super::FileError;

/// An instruction as it stands in the file.
#[derive(Debug)]
pub struct LogicalLine {
    /// Of its first line, from 1 on.
    pub number: usize,
    pub text: String,
    pub documents: Vec<Document>,
}

/// Lines that stand in the Containerfile itself: `<<NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub name: String,
    /// Each line with its end; without the tabs before it where `<<-` asked for that.
    pub text: String,
    /// As they stand in the file, with the line that ends them.
    pub raw: String,
    /// Whether variables have their values, which quotation marks around the name forbid.
    pub expands: bool,
}

/// The directive `# escape=`, which stands above all else.
pub fn escape_of(text: &str) -> Result<char, FileError> {
    for (index, line) in text.lines().enumerate() {
        let Some(comment) = line.trim().strip_prefix('#') else {
            break;
        };
        let Some((key, value)) = comment.split_once('=') else {
            break;
        };
        match (key.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "\\") => return Ok('\\'),
            ("escape", "`") => return Ok('`'),
            ("escape", other) => {
                return Err(FileError {
                    line: index + 1,
                    defect: format!("escape={other}: expected \\ or `"),
                });
            }
            // What a front end of BuildKit's reads.
            ("syntax" | "check", _) => {}
            _ => break,
        }
    }
    Ok('\\')
}

/// Instructions in order; comments and empty lines are none.
pub fn logical_lines(text: &str, escape: char) -> Result<Vec<LogicalLine>, FileError> {
    let mut physical = text.lines().enumerate();
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    while let Some((index, line)) = physical.next() {
        let trimmed = line.trim();
        if trimmed.starts_with('#') || trimmed.is_empty() {
            continue;
        }
        let (number, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        let (part, goes_on) = match line.trim_end().strip_suffix(escape) {
            Some(begun) => (begun, true),
            None => (line.trim_end(), false),
        };
        whole.push_str(match whole.is_empty() {
            true => part.trim_start(),
            false => part,
        });
        if goes_on {
            open = Some((number, whole));
            continue;
        }
        let mut documents = Vec::new();
        for opening in openings(&whole) {
            let rest = physical.by_ref().map(|(_, line)| line);
            documents.push(document(opening, rest).ok_or_else(|| FileError {
                line: number,
                defect: format!("the here-document {} has no end", opening.name),
            })?);
        }
        lines.push(LogicalLine {
            number,
            text: whole,
            documents,
        });
    }
    lines.extend(open.map(|(number, text)| LogicalLine {
        number,
        text,
        documents: Vec::new(),
    }));
    Ok(lines)
}

/// The word that a here-document begins with.
#[derive(Debug, Clone, Copy)]
struct Opening<'a> {
    name: &'a str,
    strips_tabs: bool,
    expands: bool,
}

/// The here-documents of an instruction, if it is one that may have some.
fn openings(text: &str) -> Vec<Opening<'_>> {
    let (mut word, mut rest) = split_word(text);
    if word.eq_ignore_ascii_case("ONBUILD") {
        (word, rest) = split_word(rest);
    }
    let may_have = ["RUN", "COPY", "ADD"]
        .iter()
        .any(|name| word.eq_ignore_ascii_case(name));
    match may_have {
        true => raw_words(rest).into_iter().filter_map(opening).collect(),
        false => Vec::new(),
    }
}

/// `<<NAME`, `<<-NAME`, `0<<"NAME"`.
fn opening(word: &str) -> Option<Opening<'_>> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix("<<")?;
    let (rest, strips_tabs) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let quoted = ['"', '\'']
        .iter()
        .find_map(|mark| rest.strip_prefix(*mark)?.strip_suffix(*mark));
    let name = quoted.unwrap_or(rest);
    let is_name = !name.is_empty() && !name.contains(['<', '"', '\'']);
    is_name.then_some(Opening {
        name,
        strips_tabs,
        expands: quoted.is_none(),
    })
}

/// Whether a word stands for a here-document.
pub fn is_opening(word: &str) -> bool {
    opening(word).is_some()
}

/// Reads lines up to the one that is the document's name.
fn document<'a>(opening: Opening, lines: impl Iterator<Item = &'a str>) -> Option<Document> {
    let mut found = Document {
        name: opening.name.to_owned(),
        text: String::new(),
        raw: String::new(),
        expands: opening.expands,
    };
    for line in lines {
        found.raw.push_str(line);
        let stripped = match opening.strips_tabs {
            true => line.trim_start_matches('\t'),
            false => line,
        };
        if stripped == opening.name {
            return Some(found);
        }
        found.raw.push('\n');
        found.text.push_str(stripped);
        found.text.push('\n');
    }
    None
}

/// The first word, and what follows.
pub fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text, ""),
    }
}

/// Words with their quotation marks, which keep white space together.
pub fn raw_words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = None;
    let mut mark = None;
    for (at, c) in text.char_indices() {
        match mark {
            Some(open) if c == open => mark = None,
            Some(_) => {}
            None if c.is_whitespace() => {
                words.extend(start.take().map(|start| &text[start..at]));
                continue;
            }
            None if c == '"' || c == '\'' => mark = Some(c),
            None => {}
        }
        start.get_or_insert(at);
    }
    words.extend(start.map(|start| &text[start..]));
    words
}
