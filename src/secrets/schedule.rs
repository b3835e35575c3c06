//! When a certificate is renewed: arithmetic only.

use std::time::{Duration, SystemTime};

use rand::{Rng, RngExt};
use tokio::time::Instant;

/// The share of its life after which a certificate is renewed this time: `renew_at`, and up to
/// `jitter` to either side. Machines that started together drift apart by it.
pub(super) fn renewal_share(renew_at: f64, jitter: f64, random: &mut impl Rng) -> f64 {
    renew_at + random.random_range(-1.0..=1.0) * jitter
}

/// The moment to renew, by two clocks of which each covers for the other. The wall clock goes on
/// while the machine sleeps, but may be set; the monotonic one is never set, but may stand still
/// while the machine sleeps. Whichever is there first counts: a certificate that is renewed too
/// early costs a request, one that is renewed too late costs the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    at: SystemTime,
    latest: Instant,
}

impl Due {
    /// After `share` (0 to 1, jitter included) of the life that began when the certificate was
    /// `received`.
    pub(super) fn new(received: SystemTime, end: SystemTime, share: f64, now: SystemTime) -> Self {
        let at = renewal_time(received, end, share);
        // Received in the future means that the clock was set back since, and that nobody knows
        // how old it is.
        let ahead = received.duration_since(now).unwrap_or(Duration::ZERO);
        let left = at.duration_since(now).unwrap_or(Duration::ZERO);
        let left = if ahead > UNSURE { Duration::ZERO } else { left };
        let start = Instant::now();
        Self { at, latest: start.checked_add(left).unwrap_or(start) }
    }

    /// The moment by the wall clock.
    pub(super) fn at(&self) -> SystemTime {
        self.at
    }

    /// What is left of the wait.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        let by_wall = self.at.duration_since(now).unwrap_or(Duration::ZERO);
        by_wall.min(self.latest.saturating_duration_since(Instant::now()))
    }
}

/// `share` of the life, from its start. A life without length is over at once.
fn renewal_time(received: SystemTime, end: SystemTime, share: f64) -> SystemTime {
    let life = end.duration_since(received).unwrap_or(Duration::ZERO);
    received.checked_add(life.mul_f64(share.clamp(EARLIEST, LATEST))).unwrap_or(received)
}

/// Nor may renewals follow each other without a pause.
const EARLIEST: f64 = 0.05;
/// Whatever jitter says, some life must remain in which a failed renewal is tried again.
const LATEST: f64 = 0.95;
/// A clock that is corrected by less is no clock that was set.
const UNSURE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(100_000 + seconds)
    }

    /// A day of a thousand machines that all got their first certificate in the same second:
    /// renewals per slice of time.
    fn day(life: Duration, slice: Duration) -> Vec<u64> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(7);
        let start = SystemTime::UNIX_EPOCH;
        let mut next = |now: SystemTime| {
            Reverse(renewal_time(now, now + life, renewal_share(0.5, 0.15, &mut random)))
        };
        let mut due: BinaryHeap<_> = (0..1000).map(|_| next(start)).collect();
        let day = Duration::from_secs(24 * 3600);
        let mut slices = vec![0; usize::try_from(day.as_secs() / slice.as_secs()).unwrap()];
        while let Some(Reverse(now)) = due.pop().filter(|at| at.0 < start + day) {
            let at = now.duration_since(start).unwrap().as_secs() / slice.as_secs();
            slices[usize::try_from(at).unwrap()] += 1;
            due.push(next(now));
        }
        slices
    }

    #[test]
    fn a_fleet_that_started_in_one_second_does_not_renew_in_one() {
        // Lives so short that a second sees many; and the usual life, where an hour does.
        let short = (Duration::from_secs(120), Duration::from_secs(1));
        let usual = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
        for (life, slice) in [short, usual] {
            let slices = day(life, slice);
            let (most, all) = (*slices.iter().max().unwrap(), slices.iter().sum::<u64>());
            let slices = u64::try_from(slices.len()).unwrap();
            println!("{life:?}: {all} renewals, {most} in the busiest slice of {slices}");
            assert!(most * slices <= 3 * all, "{most} in one slice, of {all} in {slices}");
        }
    }

    #[test]
    fn renewal_comes_after_its_share_of_the_life_since_receipt() {
        assert_eq!(renewal_time(at(0), at(100), 0.5), at(50));
        assert_eq!(renewal_time(at(0), at(100), 7.0), at(95));
        assert_eq!(renewal_time(at(100), at(0), 0.5), at(100));
    }

    #[tokio::test(start_paused = true)]
    async fn whichever_clock_is_there_first_counts() {
        let due = Due::new(at(0), at(100), 0.5, at(0));
        assert_eq!(due.left(at(10)), Duration::from_secs(40));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(due.left(at(45)), Duration::from_secs(5), "it slept, or was set forth");
        let set_back = SystemTime::UNIX_EPOCH;
        assert_eq!(due.left(set_back), Duration::from_secs(30), "it was set far back");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(due.left(set_back), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_from_the_future_is_due_at_once() {
        let due = Due::new(at(1000), at(2000), 0.5, at(0));
        assert_eq!(due.left(at(0)), Duration::ZERO);
        let nearly = Due::new(at(30), at(130), 0.5, at(0));
        assert_eq!(nearly.left(at(0)), Duration::from_secs(80));
    }
}
