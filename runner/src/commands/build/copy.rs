//! COPY and ADD: files of the context, or of another image, in a layer.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::stage::{Progress, unread};
use super::{Build, Ended};
use crate::build::containerfile::Copy;
use crate::build::copy::{self, CopyRequest, LeftOut, Nothing};
use crate::build::pack::Changes;
use crate::build::tree::Mounted;
use crate::commands::workshop::Passing;
use crate::failure::Failure;

impl Build<'_> {
    /// Carries out COPY and ADD.
    pub fn copy(&mut self, progress: &mut Progress, request: &Copy) -> Result<(), Ended> {
        let words = request
            .words
            .expand(self.file.escape, &|name| progress.lookup(name));
        let words = words.map_err(unread)?;
        let [sources @ .., dest] = &words[..] else {
            return Err(Failure::runner("it takes a source and a destination").into());
        };
        let origin = self.origin(progress, request)?;
        let chown = request
            .chown
            .as_ref()
            .map(|owner| self.one(progress, owner))
            .transpose()?;
        let (from, left_out): (&OwnedFd, &dyn LeftOut) = match &origin {
            Some(origin) => (&origin.root, &Nothing),
            None => (&self.context, &self.ignore),
        };
        let workdir = progress.config.config.working_dir();
        let mut copy_request = CopyRequest {
            from,
            base: Path::new("/"),
            sources,
            dest,
            workdir: &workdir,
            changes: Changes {
                owner: (origin.is_none() && chown.is_none()).then_some((0, 0)),
                mode: request.chmod,
                modified: None,
            },
            unpack: request.unpack,
            left_out,
            owners: self.workshop.owners,
        };
        let content = copy::digest(&copy_request)?;
        let kind = if request.unpack { "ADD" } else { "COPY" };
        // With values: another argument may mean another owner.
        let chown_told = chown.as_ref().map(|owner| format!("--chown={owner} "));
        let chown_told = chown_told.unwrap_or_default();
        let content = content.hex();
        let told = format!("/bin/sh -c #(nop) {kind} {chown_told}{content} in {dest}");
        if self.take_cached(progress, &told)? {
            return Ok(());
        }
        let container = self.container(progress)?;
        let mounted = self.workshop.mount(&container.container)?;
        let root = mounted.open()?;
        if let Some(chown) = &chown {
            copy_request.changes.owner = Some(copy::owner(chown, &root)?);
        }
        copy::copy(&copy_request, &root)?;
        drop((root, mounted));
        Ok(self.keep(progress, &container, &told)?)
    }

    /// Where `--from` leads.
    fn origin(&self, progress: &Progress, request: &Copy) -> Result<Option<Origin>, Failure> {
        let Some(from) = &request.from else {
            return Ok(None);
        };
        let from = self.one(progress, from)?;
        let id = match self.stage_image(&from) {
            Some(id) => id.clone(),
            None => self.provide(&from)?,
        };
        let passing = Passing::begin(self.workshop, Some(&id), self.config_of(&id)?)?;
        let mounted = self.workshop.mount(&passing.container)?;
        Ok(Some(Origin {
            root: mounted.open()?,
            _mounted: mounted,
            _passing: passing,
        }))
    }
}

/// The tree of an image that files are copied from.
struct Origin {
    root: OwnedFd,
    _mounted: Mounted,
    _passing: Passing,
}
