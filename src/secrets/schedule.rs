//! When a certificate is renewed: arithmetic only.

use std::time::{Duration, SystemTime};

/// The moment to renew: after `share` of the life that began when the certificate was received.
/// `share` is 0 to 1, jitter included. A life without length is over at once.
pub(super) fn renewal_time(received: SystemTime, end: SystemTime, share: f64) -> SystemTime {
    let life = end.duration_since(received).unwrap_or(Duration::ZERO);
    received.checked_add(life.mul_f64(share.clamp(0.0, LATEST))).unwrap_or(received)
}

/// Whatever jitter says, some life must remain in which a failed renewal is tried again.
const LATEST: f64 = 0.95;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_after_its_share_of_the_life_since_receipt() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let end = start + Duration::from_secs(100);
        assert_eq!(renewal_time(start, end, 0.5), start + Duration::from_secs(50));
        assert_eq!(renewal_time(start, end, 7.0), start + Duration::from_secs(95));
        assert_eq!(renewal_time(end, start, 0.5), end);
    }
}
