//! `--format`: templates of Go's text/template, which Podman's and Docker's users write.
//!
//! The language itself is the crate gotmpl's. Here are the functions that Podman has besides, the
//! form `table TEMPLATE`, and the refusal of fields that are not there, by name.

use std::str::FromStr;

use gotmpl::{MissingKey, Value};
use serde::Serialize;

use crate::failure::Explained;

/// What `--format` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Json,
    /// A table, whose columns a template may name.
    Table(Option<String>),
    /// A line for each thing.
    Template(String),
}

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("expected json, table, or a template with the names of fields, as {{{{.ID}}}}")]
    NoTemplate,
    #[error("{0}")]
    Syntax(gotmpl::TemplateError),
    #[error("the template asks for {wanted:?}, which is not there; there are {}", known.join(", "))]
    NoField { wanted: String, known: Vec<String> },
    #[error("cannot fill in the template: {0}")]
    Fill(gotmpl::TemplateError),
}

impl Explained for TemplateError {}

impl FromStr for Format {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let (text, is_table) = match text.strip_prefix("table") {
            Some("") => return Ok(Self::Table(None)),
            Some(rest) if rest.starts_with([' ', '\t', '\\']) => (rest.trim_start(), true),
            _ => (text, false),
        };
        let plain: String = text.split_ascii_whitespace().collect();
        if !is_table && matches!(&*plain, "json" | "{{json.}}") {
            return Ok(Self::Json);
        }
        // What has no field would be printed again and again.
        if !text.contains("{{") {
            return Err(TemplateError::NoTemplate);
        }
        Template::parse(text)?;
        let text = text.to_owned();
        Ok(match is_table {
            true => Self::Table(Some(text)),
            false => Self::Template(text),
        })
    }
}

pub struct Template {
    strict: gotmpl::Template,
    /// Says of a key that is not there what Go does: `<no value>`.
    lenient: gotmpl::Template,
    text: String,
}

/// Fields whose keys are up to users: nobody can say that one of those is missing by mistake.
const OPEN: [&str; 3] = ["Labels", "Annotations", "Options"];

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        // As the shell hands them over.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let read = |missing: MissingKey| {
            let template = gotmpl::Template::new("format")
                .missing_key(missing)
                .func("json", json)
                .func("join", join)
                .func("split", split)
                .func("lower", |args| changed(args, "lower", str::to_lowercase))
                .func("upper", |args| changed(args, "upper", str::to_uppercase))
                .func("title", |args| changed(args, "title", title));
            template.parse(&text).map_err(TemplateError::Syntax)
        };
        Ok(Self {
            strict: read(MissingKey::Error)?,
            lenient: read(MissingKey::Invalid)?,
            text,
        })
    }

    pub fn fill(&self, data: &impl Serialize) -> Result<String, TemplateError> {
        let data = gotmpl::to_value(data).map_err(TemplateError::Fill)?;
        match self.strict.execute_to_string(&data) {
            Ok(text) => Ok(text),
            Err(gotmpl::TemplateError::MissingKey { key }) if self.is_open(&key) => self
                .lenient
                .execute_to_string(&data)
                .map_err(TemplateError::Fill),
            Err(gotmpl::TemplateError::MissingKey { key }) => Err(TemplateError::NoField {
                wanted: key,
                known: match &data {
                    Value::Map(fields) => fields.keys().map(ToString::to_string).collect(),
                    _ => Vec::new(),
                },
            }),
            Err(other) => Err(TemplateError::Fill(other)),
        }
    }

    /// Whether a key is asked for only where any may be.
    fn is_open(&self, key: &str) -> bool {
        let asked = format!(".{key}");
        let mut places = self.text.match_indices(&asked).peekable();
        places.peek().is_some()
            && places.all(|(at, _)| OPEN.iter().any(|open| self.text[..at].ends_with(open)))
    }
}

/// The columns of a template's table: what stands between two fields is where one ends.
pub fn in_columns(template: &str) -> String {
    template.replace("}} {{", "}}\t{{")
}

fn json(args: &[Value]) -> gotmpl::Result<Value> {
    let [value] = args else {
        return Err(wrong_use("json", "one value"));
    };
    let text = serde_json::to_string(&plain(value));
    Ok(Value::String(text.expect("it is plain").into()))
}

/// Back to what it was made of.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil | Value::Function(_) => serde_json::Value::Null,
        Value::Bool(is) => (*is).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => (**text).into(),
        Value::List(list) => list.iter().map(plain).collect(),
        Value::Map(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, value)| (name.to_string(), plain(value)));
            serde_json::Value::Object(fields.collect())
        }
    }
}

fn join(args: &[Value]) -> gotmpl::Result<Value> {
    // A list that is missing has nothing in it.
    match args {
        [Value::Nil, Value::String(_)] => Ok(Value::String("".into())),
        [Value::List(list), Value::String(between)] => {
            let parts: Vec<_> = list.iter().map(ToString::to_string).collect();
            Ok(Value::String(parts.join(between).into()))
        }
        _ => Err(wrong_use("join", "a list and a text")),
    }
}

