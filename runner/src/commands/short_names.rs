//! Which image a short name means, where registries.conf names several registries to search: as
//! its `short-name-mode` says, somebody at a terminal is asked, all are tried, or it is refused.

use std::io::{BufRead, IsTerminal, Write};

use crate::engine::{ImageName, ImageRef, NameError, Registries};
use crate::failure::Failure;
use crate::images::registries::ShortNames;

/// Where a registry may have it, to be tried in this order.
pub fn remotes(name: ImageName) -> Result<Vec<ImageRef>, Failure> {
    let registries = match name {
        ImageName::Short(_) => Registries::load()?,
        ImageName::Full(_) => Registries::default(),
    };
    let open = match name.remote(&registries) {
        Ok(image) => return Ok(vec![image]),
        Err(open) => open,
    };
    let NameError::Ambiguous { candidates, .. } = &open else {
        return Err(open.into());
    };
    let mode = registries.short_names();
    let is_asked = || std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if mode != ShortNames::Disabled && is_asked() {
        let (input, mut output) = (std::io::stdin().lock(), std::io::stderr());
        let chosen = choose(candidates, input, &mut output);
        let chosen = chosen.map_err(Failure::context("cannot ask which image is meant"))?;
        let none = || Failure::runner("no image was chosen");
        return Ok(vec![chosen.ok_or_else(none)?.parse()?]);
    }
    if mode == ShortNames::Enforcing {
        return Err(open.into());
    }
    let parsed = candidates.iter().map(|candidate| candidate.parse());
    Ok(parsed.collect::<Result<_, NameError>>()?)
}

/// Asks until there is an answer; nothing is none.
fn choose<'a>(
    candidates: &'a [String],
    mut input: impl BufRead,
    output: &mut impl Write,
) -> std::io::Result<Option<&'a str>> {
    writeln!(output, "Which image is meant?")?;
    for (index, candidate) in candidates.iter().enumerate() {
        writeln!(output, "  {}) {candidate}", index + 1)?;
    }
    loop {
        write!(output, "Its number, 1 to {}: ", candidates.len())?;
        output.flush()?;
        let mut answer = String::new();
        if input.read_line(&mut answer)? == 0 || answer.trim().is_empty() {
            return Ok(None);
        }
        let number = answer.trim().parse::<usize>().ok();
        let chosen = number.and_then(|number| candidates.get(number.checked_sub(1)?));
        if let Some(chosen) = chosen {
            return Ok(Some(chosen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_chooses_and_nothing_is_none() {
        let candidates = ["a.org/x:latest", "b.org/x:latest"].map(str::to_owned);
        let answer = |text: &str| {
            let mut asked = Vec::new();
            let chosen = choose(&candidates, text.as_bytes(), &mut asked).expect("memory");
            (chosen, String::from_utf8(asked).expect("text"))
        };
        let (chosen, asked) = answer("2\n");
        assert_eq!(chosen, Some("b.org/x:latest"));
        assert!(asked.contains("  1) a.org/x:latest\n"), "{asked}");
        let (chosen, asked) = answer("0\n3\nx\n1\n");
        assert_eq!(chosen, Some("a.org/x:latest"));
        assert_eq!(asked.matches("number").count(), 4);
        assert_eq!(answer("\n").0, None);
        assert_eq!(answer("").0, None);
    }
}
