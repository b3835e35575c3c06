//! How far this machine's clock is from others': measured from what servers say of the time anyway.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use super::rfc3339;

/// Whose word a measurement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Witness {
    /// The `Date` of an answer of the Kubernetes API (RFC 9110, 6.6.1).
    KubernetesApi,
    /// The time at which istiod says to have signed a certificate.
    Istiod,
    /// The start of a certificate that lies in our future: we are behind by at least that much.
    CertificateStart,
}

impl Witness {
    /// Its name in sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KubernetesApi => "the Kubernetes API",
            Self::Istiod => "istiod",
            Self::CertificateStart => "the start of a new certificate",
        }
    }
}

/// One measurement of this machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Skew {
    /// Milliseconds that our clock is ahead of the other; negative when it is behind.
    #[serde(rename = "skew_ms")]
    pub ahead_ms: i64,
    /// How wrong that may be, in milliseconds.
    pub error_ms: u64,
    /// Whose word it is.
    pub measured_by: Witness,
    /// When, by our clock.
    #[serde(serialize_with = "as_rfc3339")]
    pub measured_at: SystemTime,
}

impl Skew {
    /// The skew that an answer tells: `theirs`, in whole seconds cut off, was written at some time
    /// during `took`, which ended at `now` by our clock.
    #[must_use]
    pub fn of_answer(
        theirs: SystemTime,
        took: Duration,
        now: SystemTime,
        measured_by: Witness,
    ) -> Self {
        let half = millis(took).saturating_div(2);
        let ahead_ms = difference_ms(now, theirs).saturating_sub(half).saturating_sub(500);
        let error_ms = u64::try_from(half).unwrap_or(0).saturating_add(GRAIN_MS);
        Self { ahead_ms, error_ms, measured_by, measured_at: now }
    }

    /// What a certificate says that begins in our future.
    #[must_use]
    pub fn at_least_behind(starts: SystemTime, now: SystemTime) -> Self {
        let ahead_ms = difference_ms(now, starts);
        Self { ahead_ms, error_ms: 0, measured_by: Witness::CertificateStart, measured_at: now }
    }

    /// The part of the skew that no error explains.
    #[must_use]
    pub fn certain(&self) -> Duration {
        Duration::from_millis(self.ahead_ms.unsigned_abs().saturating_sub(self.error_ms))
    }

    /// The others' time when our clock shows `now`. A skew that may be none corrects nothing.
    #[must_use]
    pub fn corrected(&self, now: SystemTime) -> SystemTime {
        let off = Duration::from_millis(self.ahead_ms.unsigned_abs());
        let right = match (self.certain().is_zero(), self.ahead_ms < 0) {
            (true, _) => Some(now),
            (false, true) => now.checked_add(off),
            (false, false) => now.checked_sub(off),
        };
        right.unwrap_or(now)
    }

    /// `12.3 s ahead of` or `12.3 s behind`, with whose word it is.
    #[must_use]
    pub fn words(&self) -> String {
        let seconds = Duration::from_millis(self.ahead_ms.unsigned_abs()).as_secs_f64();
        let side = match (self.measured_by, self.ahead_ms < 0) {
            (Witness::CertificateStart, _) => "or more behind",
            (_, true) => "behind",
            (_, false) => "ahead of",
        };
        format!("{seconds:.1} s {side} {}", self.measured_by.name())
    }
}

/// The last measurement. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SkewGauge {
    last: Arc<Mutex<Option<(Skew, Instant)>>>,
}

impl SkewGauge {
    /// Keeps a measurement, unless it says less than the one before it.
    pub fn note(&self, skew: Skew) {
        let known = self.now(skew.measured_at);
        let weaker = skew.measured_by == Witness::CertificateStart
            && known.is_some_and(|known| known.ahead_ms <= skew.ahead_ms);
        if !weaker {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((skew, Instant::now()));
        }
    }

    /// The last measurement, as long as it says something of the clock that shows `now`: one that
    /// was set since, or stood still while the machine slept, is another clock.
    #[must_use]
    pub fn now(&self, now: SystemTime) -> Option<Skew> {
        let (skew, at) = (*self.last.lock().unwrap_or_else(PoisonError::into_inner))?;
        let shown = difference_ms(now, skew.measured_at);
        let passed = millis(at.elapsed());
        (shown.abs_diff(passed) <= STEP_MS).then_some(skew)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn difference_ms(one: SystemTime, other: SystemTime) -> i64 {
    match one.duration_since(other) {
        Ok(later) => millis(later),
        Err(earlier) => millis(earlier.duration()).saturating_neg(),
    }
}

fn as_rfc3339<S: serde::Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*at))
}

/// HTTP and X.509 tell whole seconds.
const GRAIN_MS: u64 = 1000;
/// A clock that is slewed moves slower than this; one that is set jumps.
const STEP_MS: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::from_unix_seconds;

    fn at(seconds: u64) -> SystemTime {
        from_unix_seconds(1_790_000_000 + seconds)
    }

    #[test]
    fn an_answers_date_is_compared_with_the_middle_of_the_call() {
        let by = Witness::KubernetesApi;
        let skew = Skew::of_answer(at(0), Duration::from_secs(4), at(100), by);
        assert_eq!((skew.ahead_ms, skew.error_ms), (97_500, 3000));
        assert_eq!(skew.words(), "97.5 s ahead of the Kubernetes API");
        assert_eq!(skew.certain(), Duration::from_millis(94_500));
        let behind = Skew::of_answer(at(100), Duration::ZERO, at(0), by);
        assert_eq!(behind.words(), "100.5 s behind the Kubernetes API");
        let equal = Skew::of_answer(at(100), Duration::ZERO, at(100), by);
        assert_eq!(equal.certain(), Duration::ZERO);
        let half = Duration::from_millis(500);
        assert_eq!(skew.corrected(at(100)), at(2) + half);
        assert_eq!(behind.corrected(at(0)), at(100) + half);
        assert_eq!(equal.corrected(at(100)), at(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_measurement_of_a_clock_that_was_set_since_is_forgotten() {
        let gauge = SkewGauge::default();
        assert_eq!(gauge.now(at(0)), None);
        let skew = Skew::of_answer(at(0), Duration::ZERO, at(90), Witness::KubernetesApi);
        gauge.note(skew);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(gauge.now(at(150)), Some(skew), "time went by");
        assert_eq!(gauge.now(at(60)), None, "the clock was set right");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_better_is_not_replaced_by_a_lower_bound() {
        let gauge = SkewGauge::default();
        let measured = Skew::of_answer(at(200), Duration::ZERO, at(0), Witness::KubernetesApi);
        gauge.note(measured);
        gauge.note(Skew::at_least_behind(at(80), at(0)));
        assert_eq!(gauge.now(at(0)), Some(measured));
        gauge.note(Skew::at_least_behind(at(300), at(0)));
        assert_eq!(
            gauge.now(at(0)).unwrap().words(),
            "300.0 s or more behind the start of a new certificate"
        );
    }
}
