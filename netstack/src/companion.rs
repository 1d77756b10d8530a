//! The process beside the helper that may still use the host's file system: it follows resolv.conf,
//! unless the resolvers are given, and removes the helper's sockets once that has ended, however
//! that was.
//!
//! It is forked before the helper has joined a namespace or heard of the guest, sees the host as
//! the caller does, and tells the helper which resolvers there are. It takes nothing from it: all
//! that the helper can do to it is to end. So the helper itself needs no path any more (`sandbox`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libc::c_long;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};
use tracing::{debug, warn};

use crate::control::SocketFile;
use crate::host::{FOLLOWING_CALLS, ResolvConf};
use crate::{descriptors, sandbox, sys};

/// What the helper does with its companion under the sandbox.
pub const SYSTEM_CALLS: &[c_long] = &[libc::SYS_recvfrom, libc::SYS_waitid, libc::SYS_ppoll];

/// The helper's hold on its companion. Dropped, it waits for the companion to have tidied up.
#[derive(Debug)]
pub struct Companion {
    /// `None` once the companion was told to end.
    socket: Option<OwnedFd>,
    process: OwnedFd,
    resolvers: Vec<SocketAddr>,
}

/// Which resolvers the helper is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers<'p> {
    /// Those in this file, in the form of resolv.conf(5), as it changes.
    Of(&'p Path),
    /// At least one.
    These(Vec<SocketAddr>),
}

/// What the companion has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// The host's resolvers are others now.
    Resolvers,
    /// It has ended, which it should not: nothing more will be told.
    Gone,
}

impl Companion {
    /// Starts the process, while this one has a single thread. It tells of `resolvers` and is to
    /// remove `sockets`.
    pub fn start(resolvers: Resolvers, sockets: Vec<SocketFile>) -> io::Result<Self> {
        let (ours, theirs) = descriptors::message_pair()?;
        let process = sys::fork(|| live(&resolvers, sockets, theirs.as_fd()))?;
        Ok(Self {
            process: rustix::process::pidfd_open(process, PidfdFlags::empty())?,
            socket: Some(ours),
            resolvers: Vec::new(),
        })
    }

    /// Waits for the first list.
    pub fn wait(&mut self) -> io::Result<()> {
        match self.receive(RecvFlags::empty())? {
            News::Gone => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// To be called when the descriptor is readable.
    pub fn news(&mut self) -> News {
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(News::Gone) => {
                warn!("the process that follows resolv.conf has ended: resolvers stay as they are");
                News::Gone
            }
            Ok(news) => news,
            Err(_) => News::Nothing,
        }
    }

    /// Where to send queries, most preferred first; at most three, never none.
    pub fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<News> {
        let mut buffer = [0; MAX_MESSAGE];
        let (read, _) = retry_on_intr(|| rustix::net::recv(self.socket(), &mut buffer, flags))?;
        if read == 0 {
            return Ok(News::Gone);
        }
        let resolvers = serde_json::from_slice(&buffer[..read])?;
        let news = match self.resolvers == resolvers {
            true => News::Nothing,
            false => News::Resolvers,
        };
        self.resolvers = resolvers;
        Ok(news)
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().expect("only taken when dropped")
    }
}

impl AsFd for Companion {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.socket = None;
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        if poll(&mut ended, Some(&GRACE)) != Ok(1) {
            debug!("the process that follows resolv.conf is not done yet");
            return;
        }
        let process = WaitId::PidFd(self.process.as_fd());
        if let Err(errno) = rustix::process::waitid(process, WaitIdOptions::EXITED) {
            debug!("cannot wait for the process that follows resolv.conf: {errno}");
        }
    }
}

/// Three addresses with ports and zones as JSON, and then some.
const MAX_MESSAGE: usize = 1024;

/// How long, in milliseconds, the helper's own end may wait for a file system that does not answer.
const GRACE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The companion's whole life.
fn live(resolvers: &Resolvers, sockets: Vec<SocketFile>, helper: BorrowedFd<'_>) {
    // What was passed on to the helper or bound by it has to close when the helper does.
    sys::close_descriptors(3, helper);
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"coracle-net-dns");
    let told = match resolvers {
        Resolvers::Of(path) => follow(path, &sockets, helper),
        Resolvers::These(list) => tell(list, helper).and_then(|()| wait_for_end(&sockets, helper)),
    };
    if let Err(error) = told {
        warn!("cannot tell of {resolvers:?}: {error}");
    }
    sockets.into_iter().for_each(SocketFile::remove);
}

/// Tells the helper of each change until it has ended.
fn follow(path: &Path, sockets: &[SocketFile], helper: BorrowedFd<'_>) -> io::Result<()> {
    let mut resolv_conf = ResolvConf::open(path)?;
    tell(resolv_conf.addresses(), helper)?;
    confine(sockets)?;
    loop {
        let mut polled = [
            PollFd::new(&resolv_conf, PollFlags::IN),
            PollFd::new(&helper, PollFlags::empty()),
        ];
        retry_on_intr(|| poll(&mut polled, None))?;
        let [changed, ended] = polled.map(|fd| !fd.revents().is_empty());
        if ended {
            return Ok(());
        }
        if changed && resolv_conf.changed() {
            tell(resolv_conf.addresses(), helper)?;
        }
    }
}

fn wait_for_end(sockets: &[SocketFile], helper: BorrowedFd<'_>) -> io::Result<()> {
    confine(sockets)?;
    let mut ended = [PollFd::new(&helper, PollFlags::empty())];
    retry_on_intr(|| poll(&mut ended, None))?;
    Ok(())
}

fn confine(sockets: &[SocketFile]) -> io::Result<()> {
    let directories = sockets.iter().map(SocketFile::directory);
    sandbox::confine_companion(FOLLOWING_CALLS, directories).map_err(io::Error::other)
}

fn tell(resolvers: &[SocketAddr], helper: BorrowedFd<'_>) -> io::Result<()> {
    let message = serde_json::to_vec(resolvers)?;
    match rustix::net::send(helper, &message, SendFlags::NOSIGNAL) {
        // It has ended, which the next poll says.
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        sent => sent.map(drop).map_err(Into::into),
    }
}
