//! When a certificate is renewed: arithmetic only.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

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
    received.checked_add(life.mul_f64(share.clamp(0.0, LATEST))).unwrap_or(received)
}

/// Whatever jitter says, some life must remain in which a failed renewal is tried again.
const LATEST: f64 = 0.95;
/// A clock that is corrected by less is no clock that was set.
const UNSURE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(100_000 + seconds)
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
