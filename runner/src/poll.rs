//! Waiting for several descriptors, some of which may be of no interest just now.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until at least one interest is ready, for `timeout` at most, and says which are, in the
/// same order. `None` when the time is up. Errors and hang-ups are ready, too.
pub fn wait<const N: usize>(
    interests: [Option<(BorrowedFd, PollFlags)>; N],
    timeout: Option<Duration>,
) -> rustix::io::Result<Option<[bool; N]>> {
    // One that is too long to be told is as good as none.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut fds: Vec<PollFd> = interests
        .iter()
        .flatten()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
        return Ok(None);
    }
    let mut results = fds.iter().map(|fd| !fd.revents().is_empty());
    Ok(Some(interests.each_ref().map(|interest| {
        interest.is_some() && results.next() == Some(true)
    })))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn tells_the_ready_ones_by_place() {
        let (quiet, _held) = rustix::pipe::pipe().unwrap();
        let (ready, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let interests = [
            Some((quiet.as_fd(), PollFlags::IN)),
            None,
            Some((ready.as_fd(), PollFlags::IN)),
        ];
        assert_eq!(wait(interests, None), Ok(Some([false, false, true])));
        assert_eq!(wait([interests[0], None], Some(Duration::ZERO)), Ok(None));
    }
}
