//! The image of each step: made, or taken where there is one already that was made of the same by
//! the same step.
//!
//! The same are the layers below, the configuration, and the history, in which a step that copies
//! tells a digest of what it copies.

use super::Build;
use super::stage::Progress;
use crate::build::commit::{CommitRequest, commit};
use crate::build::config::{ImageConfig, Step};
use crate::build::store::Working;
use crate::commands::workshop::Passing;
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::process::foreground::warn;

impl Build<'_> {
    /// Makes an image of what a step has done.
    pub fn keep(
        &self,
        progress: &mut Progress,
        container: Passing,
        told: &str,
    ) -> Result<(), Failure> {
        if progress.one_layer {
            progress.tell(told, true);
            progress.go_on_in(container);
            return Ok(());
        }
        let mut container = container.container.clone();
        container.created_by = Some(told.to_owned());
        let request = CommitRequest {
            timestamp: self.args.timestamp,
            // So that the next build finds it by its place.
            keep_empty: true,
            ..CommitRequest::default()
        };
        let Self { workshop, .. } = self;
        let image = commit(
            &workshop.working,
            &workshop.images,
            &container,
            request,
            &mut warn,
        )?;
        progress.config = self.config_of(&image.id)?;
        progress.image = Some(image.id.clone());
        progress.is_current = true;
        progress.cached = false;
        self.say(&format!("--> {}", image.id.short()))
    }

    /// Makes an image of what all steps of a stage have done, in one layer; with `everything`, what
    /// they began with is in it as well.
    pub fn keep_as_one(&self, progress: &mut Progress, everything: bool) -> Result<(), Failure> {
        let container = self.container(progress)?;
        let mut config = progress.config.clone();
        // Its layer is the last step's.
        let last = config.history.pop().and_then(|step| step.created_by);
        let container = Working {
            config,
            created_by: last,
            ..container.container.clone()
        };
        let request = CommitRequest {
            timestamp: self.args.timestamp,
            squash: everything,
            ..CommitRequest::default()
        };
        let Self { workshop, .. } = self;
        let (working, images) = (&workshop.working, &workshop.images);
        let image = commit(working, images, &container, request, &mut warn)?;
        progress.image = Some(image.id);
        progress.is_current = true;
        progress.cached = false;
        Ok(())
    }

    /// Goes on with the image that the same step has made before, if it has.
    pub fn take_cached(&self, progress: &mut Progress, told: &str) -> Result<bool, Failure> {
        if !progress.cached || progress.one_layer {
            return Ok(false);
        }
        let mut expected = progress.config.clone();
        expected.history.push(Step {
            created_by: Some(told.to_owned()),
            ..Step::default()
        });
        let found = self.made_before(&expected, 1)?;
        let Some((id, config)) = found else {
            // What comes after something new is new.
            progress.cached = false;
            return Ok(false);
        };
        progress.config = config;
        progress.is_current = true;
        self.say(&format!("--> Using cache {}", id.hex()))?;
        self.say(&format!("--> {}", id.short()))?;
        progress.image = Some(id);
        Ok(true)
    }

    /// An image that says the same, at whatever time it was made, and has as many layers `more`.
    pub fn made_before(
        &self,
        expected: &ImageConfig,
        more: usize,
    ) -> Result<Option<(Digest, ImageConfig)>, Failure> {
        let layers = &expected.rootfs.diff_ids;
        for image in self.workshop.images.list()? {
            if image.config.rootfs().diff_ids().len() != layers.len() + more {
                continue;
            }
            let config = self.config_of(&image.id)?;
            if config.rootfs.diff_ids.starts_with(layers) && config.is_like(expected) {
                return Ok(Some((image.id, config)));
            }
        }
        Ok(None)
    }
}
