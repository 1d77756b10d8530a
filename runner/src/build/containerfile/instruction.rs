//! One instruction: its flags, and what it asks for.

use super::lines::{LogicalLine, is_opening, raw_words, split_word};
use super::mount::Mount;
use super::{Action, Check, Command, Copy, Run, Stage, Words, trigger};
use crate::build::config::{Healthcheck, json_list};
use crate::units::{duration, mode};

/// `--name=value` before the words of an instruction.
pub struct Flags<'a> {
    flags: Vec<(&'a str, &'a str)>,
    rest: &'a str,
}

impl<'a> Flags<'a> {
    pub fn split(text: &'a str) -> Self {
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
    pub fn none_left(&self, instruction: &str) -> Result<(), String> {
        match self.flags.first() {
            Some((flag, _)) => Err(format!("coracle does not have {instruction} {flag}")),
            None => Ok(()),
        }
    }
}

pub fn from(line: usize, text: String, mut flags: Flags) -> Result<Stage, String> {
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

pub fn action(name: &str, flags: &mut Flags, line: &LogicalLine) -> Result<Action, String> {
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
        "ONBUILD",
    ];
    match name {
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
        "RUN" => Action::Run(run(flags, line)?),
        "COPY" | "ADD" => copy(name == "ADD", flags, line)?,
        "ONBUILD" => on_build(&rest, line)?,
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

fn run(flags: &mut Flags, line: &LogicalLine) -> Result<Run, String> {
    let mut mounts = Vec::new();
    while let Some(text) = flags.take("--mount") {
        // What has variables is read when they have their values.
        if !text.contains('$') {
            text.parse::<Mount>()
                .map_err(|defect| format!("--mount={text}: {defect}"))?;
        }
        mounts.push(text.to_owned());
    }
    let offline = match flags.take("--network") {
        None | Some("default") => false,
        Some("none") => true,
        Some(other) => {
            return Err(format!(
                "--network={other}: coracle has default and none for a RUN"
            ));
        }
    };
    let rest = flags.rest;
    let mut script = None;
    let command = match &line.documents[..] {
        [] => command(rest.to_owned()),
        [only] if is_opening(rest) => {
            // A shell has what it says without one.
            script = only.text.starts_with("#!").then(|| only.clone());
            Command::Line(only.text.clone())
        }
        documents => {
            let documents = documents.iter();
            let documents: String = documents
                .map(|document| format!("\n{}", document.raw))
                .collect();
            Command::Line(format!("{rest}{documents}"))
        }
    };
    Ok(Run {
        command,
        script,
        mounts,
        offline,
    })
}

fn on_build(rest: &str, line: &LogicalLine) -> Result<Action, String> {
    let later = LogicalLine {
        number: line.number,
        text: rest.to_owned(),
        documents: line.documents.clone(),
    };
    trigger(&later)?;
    let documents = line.documents.iter();
    let documents: String = documents
        .map(|document| format!("\n{}", document.raw))
        .collect();
    Ok(Action::OnBuild(format!("{rest}{documents}")))
}

fn copy(unpack: bool, flags: &mut Flags, line: &LogicalLine) -> Result<Action, String> {
    let name = if unpack { "ADD" } else { "COPY" };
    let chmod = flags.take("--chmod");
    if let Some(text) = chmod
        && !text.contains('$')
    {
        mode(text).map_err(|expected| format!("--chmod={text}: {expected}"))?;
    }
    let from = match unpack {
        // It has no such flag.
        true => None,
        false => flags.take("--from").map(str::to_owned),
    };
    let words = match line.documents.is_empty() {
        true => words(flags.rest.to_owned()),
        false => {
            let mut others = raw_words(flags.rest);
            others.retain(|word| !is_opening(word));
            Words::Text(others.join(" "))
        }
    };
    let count = match &words {
        Words::List(list) => list.len(),
        Words::Text(text) => raw_words(text).len(),
    };
    if count + line.documents.len() < 2 || count == 0 {
        return Err(format!("{name} takes a source and a destination at least"));
    }
    Ok(Action::Copy(Copy {
        unpack,
        from,
        chown: flags.take("--chown").map(str::to_owned),
        chmod: chmod.map(str::to_owned),
        documents: line.documents.clone(),
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
