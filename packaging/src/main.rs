//! What is shipped beside the programs: man pages and shell completions, written from the programs'
//! own definitions of their command lines, and the installation of all of it under a prefix.
//!
//! [`man`] and [`completions`] say what is in the files, [`install`] where they go. This program is
//! a tool of this repository and is not installed itself.

mod completions;
mod install;
mod man;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use install::{File, InstallError};

/// Write coracle's man pages and completions, or install them with the programs
#[derive(Debug, Parser)]
#[command(name = "coracle-packaging")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the programs, and put them with their man pages and completions below a prefix
    Install {
        /// Where bin/ and share/ are, such as ~/.local or /usr/local
        #[arg(long, value_name = "DIR")]
        prefix: PathBuf,
    },
    /// Write man pages and completions only, for a package's build; they go to DIR/share
    Pages {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-packaging: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<(), InstallError> {
    match task {
        Task::Pages { dir } => place(&documents(), &dir),
        Task::Install { prefix } => {
            place(&install::programs()?, &prefix)?;
            place(&documents(), &prefix)?;
            let path = std::env::var_os("PATH").unwrap_or_default();
            for line in install::advice(&prefix, &path) {
                println!("{line}");
            }
            Ok(())
        }
    }
}

fn place(files: &[File], below: &Path) -> Result<(), InstallError> {
    for file in files {
        println!("{}", file.place_below(below)?.display());
    }
    Ok(())
}

/// Every man page and completion, with its place below a prefix.
fn documents() -> Vec<File> {
    let man_dir = Path::new("share/man/man1");
    command_lines()
        .into_iter()
        .flat_map(|program| {
            let pages = man::pages(&program)
                .into_iter()
                .map(|(name, text)| File::document(man_dir.join(name), text));
            pages.chain(completions::of(&program)).collect::<Vec<_>>()
        })
        .collect()
}

/// The command lines of the programs, as they define them.
fn command_lines() -> [clap::Command; 2] {
    [runner::cli::Cli::command(), netstack::cli::command()]
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    /// The document at `path`, as text.
    fn document(path: &str) -> String {
        let documents = documents();
        let file = documents
            .iter()
            .find(|file| file.path == Path::new(path))
            .unwrap_or_else(|| panic!("no {path}"));
        String::from_utf8(file.contents.clone()).unwrap()
    }

    /// A program or one of its commands.
    struct Described {
        program: String,
        /// Of the man page: `coracle-run`.
        page: String,
        command: Command,
    }

    fn commands() -> Vec<Described> {
        let mut all = Vec::new();
        for mut program in command_lines().map(|program| program.disable_help_subcommand(true)) {
            program.build();
            let name = program.get_name().to_owned();
            all.extend(program.get_subcommands().map(|command| Described {
                program: name.clone(),
                page: format!("{name}-{}", command.get_name()),
                command: command.clone(),
            }));
            all.push(Described {
                program: name.clone(),
                page: name,
                command: program,
            });
        }
        all
    }

    /// What is typed for `arg`: `-p` and `--publish`.
    fn spellings(arg: &Arg) -> Vec<String> {
        let short = arg.get_short().map(|short| format!("-{short}"));
        let long = arg.get_long().map(|long| format!("--{long}"));
        short.into_iter().chain(long).collect()
    }

    #[test]
    fn man_pages_name_every_option_and_operand() {
        let mut options = 0;
        for Described { page, command, .. } in commands() {
            let text = document(&format!("share/man/man1/{page}.1")).replace("\\-", "-");
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                for spelling in spellings(arg) {
                    let bold = format!("\\fB{spelling}\\fR");
                    assert!(text.contains(&bold), "{page}.1 lacks {spelling}");
                    options += 1;
                }
                let takes_values = arg.get_num_args().is_some_and(|num| num.takes_values());
                for value in arg.get_value_names().unwrap_or_default() {
                    let is_there = text.contains(value.as_str());
                    assert!(is_there || !takes_values, "{page}.1 lacks {value}");
                }
            }
            for subcommand in command.get_subcommands() {
                let reference = format!("{page}-{}(1)", subcommand.get_name());
                assert!(text.contains(&reference), "{page}.1 lacks {reference}");
            }
        }
        assert!(options > 80, "{options} are not all");
    }

    #[test]
    fn completions_name_every_option_and_command() {
        for Described {
            program,
            page,
            command,
        } in commands()
        {
            let bash = document(&format!("share/bash-completion/completions/{program}"));
            let zsh = document(&format!("share/zsh/site-functions/_{program}"));
            let fish = document(&format!("share/fish/vendor_completions.d/{program}.fish"));
            for spelling in command.get_arguments().flat_map(spellings) {
                let in_fish = match spelling.strip_prefix("--") {
                    Some(long) => format!(" -l {long}"),
                    None => format!(" -s {}", &spelling[1..]),
                };
                assert!(bash.contains(&spelling), "bash: {page} {spelling}");
                assert!(zsh.contains(&spelling), "zsh: {page} {spelling}");
                assert!(fish.contains(&in_fish), "fish: {page} {spelling}");
            }
            for subcommand in command.get_subcommands() {
                let word = subcommand.get_name();
                for (shell, script) in [("bash", &bash), ("zsh", &zsh), ("fish", &fish)] {
                    assert!(script.contains(word), "{shell}: {word}");
                }
            }
        }
    }

    #[test]
    fn examples_keep_their_lines() {
        let page = document("share/man/man1/coracle-net.1");
        assert!(page.contains(".SH EXAMPLES\n"), "{page}");
        assert!(page.contains(".SH \"EXIT CODES\"\n"), "{page}");
        let example = page
            .lines()
            .find(|line| line.contains("unshare"))
            .expect("the example");
        assert!(example.starts_with("    "), "{example}");
    }
}
