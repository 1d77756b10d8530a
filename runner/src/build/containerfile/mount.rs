//! What a RUN has mounted while it runs: `--mount=type=bind|cache|tmpfs|secret,…`.

use std::str::FromStr;

use crate::fields::Fields;
use crate::units::{mode, size};

/// One `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute, or below the working directory. A secret may go without.
    pub target: Option<String>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A part of the context or, with `from`, of a stage or an image.
    Bind {
        from: Option<String>,
        source: String,
        /// What is written is gone when the command has ended.
        writable: bool,
    },
    /// A directory that later builds find again.
    Cache(Cache),
    /// A file system in memory, of at most so many bytes.
    Tmpfs { size: Option<u64> },
    /// What `--secret` gives, in a file or a variable.
    Secret(Secret),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its target when not given.
    pub id: Option<String>,
    pub sharing: Sharing,
    pub read_only: bool,
    pub owner: Owner,
    /// What a new one begins with.
    pub from: Option<String>,
    pub source: String,
}

/// Whom a cache is for while somebody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    /// Others get another.
    Private,
    /// Others wait.
    Locked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub id: String,
    pub required: bool,
    /// The variable that has it, in place of a file or besides.
    pub env: Option<String>,
    pub owner: Owner,
}

/// Permissions, user and group of what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = Fields::split(text)?;
        let kind = fields.take(&["type"]).unwrap_or("bind");
        let target = fields.take(&["target", "dst", "destination"]);
        let target = target.map(str::to_owned);
        let kind = match kind {
            "bind" => Kind::Bind {
                from: fields.take(&["from"]).map(str::to_owned),
                source: source(&mut fields),
                writable: fields.writable()?.unwrap_or(false),
            },
            "cache" => cache(&mut fields)?,
            "tmpfs" => Kind::Tmpfs {
                size: fields.take(&["size"]).map(size).transpose()?,
            },
            "secret" => secret(&mut fields, target.as_deref())?,
            other => {
                return Err(format!(
                    "coracle does not have type={other}: there are bind, cache, tmpfs and secret"
                ));
            }
        };
        if target.as_deref().unwrap_or_default().is_empty() && !matches!(kind, Kind::Secret(_)) {
            return Err("expected target=PATH".to_owned());
        }
        match fields.first() {
            Some(name) => Err(format!("coracle does not have {name} for such a mount")),
            None => Ok(Self { target, kind }),
        }
    }
}

fn cache(fields: &mut Fields) -> Result<Kind, String> {
    let sharing = match fields.take(&["sharing"]) {
        None | Some("shared") => Sharing::Shared,
        Some("private") => Sharing::Private,
        Some("locked") => Sharing::Locked,
        Some(other) => {
            return Err(format!(
                "sharing={other}: expected shared, private or locked"
            ));
        }
    };
    Ok(Kind::Cache(Cache {
        id: fields.take(&["id"]).map(str::to_owned),
        sharing,
        read_only: !fields.writable()?.unwrap_or(true),
        owner: owner(fields, 0o755)?,
        from: fields.take(&["from"]).map(str::to_owned),
        source: source(fields),
    }))
}

fn secret(fields: &mut Fields, target: Option<&str>) -> Result<Kind, String> {
    let last = target.and_then(|target| target.rsplit('/').next());
    let id = fields.take(&["id"]).or(last).unwrap_or_default().to_owned();
    if id.is_empty() || id.contains('/') {
        return Err("expected id=NAME".to_owned());
    }
    Ok(Kind::Secret(Secret {
        id,
        required: fields.flag("required")?.unwrap_or(false),
        env: fields.take(&["env"]).map(str::to_owned),
        owner: owner(fields, 0o400)?,
    }))
}

fn source(fields: &mut Fields) -> String {
    let said = fields.take(&["source", "src"]);
    said.unwrap_or("/").to_owned()
}

fn owner(fields: &mut Fields, default: u32) -> Result<Owner, String> {
    let mut id = |name: &str| match fields.take(&[name]) {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| format!("{name}={text}: expected a number")),
    };
    let (uid, gid) = (id("uid")?, id("gid")?);
    Ok(Owner {
        mode: match fields.take(&["mode"]) {
            None => default,
            Some(text) => mode(text).map_err(|expected| format!("mode={text}: {expected}"))?,
        },
        uid,
        gid,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_has_its_fields() {
        let read = |text: &str| text.parse::<Mount>().expect(text);
        let bind = read("target=/x,src=a,from=b,rw");
        assert_eq!(bind.target.as_deref(), Some("/x"));
        let expected = Kind::Bind {
            from: Some("b".to_owned()),
            source: "a".to_owned(),
            writable: true,
        };
        assert_eq!(bind.kind, expected);
        let Kind::Cache(cache) =
            read("type=cache,dst=/c,sharing=locked,ro=true,uid=1,mode=0700").kind
        else {
            panic!("no cache")
        };
        assert_eq!(cache.sharing, Sharing::Locked);
        assert!(cache.read_only);
        let owner = cache.owner;
        assert_eq!((owner.mode, owner.uid, owner.gid), (0o700, 1, 0));
        assert_eq!(
            read("type=tmpfs,target=/t,size=2m").kind,
            Kind::Tmpfs {
                size: Some(2 << 20)
            }
        );
        let Kind::Secret(secret) = read("type=secret,target=/a/key,required").kind else {
            panic!("no secret")
        };
        assert_eq!(
            (&*secret.id, secret.required, secret.owner.mode),
            ("key", true, 0o400)
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, named) in [
            ("", "target"),
            ("type=ssh", "ssh"),
            ("type=cache", "target"),
            ("target=/x,rw,ro", "together"),
            ("target=/x,target=/y", "twice"),
            ("target=/x,relabel=shared", "relabel"),
            ("target=/x,size=1", "size"),
            ("type=tmpfs,target=/x,size=x", "size"),
            ("type=cache,target=/x,sharing=all", "sharing=all"),
            ("type=cache,target=/x,mode=9", "mode=9"),
            ("type=secret", "id"),
            ("type=secret,id=../x", "id"),
            ("type=secret,id=x,required=maybe", "required=maybe"),
        ] {
            let said = text.parse::<Mount>().expect_err(text);
            assert!(said.contains(named), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", fields in "(type=(bind|cache|secret|tmpfs)|[a-z]{1,6}=?.{0,4}|,){0,6}") {
            let _ = (text.parse::<Mount>(), fields.parse::<Mount>());
        }
    }
}
