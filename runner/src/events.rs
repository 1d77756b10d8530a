//! The journal of events: what was done to containers, images, volumes and networks, and what
//! befell them, told by whoever did or saw it.
//!
//! It is a log like those of containers (`logs`), with an event as JSON on each line, and of
//! bounded length like them. No event is worth a failure: what cannot be written is left out.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::health::HealthStatus;
use crate::images::builtin;
use crate::logs::{Line, LogReader, LogWriter, Stream, Timestamp};
use crate::state::{Container, Dirs, lock_directory};

/// In bytes, of each of two files.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    Container,
    Image,
    Network,
    Volume,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
        }
    }
}

/// Something that has happened. The names of fields are Podman's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// Of a container that has died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_exit_code: Option<i32>,
    /// Of the container or the image; the name of a network or volume.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the container was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    pub name: String,
    /// Of a container in a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_status: Option<HealthStatus>,
    /// What has happened, in Podman's words.
    pub status: String,
    #[serde(rename = "Type")]
    pub kind: EventKind,
    /// The labels of the container.
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    fn new(kind: EventKind, status: &str, name: &str) -> Self {
        Self {
            container_exit_code: None,
            id: None,
            image: None,
            name: name.to_owned(),
            network: None,
            health_status: None,
            status: status.to_owned(),
            kind,
            attributes: BTreeMap::new(),
        }
    }

    pub fn of(container: &Container, status: &str) -> Self {
        let is_image = container.image_id.is_some() || container.image == builtin::DEFAULT;
        let image = is_image.then(|| container.image.clone());
        Self {
            id: Some(container.id.to_string()),
            image,
            attributes: container.labels.clone(),
            ..Self::new(EventKind::Container, status, &container.name)
        }
    }

    /// The end of a container.
    pub fn death(container: &Container, code: i32) -> Self {
        Self {
            container_exit_code: Some(code),
            ..Self::of(container, "died")
        }
    }

    pub fn health(container: &Container, status: HealthStatus) -> Self {
        Self {
            health_status: Some(status),
            ..Self::of(container, "health_status")
        }
    }

    /// `id` has its 64 digits.
    pub fn of_image(status: &str, id: &str, name: &str) -> Self {
        Self {
            id: Some(id.to_owned()),
            ..Self::new(EventKind::Image, status, name)
        }
    }

    pub fn of_volume(status: &str, name: &str) -> Self {
        Self::new(EventKind::Volume, status, name)
    }

    /// A network, or what a container has to do with it.
    pub fn of_network(status: &str, network: &str, container: Option<&Container>) -> Self {
        Self {
            id: container.map(|container| container.id.to_string()),
            network: Some(network.to_owned()),
            ..Self::new(EventKind::Network, status, network)
        }
    }
}

/// The journal of one user.
#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub fn of(dirs: &Dirs) -> Self {
        Self {
            dir: dirs.data.join("events"),
        }
    }

    /// Where it is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn make_dir(&self) -> io::Result<()> {
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.dir)
    }

    /// The directory is there but for the first time.
    fn lock(&self) -> io::Result<File> {
        match lock_directory(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dir()?;
                lock_directory(&self.dir)
            }
            locked => locked,
        }
    }

    /// Adds an event that has just happened.
    pub fn write(&self, event: &Event) {
        self.write_all(std::slice::from_ref(event));
    }

    /// Adds events that have just happened, one after the other.
    pub fn write_all(&self, events: &[Event]) {
        self.write_bounded(events, FILE_LEN_MAX);
    }

    fn write_bounded(&self, events: &[Event], file_len_max: u64) {
        let write = || -> io::Result<u64> {
            let mut lines = Vec::new();
            for event in events {
                serde_json::to_writer(&mut lines, event)?;
                lines.push(b'\n');
            }
            // A log has one writer at a time.
            let _lock = self.lock()?;
            let mut log = LogWriter::with_max_file_len(self.path(), file_len_max)?;
            log.write(Stream::Stdout, &lines);
            Ok(log.finish())
        };
        match write() {
            Ok(0) => {}
            Ok(_) => debug!("there is no room for an event"),
            Err(error) => debug!(%error, "an event cannot be written"),
        }
    }

    /// Those that there are, or with `new` those that are to come.
    pub fn read(&self, new: bool) -> io::Result<EventReader> {
        self.make_dir()?;
        let tail = new.then_some(0);
        Ok(EventReader {
            log: LogReader::open(self.path(), tail)?,
            begun: Vec::new(),
        })
    }
}

/// Reads events, the oldest first.
#[derive(Debug)]
pub struct EventReader {
    log: LogReader,
    /// Of a long event, whose line is in parts.
    begun: Vec<u8>,
}

impl EventReader {
    /// The next event and when it happened; `None` when there is none yet.
    pub fn next_event(&mut self) -> io::Result<Option<(Timestamp, Event)>> {
        while let Some(line) = self.log.next_line()? {
            let Line::Output(entry) = line else { continue };
            self.begun.extend(&entry.content);
            if !entry.ends_line {
                continue;
            }
            let text = std::mem::take(&mut self.begun);
            // Of another coracle, or damaged: others are as good as before.
            if let Ok(event) = serde_json::from_slice(&text) {
                return Ok(Some((entry.time, event)));
            }
        }
        Ok(None)
    }

    /// Waits until there may be another event, or the time is up.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.log.wait(None, timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal {
            dir: dir.path().join("events"),
        };
        (dir, journal)
    }

    fn names(reader: &mut EventReader) -> Vec<String> {
        let next = || reader.next_event().unwrap().map(|(_, event)| event.name);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn events_are_read_in_their_order() {
        let (_dir, journal) = journal();
        let mut all = journal.read(false).unwrap();
        assert_eq!(names(&mut all), [""; 0]);
        journal.write(&Event::of_volume("create", "one"));
        let mut new = journal.read(true).unwrap();
        let long = "x".repeat(100_000);
        journal.write(&Event::of_volume("remove", &long));
        assert_eq!(names(&mut all), ["one", &long]);
        assert_eq!(names(&mut new), [long]);
    }

    #[test]
    fn writers_do_not_get_in_each_others_way() {
        let (_dir, journal) = journal();
        thread::scope(|scope| {
            for writer in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for count in 0..25 {
                        let name = format!("{writer}-{count}");
                        journal.write(&Event::of_volume("create", &name));
                    }
                });
            }
        });
        let mut read = names(&mut journal.read(false).unwrap());
        read.sort();
        read.dedup();
        assert_eq!(read.len(), 100);
    }

    #[test]
    fn its_length_is_bounded() {
        let (dir, journal) = journal();
        for count in 0..100 {
            let event = Event::of_volume("create", &count.to_string());
            journal.write_bounded(&[event], 1000);
        }
        let read = names(&mut journal.read(false).unwrap());
        assert_eq!(read.last().map(String::as_str), Some("99"));
        assert!((2..40).contains(&read.len()), "{read:?}");
        let files = std::fs::read_dir(dir.path().join("events")).unwrap();
        let lens = files.map(|file| file.unwrap().metadata().unwrap().len());
        assert!(lens.sum::<u64>() <= 2000);
    }

    #[test]
    fn what_is_no_event_is_passed_over() {
        let (_dir, journal) = journal();
        journal.write(&Event::of_volume("create", "one"));
        LogWriter::open(journal.path())
            .unwrap()
            .write(Stream::Stdout, b"{\"Type\": 7}\n\xff\n");
        journal.write(&Event::of_volume("create", "two"));
        assert_eq!(names(&mut journal.read(false).unwrap()), ["one", "two"]);
    }
}
