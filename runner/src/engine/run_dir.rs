//! What lies in a container's run directory. It goes with the session or the boot, so that each
//! start makes it anew.

use std::fs;

use super::create::give_away;
use super::{Engine, EngineError};
use crate::network::etc_files::{self, About};
use crate::spec::{ContainerSpec, Network};
use crate::state::Container;

impl Engine {
    /// Makes all of it that the container's processes do not make themselves.
    pub(super) fn provide_run_dir(&self, container: &Container) -> Result<(), EngineError> {
        self.store.claim_run_dir(container)?;
        let dir = self.store.dir(container);
        let spec = ContainerSpec::load(&dir.data)?;
        if let Network::Coracle(_) = spec.network {
            let path = dir.net();
            fs::create_dir_all(&path).map_err(|source| EngineError::Make { path, source })?;
        }
        let about = About {
            hostname: &container.hostname,
            name: &container.name,
            names: &spec.names,
            timezone: spec.timezone.as_deref(),
        };
        etc_files::write(&dir.run, about, &spec.network)?;
        let files = spec.tree.files.iter().map(|file| &file.source);
        match &container.id_maps {
            Some(maps) if maps.root_is_another() => give_away(files, maps),
            _ => Ok(()),
        }
    }
}
