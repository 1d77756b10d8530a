//! Completions for bash, zsh and fish, at the places where each of them looks.

use clap::Command;
use clap_complete::{Shell, generate};

use crate::install::File;

pub fn of(program: &Command) -> Vec<File> {
    let name = program.get_name();
    let places = [
        (
            Shell::Bash,
            format!("share/bash-completion/completions/{name}"),
        ),
        (Shell::Zsh, format!("share/zsh/site-functions/_{name}")),
        (
            Shell::Fish,
            format!("share/fish/vendor_completions.d/{name}.fish"),
        ),
    ];
    places
        .into_iter()
        .map(|(shell, path)| {
            let mut script = Vec::new();
            generate(shell, &mut program.clone(), name, &mut script);
            File::document(path.into(), script)
        })
        .collect()
}
