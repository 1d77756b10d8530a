//! Reading a Containerfile, as `Containerfile(5)` and Docker's reference describe it.
//!
//! Ours, since the parsers that there are leave variables, flags and the words of instructions to
//! their users, which is most of it. An instruction or a flag that is not known here is never
//! passed over: it is refused by its name and its line.

use super::config::{Healthcheck, json_list};
use super::expand::{self, ExpandError, Lookup};
use super::values::{duration, mode};

/// A Containerfile in bytes; longer ones are no Containerfiles.
pub const LEN_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error("line {line}: {defect}")]
pub struct FileError {
    pub line: usize,
    pub defect: String,
}

/// What a Containerfile says.
#[derive(Debug)]
pub struct Containerfile {
    /// Arguments before the first stage.
    pub args: Vec<Instruction>,
    pub stages: Vec<Stage>,
    /// What takes the next character as it is.
    pub escape: char,
}

/// From one FROM to the next.
#[derive(Debug)]
pub struct Stage {
    pub line: usize,
    /// As written, variables and all.
    pub image: String,
    pub platform: Option<String>,
    pub name: Option<String>,
    /// The FROM as it is shown.
    pub text: String,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone)]
pub struct Instruction {
    pub line: usize,
    /// The instruction as it is shown, on one line.
    pub text: String,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Pairs are to be taken apart once variables have their values.
    Arg(String),
    Env(String),
    Label(String),
    Run(Command),
    Copy(Copy),
    User(String),
    Workdir(String),
    Expose(String),
    Entrypoint(Command),
    Cmd(Command),
    Volume(Words),
    Shell(Vec<String>),
    StopSignal(String),
    Maintainer(String),
    /// `None` takes the image's away.
    Healthcheck(Option<Check>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    /// For the shell.
    Line(String),
}

/// A list in JSON, or words with spaces between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Words {
    List(Vec<String>),
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whether archives are unpacked: `ADD`.
    pub unpack: bool,
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<u32>,
    pub words: Words,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub command: Command,
    /// All but its test.
    pub timing: Healthcheck,
}

impl Words {
    /// With the values of variables.
    pub fn expand(&self, escape: char, lookup: Lookup) -> Result<Vec<String>, ExpandError> {
        match self {
            Self::List(list) => list
                .iter()
                .map(|word| expand::one(word, escape, lookup))
                .collect(),
            Self::Text(text) => expand::words(text, escape, lookup),
        }
    }
}

/// Reads the text of a Containerfile.
pub fn parse(text: &str) -> Result<Containerfile, FileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_of(text)?;
    let mut file = Containerfile {
        args: Vec::new(),
        stages: Vec::new(),
        escape,
    };
    for (line, text) in logical_lines(text, escape) {
        let at = |defect: String| FileError { line, defect };
        let (word, rest) = split_word(&text);
        let name = word.to_ascii_uppercase();
        let shown = format!("{name} {rest}");
        let mut flags = Flags::split(rest);
        if name == "FROM" {
            let stage = from(line, shown.trim_end().to_owned(), flags).map_err(at)?;
            file.stages.push(stage);
            continue;
        }
        let action = action(&name, &mut flags).map_err(at)?;
        flags.none_left(&name).map_err(at)?;
        let instruction = Instruction {
            line,
            text: shown.trim_end().to_owned(),
            action,
        };
        match (file.stages.last_mut(), &instruction.action) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Action::Arg(_)) => file.args.push(instruction),
            (None, _) => return Err(at(format!("{name} stands before the first FROM"))),
        }
    }
    match file.stages.is_empty() {
        true => Err(FileError {
            line: text.lines().count().max(1),
            defect: "there is no FROM".to_owned(),
        }),
        false => Ok(file),
    }
}

/// The directive `# escape=`, which stands above all else.
fn escape_of(text: &str) -> Result<char, FileError> {
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

/// Instructions with the number of their first line; lines that go on are one, and comments and
/// empty lines none.
fn logical_lines(text: &str, escape: char) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && open.is_some()) {
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        let (number, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        match line.trim_end().strip_suffix(escape) {
            Some(begun) => {
                whole.push_str(if whole.is_empty() {
                    begun.trim_start()
                } else {
                    begun
                });
                open = Some((number, whole));
            }
            None => {
                whole.push_str(if whole.is_empty() {
                    trimmed
                } else {
                    line.trim_end()
                });
                lines.push((number, whole));
            }
        }
    }
    lines.extend(open);
    lines
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text, ""),
    }
}

