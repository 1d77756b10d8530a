//! What a process of a container is to do, where that is too long for a message: JSON in a file in
//! memory, whose descriptor goes with the message.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Explained;

#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("cannot write the task: {source}")]
    Write { source: io::Error },
    #[error("cannot read the task: {source}")]
    Read { source: io::Error },
}

impl Explained for TaskError {}

/// Writes a task for [`read`]. `name` is what `/proc/PID/fd` shows.
pub fn write(name: &str, task: &impl Serialize) -> Result<File, TaskError> {
    let write = || -> io::Result<File> {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(task)?)?;
        file.rewind()?;
        Ok(file)
    };
    write().map_err(|source| TaskError::Write { source })
}

pub fn read<T: DeserializeOwned>(file: OwnedFd) -> Result<T, TaskError> {
    let read = || -> io::Result<T> {
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().map_err(|source| TaskError::Read { source })
}
