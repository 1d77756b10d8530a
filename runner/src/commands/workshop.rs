//! What the commands on working containers share: root of a user namespace in which to mount, the
//! containers, and the images.

use std::path::Path;

use netstack::logging::Filter;

use super::{open_engine, unshare};
use crate::build::BuildError;
use crate::build::config::{ImageConfig, RunConfig};
use crate::build::copy::ensure_directory;
use crate::build::placeholders::Placeholders;
use crate::build::store::{Working, WorkingStore};
use crate::build::tree::{self, Mounted};
use crate::cli::{PullPolicy, RegistryArgs};
use crate::engine::{Attach, ContainerRequest, Engine, ImageRef, ImageStore, Launch};
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::images::layers::apply::Owners;
use crate::isolation::idmap::IdMaps;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;
use crate::spec::split_variable;

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

    /// Runs a command in a mounted tree, with what the configuration says where `request` says
    /// nothing else; `serve` sees it to its end.
    pub fn run_in(
        &self,
        mounted: &Mounted,
        config: &RunConfig,
        request: ContainerRequest,
        attach: Attach,
        filter: Filter,
        serve: impl FnOnce(Launch, &Engine) -> Result<u8, Failure>,
    ) -> Result<u8, Failure> {
        let request = of_config(request, config);
        let root = mounted.open()?;
        let targets = request
            .volumes
            .iter()
            .map(|volume| volume.bind.target.as_path());
        let placeholders = Placeholders::missing_in(&root, targets);
        if let Some(dir) = &request.workdir {
            ensure_directory(dir, self.owners, &root)?;
        }
        // The monitor belongs to this process, and ends before it.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let engine = self.engine.clone().logging(filter);
        let ended = engine
            .run(request, Some(attach), &mut warn)
            .map_err(Failure::from)
            .and_then(|launch| serve(launch, &engine));
        placeholders.remove(&root);
        ended
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

/// With what a configuration says, where the request says nothing else.
fn of_config(request: ContainerRequest, config: &RunConfig) -> ContainerRequest {
    let of_config = config.env.iter();
    let of_config = of_config.filter_map(|entry| split_variable(entry.as_ref()));
    ContainerRequest {
        env: of_config.chain(request.env).collect(),
        workdir: request.workdir.or_else(|| Some(config.working_dir())),
        user: request.user.or_else(|| Some(config.user.clone())),
        // The tree has the owners of the image, and so has the container.
        host_root: true,
        remove: true,
        ..request
    }
}

/// A working container that is removed when it is dropped.
pub struct Passing {
    pub container: Working,
    working: WorkingStore,
}

impl Passing {
    pub fn new(workshop: &Workshop, container: Working) -> Self {
        Self {
            container,
            working: workshop.working.clone(),
        }
    }

    /// A place for something else, with nothing in it.
    pub fn begin_empty(workshop: &Workshop) -> Result<Self, Failure> {
        Self::begin(workshop, None, ImageConfig::scratch())
    }

    /// Of an image that is there, or of nothing.
    pub fn begin(
        workshop: &Workshop,
        image: Option<&Digest>,
        config: ImageConfig,
    ) -> Result<Self, Failure> {
        let _held = image.map(|id| workshop.images.hold(id)).transpose()?;
        let image = image.map(|id| (id.short().to_owned(), id.clone()));
        let made = workshop.working.create(None, BUILD, image, config)?;
        Ok(Self::new(workshop, made))
    }
}

/// What containers of a build are named after.
const BUILD: &str = "build-step";

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = self.working.remove(&self.container) {
            warn(&error.to_string());
        }
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