/// `--name=value` before the words of an instruction.
struct Flags<'a> {
    flags: Vec<(&'a str, &'a str)>,
    rest: &'a str,
}

impl<'a> Flags<'a> {
    fn split(text: &'a str) -> Self {
        let mut flags = Vec::new();
        let mut rest = text;
        while rest.starts_with("--") && rest.len() > 2 {
            let (flag, tail) = split_word(rest);
            flags.push(flag.split_once('=').unwrap_or((flag, "")));
            rest = tail;
        }
        Self { flags, rest }
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let index = self.flags.iter().position(|(flag, _)| *flag == name)?;
        Some(self.flags.remove(index).1)
    }

    /// What was not taken has no meaning here.
    fn none_left(&self, instruction: &str) -> Result<(), String> {
        match self.flags.first() {
            Some((flag, _)) => Err(format!("coracle does not have {instruction} {flag}")),
            None => Ok(()),
        }
    }
}

fn from(line: usize, text: String, mut flags: Flags) -> Result<Stage, String> {
    let platform = flags.take("--platform").map(str::to_owned);
    flags.none_left("FROM")?;
    let words: Vec<_> = flags.rest.split_whitespace().collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, as_word, name] if as_word.eq_ignore_ascii_case("as") => (image, Some(name)),
        _ => return Err("expected FROM IMAGE or FROM IMAGE AS NAME".to_owned()),
    };
    Ok(Stage {
        line,
        image: image.to_owned(),
        platform,
        name: name.map(str::to_ascii_lowercase),
        text,
        instructions: Vec::new(),
    })
}

fn action(name: &str, flags: &mut Flags) -> Result<Action, String> {
    let rest = flags.rest.to_owned();
    let known = [
        "ARG",
        "ENV",
        "LABEL",
        "RUN",
        "COPY",
        "ADD",
        "USER",
        "WORKDIR",
        "EXPOSE",
        "ENTRYPOINT",
        "CMD",
        "VOLUME",
        "SHELL",
        "STOPSIGNAL",
        "MAINTAINER",
        "HEALTHCHECK",
    ];
    match name {
        "ONBUILD" => return Err("coracle does not have ONBUILD in a Containerfile".to_owned()),
        name if !known.contains(&name) => return Err(format!("{name:?} is no instruction")),
        // An empty one takes the image's away.
        "CMD" | "ENTRYPOINT" => {}
        name if rest.is_empty() => return Err(format!("{name} says nothing")),
        _ => {}
    }
    Ok(match name {
        "ARG" => Action::Arg(rest),
        "ENV" => Action::Env(rest),
        "LABEL" => Action::Label(rest),
        "RUN" => {
            refuse_here_document("RUN", &rest)?;
            Action::Run(command(rest))
        }
        "COPY" | "ADD" => copy(name == "ADD", flags)?,
        "USER" => Action::User(rest),
        "WORKDIR" => Action::Workdir(rest),
        "EXPOSE" => Action::Expose(rest),
        "ENTRYPOINT" => Action::Entrypoint(command(rest)),
        "CMD" => Action::Cmd(command(rest)),
        "VOLUME" => Action::Volume(words(rest)),
        "SHELL" => match json_list(&rest) {
            Some(list) if !list.is_empty() => Action::Shell(list),
            _ => return Err("SHELL takes a list of words in JSON".to_owned()),
        },
        "STOPSIGNAL" => Action::StopSignal(rest),
        "MAINTAINER" => Action::Maintainer(rest),
        _ => healthcheck(flags)?,
    })
}

fn command(text: String) -> Command {
    match json_list(&text) {
        Some(list) => Command::Exec(list),
        None => Command::Line(text),
    }
}

fn words(text: String) -> Words {
    match json_list(&text) {
        Some(list) => Words::List(list),
        None => Words::Text(text),
    }
}

fn refuse_here_document(name: &str, text: &str) -> Result<(), String> {
    let mut words = text.split_whitespace();
    match words.any(|word| word.starts_with("<<") && word.len() > 2 && !word.starts_with("<<<")) {
        true => Err(format!(
            "coracle does not have here-documents, as {name} has one"
        )),
        false => Ok(()),
    }
}

