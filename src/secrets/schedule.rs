//! When a certificate is renewed: arithmetic only.

use std::time::{Duration, SystemTime};

use rand::{Rng, RngExt};

/// The share of its life after which a certificate is renewed this time: `renew_at`, and up to
/// `jitter` to either side. Machines that started together drift apart by it.
pub(super) fn renewal_share(renew_at: f64, jitter: f64, random: &mut impl Rng) -> f64 {
    renew_at + random.random_range(-1.0..=1.0) * jitter
}

/// The moment to renew: after `share` of the life that began when the certificate was received.
/// `share` is 0 to 1, jitter included. A life without length is over at once.
pub(super) fn renewal_time(received: SystemTime, end: SystemTime, share: f64) -> SystemTime {
    let life = end.duration_since(received).unwrap_or(Duration::ZERO);
    received.checked_add(life.mul_f64(share.clamp(EARLIEST, LATEST))).unwrap_or(received)
}

/// Nor may renewals follow each other without a pause.
const EARLIEST: f64 = 0.05;
/// Whatever jitter says, some life must remain in which a failed renewal is tried again.
const LATEST: f64 = 0.95;

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

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
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let end = start + Duration::from_secs(100);
        assert_eq!(renewal_time(start, end, 0.5), start + Duration::from_secs(50));
        assert_eq!(renewal_time(start, end, 7.0), start + Duration::from_secs(95));
        assert_eq!(renewal_time(end, start, 0.5), end);
    }
}
