//! The secrets of the same user, as far as containers have them.

use super::{Engine, EngineError};
use crate::secrets::{Content, SecretArg, SecretUse, Secrets, SecretsError};

impl Engine {
    pub fn secrets(&self) -> Secrets {
        Secrets::of(&self.store)
    }

    /// Those that a container is to have, and what they say.
    pub(super) fn find_secrets(
        &self,
        wanted: &[SecretArg],
    ) -> Result<(Vec<SecretUse>, Vec<Content>), EngineError> {
        let (mut all, mut contents) = (Vec::<SecretUse>::new(), Vec::new());
        for arg in wanted {
            let secret = self.secrets().find(&arg.wanted)?;
            let used = arg.used(&secret.id, &secret.name);
            let place = used.delivery.place();
            if all.iter().any(|other| other.delivery.place() == place) {
                return Err(SecretsError::SamePlace { place }.into());
            }
            if used.delivery.is_variable() && secret.content.bytes().contains(&0) {
                return Err(SecretsError::Nul { name: secret.name }.into());
            }
            all.push(used);
            contents.push(secret.content);
        }
        Ok((all, contents))
    }
}
