//! The images that containers are made of, as far as containers have a say in them.

use super::{Engine, EngineError};
use crate::build::BuildError;
use crate::build::caches::Caches;
use crate::build::store::{Working, WorkingStore};
use crate::images::digest::Digest;
use crate::images::error::StorageError;
use crate::images::reference::ImageRef;
use crate::images::store::{Image, ImageStore, Removed};
use crate::state::Container;

/// Whether a container was made of the image with this id.
pub fn is_of(container: &Container, image: &Digest) -> bool {
    container.image_id.as_deref() == Some(image.hex())
}

impl Engine {
    /// The images of the same user.
    pub fn images(&self) -> Result<ImageStore, EngineError> {
        Ok(ImageStore::open(self.store.dirs().storage())?)
    }

    /// The working containers of the same user.
    pub fn working(&self) -> WorkingStore {
        WorkingStore::new(self.store.dirs().working())
    }

    /// What commands of builds keep for the next.
    pub fn build_caches(&self) -> Caches {
        Caches::new(self.store.dirs().build_cache())
    }

    /// Those that have begun with an image.
    fn working_of(&self, image: &Image) -> Result<Vec<Working>, BuildError> {
        let mut containers = self.working().list()?;
        containers.retain(|container| container.image_id.as_ref() == Some(&image.id));
        Ok(containers)
    }

    /// The containers that were made of the image with this id.
    pub fn containers_of(&self, image: &Digest) -> Result<Vec<Container>, EngineError> {
        let mut containers = self.list()?.containers;
        containers.retain(|container| is_of(container, image));
        Ok(containers)
    }

    /// Removes an image that no container is made of, with all its names.
    pub fn remove_unused_image(&self, wanted: &str) -> Result<(Image, Removed), EngineError> {
        let images = self.images()?;
        let (image, _) = images.find(wanted)?;
        self.remove_found(&images, image, None, true)
    }

    /// Takes a name from an image or, where that was its last or its id was given, removes it, and
    /// with it what no other image needs. `force` removes containers of the image as well, and all
    /// its names; working containers take a caller who may remove files of sub-IDs.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchImage`](super::ErrorKind::NoSuchImage); without `force`,
    /// [`ErrorKind::ImageInUse`](super::ErrorKind::ImageInUse).
    pub fn remove_image(&self, wanted: &str, force: bool) -> Result<(Image, Removed), EngineError> {
        let images = self.images()?;
        let (image, name) = images.find(wanted)?;
        let goes = name.is_none() || image.names.len() <= 1;
        if force && goes {
            for container in self.containers_of(&image.id)? {
                self.remove(container.id.as_str(), true)?;
            }
            for container in self.working_of(&image)? {
                self.working().remove(&container)?;
            }
        }
        self.remove_found(&images, image, name, force)
    }

    fn remove_found(
        &self,
        images: &ImageStore,
        image: Image,
        name: Option<ImageRef>,
        force: bool,
    ) -> Result<(Image, Removed), EngineError> {
        let in_use = |container: &str| {
            Err(StorageError::InUse {
                id: image.id.clone(),
                container: container.to_owned(),
            })
        };
        let untold =
            |source: Box<dyn std::error::Error + Send + Sync>| StorageError::Containers { source };
        let unused = || {
            let containers = self.containers_of(&image.id);
            let containers = containers.map_err(|error| untold(error.into()))?;
            let working = self.working_of(&image);
            let working = working.map_err(|error| untold(error.into()))?;
            match (&containers[..], &working[..]) {
                ([], []) => Ok(()),
                ([first, ..], _) => in_use(&first.name),
                ([], [first, ..]) => in_use(&first.name),
            }
        };
        let removed = images.remove(&image.id, name.as_ref(), force, unused)?;
        images.sweep()?;
        for name in &removed.names {
            self.note_image("untag", &image, &name.to_string());
        }
        if removed.image {
            self.note_image("remove", &image, image.id.hex());
        }
        Ok((image, removed))
    }
}
