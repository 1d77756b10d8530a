//! What the two ends of a random flow do, and whether what became of it is right: every byte that
//! arrived is the one that was sent, an orderly end was orderly on both sides, and a reset never
//! looks like an end.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use testbed::entropy::Entropy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::harness::traffic::Pattern;

/// What one end does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where its bytes begin in the pattern, and how many there are.
    from: usize,
    sends: usize,
    /// Says nothing before it has received so many bytes, or their end.
    listens_first: usize,
    end: End,
    /// Most bytes that it writes or reads at a time.
    mouthful: usize,
    appetite: usize,
    /// How often, in percent of its writes and reads, it pauses; as long as it has patience left.
    idles: usize,
    pub buffers: Buffers,
}

/// Sizes of socket buffers, where they are not the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffers {
    pub receive: Option<u32>,
    pub send: Option<u32>,
}

/// How an end takes its leave once all is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// FIN, and reads on until the other's.
    Finish,
    /// FIN only after the other's.
    FinishLast,
    /// Closes, whatever the other may still have to say.
    Leave,
    /// RST.
    Reset,
}

/// What became of one end.
#[derive(Debug)]
pub struct Outcome {
    received: usize,
    ended: Ended,
}

#[derive(Debug)]
#[allow(dead_code, reason = "for their Debug output")]
enum Ended {
    /// Everything was sent, and FIN received.
    Orderly,
    /// Left or reset it, as planned.
    Departed,
    /// A call failed.
    Broken(io::Error),
    /// The byte with this number is not the one that was sent.
    Differs(usize),
    /// Not within the time that a flow has.
    Stuck,
}

/// The plans of the end in the guest and of the other. With `haul` most move much, and fast;
/// otherwise most move little, as connections do.
pub fn plans(entropy: &mut Entropy, haul: bool) -> [Plan; 2] {
    let kind = match haul {
        true => &HAULING,
        false if entropy.chance(85) => &BRIEF,
        false => &ANY,
    };
    let mut plans = [Plan::random(entropy, kind), Plan::random(entropy, kind)];
    let [guest, remote] = &mut plans;
    // A receive buffer of a few kilobytes takes a delayed acknowledgement for each of them.
    guest.sends = guest.sends.min(remote.buffers.capacity());
    remote.sends = remote.sends.min(guest.buffers.capacity());
    // At most one end may wait for the other.
    let (waits, other) = if entropy.chance(50) {
        (guest, remote)
    } else {
        (remote, guest)
    };
    if entropy.chance(40) {
        waits.listens_first = entropy.below(other.sends + 1);
    }
    if waits.end == End::Finish && entropy.chance(40) {
        waits.end = End::FinishLast;
    }
    plans
}

/// What plans of one kind are drawn from.
struct Kind {
    /// The number of bytes is below one of these, or equal to it.
    most: &'static [usize],
    least_mouthful: usize,
    /// About how many writes are enough.
    most_calls: usize,
    idles: &'static [usize],
    /// How many buffers, in percent, are not the default.
    odd_buffers: usize,
}

const BRIEF: Kind = Kind {
    most: &[0, 1 << 9, 1 << 12, 1 << 14, 1 << 16, 1 << 17],
    least_mouthful: 1,
    most_calls: 250,
    idles: &[0, 0, 0, 1, 10],
    odd_buffers: 12,
};

const ANY: Kind = Kind {
    most: &[0, 1 << 12, 1 << 16, 1 << 16, MIB, MIB, MIB, 4 * MIB],
    most_calls: 2000,
    idles: &[0, 0, 1, 10, 50],
    ..BRIEF
};

const HAULING: Kind = Kind {
    most: &[1 << 16, 4 * MIB, 4 * MIB, 8 * MIB],
    least_mouthful: 1 << 12,
    most_calls: 2000,
    idles: &[0, 0, 0, 1, 10],
    odd_buffers: 4,
};

const MIB: usize = 1 << 20;

impl Plan {
    fn random(entropy: &mut Entropy, kind: &Kind) -> Self {
        let most = entropy.choose(kind.most);
        let idles = entropy.choose(kind.idles);
        let buffers = Buffers::random(entropy, kind.odd_buffers);
        let sends = entropy.below(most + 1).min(buffers.capacity());
        let least_mouthful = kind.least_mouthful.max(sends / kind.most_calls);
        let mut at_a_time = || {
            let magnitude = entropy.below(19);
            least_mouthful + entropy.below(1 << magnitude)
        };
        let (mouthful, appetite) = (at_a_time(), at_a_time());
        let end = match entropy.below(100) {
            0..70 => End::Finish,
            70..85 => End::Leave,
            _ => End::Reset,
        };
        Self {
            from: entropy.below(1 << 20),
            sends,
            listens_first: 0,
            end,
            mouthful,
            appetite,
            idles,
            buffers,
        }
    }
}

impl Buffers {
    /// `percent` of them are not the default.
    fn random(entropy: &mut Entropy, percent: usize) -> Self {
        let mut size = || {
            entropy
                .chance(percent)
                .then(|| entropy.choose(&[1, 4096, 16_384, 65_536]))
        };
        Self {
            receive: size(),
            send: size(),
        }
    }

