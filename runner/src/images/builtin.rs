//! The image that comes with the program, so that `coracle run` has something to show on any
//! machine.
//!
//! It holds one static program, a web server, and the few files a root file system must have. It is
//! unpacked once per user and version into a directory named by its content, and checked before
//! each use: its files are few and small, and comparing them costs less than finding out later that
//! one is damaged.
//!
//! `build.rs` compiles the program and lists the files.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::failure::Explained;
use crate::signal::Signal;
use crate::state::lock_directory;

/// The name of the embedded image.
pub const DEFAULT: &str = "coracle/hello";

/// Where it serves its page.
pub const PORT: u16 = 8080;

/// Where the embedded image's program looks for the network helper's status socket, inside the
/// container. The directory is in the image.
pub const STATUS_SOCKET: &str = "/run/coracle/status.sock";

/// What an image is and how it wants to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// SHA-256 of its content, 64 hexadecimal digits.
    pub id: String,
    /// The root file system. Shared by all containers of the image: it must not be written.
    pub rootfs: PathBuf,
    /// The program to be run, with its arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: PathBuf,
    /// Where the program listens, as `PORT/PROTOCOL`.
    pub exposed_ports: Vec<String>,
    /// What asks the program to end.
    pub stop_signal: Signal,
}

/// The embedded image cannot be put where it is to be run from.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct ImageError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Explained for ImageError {}

struct File {
    path: &'static str,
    mode: u32,
    contents: &'static [u8],
}

struct Directory {
    path: &'static str,
    mode: u32,
}

include!(concat!(env!("OUT_DIR"), "/hello_image.rs"));

/// Parents come before what is in them.
const DIRECTORIES: &[Directory] = &[
    Directory {
        path: "",
        mode: 0o755,
    },
    Directory {
        path: "bin",
        mode: 0o755,
    },
    Directory {
        path: "dev",
        mode: 0o755,
    },
    Directory {
        path: "etc",
        mode: 0o755,
    },
    Directory {
        path: "proc",
        mode: 0o555,
    },
    Directory {
        path: "root",
        mode: 0o700,
    },
    Directory {
        path: "run",
        mode: 0o755,
    },
    Directory {
        path: "run/coracle",
        mode: 0o755,
    },
    Directory {
        path: "sys",
        mode: 0o555,
    },
    Directory {
        path: "tmp",
        mode: 0o1777,
    },
];

/// Makes sure that the embedded image is unpacked below `images`, a directory of the user's own,
/// and says how to run it. Any number of processes may call this at once.
pub fn unpack_default(images: &Path) -> Result<ImageConfig, ImageError> {
    let image = images.join(ID);
    let rootfs = image.join("rootfs");
    if !is_intact(&rootfs) {
        replace(images, &image)?;
    }
    Ok(ImageConfig {
        id: ID.to_owned(),
        rootfs,
        entrypoint: vec!["/bin/coracle-hello".to_owned()],
        env: vec!["PATH=/bin".to_owned(), "HOME=/root".to_owned()],
        working_dir: PathBuf::from("/"),
        exposed_ports: vec!["8080/tcp".to_owned()],
        stop_signal: Signal::TERM,
    })
}

/// Puts a fresh copy at `image`, in one step for whoever looks at the same time. A damaged copy may
/// be in use by a container: it is moved away, and goes from under that container no sooner than
/// what took its place is there.
fn replace(images: &Path, image: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(images).map_err(failed("create", images))?;
    // Keeps other processes from unpacking.
    let _lock = lock_directory(images).map_err(failed("lock", images))?;
    if is_intact(&image.join("rootfs")) {
        return Ok(());
    }
    // Under the lock, these can only be left over.
    let (new, old) = (images.join("new"), images.join("old"));
    remove_if_there(&new)?;
    remove_if_there(&old)?;
    make_dir(&new, 0o755)?;
    unpack(&new.join("rootfs"))?;
    match fs::rename(image, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", image)(error));
        }
        _ => {}
    }
    fs::rename(&new, image).map_err(failed("create", image))?;
    remove_if_there(&old)
}

fn unpack(rootfs: &Path) -> Result<(), ImageError> {
    for Directory { path, mode } in DIRECTORIES {
        make_dir(&rootfs.join(path), *mode)?;
    }
    for File {
        path,
        mode,
        contents,
    } in FILES
    {
        let path = rootfs.join(path);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(*mode)
            .open(&path)
            .map_err(failed("create", &path))?;
        file.write_all(contents).map_err(failed("write", &path))?;
        // Past the umask.
        file.set_permissions(Permissions::from_mode(*mode))
            .map_err(failed("write", &path))?;
    }
    Ok(())
}

