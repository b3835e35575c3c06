//! Secrets from files that others keep, under names that come from the network. Their paths are
//! checked against a list, opened with the proxy's rights, and read on other threads: a file that
//! cannot be read, or that hangs, concerns its own secret only. What was read last stays in use.

mod look;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::source::Versioned;
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::trouble::Trouble;
use crate::base::user_file::Opener;
use look::{FileSecretError, Looked, look};
use memory::Memory;

/// Which files are served, and with whose rights they are opened.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// Who opens them.
    pub opener: Opener,
    /// The proxy's user and group; `None` when it runs as this process does.
    pub user: Option<(u32, u32)>,
    /// The directories below which they must be.
    pub allowed: Vec<PathBuf>,
    /// Directories that are never served: the agent's own.
    pub refused: Vec<PathBuf>,
    /// How often files are looked at. Istio's agent waits for the kernel to tell, which does not hear
    /// of changes on network file systems.
    pub every: Duration,
}

/// A file secret that somebody has subscribed to.
#[derive(Debug)]
pub(super) struct Entry {
    /// What was read last without an error.
    pub(super) secret: Option<Versioned>,
    error: Option<FileSecretError>,
}

/// All that was looked at, by name.
pub(super) type Table = BTreeMap<String, Entry>;

/// Reads file secrets, and follows the files as they change. Clones are the same one.
#[derive(Clone)]
pub struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    config: FilesConfig,
    clock: SharedClock,
    /// Names with the number of streams that subscribe to them.
    wanted: Mutex<BTreeMap<String, usize>>,
    /// A name was added.
    news: Notify,
    table: watch::Sender<Table>,
    trouble: watch::Sender<Option<Trouble>>,
    /// Looks at the same time.
    turns: Semaphore,
}

