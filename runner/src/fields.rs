//! Lists of `name=value` with commas between them, as `--mount` and a RUN's mounts have them.

/// What is left of a list. Each grammar takes the fields that it knows, and refuses the rest.
#[derive(Debug)]
pub struct Fields<'a>(Vec<(&'a str, Option<&'a str>)>);

impl<'a> Fields<'a> {
    /// No name may be there twice.
    pub fn split(text: &'a str) -> Result<Self, String> {
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
    pub fn take(&mut self, names: &[&str]) -> Option<&'a str> {
        let (_, value) = names.iter().find_map(|name| self.remove(name))?;
        value
    }

    /// Whether a field is on, which a bare name says as well; `None` where it is not there.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.remove(name) {
            None => Ok(None),
            Some((_, None | Some("true" | "1"))) => Ok(Some(true)),
            Some((_, Some("false" | "0"))) => Ok(Some(false)),
            Some((_, Some(other))) => Err(format!("{name}={other}: expected true or false")),
        }
    }

    /// What `rw` and `ro` say, in all their spellings.
    pub fn writable(&mut self) -> Result<Option<bool>, String> {
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

    /// The first that nobody has taken, without its value.
    pub fn first(&self) -> Option<&'a str> {
        self.0.first().map(|(name, _)| *name)
    }
}
