//! What `inspect` tells of an image.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::images::repo_digests;
use super::{GraphData, GraphDriver, joined};
use crate::engine::{EngineError, Image, ImageStore};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Seen {
    id: String,
    digest: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: String,
    comment: String,
    created: Value,
    config: Value,
    version: String,
    author: String,
    architecture: String,
    os: String,
    /// Bytes of all files.
    size: u64,
    virtual_size: u64,
    graph_driver: GraphDriver,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    manifest_type: String,
    user: String,
    history: Value,
    names_history: Vec<String>,
    #[serde(skip_serializing_if = "Value::is_null")]
    healthcheck: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    r#type: &'static str,
    layers: Vec<String>,
}

impl Seen {
    pub fn look(image: &Image, store: &ImageStore) -> Result<Self, EngineError> {
        let mut whole = store.raw_config(image)?;
        let mut take = |name: &str| whole.get_mut(name).map(Value::take).unwrap_or_default();
        let config = match take("config") {
            Value::Null => json!({}),
            config => config,
        };
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let history = take("history");
        let comment = history.as_array().and_then(|steps| steps.last());
        let comment = comment.and_then(|step| step.get("comment")).cloned();
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        let size = store.size(image);
        let mut dirs = store.layers().find(&image.layers()).unwrap_or_default();
        let upper = dirs.pop();
        dirs.reverse();
        let manifest = &image.manifest;
        let annotations = manifest.annotations().clone().unwrap_or_default();
        let media_type = manifest.media_type().clone();
        Ok(Self {
            id: image.id.hex().to_owned(),
            digest: image.manifest_digest.to_string(),
            repo_tags: names.clone(),
            repo_digests: repo_digests(image),
            parent: String::new(),
            comment: text(comment.unwrap_or_default()),
            created: take("created"),
            version: text(take("docker_version")),
            author: text(take("author")),
            architecture: image.config.architecture().to_string(),
            os: image.config.os().to_string(),
            size,
            virtual_size: size,
            graph_driver: GraphDriver {
                name: "overlay",
                data: GraphData {
                    lower_dir: joined(&dirs),
                    upper_dir: upper.map(|dir| dir.display().to_string()),
                    work_dir: None,
                },
            },
            root_fs: RootFs {
                r#type: "layers",
                layers: image.config.rootfs().diff_ids().clone(),
            },
            labels: labels(image),
            annotations: annotations.into_iter().collect(),
            manifest_type: media_type
                .unwrap_or(oci_spec::image::MediaType::ImageManifest)
                .to_string(),
            user: image.run_config().user().clone().unwrap_or_default(),
            history,
            names_history: names,
            healthcheck: config.get("Healthcheck").cloned().unwrap_or_default(),
            config,
        })
    }
}

fn labels(image: &Image) -> BTreeMap<String, String> {
    let labels = image.run_config().labels().clone();
    labels.unwrap_or_default().into_iter().collect()
}
