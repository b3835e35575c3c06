//! When a file secret is looked at again.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::fsio::FileStamp;

/// What is remembered of the looks at one secret.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Since when a look has been under way.
    busy: Option<Instant>,
    last: Option<Last>,
}

/// The last time that the content was read.
#[derive(Clone, Debug)]
pub(super) struct Last {
    stamps: Vec<Option<FileStamp>>,
    /// How often it was read while it had these stamps.
    reads: u32,
    at: Instant,
    failed: bool,
}

impl Memory {
    pub(super) fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Whether a look takes longer than a file system that is well needs.
    pub(super) fn is_late(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() >= LATE)
    }

    /// Whether it has never been looked at.
    pub(super) fn is_new(&self) -> bool {
        self.busy.is_none() && self.last.is_none()
    }

    /// A look begins; what it has to know of the last one.
    pub(super) fn begin(&mut self) -> Option<Last> {
        self.busy = Some(Instant::now());
        self.last.clone()
    }

    /// A look has ended: with these stamps, and whether what it read was of no use; `None` when it
    /// read nothing, as nothing has changed.
    pub(super) fn end(&mut self, stamps: Vec<Option<FileStamp>>, failed: Option<bool>) {
        self.busy = None;
        let Some(failed) = failed else { return };
        let before = self.last.take().filter(|last| last.stamps == stamps);
        let reads = before.map_or(0, |last| last.reads).saturating_add(1);
        self.last = Some(Last { stamps, reads, at: Instant::now(), failed });
    }
}

impl Last {
    /// Whether files with these stamps need not be read again. They are read twice: a file that is
    /// written in the clock tick in which it was read keeps its stamp. Where reading failed it is
    /// tried again at times, as the reason may be elsewhere: in the rights to a directory above.
    pub(super) fn covers(&self, stamps: &[Option<FileStamp>]) -> bool {
        self.stamps == stamps && self.reads >= 2 && !(self.failed && self.at.elapsed() >= AGAIN)
    }
}

const LATE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_are_read_twice_and_then_when_they_change_or_a_failure_is_old() {
        let mut memory = Memory::default();
        assert!(memory.is_new());
        let stamps = vec![None];
        for failed in [Some(true), Some(true)] {
            let last = memory.begin();
            assert!(memory.is_busy() && !last.is_some_and(|last| last.covers(&stamps)));
            memory.end(stamps.clone(), failed);
        }
        assert!(memory.begin().unwrap().covers(&stamps));
        memory.end(stamps.clone(), None);
        tokio::time::advance(AGAIN).await;
        assert!(!memory.begin().unwrap().covers(&stamps), "it is tried again");
        memory.end(stamps.clone(), Some(false));
        tokio::time::advance(AGAIN).await;
        let last = memory.begin().unwrap();
        assert!(last.covers(&stamps), "it was good");
        let other = vec![FileStamp::of(std::path::Path::new("/"))];
        assert!(!last.covers(&other), "it has changed");
        tokio::time::advance(LATE).await;
        assert!(memory.is_late());
    }
}