fn copy(unpack: bool, flags: &mut Flags) -> Result<Action, String> {
    let name = if unpack { "ADD" } else { "COPY" };
    refuse_here_document(name, flags.rest)?;
    let chmod = flags
        .take("--chmod")
        .map(|text| mode(text).map_err(|expected| format!("--chmod={text}: {expected}")));
    let from = match unpack {
        // It has no such flag.
        true => None,
        false => flags.take("--from").map(str::to_owned),
    };
    let words = words(flags.rest.to_owned());
    let count = match &words {
        Words::List(list) => list.len(),
        Words::Text(text) => text.split_whitespace().count(),
    };
    if count < 2 {
        return Err(format!("{name} takes a source and a destination at least"));
    }
    Ok(Action::Copy(Copy {
        unpack,
        from,
        chown: flags.take("--chown").map(str::to_owned),
        chmod: chmod.transpose()?,
        words,
    }))
}

fn healthcheck(flags: &mut Flags) -> Result<Action, String> {
    let mut timing = Healthcheck::default();
    for (name, value) in [
        ("--interval", &mut timing.interval),
        ("--timeout", &mut timing.timeout),
        ("--start-period", &mut timing.start_period),
    ] {
        if let Some(text) = flags.take(name) {
            *value = duration(text).map_err(|expected| format!("{name}={text}: {expected}"))?;
        }
    }
    if let Some(text) = flags.take("--retries") {
        timing.retries = text
            .parse()
            .map_err(|_| format!("--retries={text}: expected a number"))?;
    }
    let (kind, rest) = split_word(flags.rest);
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => Ok(Action::Healthcheck(None)),
        "CMD" if !rest.is_empty() => Ok(Action::Healthcheck(Some(Check {
            command: command(rest.to_owned()),
            timing,
        }))),
        _ => Err("expected HEALTHCHECK CMD COMMAND or HEALTHCHECK NONE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn defect(text: &str) -> (usize, String) {
        match parse(text) {
            Err(FileError { line, defect }) => (line, defect),
            Ok(file) => panic!("{text:?} is {file:?}"),
        }
    }

    #[test]
    fn lines_go_on_and_comments_do_not_count() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1\n\nfrom base:$V AS One\nRUN a \\\n  # no word\n\n  && b\nCMD [\"x\"]\n";
        let file = parse(text).expect("a file");
        assert_eq!((file.args.len(), file.stages.len()), (1, 1));
        let stage = &file.stages[0];
        assert_eq!(
            (&*stage.image, stage.name.as_deref(), stage.line),
            ("base:$V", Some("one"), 4)
        );
        assert_eq!(stage.instructions[0].line, 5);
        assert_eq!(
            stage.instructions[0].action,
            Action::Run(Command::Line("a   && b".to_owned()))
        );
        assert_eq!(
            stage.instructions[1].action,
            Action::Cmd(Command::Exec(vec!["x".to_owned()]))
        );
    }

    #[test]
    fn another_character_may_escape() {
        let file = parse("# escape=`\nFROM a\nRUN x `\n y\\\n").expect("a file");
        assert_eq!(file.escape, '`');
        assert_eq!(
            file.stages[0].instructions[0].action,
            Action::Run(Command::Line("x  y\\".to_owned()))
        );
    }

    #[test]
    fn what_is_not_there_is_refused_by_name_and_line() {
        for (text, line, named) in [
            ("", 1, "FROM"),
            ("RUN x", 1, "before the first FROM"),
            ("FROM a\n\nFETCH x", 3, "FETCH"),
            ("FROM a\nONBUILD RUN x", 2, "ONBUILD"),
            ("FROM a\nRUN --mount=type=cache,target=/x y", 2, "--mount"),
            ("FROM a\nCOPY --link x y", 2, "--link"),
            ("FROM a\nADD --from=b x y", 2, "--from"),
            ("FROM a\nRUN <<EOF\nx\nEOF", 2, "here-document"),
            ("FROM a\nCOPY x", 2, "destination"),
            ("FROM a b", 1, "AS NAME"),
            ("FROM a\nSHELL sh", 2, "SHELL"),
            ("FROM a\nHEALTHCHECK x", 2, "HEALTHCHECK"),
            ("FROM a\nHEALTHCHECK --interval=x CMD y", 2, "--interval=x"),
            ("FROM a\nENV", 2, "ENV"),
            ("# escape=x\nFROM a", 1, "escape=x"),
        ] {
            let (found, said) = defect(text);
            assert!(
                found == line && said.contains(named),
                "{text:?}: {found}: {said}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", lines in prop::collection::vec(
            "(FROM|RUN|COPY|ENV|ARG|HEALTHCHECK|ONBUILD|#)? ?(--[a-z]*=?)?[\\PC\\\\]{0,20}", 0..8)) {
            let _ = (parse(&text), parse(&lines.join("\n")), parse(&format!("FROM a\n{}", lines.join("\n"))));
        }
    }
}
