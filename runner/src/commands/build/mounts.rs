//! What a RUN has mounted while it runs, and nothing of it stays in the image.
//!
//! Sources are looked up below the root of the context, stage or image that they are of, whatever
//! links there are. Secrets and scripts are in memory, a bind that is written to has its changes in
//! a working container of its own: all of it goes when the command has ended.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, Uid, fchown};

use super::Build;
use super::copy::Origin;
use super::stage::Progress;
use crate::build::BuildError;
use crate::build::caches;
use crate::build::containerfile::mount::{Cache, Kind, Mount, Owner, Secret};
use crate::build::containerfile::{Document, Run};
use crate::build::copy::{self, CopyRequest, Nothing};
use crate::build::pack::Changes;
use crate::build::tree::{self, Mounted, open_directory};
use crate::commands::workshop::Passing;
use crate::engine::{Variable, VolumeArg};
use crate::failure::Failure;
use crate::rootfs::lookup::open_in_root;
use crate::rootfs::volume::VolumeSource;
use crate::rootfs::{Bind, BindOptions};

/// What is asked for, with the stages and images that it is of.
pub struct Asked(Vec<(Mount, Option<Origin>)>);

/// What is mounted. Dropped when the command has ended.
#[derive(Default)]
pub struct Mounts {
    pub volumes: Vec<VolumeArg>,
    pub env: Vec<Variable>,
    /// Secrets and scripts.
    memory: Option<Place>,
    places: Vec<Place>,
    origins: Vec<Origin>,
    caches: Vec<caches::Cache>,
}

/// A mount at the place of a working container, in the order in which they go.
struct Place {
    mounted: Mounted,
    _passing: Passing,
}

impl Build<'_> {
    /// Reads what a RUN asks for, and says it for the history, so that a change of what is mounted
    /// makes another step of it.
    pub fn asked(&self, progress: &Progress, run: &Run) -> Result<(Asked, String), Failure> {
        let (mut asked, mut told) = (Vec::new(), String::new());
        for text in &run.mounts {
            let text = self.one(progress, text)?;
            let told_so = |defect: String| Failure::runner(format!("--mount={text}: {defect}"));
            let mount: Mount = text.parse().map_err(told_so)?;
            told.push_str(&format!(" # --mount={text}"));
            let from = match &mount.kind {
                Kind::Bind { from, .. } => from.as_ref(),
                Kind::Cache(cache) => cache.from.as_ref(),
                Kind::Tmpfs { .. } | Kind::Secret(_) => None,
            };
            let origin = from.map(|from| self.origin_of(from)).transpose()?;
            match (&mount.kind, &origin) {
                (Kind::Bind { .. }, Some(origin)) => told.push_str(&format!(" {}", origin.id)),
                (Kind::Bind { source, .. }, None) => {
                    let content = copy::digest(&self.whole(&self.context, &[plain(source)]))?;
                    told.push_str(&format!(" {content}"));
                }
                _ => {}
            }
            asked.push((mount, origin));
        }
        if let Some(script) = &run.script {
            told.push_str(&format!("\n{}", script.text));
        }
        Ok((Asked(asked), told))
    }

    /// Mounts it, and the script that the command is, at [`script_path`].
    pub fn mount(
        &self,
        progress: &Progress,
        asked: Asked,
        script: Option<&Document>,
    ) -> Result<Mounts, Failure> {
        let mut mounts = Mounts::default();
        let workdir = progress.config.config.working_dir();
        for (mount, origin) in asked.0 {
            let target = mount.target.as_ref().map(|target| workdir.join(target));
            let target = target.map(|target| Path::new("/").join(copy::clean(&target)));
            match (mount.kind, target) {
                (Kind::Secret(secret), target) => self.secret(&mut mounts, &secret, target)?,
                (_, None) => unreachable!("only a secret goes without a target"),
                (
                    Kind::Bind {
                        source, writable, ..
                    },
                    Some(target),
                ) => {
                    let path = self.bind_source(&mut mounts, origin, &source, writable)?;
                    mounts.add(path, target, !writable)?;
                }
                (Kind::Cache(cache), Some(target)) => {
                    let id = cache.id.clone();
                    let id = id.unwrap_or_else(|| target.display().to_string());
                    let opened = self.cache(&cache, &id, origin.as_ref())?;
                    mounts.add(opened.files.clone(), target, cache.read_only)?;
                    mounts.caches.push(opened);
                }
                (Kind::Tmpfs { size }, Some(target)) => {
                    let place = self.memory(size)?;
                    mounts.add(place.mounted.path(), target, false)?;
                    mounts.places.push(place);
                }
            }
        }
        if let Some(script) = script {
            let owner = Owner {
                mode: 0o755,
                uid: 0,
                gid: 0,
            };
            let path = self.keep_in_memory(&mut mounts, "script", script.text.as_bytes(), owner)?;
            mounts.add(path, script_path(script), true)?;
        }
        Ok(mounts)
    }

    /// All of the sources, as they are.
    fn whole<'a>(&self, from: &'a OwnedFd, sources: &'a [String]) -> CopyRequest<'a> {
        CopyRequest {
            from,
            base: Path::new("/"),
            sources,
            dest: "/",
            workdir: Path::new("/"),
            changes: Changes::default(),
            unpack: false,
            left_out: &Nothing,
            owners: self.workshop.owners,
        }
    }

    fn bind_source(
        &self,
        mounts: &mut Mounts,
        origin: Option<Origin>,
        source: &str,
        writable: bool,
    ) -> Result<PathBuf, Failure> {
        let root = match origin {
            // Its container is thrown away, with whatever is written into it.
            Some(origin) => {
                let root = origin.root()?;
                mounts.origins.push(origin);
                root
            }
            None if writable => {
                let passing = Passing::begin_empty(self.workshop)?;
                let lower = real_path(&self.context)?;
                let working = &self.workshop.working;
                let mounted = tree::mount_over(working, &passing.container, &lower)?;
                let root = mounted.open()?;
                mounts.places.push(Place {
                    mounted,
                    _passing: passing,
                });
                root
            }
            None => self
                .context
                .try_clone()
                .map_err(Failure::context("cannot open the context"))?,
        };
        let below = Path::new("/").join(copy::clean(Path::new(source)));
        let found = open_in_root(&root, &below, OFlags::PATH);
        let found = found.map_err(Failure::context(format!("cannot open the source {source}")))?;
        real_path(&found)
    }

    fn cache(
        &self,
        asked: &Cache,
        id: &str,
        origin: Option<&Origin>,
    ) -> Result<caches::Cache, Failure> {
        let fill = |dir: &Path| -> Result<(), BuildError> {
            let made = open_directory(dir)?;
            if let Some(origin) = origin {
                copy::copy(
                    &self.whole(origin.root_ref(), &[plain(&asked.source)]),
                    &made,
                )?;
            }
            give(&made, asked.owner, dir)
        };
        let caches = self.workshop.engine.build_caches();
        Ok(caches.open(id, asked.sharing, fill)?)
    }

    fn secret(
        &self,
        mounts: &mut Mounts,
        secret: &Secret,
        target: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let id = &secret.id;
        let Some(given) = self.args.secrets.iter().find(|given| given.id == *id) else {
            return match secret.required {
                true => Err(Failure::runner(format!(
                    "RUN needs the secret {id}: --secret id={id},src=FILE gives it"
                ))),
                false => Ok(()),
            };
        };
        let content = given.read();
        let content = content.map_err(Failure::context(format!("cannot read the secret {id}")))?;
        if let Some(name) = &secret.env {
            if content.contains(&0) {
                let text = format!("the secret {id} has bytes that no variable can hold");
                return Err(Failure::runner(text));
            }
            let value = OsString::from_vec(content.clone());
            mounts.env.push((name.into(), value));
            if target.is_none() {
                return Ok(());
            }
        }
        let target = target.unwrap_or_else(|| Path::new("/run/secrets").join(id));
        let name = format!("secret-{}", mounts.volumes.len());
        let path = self.keep_in_memory(mounts, &name, &content, secret.owner)?;
        mounts.add(path, target, true)
    }

    fn memory(&self, size: Option<u64>) -> Result<Place, Failure> {
        let passing = Passing::begin_empty(self.workshop)?;
        let mounted = tree::mount_memory(&self.workshop.working, &passing.container, size)?;
        Ok(Place {
            mounted,
            _passing: passing,
        })
    }

    fn keep_in_memory(
        &self,
        mounts: &mut Mounts,
        name: &str,
        content: &[u8],
        owner: Owner,
    ) -> Result<PathBuf, Failure> {
        let place = match mounts.memory.take() {
            Some(place) => place,
            None => self.memory(None)?,
        };
        let place = mounts.memory.insert(place);
        let path = place.mounted.path().join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(content)?;
            Ok(OwnedFd::from(file))
        });
        let file = written.map_err(BuildError::io("write", &path))?;
        give(&file, owner, &path)?;
        Ok(path)
    }
}

