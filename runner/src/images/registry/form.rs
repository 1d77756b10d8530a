//! In whose words a registry gets a manifest: OCI's or Docker's (schema 2). The blobs are the same.

use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageManifest, MediaType};

use crate::images::error::StorageError;

/// `--format` of push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestForm {
    Oci,
    /// Docker's image manifest, version 2, schema 2.
    V2s2,
}

impl FromStr for ManifestForm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "oci" => Ok(Self::Oci),
            "v2s2" | "docker" => Ok(Self::V2s2),
            "v2s1" => Err(
                "coracle does not write v2s1, which Docker has given up: there are oci and v2s2",
            ),
            _ => Err("expected oci or v2s2"),
        }
    }
}

/// Before what a layer is packed by, in Docker's words.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

impl ManifestForm {
    /// The same image in these words.
    ///
    /// # Errors
    /// For what these words have no name for.
    pub fn express(self, manifest: &ImageManifest) -> Result<ImageManifest, StorageError> {
        let mut said = manifest.clone();
        let (whole, config) = match self {
            Self::Oci => (MediaType::ImageManifest, MediaType::ImageConfig),
            Self::V2s2 => {
                // It has no such field.
                said.set_annotations(None);
                (
                    docker("application/vnd.docker.distribution.manifest.v2+json"),
                    docker("application/vnd.docker.container.image.v1+json"),
                )
            }
        };
        said.set_media_type(Some(whole));
        let with_type = |of: &Descriptor, media_type: MediaType| {
            let mut of = of.clone();
            of.set_media_type(media_type);
            of
        };
        said.set_config(with_type(manifest.config(), config));
        let layers = manifest.layers().iter();
        let layers = layers.map(|layer| Ok(with_type(layer, self.layer(layer.media_type())?)));
        said.set_layers(layers.collect::<Result<_, StorageError>>()?);
        Ok(said)
    }

    fn layer(self, found: &MediaType) -> Result<MediaType, StorageError> {
        let text = found.to_string();
        let packed = match text.rsplit(['.', '+']).next().unwrap_or_default() {
            "tar" => "",
            "gzip" => "gzip",
            "zstd" => "zstd",
            _ => "?",
        };
        let is_layer = text.starts_with(DOCKER_LAYER)
            || text.starts_with("application/vnd.oci.image.layer.v1.tar");
        match (self, packed) {
            (Self::Oci, "") if is_layer => Ok(MediaType::ImageLayer),
            (Self::Oci, "gzip") if is_layer => Ok(MediaType::ImageLayerGzip),
            (Self::Oci, "zstd") if is_layer => Ok(MediaType::ImageLayerZstd),
            (Self::V2s2, "") if is_layer => Ok(docker(DOCKER_LAYER)),
            (Self::V2s2, "gzip") if is_layer => Ok(docker(&format!("{DOCKER_LAYER}.gzip"))),
            _ => Err(StorageError::NoForm {
                form: match self {
                    Self::Oci => "oci",
                    Self::V2s2 => "v2s2",
                },
                kind: text,
            }),
        }
    }
}

fn docker(name: &str) -> MediaType {
    MediaType::Other(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_a_name_in_either_words_or_none() {
        use ManifestForm::{Oci, V2s2};
        let name = |form: ManifestForm, from: &str| {
            let found: MediaType = from.into();
            form.layer(&found).map(|name| name.to_string())
        };
        let oci = "application/vnd.oci.image.layer.v1.tar";
        for (plain, gzip) in [
            (oci.to_owned(), format!("{oci}+gzip")),
            (DOCKER_LAYER.to_owned(), format!("{DOCKER_LAYER}.gzip")),
        ] {
            assert_eq!(name(Oci, &plain).expect("a name"), oci);
            assert_eq!(name(Oci, &gzip).expect("a name"), format!("{oci}+gzip"));
            assert_eq!(name(V2s2, &plain).expect("a name"), DOCKER_LAYER);
            assert_eq!(
                name(V2s2, &gzip).expect("a name"),
                format!("{DOCKER_LAYER}.gzip")
            );
        }
        name(Oci, &format!("{oci}+zstd")).expect("a name");
        for without in [
            format!("{oci}+zstd"),
            format!("{oci}+encrypted"),
            "text/plain".to_owned(),
        ] {
            let error = name(V2s2, &without).expect_err(&without);
            assert!(error.to_string().contains(&without), "{error}");
        }
    }
}
