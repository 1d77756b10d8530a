//! The search for the highest rate that loses nothing worth mentioning.

use anyhow::Result;

/// How many rates are tried at most.
const TRIES: usize = 9;
/// Close enough: two rates this far apart cannot be told from each other.
const CLOSE: f64 = 1.1;

/// What an unpaced sender met, in datagrams per second.
#[derive(Clone, Copy, Debug)]
pub struct Unpaced {
    pub offered: f64,
    pub delivered: f64,
}

/// The highest rate that `attempt` reports as free of loss, below the one at which the unpaced
/// sender lost some; zero when none is.
///
/// `attempt` sends at the rate it is given and returns the rate it reached, or `None` when too much
/// was lost. A helper that drowns delivers less than it could, so the search goes up from what was
/// delivered as well as down.
pub fn highest_rate(
    unpaced: Unpaced,
    mut attempt: impl FnMut(f64) -> Result<Option<f64>>,
) -> Result<f64> {
    let mut lossy = unpaced.offered;
    let mut clean: Option<f64> = None;
    let mut best = 0.0_f64;
    let mut next = unpaced.delivered.clamp(lossy / 100.0, lossy / CLOSE);
    for _ in 0..TRIES {
        match attempt(next)? {
            Some(reached) => {
                best = best.max(reached);
                clean = Some(next);
            }
            None => lossy = next,
        }
        next = match clean {
            Some(clean) if lossy / clean <= CLOSE => break,
            Some(clean) => (clean * lossy).sqrt(),
            None => lossy / 2.0,
        };
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a helper that loses from `limit` on; the result and the number of attempts.
    fn search(limit: f64, offered: f64, delivered: f64) -> (f64, usize) {
        let mut attempts = 0;
        let attempt = |rate: f64| {
            attempts += 1;
            Ok((rate <= limit).then_some(rate))
        };
        let found = highest_rate(Unpaced { offered, delivered }, attempt).unwrap();
        (found, attempts)
    }

    #[test]
    fn the_limit_is_found_above_and_below_what_was_delivered() {
        for (limit, delivered) in [(500.0, 400.0), (500.0, 800.0), (30.0, 60.0), (900.0, 10.0)] {
            let (found, attempts) = search(limit, 1_000.0, delivered);
            assert!(found <= limit && found * 1.15 > limit, "{found} of {limit}");
            assert!(attempts <= TRIES);
        }
    }

    #[test]
    fn a_helper_that_always_loses_has_no_rate() {
        assert_eq!(search(0.0, 1_000.0, 990.0), (0.0, TRIES));
    }

    #[test]
    fn a_sender_that_falls_behind_is_taken_at_what_it_reached() {
        let unpaced = Unpaced {
            offered: 1_000.0,
            delivered: 500.0,
        };
        let found = highest_rate(unpaced, |_| Ok(Some(321.0))).unwrap();
        assert_eq!(found, 321.0);
    }
}
