//! The flags of `run` and `create` about the container's file system tree.

use std::ffi::OsStr;
use std::path::Path;

use clap::Args;

use super::container::RootfsArg;
use super::mount::MountArg;
use super::values::{Switch, bytes, text};
use crate::engine::{ImageVolumes, SecretArg, VolumesFrom};
use crate::rootfs::device::DeviceArg;
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::{VolumeArg, VolumeError, check_places};
use crate::units;

#[derive(Debug, Args)]
pub struct TreeArgs {
    /// Bind a file or directory of the host into the container: SRC:DST, options behind another
    /// colon
    ///
    /// SRC begins with `/` or `.`; any other is the name of a volume, and without one it is a new
    /// volume. Options, with commas between them: ro or rw; noexec, nosuid,
    /// nodev and their contraries; rbind (the default) or bind; `[r]private` (the default),
    /// `[r]slave` or `[r]shared` for mounts that come later; O to keep the container's changes in
    /// a layer of its own, which ends with it; U to give the files to the container's
    /// user; z or Z where SELinux is off, and they mean nothing. For containers of the host's root:
    /// idmap, which lets the container's root read and write what belongs to the host's.
    #[arg(
        short = 'v',
        long = "volume",
        value_parser = bytes(VolumeArg::parse),
        value_name = "SRC:DST[:OPTIONS]"
    )]
    pub volumes: Vec<VolumeArg>,

    /// Mount something, spelled out: type=bind, type=volume (the default) or type=tmpfs, source=,
    /// target= and what -v or --tmpfs has as options, ro as well as bind-propagation=,
    /// bind-nonrecursive, relabel=, volume-nocopy, tmpfs-size= or tmpfs-mode=
    #[arg(long = "mount", value_parser = text(MountArg::parse), value_name = "KEY=VALUE,...")]
    pub mounts: Vec<MountArg>,

    /// Mount a file system in memory, which begins with what the image has there
    ///
    /// Options, with commas between them: size= in bytes or percents of the memory, mode=, uid=,
    /// gid=; ro; noexec, suid, dev; notmpcopyup to begin empty.
    #[arg(long, value_parser = text(Tmpfs::parse), value_name = "PLACE[:OPTIONS]")]
    pub tmpfs: Vec<Tmpfs>,

    /// Mount the volumes of other containers as well, as they are there or by :ro and :rw
    #[arg(long, value_parser = text(str::parse::<VolumesFrom>), value_name = "CONTAINER[:OPTIONS]")]
    pub volumes_from: Vec<VolumesFrom>,

    /// What becomes of the places where the image wants volumes: bind gives each a new one, tmpfs
    /// a file system in memory, ignore nothing
    #[arg(
        long,
        value_parser = text(parse_image_volume),
        default_value = "bind",
        value_name = "bind|tmpfs|ignore"
    )]
    pub image_volume: ImageVolumes,

    /// Let the command read a secret: as the file /run/secrets/NAME, or as a variable
    ///
    /// Behind the name, with commas between them: type=mount or env; target=, another place of the
    /// file or name of the variable; uid=, gid= and mode= of the file, 0444 of root's without them.
    #[arg(
        long = "secret",
        value_parser = text(str::parse::<SecretArg>),
        value_name = "NAME[,KEY=VALUE]"
    )]
    pub secrets: Vec<SecretArg>,

    /// Show the container a device of the host's, or those of a directory, with the caller's rights
    /// to it
    #[arg(
        long = "device",
        value_parser = bytes(DeviceArg::parse),
        value_name = "SRC[:DST][:rwm]"
    )]
    pub devices: Vec<DeviceArg>,

    /// What /dev/shm may hold at most: bytes, or with k, m or g [default: 64m]
    #[arg(long, value_parser = text(units::size), value_name = "SIZE")]
    pub shm_size: Option<u64>,

    /// Keep the container from changing its root file system; volumes it can change
    #[arg(long)]
    pub read_only: bool,

    /// With --read-only, let it write to /run, /tmp and /var/tmp, in memory
    #[arg(long, on(), value_name = "true|false")]
    pub read_only_tmpfs: bool,

    /// Run on this directory instead of an image
    ///
    /// Changes go to a layer of the container's own and end with it: the directory is not written.
    /// `:O` behind its name says just that. With `:rw` there is no such layer and the directory
    /// itself is changed. (A name that ends in one of these is given as `NAME:rw/`.)
    #[arg(long, value_parser = bytes(RootfsArg::parse), value_name = "DIR[:O|:rw]")]
    pub rootfs: Option<RootfsArg>,
}

fn parse_image_volume(text: &str) -> Result<ImageVolumes, &'static str> {
    match text {
        // The second is its name in later versions of Podman.
        "bind" | "anonymous" => Ok(ImageVolumes::Volumes),
        "tmpfs" => Ok(ImageVolumes::Memory),
        "ignore" => Ok(ImageVolumes::Ignored),
        _ => Err("there are bind, tmpfs and ignore"),
    }
}

impl TreeArgs {
    /// Volumes, however they were asked for.
    pub fn volumes(&self) -> Vec<VolumeArg> {
        let mut volumes = self.volumes.clone();
        volumes.extend(self.mounts.iter().filter_map(|mount| match mount {
            MountArg::Volume(volume) => Some(volume.clone()),
            MountArg::Tmpfs(_) => None,
        }));
        volumes
    }

    /// File systems in memory, however they were asked for.
    pub fn tmpfs(&self) -> Vec<Tmpfs> {
        let mut all = self.tmpfs.clone();
        all.extend(self.mounts.iter().filter_map(|mount| match mount {
            MountArg::Tmpfs(tmpfs) => Some(tmpfs.clone()),
            MountArg::Volume(_) => None,
        }));
        all
    }

    /// Refuses two mounts for one place.
    pub fn check_places(&self) -> Result<(), VolumeError> {
        let name = |path: &OsStr| path.to_string_lossy().into_owned();
        let volumes = self.volumes.iter();
        let volumes = volumes.map(|volume| (volume.name(), &*volume.bind.target));
        let mounts = self.mounts.iter().map(MountArg::place);
        let tmpfs = self.tmpfs.iter();
        let tmpfs = tmpfs.map(|tmpfs| ("a tmpfs".to_owned(), &*tmpfs.target));
        let devices = self.devices.iter();
        let devices = devices.map(|device| (name(device.source.as_ref()), &*device.target));
        let all: Vec<(String, &Path)> = volumes.chain(mounts).chain(tmpfs).chain(devices).collect();
        check_places(&all)
    }
}
