//! `coracle mount` and `coracle umount`: the tree of a working container, for other programs.

use super::workshop::Workshop;
use super::{for_each, print_line, unshare};
use crate::build::tree;
use crate::cli::{MountArgs, UmountArgs};
use crate::failure::Failure;
use crate::process::inherited::Inherited;

pub fn mount(args: MountArgs, inherited: &Inherited) -> Result<u8, Failure> {
    if !unshare::is_mount_root() {
        // Nobody would see what is mounted.
        return Err(Failure::runner(
            "cannot mount using driver overlay in rootless mode. You need to run it in a `coracle unshare` session",
        ));
    }
    let workshop = Workshop::enter(inherited)?;
    if args.containers.is_empty() {
        for container in workshop.working.list()? {
            let dir = workshop.working.dir(&container);
            if tree::is_mounted(&dir)? {
                let path = dir.merged();
                print_line(&format!("{} {}", container.name, path.display()))?;
            }
        }
        return Ok(0);
    }
    let is_one = args.containers.len() == 1;
    for_each(&args.containers, |wanted| {
        let container = workshop.find(wanted)?;
        let path = workshop.mount(&container)?.stay();
        match is_one {
            true => print_line(&path.display().to_string()),
            false => print_line(&format!("{} {}", container.name, path.display())),
        }
    })
}

pub fn umount(args: UmountArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    let names = match args.all {
        false => args.containers,
        true => {
            let all = workshop.working.list()?.into_iter();
            let mounted = all.filter(|container| {
                tree::is_mounted(&workshop.working.dir(container)).unwrap_or(false)
            });
            mounted.map(|container| container.name).collect()
        }
    };
    for_each(&names, |wanted| {
        let container = workshop.find(wanted)?;
        let dir = workshop.working.dir(&container);
        // Not while a command uses it.
        let _lock = dir.lock()?;
        match tree::unmount(&dir)? {
            true => print_line(container.id.as_str()),
            false => Err(Failure::runner(format!(
                "{} is not mounted",
                container.name
            ))),
        }
    })
}
