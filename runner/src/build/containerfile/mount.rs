//! What a RUN has mounted while it runs: `--mount=type=bind|cache|tmpfs|secret,…`.

use std::str::FromStr;

use crate::build::values::{mode, size};

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
                source: fields.source(),
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
        match fields.0.first() {
            Some((name, _)) => Err(format!("coracle does not have {name} for such a mount")),
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
        owner: fields.owner(0o755)?,
        from: fields.take(&["from"]).map(str::to_owned),
        source: fields.source(),
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
        owner: fields.owner(0o400)?,
    }))
}

/// `name=value` or `name` each.
struct Fields<'a>(Vec<(&'a str, Option<&'a str>)>);

impl<'a> Fields<'a> {
    fn split(text: &'a str) -> Result<Self, String> {
        let fields: Vec<_> = text
            .split(',')
            .map(|field| match field.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value)),
                None => (field.trim(), None),
            })
            .collect();
        for (index, (name, _)) in fields.iter().enumerate() {
            if fields[..index].iter().any(|(other, _)| other == name) {
                return Err(format!("{name} is there twice"));
            }
        }
        Ok(Self(fields))
    }

    fn remove(&mut self, name: &str) -> Option<(&'a str, Option<&'a str>)> {
        let index = self.0.iter().position(|(other, _)| *other == name)?;
        Some(self.0.remove(index))
    }

    /// The value of the field that has one of these names.
    fn take(&mut self, names: &[&str]) -> Option<&'a str> {
        let (_, value) = names.iter().find_map(|name| self.remove(name))?;
        value
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.remove(name) {
            None => Ok(None),
            Some((_, None | Some("true" | "1"))) => Ok(Some(true)),
            Some((_, Some("false" | "0"))) => Ok(Some(false)),
            Some((_, Some(other))) => Err(format!("{name}={other}: expected true or false")),
        }
    }

    fn writable(&mut self) -> Result<Option<bool>, String> {
        let mut said = None;
        for (name, writes) in [
            ("rw", true),
            ("readwrite", true),
            ("ro", false),
            ("readonly", false),
        ] {
            if let Some(flag) = self.flag(name)?
                && said.replace(flag == writes).is_some()
            {
                return Err(format!("{name} and another cannot be given together"));
            }
        }
        Ok(said)
    }

    fn source(&mut self) -> String {
        self.take(&["source", "src"]).unwrap_or("/").to_owned()
    }

    fn owner(&mut self, default: u32) -> Result<Owner, String> {
        let mut id = |name: &str| match self.take(&[name]) {
            None => Ok(0),
            Some(text) => text
                .parse()
                .map_err(|_| format!("{name}={text}: expected a number")),
        };
        let (uid, gid) = (id("uid")?, id("gid")?);
        Ok(Owner {
            mode: match self.take(&["mode"]) {
                None => default,
                Some(text) => mode(text).map_err(|expected| format!("mode={text}: {expected}"))?,
            },
            uid,
            gid,
        })
    }
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
