//! The variables that a command line gives a program.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cli::ProcessArgs;
use crate::failure::Failure;
use crate::spec::{Variable, split_variable};

/// Those of the files, and over them those of `-e`.
pub fn variables(args: &ProcessArgs) -> Result<Vec<Variable>, Failure> {
    let mut variables = Vec::new();
    for path in &args.env_files {
        variables.extend(read(path)?);
    }
    variables.extend(args.variables());
    Ok(variables)
}

fn read(path: &Path) -> Result<Vec<Variable>, Failure> {
    let failed = Failure::context(format!("cannot read the variables in {}", path.display()));
    let text = fs::read(path).map_err(failed)?;
    let callers: Vec<Variable> = std::env::vars_os().collect();
    parse(&text, &callers).map_err(|line| {
        let line = OsStr::from_bytes(line);
        Failure::runner(format!(
            "{}: {line:?} is no variable: expected NAME=VALUE, NAME or NAME*",
            path.display()
        ))
    })
}

/// The error is the line that is wrong.
fn parse<'a>(text: &'a [u8], callers: &[Variable]) -> Result<Vec<Variable>, &'a [u8]> {
    let mut variables = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        // No program could be given a NUL byte.
        if line.contains(&0) {
            return Err(line);
        }
        if line.contains(&b'=') {
            variables.push(split_variable(OsStr::from_bytes(line)).ok_or(line)?);
            continue;
        }
        let is_meant = |name: &[u8]| match line.strip_suffix(b"*") {
            Some(beginning) => name.starts_with(beginning),
            None => name == line,
        };
        let meant = callers.iter().filter(|(name, _)| is_meant(name.as_bytes()));
        variables.extend(meant.cloned());
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_podman_reads_them() {
        let variable = |name: &str, value: &str| (name.into(), value.into());
        let callers = [
            variable("HOME", "/home/x"),
            variable("Zone", "3"),
            variable("Zero", "4"),
        ];
        let read = |text: &'static str| parse(text.as_bytes(), &callers);
        let text = "A=1\n# no\n\nB = x y \n  C=4\r\nD=\"q\" # kept\nHOME\nGONE\nZ*\nE=";
        let expected = [
            variable("A", "1"),
            variable("B ", " x y "),
            variable("C", "4"),
            variable("D", "\"q\" # kept"),
            variable("HOME", "/home/x"),
            variable("Zone", "3"),
            variable("Zero", "4"),
            variable("E", ""),
        ];
        assert_eq!(read(text).expect("variables"), expected);
        assert_eq!(read("A=1\n=bad"), Err(&b"=bad"[..]));
        assert!(read("A=\0").is_err());
        let bytes: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(b"\xff".to_vec());
        assert_eq!(parse(b"A=\xff", &[]), Ok(vec![("A".into(), bytes)]));
    }
}
