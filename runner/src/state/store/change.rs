//! Changes to the record of a container, each made to the record as it is at that moment.

use super::super::record::is_valid_name;
use super::super::{Container, ContainerId, ProcessRef, StateError, Status};
use super::{Store, check_free};

impl Store {
    /// Writes a record in place of one that is damaged, from what the process that answers for the
    /// container knows. All other changes are made to the record as it is.
    pub fn restore(&self, container: &Container) -> Result<(), StateError> {
        let _lock = self.lock()?;
        self.write(container)
    }

    /// Changes the record as it is now, which may not be as the caller last saw it, and returns the
    /// new one.
    pub fn modify(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut Container),
    ) -> Result<Container, StateError> {
        self.try_modify(id, |container| {
            change(container);
            Ok(())
        })
    }

    /// Records a container's end, after which it is started again if `may_restart` and nobody has
    /// ended it for good.
    pub fn end(
        &self,
        id: &ContainerId,
        code: i32,
        may_restart: bool,
    ) -> Result<Container, StateError> {
        self.try_modify(id, |container| container.end(code, may_restart))
    }

    /// Takes a container to the next point of its life, and makes the change that goes with it.
    /// Nobody else can have taken it there at the same time.
    ///
    /// # Errors
    /// Those of [`Container::enter`].
    pub fn enter(
        &self,
        id: &ContainerId,
        next: Status,
        change: impl FnOnce(&mut Container),
    ) -> Result<Container, StateError> {
        self.enter_from(id, next, |container, _| change(container))
    }

    /// As [`Store::enter`], and tells the change in which state the container was.
    pub fn enter_from(
        &self,
        id: &ContainerId,
        next: Status,
        change: impl FnOnce(&mut Container, Status),
    ) -> Result<Container, StateError> {
        self.try_modify(id, |container| {
            let before = container.status;
            container.enter(next)?;
            change(container, before);
            Ok(())
        })
    }

    /// Lets the calling process answer for a container that `starter` is starting, and makes the
    /// change that goes with it.
    ///
    /// # Errors
    /// [`StateError::WrongState`] when the container has been taken for lost meanwhile, and perhaps
    /// been started by somebody else.
    pub fn take_over(
        &self,
        id: &ContainerId,
        starter: Option<&ProcessRef>,
        change: impl FnOnce(&mut Container),
    ) -> Result<Container, StateError> {
        let me = ProcessRef::current()?;
        self.try_modify(id, |container| {
            container.check(Status::Running)?;
            if container.monitor.as_ref() != starter {
                return Err(container.wrong_state(Status::Running));
            }
            container.monitor = Some(me);
            change(container);
            Ok(())
        })
    }

    /// Takes a start back that has failed: the container is in the state `before` again. Where
    /// none of `starters` answers for it any more, it is left alone.
    pub fn call_off(
        &self,
        id: &ContainerId,
        before: Status,
        starters: &[ProcessRef],
    ) -> Result<(), StateError> {
        let called_off = self.try_modify(id, |container| {
            if !container.is_started_by(starters) {
                return Err(container.wrong_state(before));
            }
            container.enter(before)?;
            container.monitor = None;
            container.init = None;
            container.cgroups.clear();
            Ok(())
        });
        called_off.map(drop)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// [`StateError::InvalidName`] and [`StateError::NameTaken`].
    pub fn rename(&self, id: &ContainerId, name: &str) -> Result<Container, StateError> {
        let _lock = self.lock()?;
        if !is_valid_name(name) {
            let name = name.to_owned();
            return Err(StateError::InvalidName { name });
        }
        let others = self.read_all()?.containers;
        check_free(name, others.into_iter().filter(|other| other.id != *id))?;
        let mut container = self.read(id)?;
        name.clone_into(&mut container.name);
        self.write(&container)?;
        Ok(container)
    }

    /// The record stays as it is when `change` fails.
    fn try_modify(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut Container) -> Result<(), StateError>,
    ) -> Result<Container, StateError> {
        let _lock = self.lock()?;
        let mut container = self.read(id)?;
        change(&mut container)?;
        self.write(&container)?;
        Ok(container)
    }
}