    /// How many bytes may go through them in a reasonable time.
    fn capacity(self) -> usize {
        let smallest = self.receive.into_iter().chain(self.send).min();
        smallest.map_or(usize::MAX, |size| 16_384 + 8 * size as usize)
    }
}

/// Plays `plan` on `stream`, against an end that plays `other`; `progress` counts what it has
/// received.
pub async fn play(
    mut stream: TcpStream,
    plan: &Plan,
    other: &Plan,
    pattern: &Pattern,
    seed: u64,
    progress: &Cell<usize>,
) -> Outcome {
    let heard = Notify::new();
    let finished = Cell::new(false);
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        while progress.get() < plan.listens_first && !finished.get() {
            heard.notified().await;
        }
        let (mut bytes, mut left) = (pattern.at(plan.from), plan.sends);
        let mut idler = Idler::new(plan.idles, seed);
        while left > 0 {
            idler.idle().await;
            let written = writer.write(bytes.peek(left.min(plan.mouthful))).await?;
            bytes.advance(written);
            left -= written;
        }
        match plan.end {
            End::Leave | End::Reset => return Err(Stop::Departs),
            End::FinishLast => {
                while !finished.get() {
                    heard.notified().await;
                }
            }
            End::Finish => {}
        }
        // Its error (the connection is gone) is the reader's to find out.
        let _ = writer.shutdown().await;
        Ok(())
    };
    let receiving = async {
        let mut bytes = pattern.at(other.from);
        let mut buffer = vec![0; plan.appetite];
        let mut idler = Idler::new(plan.idles, !seed);
        loop {
            idler.idle().await;
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            bytes
                .compare(&buffer[..count])
                .map_err(|offset| Stop::Differs(offset - other.from))?;
            progress.set(progress.get() + count);
            heard.notify_one();
        }
        finished.set(true);
        heard.notify_one();
        Ok(())
    };
    let ended = match tokio::time::timeout(FLOW_LIMIT, async {
        tokio::try_join!(sending, receiving)
    })
    .await
    {
        Ok(Ok(_)) => Ended::Orderly,
        Ok(Err(Stop::Departs)) => Ended::Departed,
        Ok(Err(Stop::Differs(offset))) => Ended::Differs(offset),
        Ok(Err(Stop::Broken(error))) => Ended::Broken(error),
        Err(_) => Ended::Stuck,
    };
    if plan.end == End::Reset && matches!(ended, Ended::Departed) {
        stream
            .set_zero_linger()
            .expect("SO_LINGER can always be set");
    }
    Outcome {
        received: progress.get(),
        ended,
    }
}

/// Whether these outcomes of these plans are right; what is wrong otherwise.
pub fn judge(plans: &[Plan; 2], outcomes: &[Outcome; 2]) -> Result<(), &'static str> {
    judge_end(&plans[0], &outcomes[0], &plans[1])?;
    judge_end(&plans[1], &outcomes[1], &plans[0])
}

fn judge_end(plan: &Plan, outcome: &Outcome, other: &Plan) -> Result<(), &'static str> {
    if outcome.received > other.sends {
        return Err("more bytes than were sent");
    }
    let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    match &outcome.ended {
        Ended::Differs(_) => Err("a byte differs"),
        Ended::Stuck => Err("stuck"),
        Ended::Departed if matches!(plan.end, End::Leave | End::Reset) => Ok(()),
        Ended::Departed => Err("departed without a plan"),
        Ended::Orderly if other.end == End::Reset => Err("a reset looks like an orderly end"),
        Ended::Orderly if outcome.received < other.sends => Err("the end comes before its bytes"),
        Ended::Orderly => Ok(()),
        Ended::Broken(error) => match (other.end, errno(error)) {
            (End::Finish | End::FinishLast, _) => Err("broken, and nobody broke it"),
            (_, Some(Errno::ECONNRESET)) => Ok(()),
            // After the FIN of an end that has left.
            (End::Leave, Some(Errno::EPIPE)) => Ok(()),
            _ => Err("broken by a strange error"),
        },
    }
}

/// Pauses now and then, but not for ever.
struct Idler {
    percent: usize,
    patience: Duration,
    entropy: Entropy<'static>,
}

impl Idler {
    fn new(percent: usize, seed: u64) -> Self {
        Self {
            percent,
            patience: Duration::from_millis(500),
            entropy: Entropy::seeded(seed),
        }
    }

    async fn idle(&mut self) {
        if self.patience.is_zero() || !self.entropy.chance(self.percent) {
            return;
        }
        let pause = Duration::from_millis(self.entropy.below(30) as u64);
        self.patience = self.patience.saturating_sub(pause);
        tokio::time::sleep(pause).await;
    }
}

/// Why an end stops before the end.
enum Stop {
    Departs,
    Differs(usize),
    Broken(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A flow takes seconds at most, also on a machine that has other things to do.
pub const FLOW_LIMIT: Duration = Duration::from_secs(60);