fn split(args: &[Value]) -> gotmpl::Result<Value> {
    match args {
        [Value::String(text), Value::String(at)] if !at.is_empty() => {
            let parts = text.split(&**at).map(|part| Value::String(part.into()));
            Ok(Value::List(parts.collect()))
        }
        _ => Err(wrong_use("split", "two texts")),
    }
}

fn changed(args: &[Value], name: &str, change: impl Fn(&str) -> String) -> gotmpl::Result<Value> {
    match args {
        [Value::String(text)] => Ok(Value::String(change(text).into())),
        _ => Err(wrong_use(name, "a text")),
    }
}

fn title(text: &str) -> String {
    let mut before = ' ';
    let raised = |c: char| {
        let begins = std::mem::replace(&mut before, c).is_whitespace();
        match begins {
            true => c.to_uppercase().collect::<String>(),
            false => c.to_string(),
        }
    };
    text.chars().map(raised).collect()
}

fn wrong_use(name: &str, expected: &str) -> gotmpl::TemplateError {
    gotmpl::TemplateError::Exec(format!("{name} takes {expected}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str) -> Result<String, TemplateError> {
        let data = json!({
            "Id": "abc", "Size": 1_u64 << 63, "Running": true, "Nothing": null, "None": [],
            "Config": {"Cmd": ["cat", "/etc/hi"], "Labels": {"a": "b", "x.y": "z"}},
        });
        Template::parse(template)?.fill(&data)
    }

    #[test]
    fn fields_and_functions() {
        for (template, expected) in [
            ("{{.Id}}", "abc"),
            ("{{ .Id }}-{{.Size}}", "abc-9223372036854775808"),
            (
                "{{.Config.Cmd}} {{.Config.Labels}}",
                "[cat /etc/hi] map[a:b x.y:z]",
            ),
            ("{{.Config.Labels.none}}-{{.Id}}", "<no value>-abc"),
            ("{{json .Config.Cmd}}", r#"["cat","/etc/hi"]"#),
            (
                "{{json .Config}}",
                r#"{"Cmd":["cat","/etc/hi"],"Labels":{"a":"b","x.y":"z"}}"#,
            ),
            (
                "{{json .Nothing}} {{json .Size}}",
                "null 9223372036854775808",
            ),
            ("{{range .Config.Cmd}}[{{.}}]{{end}}", "[cat][/etc/hi]"),
            (
                "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}",
                "a=b;x.y=z;",
            ),
            ("{{range .None}}x{{else}}none{{end}}", "none"),
            (r#"{{index .Config.Labels "x.y"}}"#, "z"),
            ("{{index .Config.Cmd 1}}", "/etc/hi"),
            ("{{if .Running}}up{{else}}down{{end}}", "up"),
            (r#"{{if eq .Id "abc"}}yes{{end}}"#, "yes"),
            ("{{len .Config.Cmd}}", "2"),
            (r#"{{join .Config.Cmd ","}}"#, "cat,/etc/hi"),
            (r#"{{range split "a.b" "."}}{{upper .}}{{end}}"#, "AB"),
            (r#"{{"a b" | title}} {{lower "ABC"}}"#, "A B abc"),
            ("{{println .Id}}", "abc\n"),
            (r"{{.Id}}\t{{.Id}}\n", "abc\tabc\n"),
            (
                r#"{{with .Config}}{{printf "%s!" (index .Cmd 0)}}{{end}}"#,
                "cat!",
            ),
            ("{{- /* nothing */ -}}", ""),
        ] {
            assert_eq!(fill(template).expect(template), expected, "{template}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        for (template, said) in [
            ("{{.Nope}}", "\"Nope\""),
            ("{{.Nope}}", "Config, Id,"),
            ("{{.Config.Nope}}", "\"Nope\""),
            ("{{.Id.Nope}}", "Nope"),
            ("{{index .Config.Cmd 7}}", "7"),
            ("{{join .Id}}", "join takes"),
            ("{{.Id", "unclosed"),
            ("{{nope .Id}}", "nope"),
        ] {
            let error = fill(template).expect_err(template).to_string();
            assert!(error.contains(said), "{template}: {error}");
        }
    }

    #[test]
    fn forms() {
        let template = |text: &str| Some(text.to_owned());
        for (text, expected) in [
            ("json", Format::Json),
            ("{{json .}}", Format::Json),
            ("{{ json . }}", Format::Json),
            ("table", Format::Table(None)),
            (
                "table {{.ID}} {{.Names}}",
                Format::Table(template("{{.ID}} {{.Names}}")),
            ),
            (
                r"table{{.ID}}",
                Format::Template(r"table{{.ID}}".to_owned()),
            ),
            ("{{.ID}}", Format::Template("{{.ID}}".to_owned())),
        ] {
            assert_eq!(text.parse::<Format>().expect(text), expected);
        }
        for text in ["", "yaml", "table x", "{{.ID"] {
            text.parse::<Format>().expect_err(text);
        }
        assert_eq!(
            in_columns("{{.A}} {{.B}}\t{{.C}}"),
            "{{.A}}\t{{.B}}\t{{.C}}"
        );
    }
}
