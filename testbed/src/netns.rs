//! A network namespace that a test makes and works in. A thread goes there for whatever is to be
//! done in it, so that the test itself stays where it is.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::links::Links;
use crate::wait::eventually;

/// A network namespace, held by a descriptor.
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// A new namespace with `lo` up.
    pub fn create() -> Self {
        let netns = thread::scope(|scope| {
            let maker = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("unshare a network namespace");
                Self::open(Path::new("/proc/thread-self/ns/net"))
            });
            maker.join().expect("thread that makes a namespace")
        });
        netns.link(|links| links.up("lo"));
        netns
    }

    /// The namespace at `path`, of /proc or elsewhere.
    pub fn open(path: &Path) -> Self {
        Self {
            fd: fs::File::open(path)
                .expect("open a network namespace")
                .into(),
        }
    }

    /// Runs `body` on a thread inside the namespace. Sockets that it makes stay in the namespace
    /// and work from any thread; `/proc/sys/net` inside `body` is the namespace's own.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
                body()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Like [`Netns::run`], in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let fd = self.fd.try_clone().expect("duplicate a descriptor");
        thread::spawn(move || {
            setns(&fd, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
            drop(fd);
            body()
        })
    }

    /// Writes `/proc/sys/net/{name}` of this namespace.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| {
            let path = Path::new("/proc/sys/net").join(name);
            fs::write(&path, value)
                .unwrap_or_else(|error| panic!("write {value} to {}: {error}", path.display()));
        });
    }

    /// Waits until packets to the IPv6 `address` are taken: the kernel adds its local route in the
    /// background.
    pub fn wait_until_local(&self, address: IpAddr) {
        let IpAddr::V6(address) = address else { return };
        let local_route = format!("{:032x} 80 ", address.to_bits());
        self.run(|| {
            eventually("the address is usable", Duration::from_secs(10), || {
                let routes =
                    fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("routes");
                routes.lines().any(|route| route.starts_with(&local_route))
            });
        });
    }

    /// Makes links, addresses and routes in this namespace.
    pub fn link(&self, body: impl FnOnce(&Links) -> anyhow::Result<&Links> + Send) {
        self.run(|| {
            let links = Links::open().unwrap_or_else(|error| panic!("{error:#}"));
            body(&links).unwrap_or_else(|error| panic!("{error:#}"));
        });
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