fn is_intact(rootfs: &Path) -> bool {
    let has_mode = |found: &fs::Metadata, mode: u32| found.mode() & 0o7777 == mode;
    let is_intact_dir = |Directory { path, mode }: &Directory| {
        fs::symlink_metadata(rootfs.join(path))
            .is_ok_and(|found| found.is_dir() && has_mode(&found, *mode))
    };
    let is_intact_file = |File {
                              path,
                              mode,
                              contents,
                          }: &File| {
        let path = rootfs.join(path);
        // Looked at before it is opened, as opening a FIFO would wait.
        fs::symlink_metadata(&path).is_ok_and(|found| {
            found.is_file() && has_mode(&found, *mode) && found.len() == contents.len() as u64
        }) && fs::read(&path).is_ok_and(|found| found == *contents)
    };
    DIRECTORIES.iter().all(is_intact_dir) && FILES.iter().all(is_intact_file)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), ImageError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(failed("create", path))?;
    // Past the umask.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("create", path))
}

fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use super::*;

    #[test]
    fn unpacks_what_it_says() {
        let images = tempfile::tempdir().unwrap();
        let config = unpack_default(images.path()).unwrap();
        let program = config
            .rootfs
            .join(config.entrypoint[0].trim_start_matches('/'));
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755);
        assert!(
            fs::read_to_string(config.rootfs.join("etc/passwd"))
                .unwrap()
                .starts_with("root:x:0:0:")
        );
        assert_eq!(
            fs::metadata(config.rootfs.join("tmp")).unwrap().mode() & 0o7777,
            0o1777
        );
        assert!(
            config
                .rootfs
                .join(STATUS_SOCKET.trim_start_matches('/'))
                .parent()
                .unwrap()
                .is_dir()
        );
        assert_eq!(config.rootfs, images.path().join(&config.id).join("rootfs"));
    }

    #[test]
    fn leaves_an_intact_copy_alone() {
        let images = tempfile::tempdir().unwrap();
        let rootfs = unpack_default(images.path()).unwrap().rootfs;
        let inode = fs::metadata(&rootfs).unwrap().ino();
        unpack_default(images.path()).unwrap();
        assert_eq!(fs::metadata(&rootfs).unwrap().ino(), inode);
    }

    #[test]
    fn replaces_a_damaged_copy() {
        let images = tempfile::tempdir().unwrap();
        let rootfs = unpack_default(images.path()).unwrap().rootfs;
        let program = rootfs.join("bin/coracle-hello");
        let passwd = rootfs.join("etc/passwd");
        let damages: [&dyn Fn(); 6] = [
            &|| fs::write(&passwd, "root::0:0:::\n").unwrap(),
            &|| {
                fs::write(
                    &program,
                    vec![0; fs::metadata(&program).unwrap().len() as usize],
                )
                .unwrap()
            },
            &|| fs::set_permissions(&program, Permissions::from_mode(0o644)).unwrap(),
            &|| fs::remove_dir(rootfs.join("tmp")).unwrap(),
            &|| {
                fs::remove_file(&passwd).unwrap();
                symlink("/dev/zero", &passwd).unwrap();
            },
            &|| fs::remove_dir_all(&rootfs).unwrap(),
        ];
        for (index, damage) in damages.iter().enumerate() {
            damage();
            assert!(!is_intact(&rootfs), "damage {index} goes unnoticed");
            unpack_default(images.path()).unwrap();
            assert!(is_intact(&rootfs), "damage {index} stays");
        }
    }

    #[test]
    fn goes_on_where_an_unpacking_was_cut_short() {
        let images = tempfile::tempdir().unwrap();
        fs::create_dir_all(images.path().join("new/rootfs/bin")).unwrap();
        fs::create_dir_all(images.path().join("old/rootfs")).unwrap();
        let rootfs = unpack_default(images.path()).unwrap().rootfs;
        assert!(is_intact(&rootfs));
        assert!(!images.path().join("new").exists() && !images.path().join("old").exists());
    }

    #[test]
    fn many_may_unpack_at_once() {
        let images = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(is_intact(&unpack_default(images.path()).unwrap().rootfs)));
            }
        });
    }
}
