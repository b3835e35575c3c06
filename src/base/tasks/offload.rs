//! Blocking work beside the runtime thread.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

/// Runs work that may block for any length of time, such as reading a file on a network file
/// system, on another thread. When the future is dropped the work goes on, and its result is lost.
/// The caller bounds how many run at a time, and how long it waits.
///
/// # Errors
/// When it panics, or the runtime ends.
pub async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// As [`offload`], and waits for at most `limit`; the work goes on then.
///
/// # Errors
/// As [`offload`], or when it takes longer.
pub async fn offload_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    timeout(limit, offload(work)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_blocks_holds_up_nothing_and_a_panic_is_an_error() {
        let (release, released) = std::sync::mpsc::channel();
        let work = offload(move || released.recv().unwrap());
        let release = async {
            // On the one runtime thread, while the work blocks.
            tokio::task::yield_now().await;
            release.send(7).unwrap();
        };
        let (done, ()) = tokio::join!(work, release);
        assert_eq!(done.unwrap(), 7);
        assert!(offload(|| panic!("boom")).await.is_err());
    }
}
