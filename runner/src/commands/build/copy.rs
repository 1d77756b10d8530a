//! COPY and ADD: files of the context, or of another image, in a layer.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::stage::{Progress, unread};
use super::{Build, Ended};
use crate::build::containerfile::Copy;
use crate::build::copy::{self, CopyRequest, LeftOut, Nothing, ensure_directory};
use crate::build::expand;
use crate::build::pack::Changes;
use crate::build::tree::{Mounted, open_directory};
use crate::commands::workshop::Passing;
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::units;

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
        let from = request.from.as_ref();
        let from = from.map(|from| self.one(progress, from)).transpose()?;
        let origin = from.map(|from| self.origin_of(&from)).transpose()?;
        let chown = request.chown.as_ref();
        let chown = chown.map(|owner| self.one(progress, owner)).transpose()?;
        let documents = self.documents(progress, request)?;
        let documents = documents.as_ref();
        let in_file = documents
            .map(|dir| open_directory(dir.path()))
            .transpose()?;
        let names = request.documents.iter();
        let names: Vec<_> = names.map(|document| document.name.clone()).collect();
        let (from, left_out): (&OwnedFd, &dyn LeftOut) = match &origin {
            Some(origin) => (&origin.root, &Nothing),
            None => (&self.context, &self.ignore),
        };
        let workdir = progress.config.config.working_dir();
        let copy_request = CopyRequest {
            from,
            base: Path::new("/"),
            sources,
            dest,
            workdir: &workdir,
            changes: Changes {
                owner: (origin.is_none() && chown.is_none()).then_some((0, 0)),
                mode: self.mode(progress, request)?,
                modified: None,
            },
            unpack: request.unpack,
            left_out,
            owners: self.workshop.owners,
        };
        let mut requests = Vec::new();
        if !sources.is_empty() {
            requests.push(copy_request.clone());
        }
        if let Some(from) = &in_file {
            requests.push(CopyRequest {
                from,
                sources: &names,
                left_out: &Nothing,
                unpack: false,
                ..copy_request
            });
        }
        let content = Digest::of(
            requests
                .iter()
                .map(|request| Ok(copy::digest(request)?.to_string()))
                .collect::<Result<String, Failure>>()?
                .as_bytes(),
        );
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
        let several = requests
            .iter()
            .map(|request| request.sources.len())
            .sum::<usize>()
            > 1;
        if several {
            // As for several sources of one kind.
            ensure_directory(&workdir.join(dest), self.workshop.owners, &root)?;
        }
        for mut request in requests {
            if let Some(chown) = &chown {
                request.changes.owner = Some(copy::owner(chown, &root)?);
            }
            copy::copy(&request, &root)?;
        }
        drop((root, mounted));
        Ok(self.keep(progress, container, &told)?)
    }

    fn mode(&self, progress: &Progress, request: &Copy) -> Result<Option<u32>, Failure> {
        let Some(text) = &request.chmod else {
            return Ok(None);
        };
        let text = self.one(progress, text)?;
        let read = units::mode(&text);
        let read = read.map_err(|expected| format!("--chmod={text}: {expected}"));
        read.map(Some).map_err(Failure::runner)
    }

    /// Where `--from` leads.
    pub fn origin_of(&self, from: &str) -> Result<Origin, Failure> {
        let id = match self.stage_image(from) {
            Some(id) => id.clone(),
            None => self.provide(from)?,
        };
        let passing = Passing::begin(self.workshop, Some(&id), self.config_of(&id)?)?;
        let mounted = self.workshop.mount(&passing.container)?;
        Ok(Origin {
            root: mounted.open()?,
            id,
            _mounted: mounted,
            _passing: passing,
        })
    }

    /// The sources that stand in the Containerfile, as files of a directory.
    fn documents(
        &self,
        progress: &Progress,
        request: &Copy,
    ) -> Result<Option<tempfile::TempDir>, Failure> {
        if request.documents.is_empty() {
            return Ok(None);
        }
        let doing = || Failure::context("cannot keep a here-document");
        let dir = tempfile::tempdir().map_err(doing())?;
        for document in &request.documents {
            if document.name.contains('/') || matches!(&*document.name, "." | "..") {
                let text = format!("the here-document {} is no name of a file", document.name);
                return Err(Failure::runner(text));
            }
            let content = match document.expands {
                true => expand::text(&document.text, self.file.escape, &|name| {
                    progress.lookup(name)
                })
                .map_err(unread)?,
                false => document.text.clone(),
            };
            let path = dir.path().join(&document.name);
            std::fs::write(&path, content).map_err(doing())?;
            let plain = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(&path, plain).map_err(doing())?;
        }
        Ok(Some(dir))
    }
}

/// The tree of an image that files are taken from.
pub struct Origin {
    root: OwnedFd,
    pub id: Digest,
    _mounted: Mounted,
    _passing: Passing,
}

impl Origin {
    pub fn root(&self) -> Result<OwnedFd, Failure> {
        let root = self.root.try_clone();
        root.map_err(Failure::context("cannot open the tree of an image"))
    }

    pub fn root_ref(&self) -> &OwnedFd {
        &self.root
    }
}
