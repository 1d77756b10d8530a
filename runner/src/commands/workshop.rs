//! What the commands on working containers share: root of a user namespace in which to mount, the
//! containers, and the images.

use std::path::Path;

use super::{open_engine, unshare};
use crate::build::BuildError;
use crate::build::config::ImageConfig;
use crate::build::store::{Working, WorkingStore};
use crate::build::tree::{self, Mounted};
use crate::cli::{PullPolicy, RegistryArgs};
use crate::engine::{Engine, ImageRef, ImageStore};
use crate::failure::Failure;
use crate::images::layers::apply::Owners;
use crate::isolation::idmap::IdMaps;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;

/// Begins with nothing.
pub const SCRATCH: &str = "scratch";

pub struct Workshop {
    pub engine: Engine,
    pub images: ImageStore,
    pub working: WorkingStore,
    /// What files of the containers belong to.
    pub owners: Owners,
}

impl Workshop {
    /// Goes on as root of the namespaces of `coracle unshare`: the command line is executed anew
    /// there if need be.
    pub fn enter(inherited: &Inherited) -> Result<Self, Failure> {
        unshare::go_on_as_root(inherited)?;
        let engine = open_engine()?;
        let (maps, _) = IdMaps::discover(true)?;
        Ok(Self {
            images: engine.images()?,
            working: engine.working(),
            engine,
            owners: match maps.is_single() {
                true => Owners::Recorded,
                false => Owners::Kept,
            },
        })
    }

    pub fn find(&self, wanted: &str) -> Result<Working, BuildError> {
        self.working.find(wanted)
    }

    pub fn mount(&self, container: &Working) -> Result<Mounted, BuildError> {
        tree::mount(&self.working, &self.images, container, &mut warn)
    }

    /// Begins a container with an image, which is pulled if need be, or with nothing.
    pub fn begin(
        &self,
        image: &str,
        name: Option<&str>,
        policy: PullPolicy,
        registry: &RegistryArgs,
        quiet: bool,
    ) -> Result<Working, Failure> {
        if let Some(name) = name
            && let Ok(other) = self.engine.find(name)
            && other.name == name
        {
            let holder = other.id.short().to_owned();
            let name = name.to_owned();
            return Err(BuildError::NameTaken { name, holder }.into());
        }
        if image == SCRATCH {
            let stem = "working-container";
            return Ok(self
                .working
                .create(name, stem, None, ImageConfig::scratch())?);
        }
        let provided = super::pull::provide(&self.engine, image, policy, registry, quiet)?;
        let (found, as_name) = self.images.find(&provided)?;
        // Here before the container is recorded, or not at all.
        let _held = self.images.hold(&found.id)?;
        self.images.provide_layers(&found, &mut warn)?;
        let shown = as_name.as_ref().or(found.names.first());
        let shown = shown.map(ImageRef::to_string).unwrap_or_default();
        let text = self.images.read_blob(&found.id)?;
        let config = ImageConfig::of_base(&text).map_err(Failure::context(format!(
            "cannot use the configuration of {image}"
        )))?;
        let image = Some((shown.clone(), found.id.clone()));
        Ok(self.working.create(name, &stem(&shown), image, config)?)
    }
}

/// What a container of an image is named after.
fn stem(image: &str) -> String {
    let last = Path::new(image).file_name().unwrap_or_default();
    let last = last.to_string_lossy();
    let name = last.split([':', '@']).next().unwrap_or_default();
    match name {
        "" => "working-container".to_owned(),
        name => format!("{name}-working-container"),
    }
}
