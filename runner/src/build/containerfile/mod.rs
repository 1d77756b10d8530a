//! Reading a Containerfile, as `Containerfile(5)` and Docker's reference describe it.
//!
//! Ours, since the parsers that there are leave variables, flags and the words of instructions to
//! their users, which is most of it. An instruction or a flag that is not known here is never
//! passed over: it is refused by its name and its line.
//!
//! [`lines`] puts the instructions together, [`instruction`] reads one, [`mount`] what a RUN has
//! mounted.

mod instruction;
mod lines;
pub mod mount;

use super::config::Healthcheck;
use super::expand::{self, ExpandError, Lookup};
use instruction::{Flags, action, from};
use lines::{LogicalLine, escape_of, logical_lines, split_word};

pub use lines::Document;

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

#[derive(Debug, Clone, PartialEq, Eq)]
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
    Run(Run),
    Copy(Copy),
    /// An instruction for images that are made of this one, as it is written.
    OnBuild(String),
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
pub struct Run {
    pub command: Command,
    /// A script that stands in the file and names its own interpreter; it is the command then.
    pub script: Option<Document>,
    /// Texts of `--mount`, for [`mount::Mount`] once variables have their values.
    pub mounts: Vec<String>,
    /// Whether it has no network, whatever the build has.
    pub offline: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whether archives are unpacked: `ADD`.
    pub unpack: bool,
    pub from: Option<String>,
    pub chown: Option<String>,
    /// In octal digits, once variables have their values.
    pub chmod: Option<String>,
    /// Sources that stand in the file itself.
    pub documents: Vec<Document>,
    /// The other sources, and the destination.
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
    for line in logical_lines(text, escape)? {
        let number = line.number;
        let at = |defect: String| FileError {
            line: number,
            defect,
        };
        let (name, shown, rest) = parts(&line);
        if name == "FROM" {
            let stage = from(number, shown, Flags::split(rest)).map_err(at)?;
            file.stages.push(stage);
            continue;
        }
        let instruction = instruction(&line).map_err(at)?;
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

/// Reads an instruction that an image has for those that are made of it.
pub fn parse_trigger(text: &str, escape: char) -> Result<Vec<Instruction>, String> {
    let lines = logical_lines(text, escape).map_err(|error| error.defect)?;
    lines.iter().map(trigger).collect()
}

fn trigger(line: &LogicalLine) -> Result<Instruction, String> {
    let (name, _, _) = parts(line);
    match &*name {
        "ONBUILD" | "FROM" | "MAINTAINER" => Err(format!("{name} cannot be ONBUILD's")),
        _ => instruction(line),
    }
}

/// The instruction's name, how it is shown, and what follows the name.
fn parts(line: &LogicalLine) -> (String, String, &str) {
    let (word, rest) = split_word(&line.text);
    let name = word.to_ascii_uppercase();
    let shown = format!("{name} {rest}").trim_end().to_owned();
    (name, shown, rest)
}

fn instruction(line: &LogicalLine) -> Result<Instruction, String> {
    let (name, shown, rest) = parts(line);
    let mut flags = Flags::split(rest);
    let action = action(&name, &mut flags, line)?;
    flags.none_left(&name)?;
    Ok(Instruction {
        line: line.number,
        text: shown,
        action,
    })
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

    fn run(line: &str) -> Action {
        Action::Run(Run {
            command: Command::Line(line.to_owned()),
            script: None,
            mounts: Vec::new(),
            offline: false,
        })
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
        assert_eq!(stage.instructions[0].action, run("a   && b"));
        assert_eq!(
            stage.instructions[1].action,
            Action::Cmd(Command::Exec(vec!["x".to_owned()]))
        );
    }

    #[test]
    fn another_character_may_escape() {
        let file = parse("# escape=`\nFROM a\nRUN x `\n y\\\n").expect("a file");
        assert_eq!(file.escape, '`');
        assert_eq!(file.stages[0].instructions[0].action, run("x  y\\"));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name_and_line() {
        for (text, line, named) in [
            ("", 1, "FROM"),
            ("RUN x", 1, "before the first FROM"),
            ("FROM a\n\nFETCH x", 3, "FETCH"),
            ("FROM a\nONBUILD ONBUILD RUN x", 2, "ONBUILD"),
            ("FROM a\nONBUILD FROM x", 2, "FROM"),
            ("FROM a\nONBUILD MAINTAINER x", 2, "MAINTAINER"),
            ("FROM a\nONBUILD FETCH x", 2, "FETCH"),
            ("FROM a\nONBUILD", 2, "ONBUILD"),
            ("FROM a\nRUN --mount=type=ssh y", 2, "ssh"),
            ("FROM a\nRUN --mount=type=cache y", 2, "target"),
            ("FROM a\nRUN --security=insecure y", 2, "--security"),
            ("FROM a\nRUN --network=host y", 2, "host"),
            (
                "FROM a\nRUN --mount=type=tmpfs,target=/x",
                2,
                "RUN says nothing",
            ),
            ("FROM a\nCOPY --chmod=u+x x y", 2, "u+x"),
            ("FROM a\nCOPY --link x y", 2, "--link"),
            ("FROM a\nADD --from=b x y", 2, "--from"),
            ("FROM a\n\nRUN <<EOF\nx\nEO", 3, "EOF has no end"),
            ("FROM a\nCOPY <<A <<B /x\nA\nA\n", 2, "B has no end"),
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

    #[test]
    fn documents_stand_behind_their_instruction() {
        let text = "FROM a\nRUN <<EOF\necho a\n  # kept \\\n\nEOF\nRUN cat <<A >x && cat <<-\"B\"\n1\nA\n\t2\n\tB\n\
                    COPY <<one <<'two' f /d/\n$X\none\n$Y\ntwo\nRUN <<E\n#!/bin/awk\nE\n\
                    ONBUILD RUN <<E\nx\nE\nRUN cat <<<x \"<<no\"\n";
        let file = parse(text).expect("a file");
        let actions: Vec<_> = file.stages[0].instructions.iter().collect();
        assert_eq!(actions[0].action, run("echo a\n  # kept \\\n\n"));
        assert_eq!(
            actions[1].action,
            run("cat <<A >x && cat <<-\"B\"\n1\nA\n\t2\n\tB")
        );
        let Action::Copy(copy) = &actions[2].action else {
            panic!("{:?}", actions[2])
        };
        assert_eq!(copy.words, Words::Text("f /d/".to_owned()));
        let documents: Vec<_> = copy
            .documents
            .iter()
            .map(|document| (&*document.name, &*document.text, document.expands))
            .collect();
        assert_eq!(documents, [("one", "$X\n", true), ("two", "$Y\n", false)]);
        let Action::Run(script) = &actions[3].action else {
            panic!("{:?}", actions[3])
        };
        let script = script.script.as_ref().expect("a script");
        assert_eq!((&*script.name, &*script.text), ("E", "#!/bin/awk\n"));
        assert_eq!(
            actions[4].action,
            Action::OnBuild("RUN <<E\nx\nE".to_owned())
        );
        assert_eq!(actions[5].action, run("cat <<<x \"<<no\""));
    }

    #[test]
    fn a_trigger_reads_as_it_was_kept() {
        let read = parse_trigger("run <<E\nx\nE", '\\').expect("a trigger");
        assert_eq!(read[0].action, run("x\n"));
        assert_eq!(parse_trigger("", '\\').expect("nothing"), []);
        parse_trigger("FROM x", '\\').expect_err("no trigger");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", lines in prop::collection::vec(
            "(FROM|RUN|COPY|ENV|ARG|HEALTHCHECK|ONBUILD|#)? ?(--[a-z]*=?|<<-?[A-Z])?[\\PC\\\\]{0,20}", 0..8)) {
            let _ = (parse(&text), parse(&lines.join("\n")), parse(&format!("FROM a\n{}", lines.join("\n"))));
        }
    }
}
