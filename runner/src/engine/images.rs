//! The images that containers are made of, as far as containers have a say in them.

use super::{Engine, EngineError};
use crate::images::error::StorageError;
use crate::images::reference::ImageRef;
use crate::images::store::{Image, ImageStore, Removed};
use crate::state::Container;

impl Engine {
    /// The images of the same user.
    pub fn images(&self) -> Result<ImageStore, EngineError> {
        Ok(ImageStore::open(self.store.dirs().storage())?)
    }

    /// The containers that were made of an image.
    pub fn containers_of(&self, image: &Image) -> Result<Vec<Container>, EngineError> {
        let mut containers = self.list()?.containers;
        containers.retain(|container| container.image_id.as_deref() == Some(image.id.hex()));
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
    /// its names.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchImage`](super::ErrorKind::NoSuchImage); without `force`,
    /// [`ErrorKind::ImageInUse`](super::ErrorKind::ImageInUse).
    pub fn remove_image(&self, wanted: &str, force: bool) -> Result<(Image, Removed), EngineError> {
        let images = self.images()?;
        let (image, name) = images.find(wanted)?;
        let goes = name.is_none() || image.names.len() <= 1;
        if force && goes {
            for container in self.containers_of(&image)? {
                self.remove(container.id.as_str(), true)?;
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
        let unused = || match self.containers_of(&image) {
            Ok(containers) => match containers.first() {
                None => Ok(()),
                Some(container) => Err(StorageError::InUse {
                    id: image.id.clone(),
                    container: container.name.clone(),
                }),
            },
            Err(error) => Err(StorageError::Containers {
                source: Box::new(error),
            }),
        };
        let removed = images.remove(&image.id, name.as_ref(), force, unused)?;
        images.sweep()?;
        Ok((image, removed))
    }
}
