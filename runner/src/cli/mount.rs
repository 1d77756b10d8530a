//! `--mount type=bind|volume|tmpfs,KEY[=VALUE],…`: what `-v` and `--tmpfs` say, spelled out.

use std::ffi::OsStr;
use std::path::Path;

use crate::fields::Fields;
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::VolumeArg;

/// One `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountArg {
    Volume(VolumeArg),
    Tmpfs(Tmpfs),
}

impl MountArg {
    /// For messages, and where it is mounted.
    pub fn place(&self) -> (String, &Path) {
        match self {
            Self::Volume(volume) => (volume.name(), &volume.bind.target),
            Self::Tmpfs(tmpfs) => ("a tmpfs".to_owned(), &tmpfs.target),
        }
    }

    /// For clap.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields = Fields::split(text)?;
        let kind = fields.take(&["type"]).unwrap_or("volume");
        let source = fields.take(&["source", "src"]);
        let target = fields.take(&["target", "destination", "dst"]);
        let target = OsStr::new(target.ok_or("expected target=PATH")?);
        let error = |error: &dyn std::error::Error| error.to_string();
        let mount = match kind {
            "bind" => {
                let source = source.ok_or("expected source=PATH")?;
                let mut volume = VolumeArg::path(source.as_ref(), target).map_err(|e| error(&e))?;
                set(
                    &mut volume,
                    &[bind_options(&mut fields)?, common(&mut fields)?],
                )?;
                Self::Volume(volume)
            }
            "volume" => {
                let made = match source {
                    Some(name) => VolumeArg::named(name, target),
                    None => VolumeArg::anonymous(target),
                };
                let mut volume = made.map_err(|e| error(&e))?;
                let copies = fields.flag("volume-nocopy")?.map(|on| !on);
                let copies = word(copies, "copy", "nocopy");
                set(
                    &mut volume,
                    &[copies.into_iter().collect(), common(&mut fields)?],
                )?;
                Self::Volume(volume)
            }
            "tmpfs" if source.is_some_and(|source| source != "tmpfs") => {
                return Err("a tmpfs has no source".to_owned());
            }
            "tmpfs" => {
                let mut tmpfs = Tmpfs::new(target).map_err(|e| error(&e))?;
                let options = tmpfs_options(&mut fields)?;
                let options = options.iter().map(|option| &**option);
                tmpfs.set_options(options).map_err(|e| error(&e))?;
                Self::Tmpfs(tmpfs)
            }
            other => {
                return Err(format!(
                    "coracle does not have type={other}: there are bind, volume and tmpfs"
                ));
            }
        };
        match fields.first() {
            Some(name) => Err(format!(
                "coracle does not have {name} for a mount of type {kind}"
            )),
            None => Ok(mount),
        }
    }
}

/// A flag as the word that `-v` has for it.
fn word(said: Option<bool>, on: &str, off: &str) -> Option<String> {
    said.map(|said| if said { on } else { off }.to_owned())
}

/// What a bind mount alone has.
fn bind_options(fields: &mut Fields) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    options.extend(fields.take(&["bind-propagation"]).map(str::to_owned));
    options.extend(word(fields.flag("bind-nonrecursive")?, "bind", "rbind"));
    match fields.take(&["relabel"]) {
        None => {}
        Some("shared") => options.push("z".to_owned()),
        Some("private") => options.push("Z".to_owned()),
        Some(other) => return Err(format!("relabel={other}: expected shared or private")),
    }
    Ok(options)
}

/// What bind mounts and volumes have.
fn common(fields: &mut Fields) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    options.extend(word(fields.writable()?, "rw", "ro"));
    for name in ["U", "chown"] {
        options.extend(fields.flag(name)?.filter(|on| *on).map(|_| "U".to_owned()));
    }
    options.extend(
        fields
            .flag("idmap")?
            .filter(|on| *on)
            .map(|_| "idmap".to_owned()),
    );
    options.extend(attributes(fields)?);
    Ok(options)
}

