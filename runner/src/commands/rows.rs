//! Lists as templates have them: a line, or the row of a table, for each thing.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use super::table::columns;
use super::{output_result, print_line};
use crate::failure::Failure;
use crate::printable::{escape, escape_json};
use crate::template::{Format, Template, in_columns};

/// Between columns, and as wide as Podman's columns are at least.
const WIDTH_MIN: usize = 10;

/// Prints a list as `--format` asks: as JSON, as a template has the fields of each thing, or as a
/// table of ours. `headers` has the name of every field and what stands over its column; `heads`
/// says whether tables have a first line.
pub fn print_list<T: Serialize>(
    format: Option<&Format>,
    heads: bool,
    headers: &[(&str, &str)],
    json: impl FnOnce() -> Result<T, Failure>,
    fields: impl FnOnce() -> Result<Vec<Value>, Failure>,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        Some(Format::Json) => print_json(&json()?),
        Some(Format::Table(Some(template))) => {
            print_rows(template, true, headers, heads, &fields()?)
        }
        Some(Format::Template(template)) => print_rows(template, false, headers, false, &fields()?),
        Some(Format::Table(None)) | None => table().lines().try_for_each(print_line),
    }
}

/// Nothing of it acts on a terminal.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.expect("it has only strings, numbers and lists");
    print_line(&escape_json(&text))
}

/// Prints what `template` makes of each row.
fn print_rows(
    template: &str,
    is_table: bool,
    headers: &[(&str, &str)],
    heads: bool,
    rows: &[Value],
) -> Result<(), Failure> {
    let head = headers.iter();
    let head = head.map(|(name, text)| ((*name).to_owned(), (*text).into()));
    let head = Value::Object(head.collect::<Map<_, _>>());
    if !is_table {
        let template = Template::parse(template)?;
        if rows.is_empty() {
            // A field that is not there is refused, whatever there is to be listed.
            match template.fill(&head) {
                Err(error @ crate::template::TemplateError::NoField { .. }) => {
                    return Err(error.into());
                }
                _ => return Ok(()),
            }
        }
        return rows
            .iter()
            .try_for_each(|row| print_filled(&template.fill(row)?));
    }
    let template = Template::parse(&in_columns(template))?;
    let cells = |row: &Value| -> Result<Vec<String>, Failure> {
        let line = template.fill(row)?;
        Ok(line.split('\t').map(escape).collect())
    };
    let head = cells(&head)?;
    let rows = rows.iter().map(cells).collect::<Result<Vec<_>, _>>()?;
    let lines: Vec<_> = heads.then_some(head).into_iter().chain(rows).collect();
    let text = columns(&lines, WIDTH_MIN);
    output_result(std::io::stdout().write_all(text.as_bytes()))
}

/// The template by which `inspect` prints each thing; `None` for JSON. `example` is one for the
/// refusal of tables.
pub fn inspect_template(
    format: Option<&Format>,
    example: &str,
) -> Result<Option<Template>, Failure> {
    match format {
        None | Some(Format::Json) => Ok(None),
        Some(Format::Table(_)) => Err(Failure::runner(format!(
            "inspect makes no tables: --format takes json, or a template as {example}"
        ))),
        Some(Format::Template(template)) => Ok(Some(Template::parse(template)?)),
    }
}

/// What a template made of one thing, on a line of its own. On a terminal nothing of it acts.
pub fn print_filled(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    let text = match stdout.is_terminal() {
        true => escape_json(text),
        false => text.to_owned(),
    };
    let text = match text.ends_with('\n') {
        true => text,
        false => text + "\n",
    };
    output_result(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    )
}
