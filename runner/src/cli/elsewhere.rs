//! Names that Podman and Docker have and coracle does not, and which of our own names somebody may
//! have meant.
//!
//! People bring habits along. One who types `top` wants `top`, and no advice to `stop` something.

/// A line is a command and its flags; `commands` are all commands, `coracle` has the flags before a
/// command.
const NAMES: &str = include_str!("elsewhere.txt");

/// Whether another engine has this command, in the group `group` or in none.
pub fn has_command(group: Option<&str>, name: &str) -> bool {
    let key = group.map_or("commands".to_owned(), |group| format!("{group}-commands"));
    names(&key).any(|known| known == name)
}

/// Whether another engine's command of the same name has this flag, which is given with its dashes.
/// `path` is the command, behind its group if it is in one; empty for flags that stand before it.
pub fn has_flag(path: &[&str], flag: &str) -> bool {
    let key = match path {
        [] => "coracle".to_owned(),
        // The same as a command of its own.
        ["image", "ls"] => "images".to_owned(),
        ["image", "rm"] => "rmi".to_owned(),
        ["create"] => "run".to_owned(),
        ["image", name] if *name != "prune" => (*name).to_owned(),
        path => path.join("-"),
    };
    names(&key).any(|known| known == flag)
}

fn names(key: &str) -> impl Iterator<Item = &'static str> {
    let beginning = format!("{key}: ");
    NAMES
        .lines()
        .filter_map(move |line| line.strip_prefix(&*beginning))
        .flat_map(str::split_ascii_whitespace)
}

/// The one of `candidates` that `typed` is a slip of the finger for, if one is near enough.
pub fn nearest<'a>(typed: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let len = typed.chars().count();
    let slips_max = match len {
        // With two letters anything is near everything.
        0..=2 => return None,
        3..=5 => 1,
        _ => 2,
    };
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(typed, candidate), candidate))
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// What we have got is to be taken off the list, or it is said not to exist.
    #[test]
    fn nothing_of_ours_is_listed_as_missing() {
        let mut cli = Cli::command();
        cli.build();
        check_flags(&cli, &[]);
        for command in cli.get_subcommands() {
            let name = command.get_name();
            assert!(!has_command(None, name), "{name}");
            check_flags(command, &[name]);
            for below in command.get_subcommands() {
                assert!(!has_command(Some(name), below.get_name()), "{name}");
                check_flags(below, &[name, below.get_name()]);
            }
        }
        assert!(has_command(None, "swarm") && has_command(Some("image"), "tree"));
        assert!(has_flag(&["run"], "--pod") && has_flag(&[], "--root"));
        assert!(has_flag(&["image", "ls"], "--history"));
    }

    fn check_flags(command: &clap::Command, path: &[&str]) {
        for arg in command.get_arguments() {
            let longs = arg.get_long().into_iter();
            let longs = longs.chain(arg.get_all_aliases().unwrap_or_default());
            let longs = longs.map(|long| format!("--{long}"));
            let shorts = arg.get_short().map(|short| format!("-{short}"));
            for flag in longs.chain(shorts) {
                assert!(!has_flag(path, &flag), "{path:?} {flag}");
            }
        }
    }

    #[test]
    fn slips_are_near_and_other_words_are_not() {
        let ours = ["run", "exec", "ps", "logs", "stop", "kill", "rm", "unshare"];
        let near = |typed| nearest(typed, ours.into_iter());
        assert_eq!(near("rnu"), Some("run"));
        assert_eq!(near("lgos"), Some("logs"));
        assert_eq!(near("unshrea"), Some("unshare"));
        assert_eq!(near("pss"), Some("ps"));
        for typed in ["p", "xx", "compose", "network", "fork"] {
            assert_eq!(near(typed), None, "{typed}");
        }
    }
}