fn tmpfs_options(fields: &mut Fields) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    options.extend(word(fields.writable()?, "rw", "ro"));
    options.extend(attributes(fields)?);
    for (name, option) in [("tmpfs-size", "size"), ("tmpfs-mode", "mode")] {
        let value = fields.take(&[name, option]);
        options.extend(value.map(|value| format!("{option}={value}")));
    }
    for option in ["uid", "gid"] {
        let value = fields.take(&[option]);
        options.extend(value.map(|value| format!("{option}={value}")));
    }
    for name in ["tmpcopyup", "notmpcopyup"] {
        options.extend(fields.flag(name)?.filter(|on| *on).map(|_| name.to_owned()));
    }
    Ok(options)
}

/// What every file system may be kept from.
fn attributes(fields: &mut Fields) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    for name in ["exec", "noexec", "suid", "nosuid", "dev", "nodev"] {
        options.extend(fields.flag(name)?.filter(|on| *on).map(|_| name.to_owned()));
    }
    Ok(options)
}

fn set(volume: &mut VolumeArg, options: &[Vec<String>]) -> Result<(), String> {
    let options = options.concat().join(",");
    match options.is_empty() {
        true => Ok(()),
        false => volume
            .set_options(options.as_ref())
            .map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rootfs::Propagation;
    use crate::rootfs::volume::VolumeSource;

    fn volume(text: &str) -> VolumeArg {
        match MountArg::parse(text).expect(text) {
            MountArg::Volume(volume) => volume,
            MountArg::Tmpfs(_) => panic!("{text}: a tmpfs"),
        }
    }

    #[test]
    fn it_says_what_other_options_say() {
        let parsed = |text: &str| VolumeArg::parse(text.as_ref()).expect(text);
        assert_eq!(
            volume("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave"),
            parsed("/a:/b:ro,rslave")
        );
        assert_eq!(volume("type=volume,source=v,target=/b"), parsed("v:/b"));
        assert_eq!(
            volume("src=v,dst=/b,readonly=true,volume-nocopy"),
            parsed("v:/b:ro,nocopy")
        );
        assert_eq!(
            volume("type=volume,destination=/b").source,
            VolumeSource::Anonymous
        );
        let bind = volume("type=bind,src=a,dst=/b,bind-nonrecursive,relabel=shared,U=true").bind;
        assert!(bind.options.top_only && bind.options.give_to_user);
        assert_eq!(bind.options.propagation, Propagation::Private);
        let tmpfs = MountArg::parse("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700,noexec,ro");
        let expected = Tmpfs::parse("/t:size=1m,mode=700,noexec,ro").expect("a tmpfs");
        assert_eq!(tmpfs, Ok(MountArg::Tmpfs(expected)));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            ("", "target="),
            ("type=bind,dst=/x", "source="),
            ("type=image,src=a,dst=/x", "type=image"),
            ("type=tmpfs,src=a,dst=/x", "no source"),
            ("src=a/b,dst=/x", "a/b"),
            ("src=a,dst=x", "not an absolute path"),
            ("src=a,dst=/x,bind-propagation=shared", "bind-propagation"),
            ("type=bind,src=/a,dst=/x,volume-nocopy", "volume-nocopy"),
            ("type=bind,src=/a,dst=/x,bind-propagation=all", "all"),
            ("type=bind,src=/a,dst=/x,ro,rw", "together"),
            ("type=bind,src=/a,dst=/x,exec,noexec", "exec and noexec"),
            ("type=bind,src=/a,dst=/x,relabel=all", "relabel=all"),
            ("type=tmpfs,dst=/x,tmpfs-size=x", "size"),
            ("type=bind,src=/a,dst=/proc/x", "/proc"),
        ] {
            let error = MountArg::parse(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", fields in "(type=(bind|volume|tmpfs)|[a-z-]{1,6}=?.{0,4}|,){0,6}") {
            let _ = (MountArg::parse(&text), MountArg::parse(&fields));
        }
    }
}
