//! `coracle copy` and `coracle add`: brings files into a working container.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::print_line;
use super::workshop::{Passing, Workshop};
use crate::build::copy::{self, CopyRequest, Nothing};
use crate::build::pack::Changes;
use crate::build::tree::{Mounted, open_directory};
use crate::cli::{CopyArgs, PullPolicy, RegistryArgs};
use crate::failure::Failure;
use crate::process::inherited::Inherited;

/// `unpack` is `add`'s way with archives.
pub fn copy(args: CopyArgs, unpack: bool, inherited: &Inherited) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    let container = workshop.find(&args.words[0])?;
    let workdir = container.config.config.working_dir();
    let (sources, dest) = match &args.words[1..] {
        [source] => (std::slice::from_ref(source), ""),
        [sources @ .., dest] => (sources, &**dest),
        [] => unreachable!("checked when the command line was read"),
    };
    let origin = Origin::open(&workshop, args.from.as_deref())?;
    let mounted = workshop.mount(&container)?;
    let root = mounted.open()?;
    let owner = match &args.chown {
        Some(owner) => Some(copy::owner(owner, &root)?),
        None if args.from.is_some() => None,
        None => Some((0, 0)),
    };
    let request = CopyRequest {
        from: &origin.root,
        base: &origin.base,
        sources,
        dest,
        workdir: &workdir,
        changes: Changes {
            owner,
            mode: args.chmod,
            modified: None,
        },
        unpack,
        left_out: &Nothing,
        owners: workshop.owners,
    };
    let digest = copy::copy(&request, &root)?;
    if !args.quiet {
        print_line(digest.hex())?;
    }
    Ok(0)
}

/// Where sources are.
struct Origin {
    root: OwnedFd,
    base: PathBuf,
    _mounted: Option<Mounted>,
    /// A container that is there for its tree only.
    _passing: Option<Passing>,
}

impl Origin {
    fn open(workshop: &Workshop, from: Option<&str>) -> Result<Self, Failure> {
        let Some(from) = from else {
            let here = std::env::current_dir();
            return Ok(Self {
                root: open_directory(Path::new("/"))?,
                base: here.map_err(Failure::context("cannot find the working directory"))?,
                _mounted: None,
                _passing: None,
            });
        };
        let there = workshop.working.find(from).ok();
        let (container, passing) = match there {
            Some(container) => (container, None),
            None => {
                let registry = RegistryArgs::default();
                let policy = PullPolicy::Missing;
                let container = workshop.begin(from, None, policy, &registry, false)?;
                let passing = Passing::new(workshop, container);
                (passing.container.clone(), Some(passing))
            }
        };
        let mounted = workshop.mount(&container)?;
        Ok(Self {
            root: mounted.open()?,
            base: "/".into(),
            _mounted: Some(mounted),
            _passing: passing,
        })
    }
}
