//! `--tz ZONE`: the file that says what the time is there.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::failure::Failure;

/// Where hosts keep them, `tzfile(5)`.
const ZONES: &str = "/usr/share/zoneinfo";

/// The host's file of a zone; `local` is the host's own.
pub fn find(zone: &str) -> Result<PathBuf, Failure> {
    let path = match zone {
        "local" => PathBuf::from("/etc/localtime"),
        zone => {
            let plain = |part: Component| matches!(part, Component::Normal(_));
            let path = Path::new(zone);
            if zone.is_empty() || !path.components().all(plain) {
                return Err(Failure::runner(format!(
                    "{zone:?} is no time zone: expected one as Europe/Berlin, or local"
                )));
            }
            Path::new(ZONES).join(path)
        }
    };
    let failed = || Failure::context(format!("cannot read the time zone {zone} of this host"));
    let path = fs::canonicalize(&path).map_err(failed())?;
    let mut magic = [0; 4];
    let read = File::open(&path).and_then(|mut file| file.read_exact(&mut magic));
    read.map_err(failed())?;
    match magic == *b"TZif" {
        true => Ok(path),
        false => Err(Failure::runner(format!(
            "{} describes no time zone",
            path.display()
        ))),
    }
}
