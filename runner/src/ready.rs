//! Waiting for several descriptors, some of which may be of no interest just now.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until at least one interest is ready, for `timeout` at most, and says which are, in the same order. `None` when
/// the time is up. Errors and hang-ups are ready, too.
pub fn wait<const N: usize>(
    interests: [Option<(BorrowedFd, PollFlags)>; N],
    timeout: Option<&Timespec>,
) -> rustix::io::Result<Option<[bool; N]>> {
    let mut fds: Vec<PollFd> = interests
        .iter()
        .flatten()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    if rustix::io::retry_on_intr(|| poll(&mut fds, timeout))? == 0 {
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
        assert_eq!(
            wait([interests[0], None], Some(&Timespec::default())),
            Ok(None)
        );
    }
}
