//! Which stages the last one needs: the others are not built.

use crate::build::containerfile::mount::{Kind, Mount};
use crate::build::containerfile::{Action, Containerfile, Instruction};

/// For each stage up to `last`, whether it is needed.
pub fn stages(file: &Containerfile, last: usize) -> Vec<bool> {
    let mut needed = vec![false; last + 1];
    needed[last] = true;
    for number in (0..=last).rev() {
        if !needed[number] {
            continue;
        }
        let stage = &file.stages[number];
        let named = stage.instructions.iter().flat_map(origins);
        for name in std::iter::once(stage.image.clone()).chain(named) {
            match index(file, number, &name) {
                // Whatever it comes to mean.
                _ if name.contains('$') => needed[..number].fill(true),
                Some(index) => needed[index] = true,
                None => {}
            }
        }
    }
    needed
}

/// The stage before `number` that has this name or number.
fn index(file: &Containerfile, number: usize, name: &str) -> Option<usize> {
    let before = &file.stages[..number];
    let named = name.to_ascii_lowercase();
    let by_name = before
        .iter()
        .rposition(|stage| stage.name.as_deref() == Some(&named));
    by_name.or_else(|| name.parse().ok().filter(|index| *index < number))
}

/// Where an instruction takes files from.
fn origins(instruction: &Instruction) -> Vec<String> {
    match &instruction.action {
        Action::Copy(copy) => copy.from.iter().cloned().collect(),
        Action::Run(run) => run
            .mounts
            .iter()
            .filter_map(|text| of_mount(text))
            .collect(),
        _ => Vec::new(),
    }
}

fn of_mount(text: &str) -> Option<String> {
    if text.contains('$') {
        return Some(text.to_owned());
    }
    match text.parse::<Mount>().ok()?.kind {
        Kind::Bind { from, .. } => from,
        Kind::Cache(cache) => cache.from,
        Kind::Tmpfs { .. } | Kind::Secret(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::containerfile::parse;

    #[test]
    fn a_stage_is_needed_by_name_number_and_mount() {
        let needed = |text: &str| {
            let file = parse(text).expect(text);
            stages(&file, file.stages.len() - 1)
        };
        let text = "FROM a AS x\nFROM a\nFROM a AS y\nFROM a AS z\nFROM y\nCOPY --from=0 a b\n\
                    RUN --mount=from=Z,target=/z true";
        assert_eq!(needed(text), [true, false, true, true, true]);
        assert_eq!(needed("FROM a\nFROM b\nFROM b"), [false, false, true]);
        assert_eq!(needed("ARG V\nFROM a\nFROM $V"), [true, true]);
        // Of those with one name the last before it is meant.
        let text = "FROM a AS x\nFROM b AS x\nFROM x AS x";
        assert_eq!(needed(text), [false, true, true]);
    }
}
