//! The wall clock as a parameter, how wrong it is, and text that tells the time. Monotonic time is
//! `tokio::time`.

mod skew;

pub use skew::{Skew, SkewGauge, Witness};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// Tells the wall-clock time. Certificates and tokens live by it; timers do not.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// A clock that rooms share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The machine's clock, shared.
#[must_use]
pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}

/// The time as RFC 3339 text in UTC with whole seconds, as Kubernetes writes it. Such text ends with
/// the year 9999, and so does any later time: a token may say anything of its end.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let whole = OffsetDateTime::from(at.min(from_unix_seconds(LAST))).replace_nanosecond(0);
    whole.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The time that RFC 3339 text tells; `None` for other text.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

/// The time that an HTTP `Date` tells (RFC 9110, 5.6.7, the fixed form); `None` for other text.
#[must_use]
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let at = PrimitiveDateTime::parse(text, form).ok()?;
    Some(at.assume_utc().into())
}

/// The text of an HTTP `Date`.
#[must_use]
pub fn http_date(at: SystemTime) -> String {
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    OffsetDateTime::from(at).format(form).unwrap_or_default()
}

/// Writes an optional time as RFC 3339 text, for `serialize_with`.
///
/// # Errors
/// The serialiser's own.
pub fn serialize_time<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    at.map(rfc3339).serialize(to)
}

/// Seconds since the Unix epoch; 0 for a time before it.
#[must_use]
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The time that lies `seconds` after the Unix epoch.
#[must_use]
pub fn from_unix_seconds(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `9999-12-31T23:59:59Z`.
const LAST: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc3339_in_utc_with_whole_seconds() {
        let at = from_unix_seconds(1_790_000_000) + Duration::from_millis(900);
        assert_eq!(rfc3339(at), "2026-09-21T14:13:20Z");
        assert_eq!(unix_seconds(at), 1_790_000_000);
        assert_eq!(parse_rfc3339("2026-09-21T16:13:20.9+02:00"), Some(at));
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn no_time_is_too_late_to_be_told() {
        for seconds in [LAST, LAST + 1, 1_000_000_000_000_000, u64::MAX / 2] {
            assert_eq!(rfc3339(from_unix_seconds(seconds)), "9999-12-31T23:59:59Z");
        }
    }

    #[test]
    fn dates_of_http_round_trip() {
        let at = from_unix_seconds(1_790_000_000);
        assert_eq!(http_date(at), "Mon, 21 Sep 2026 14:13:20 GMT");
        assert_eq!(parse_http_date(&http_date(at)), Some(at));
        for other in ["", "Monday, 21-Sep-26 14:13:20 GMT", "Mon, 21 Sep 2026 14:13:20 CET"] {
            assert_eq!(parse_http_date(other), None, "{other}");
        }
    }
}
