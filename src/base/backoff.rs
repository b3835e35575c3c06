//! Waiting between tries: growing, jittered, bounded. It never decides whether to try again.

use std::time::Duration;

use rand::RngExt;

/// What an error says about trying again. Loops ask the error and never match on its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// The cause passes by itself (a lost connection, an overloaded server): try with backoff.
    Soon,
    /// Somebody must do something first (a new token, a missing WorkloadGroup): try slowly.
    Later,
    /// The same request can never succeed (a malformed setting).
    Never,
}

/// Exponential backoff with full jitter above a floor.
///
/// The n-th delay is random between half of `initial * 2^n` and all of it, never above `max`.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff whose first delay is at most `initial` and whose last is at most `max`.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, next: initial.min(max) }
    }

    /// The next delay; each call doubles the bound of the one after it.
    pub fn next_delay(&mut self) -> Duration {
        self.delay_up_to(self.max)
    }

    /// The delay for an error of this kind: what needs somebody may wait [`SLOWER`] times as long.
    pub fn delay_for(&mut self, retry: Retry) -> Duration {
        match retry {
            Retry::Soon => self.delay_up_to(self.max),
            Retry::Later | Retry::Never => self.delay_up_to(self.max.saturating_mul(SLOWER)),
        }
    }

    fn delay_up_to(&mut self, max: Duration) -> Duration {
        let bound = self.next.min(max);
        self.next = bound.saturating_mul(2).min(max);
        bound.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.initial.min(self.max);
    }
}

/// How much longer the longest delay is for an error that does not pass by itself.
const SLOWER: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay().as_millis();
            assert!((bound / 2..=bound).contains(&delay), "{delay} of {bound}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn an_error_that_needs_somebody_may_wait_longer() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(2));
        let mut longest = Duration::ZERO;
        for _ in 0..4 {
            longest = backoff.delay_for(Retry::Later);
        }
        assert!(longest >= Duration::from_secs(3), "{longest:?}");
        assert!(backoff.delay_for(Retry::Soon) <= Duration::from_secs(2));
    }
}
