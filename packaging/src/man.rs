//! Man pages: one for a program and one for each of its commands.
//!
//! clap_mangen writes all sections but those of the text below the options, where it would fill
//! examples like prose. Here a paragraph that begins with a few words and a colon opens a section
//! of that name, indented lines are kept as they are, and the rest is prose, under NOTES where no
//! section is open.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// The pages of `program` as file names and texts.
pub fn pages(program: &Command) -> Vec<(String, Vec<u8>)> {
    let mut program = program.clone().disable_help_subcommand(true);
    program.build();
    let commands = program.get_subcommands().cloned().collect::<Vec<_>>();
    let programs_own = std::iter::once(page(&program, None));
    programs_own
        .chain(commands.iter().map(|command| page(command, Some(&program))))
        .collect()
}

fn page(command: &Command, program: Option<&Command>) -> (String, Vec<u8>) {
    let program_name = program.unwrap_or(command).get_name();
    let version = program.unwrap_or(command).get_version().unwrap_or_default();
    let man = Man::new(command.clone())
        .source(format!("{program_name} {version}"))
        .manual("coracle");
    let mut text = Vec::new();
    let mut write = || {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut text)?;
        }
        more(command).to_writer(&mut text)?;
        see_also(command, program).to_writer(&mut text)
    };
    write().expect("a Vec takes every byte");
    (man.get_filename(), text)
}

/// The sections that come of the text below the options.
fn more(command: &Command) -> Roff {
    let help = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    let mut is_open = false;
    for paragraph in help.split("\n\n").filter(|text| !text.trim().is_empty()) {
        let (heading, body) = heading_of(paragraph);
        match heading {
            Some(heading) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            None if is_open => {
                roff.control("PP", []);
            }
            None => {
                roff.control("SH", ["NOTES"]);
            }
        }
        is_open = true;
        write_lines(&mut roff, body);
    }
    roff
}

/// `Exit codes: 0 told to end …` is a heading and its text.
fn heading_of(paragraph: &str) -> (Option<&str>, &str) {
    /// `Exit codes of run and exec` has 26.
    const HEADING_LEN_MAX: usize = 32;
    match paragraph.split_once(':') {
        Some((heading, body))
            if heading.len() <= HEADING_LEN_MAX
                && heading
                    .bytes()
                    .all(|byte| byte.is_ascii_alphabetic() || byte == b' ')
                && !heading.starts_with(' ')
                && body.starts_with([' ', '\n']) =>
        {
            (Some(heading), body.trim_start_matches('\n'))
        }
        _ => (None, paragraph),
    }
}

fn write_lines(roff: &mut Roff, body: &str) {
    let mut is_literal = false;
    for line in body.lines() {
        let indented = line.starts_with("  ");
        if indented != is_literal {
            roff.control(if indented { "nf" } else { "fi" }, []);
            is_literal = indented;
        }
        roff.text([roman(if indented { line } else { line.trim_start() })]);
    }
    if is_literal {
        roff.control("fi", []);
    }
}

fn see_also(command: &Command, program: Option<&Command>) -> Roff {
    let pages: Vec<String> = match program {
        Some(program) => vec![format!("{}(1)", program.get_name())],
        None if command.get_name() == "coracle" => vec!["coracle-net(1)".into()],
        None => vec!["coracle(1)".into()],
    };
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages.join(", "))]);
    roff
}
