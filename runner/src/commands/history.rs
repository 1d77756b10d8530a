//! `coracle history`: how an image was made, the last step first.

use jiff::Timestamp;
use oci_spec::image::History;
use serde::Serialize;
use serde_json::{Value, json};

use super::rows::print_list;
use super::table::table;
use super::{human, images, open_engine, print_line};
use crate::cli::HistoryArgs;
use crate::engine::{Image, ImageStore};
use crate::failure::Failure;
use crate::printable::escape;

pub fn history(args: HistoryArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let (image, _) = store.find(&args.image)?;
    let steps = steps(&image, &store);
    if args.quiet {
        let mut ids = steps.iter().map(|step| step.shown_id(args.no_trunc));
        ids.try_for_each(|id| print_line(&id))?;
        return Ok(0);
    }
    print_list(
        args.format.as_ref(),
        true,
        &HEADERS,
        || Ok(&steps),
        || Ok(fields(&steps, &args)),
        || {
            let rows = steps.iter().map(|step| step.row(&args));
            let rows: Vec<_> = rows.map(|row| row.map(|cell| escape(&cell))).collect();
            let header = ["ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
            table(Some(header), &rows, images::WIDTH_MIN)
        },
    )?;
    Ok(0)
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 8] = [
    ("ID", "ID"),
    ("Created", "CREATED"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
    ("Tags", "TAGS"),
];

fn fields(steps: &[Step], args: &HistoryArgs) -> Vec<Value> {
    let fields = |step: &Step| {
        let [id, created, by, size, comment] = step.row(args);
        json!({
            "ID": id, "Created": created, "CreatedSince": created, "CreatedAt": step.created,
            "CreatedBy": by, "Size": size, "Comment": comment, "Tags": step.tags,
        })
    };
    steps.iter().map(fields).collect()
}

/// Field names as Podman's.
#[derive(Serialize)]
struct Step {
    /// Of the last one only: the others are no images.
    id: String,
    created: String,
    #[serde(rename = "CreatedBy")]
    created_by: String,
    size: u64,
    comment: String,
    /// The image's names, of the last one only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
}

/// The last first. Steps that made no layer are among them.
fn steps(image: &Image, store: &ImageStore) -> Vec<Step> {
    let sizes = image
        .layers()
        .into_iter()
        .map(|layer| store.layer_size(&layer))
        .collect::<Vec<_>>();
    // An image need not tell: then there are its layers.
    let told = image
        .config
        .history()
        .clone()
        .filter(|told| !told.is_empty());
    let told = told.unwrap_or_else(|| vec![History::default(); sizes.len()]);
    let mut sizes = sizes.into_iter();
    let mut steps: Vec<Step> = told
        .into_iter()
        .map(|step| Step {
            id: String::new(),
            created: step.created().clone().unwrap_or_default(),
            created_by: step.created_by().clone().unwrap_or_default(),
            size: match step.empty_layer() {
                Some(true) => 0,
                _ => sizes.next().unwrap_or_default(),
            },
            comment: step.comment().clone().unwrap_or_default(),
            tags: Vec::new(),
        })
        .collect();
    steps.reverse();
    if let Some(last) = steps.first_mut() {
        image.id.hex().clone_into(&mut last.id);
        last.tags = image.names.iter().map(ToString::to_string).collect();
    }
    steps
}

impl Step {
    fn shown_id(&self, whole: bool) -> String {
        match &*self.id {
            "" => "<missing>".to_owned(),
            id if whole => id.to_owned(),
            id => id[..12].to_owned(),
        }
    }

    fn row(&self, args: &HistoryArgs) -> [String; 5] {
        /// Columns of what made a step; three dots among them.
        const CREATED_BY_MAX: usize = 45;
        let by = self.created_by.clone();
        let by = match by.char_indices().nth(CREATED_BY_MAX) {
            Some(_) if !args.no_trunc => {
                let end = by.char_indices().nth(CREATED_BY_MAX - 3);
                format!("{}...", &by[..end.map_or(0, |(at, _)| at)])
            }
            _ => by,
        };
        let created = match (self.created.parse::<Timestamp>(), args.human) {
            (Ok(at), true) => human::ago(at.as_second()),
            _ => self.created.clone(),
        };
        let size = match args.human {
            true => human::size(self.size),
            false => self.size.to_string(),
        };
        [
            self.shown_id(args.no_trunc),
            created,
            by,
            size,
            self.comment.clone(),
        ]
    }
}
