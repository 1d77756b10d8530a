//! The one thread that is in the guest's network namespace. Whatever must be opened or set up in
//! there is a closure sent to it; descriptors made there work from any thread.
//!
//! The thread holds the namespace alive. It ends, and with it the hold, when its `GuestThread` is
//! dropped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::NamespaceError;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the thread.
#[derive(Debug)]
pub struct GuestThread {
    /// Taken when dropped, which ends the thread.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// The guest thread is gone: an earlier job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest thread has ended")]
pub struct GuestThreadEnded;

impl GuestThread {
    /// Starts the thread in `network`, a network namespace of the user namespace that the process
    /// is in by now.
    pub fn spawn(network: OwnedFd) -> Result<Self, NamespaceError> {
        let (jobs, queue) = channel::<Job>();
        let (entered, outcome) = channel();
        let live = move || {
            let joined =
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
            drop(network);
            let is_in = joined.is_ok();
            let _ = entered.send(joined);
            if is_in {
                queue.into_iter().for_each(|job| job());
            }
        };
        let thread = Builder::new()
            .name("coracle-guest".to_owned())
            .spawn(live)
            .map_err(NamespaceError::Thread)?;
        outcome
            .recv()
            .expect("the thread sends its outcome before it ends")
            .map_err(|error| NamespaceError::JoinNetwork(error.into()))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Runs `job` in the namespace and waits for its result.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GuestThreadEnded> {
        self.begin(job)?.wait()
    }

    /// Begins `job` in the namespace, while the caller goes on with something else.
    pub fn begin<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Pending<T>, GuestThreadEnded> {
        let (sender, result) = channel();
        self.submit(move || {
            // It may be that nobody waits for it.
            let _ = sender.send(job());
        })?;
        Ok(Pending(result))
    }

    /// Queues `job` and returns at once. Jobs run one after another, in order.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), GuestThreadEnded> {
        let jobs = self.jobs.as_ref().expect("only taken when dropped");
        jobs.send(Box::new(job)).map_err(|_| GuestThreadEnded)
    }
}

/// A job's result to come.
#[derive(Debug)]
pub struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    pub fn wait(self) -> Result<T, GuestThreadEnded> {
        self.0.recv().map_err(|_| GuestThreadEnded)
    }
}

impl Drop for GuestThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // An error is the panic of a job, which its caller has seen as `GuestThreadEnded`.
            let _ = thread.join();
        }
    }
}
