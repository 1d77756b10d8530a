//! Another name for a container.

use super::{Engine, EngineError};
use crate::state::Container;

impl Engine {
    /// Gives a container another name. It goes by that at once; its own hosts file, and the name
    /// of its monitor in listings of processes, follow when it is started next.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](super::ErrorKind::InUse) where another one has the name,
    /// [`ErrorKind::Invalid`](super::ErrorKind::Invalid) where none can, and those of
    /// [`Engine::find`].
    pub fn rename(&self, wanted: &str, name: &str) -> Result<Container, EngineError> {
        let id = self.find(wanted)?.id;
        let renamed = self.store.rename(&id, name)?;
        self.note(&renamed, "rename");
        Ok(renamed)
    }
}