impl Mounts {
    fn add(&mut self, source: PathBuf, target: PathBuf, read_only: bool) -> Result<(), Failure> {
        if let Some(top) = ["/proc", "/sys"].iter().find(|top| target.starts_with(top)) {
            let text = format!("the container's own {top} cannot be mounted over");
            return Err(Failure::runner(text));
        }
        if target == Path::new("/") {
            return Err(Failure::runner("a mount cannot be the whole tree"));
        }
        self.volumes.push(VolumeArg {
            source: VolumeSource::Path,
            bind: Bind {
                source,
                target,
                read_only,
                options: BindOptions {
                    suid: Some(false),
                    dev: Some(false),
                    ..BindOptions::default()
                },
                changes: None,
            },
            relabel: false,
            apart: false,
        });
        Ok(())
    }
}

/// Where a script is that stands in the Containerfile, as with Docker.
pub fn script_path(script: &Document) -> PathBuf {
    // It is a name: the words of an instruction have no say in where it is.
    let name = script.name.replace('/', "_");
    Path::new("/dev/pipes").join(name)
}

/// Not a pattern, whatever characters it has.
fn plain(source: &str) -> String {
    let mut plain = String::new();
    for c in source.chars() {
        if matches!(c, '*' | '?' | '[' | '\\') {
            plain.push('\\');
        }
        plain.push(c);
    }
    plain
}

/// The path of what is open, without links.
fn real_path(opened: &OwnedFd) -> Result<PathBuf, Failure> {
    let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
    std::fs::read_link(link).map_err(Failure::context("cannot tell the path of a source"))
}

fn give(file: &OwnedFd, owner: Owner, path: &Path) -> Result<(), BuildError> {
    if (owner.uid, owner.gid) != (0, 0) {
        let ids = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(file, Some(ids.0), Some(ids.1))
            .map_err(BuildError::io("give its owner to", path))?;
    }
    let shared = file.try_clone().map_err(BuildError::io("open", path))?;
    let permissions = Permissions::from_mode(owner.mode);
    let set = File::from(shared).set_permissions(permissions);
    set.map_err(BuildError::io("set the mode of", path))
}
