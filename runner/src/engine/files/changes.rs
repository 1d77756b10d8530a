//! What containers and images have changed of what they are made from.

use std::io::{self, Read};
use std::path::PathBuf;

use super::role::{FILES_ROLE, Job};
use crate::engine::{Engine, EngineError, Image};
use crate::isolation::idmap::IdMaps;
use crate::process::owner;
use crate::rootfs::difference::{self, Change, Layer};
use crate::rootfs::overlay::RootSource;
use crate::spec::ContainerSpec;
use crate::state::Container;

/// What a tree is made of.
#[derive(Debug, Clone)]
pub struct Layers {
    /// The uppermost first.
    dirs: Vec<PathBuf>,
    /// Of the container whose changes the uppermost are, where its IDs are not those of the others.
    upper: Option<IdMaps>,
}

impl Layers {
    /// `dirs` are the lowest first.
    fn of_image(mut dirs: Vec<PathBuf>) -> Self {
        dirs.reverse();
        Self { dirs, upper: None }
    }

    fn open(&self) -> Result<Vec<Layer>, EngineError> {
        let (upper, lowers) = self.dirs.split_at(self.upper.iter().count());
        let mut layers = Layer::open_all(upper, self.upper.as_ref())?;
        layers.extend(Layer::open_all(lowers, None)?);
        Ok(layers)
    }
}

impl Engine {
    /// What a container's tree is made of, its changes first, and the same without them.
    pub fn container_layers(&self, container: &Container) -> Result<[Layers; 2], EngineError> {
        let dir = self.store.dir(container);
        let RootSource::Overlay(overlay) = ContainerSpec::load(&dir.data)?.tree.root else {
            return Err(EngineError::ChangesInPlace {
                name: container.name.clone(),
            });
        };
        let maps = match &container.id_maps {
            Some(maps) => maps.clone(),
            None => IdMaps::discover(false)?.0,
        };
        let below = Layers {
            dirs: overlay.lowers.clone(),
            upper: None,
        };
        let dirs = match overlay.is_copied() {
            true => vec![overlay.upper],
            false => [vec![overlay.upper], overlay.lowers].concat(),
        };
        let upper = maps.root_is_another().then_some(maps);
        Ok([Layers { dirs, upper }, below])
    }

    /// What an image's tree is made of, and the same without the uppermost layer.
    pub fn image_layers(&self, image: &Image) -> Result<[Layers; 2], EngineError> {
        let layers = image.layers();
        let below = &layers[..layers.len().saturating_sub(1)];
        let images = self.images()?;
        let provide = |layers| images.provide(layers, &mut |_| {});
        Ok([
            Layers::of_image(provide(&layers)?),
            Layers::of_image(provide(below)?),
        ])
    }

    /// How the tree of `new` differs from that of `old`, in the order of the paths.
    pub fn compare(&self, new: &Layers, old: &Layers) -> Result<Vec<Change>, EngineError> {
        // Whoever is host to other IDs may read them all.
        if new.upper.is_some() || old.upper.is_some() {
            return Ok(difference::changes(new.open()?, old.open()?)?);
        }
        let (maps, _) = IdMaps::discover(true)?;
        let job = Job::Compare {
            new: new.dirs.clone(),
            old: old.dirs.clone(),
        };
        let (mut told, tell) = io::pipe().map_err(EngineError::streams)?;
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let provide = |_| -> Result<_, EngineError> { Ok(vec![tell.into()]) };
                owner::run_with(FILES_ROLE, &job, &maps, provide)
            });
            let mut text = Vec::new();
            let read = told.read_to_end(&mut text).map_err(EngineError::streams);
            asked.join().expect("asking does not panic")?;
            read?;
            let read = |error: serde_json::Error| EngineError::streams(error.into());
            serde_json::from_slice(&text).map_err(read)
        })
    }
}