impl Files {
    /// File secrets by this configuration; [`Files::run`] reads them.
    #[must_use]
    pub fn new(config: FilesConfig, clock: SharedClock) -> Self {
        let turns = Semaphore::new(match config.opener {
            Opener::Own => THREADS,
            Opener::Launcher(_) => LAUNCHERS,
        });
        let inner = Inner {
            config,
            clock,
            wanted: Mutex::default(),
            news: Notify::new(),
            table: watch::Sender::default(),
            trouble: watch::Sender::default(),
            turns,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is wrong with the files that the proxy has asked for.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.inner.trouble.subscribe()
    }

    pub(super) fn table(&self) -> watch::Receiver<Table> {
        self.inner.table.subscribe()
    }

    pub(super) fn subscription(&self) -> Subscription {
        Subscription { files: self.clone(), names: BTreeSet::new() }
    }

    /// Reads what is subscribed to, and reads it again when it changes, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.follow() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self) {
        let mut tick = interval(self.inner.config.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut memory: BTreeMap<String, Memory> = BTreeMap::new();
        let mut looks = FuturesUnordered::new();
        loop {
            let all = tokio::select! {
                _ = tick.tick() => true,
                () = self.inner.news.notified() => false,
                Some(ended) = looks.next(), if !looks.is_empty() => {
                    let (name, looked): (String, Looked) = ended;
                    self.take(&mut memory, &name, looked);
                    continue;
                }
            };
            let wanted: BTreeSet<String> = self.wanted().keys().cloned().collect();
            // One that is being read is remembered, so that it is never read twice at a time.
            memory.retain(|name, memory| wanted.contains(name) || memory.is_busy());
            self.forget_others(&wanted);
            for name in wanted {
                let memory = memory.entry(name.clone()).or_default();
                if memory.is_late() {
                    self.enter(&name, Err(FileSecretError::Late));
                } else if !memory.is_busy() && (all || memory.is_new()) {
                    looks.push(look(self.clone(), name, memory.begin()));
                }
            }
        }
    }

    fn take(&self, memory: &mut BTreeMap<String, Memory>, name: &str, looked: Looked) {
        let Looked { stamps, found } = looked;
        if !self.wanted().contains_key(name) {
            memory.remove(name);
            return;
        }
        let memory = memory.entry(name.to_owned()).or_default();
        let was_late = memory.is_late();
        memory.end(stamps, found.as_ref().map(Result::is_err));
        match found {
            Some(found) => self.enter(name, found),
            None if was_late => self.change(name, |entry| entry.error = None),
            None => {}
        }
    }

    /// Notes what came of a look. An error leaves the secret as it was.
    fn enter(&self, name: &str, found: Result<Versioned, FileSecretError>) {
        self.change(name, |entry| match found {
            Ok(secret) => {
                if entry.error.take().is_some() {
                    tracing::info!(name, "A file secret is good again.");
                }
                entry.secret = Some(secret);
            }
            Err(error) => {
                let text = error.to_string();
                if entry.error.as_ref().map(ToString::to_string).as_ref() != Some(&text) {
                    let hint = error.hint(&self.inner.config.allowed);
                    tracing::warn!(name = ?name, error = text, hint, "Cannot serve a file secret.");
                }
                entry.error = Some(error);
            }
        });
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        self.inner.table.send_modify(|table| {
            let empty = || Entry { secret: None, error: None };
            change(table.entry(name.to_owned()).or_insert_with(empty));
        });
        self.report();
    }

    fn forget_others(&self, wanted: &BTreeSet<String>) {
        let changed = self.inner.table.send_if_modified(|table| {
            let before = table.len();
            table.retain(|name, _| wanted.contains(name));
            table.len() != before
        });
        if changed {
            self.report();
        }
    }

    /// Sums up what is wrong.
    fn report(&self) {
        let table = self.inner.table.borrow();
        let mut errors = table.values().filter_map(|entry| entry.error.as_ref());
        let found = errors.next().map(|error| {
            let more = match errors.count() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            (format!("a file secret of the proxy: {error}{more}"), error)
        });
        let now = self.inner.clock.now();
        self.inner.trouble.send_if_modified(|trouble| {
            let since = trouble.as_ref().map_or(now, |old| old.since);
            let new = found.map(|(what, error)| self.condition(what, error, since));
            let changed = *trouble != new;
            *trouble = new;
            changed
        });
    }

    fn condition(&self, what: String, error: &FileSecretError, since: SystemTime) -> Trouble {
        let hint = Some(error.hint(&self.inner.config.allowed));
        Trouble { what, hint, retry: Retry::Later, since }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.inner.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file secrets of one stream.
pub(super) struct Subscription {
    files: Files,
    names: BTreeSet<String>,
}

impl Subscription {
    /// Makes it exactly these.
    pub(super) fn set(&mut self, names: BTreeSet<String>) {
        let mut wanted = self.files.wanted();
        for gone in self.names.difference(&names) {
            if let Some(count) = wanted.get_mut(gone) {
                *count = count.saturating_sub(1);
            }
        }
        let mut added = false;
        let mut kept = BTreeSet::new();
        for name in names {
            if !self.names.contains(&name) {
                if wanted.len() >= NAMES && !wanted.contains_key(&name) {
                    tracing::warn!(name = ?name, "The proxy asks for more file secrets than are served.");
                    continue;
                }
                let count = wanted.entry(name.clone()).or_default();
                *count = count.saturating_add(1);
                added = true;
            }
            kept.insert(name);
        }
        wanted.retain(|_, count| *count > 0);
        drop(wanted);
        self.names = kept;
        if added {
            self.files.inner.news.notify_one();
        }
    }

    pub(super) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.set(BTreeSet::new());
    }
}

/// A gateway has some per listener; each costs a look at its files.
const NAMES: usize = 1024;
/// Threads that may hang at the same time, each in a file that does not answer.
const THREADS: usize = 8;
/// The launcher's socket takes eight connections, and the proxy needs two of them.
const LAUNCHERS: usize = 2;
