//! The shelf with the current identity, and the one door to it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;

use super::kept::{self, KeptIdentity, Place};
use super::{Config, RenewalPhase, RenewalState, Source, export, persist};
use crate::base::backoff::Retry;
use crate::base::clock::{SharedClock, Skew};
use crate::base::fsio::{self, FileError};
use crate::base::tasks::offload;
use crate::base::trouble::{Trouble, chain};
use crate::controlplane::read_roots;
use crate::identity::{Anchors, Candidate, IssuedIdentity, Refusal, Roots, SpiffeId};

/// The current identity. Clones share it.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    clock: SharedClock,
    identity: watch::Sender<Option<Arc<IssuedIdentity>>>,
    /// The roots that the mesh told us last, also when the identity that they came with is over.
    learned: watch::Sender<Option<Roots>>,
    renewal: watch::Sender<RenewalState>,
    renew_now: Notify,
    /// The right to write the identity to disk.
    storing: Arc<Semaphore>,
}

impl Vault {
    /// Opens the vault with the last good identity, if the disk has one that is still ours, still
    /// trusted and still valid. What cannot be used is set aside and never an error.
    #[must_use]
    pub fn open(config: Config, clock: SharedClock) -> Self {
        let Kept { identity, roots } = restore(&config, &clock);
        if let Some(roots) = &roots {
            restore_root_file(&config, roots);
        }
        let state = RenewalState {
            source: config.source.name(),
            restored: identity.is_some(),
            ..RenewalState::default()
        };
        let inner = Inner {
            config,
            clock,
            identity: watch::Sender::new(identity.map(Arc::new)),
            learned: watch::Sender::new(roots),
            renewal: watch::Sender::new(state),
            renew_now: Notify::new(),
            storing: Arc::new(Semaphore::new(1)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The current identity, whenever it changes. It stays after it has expired: who uses it asks
    /// [`IssuedIdentity::is_valid_at`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<IssuedIdentity>>> {
        self.inner.identity.subscribe()
    }

    /// The renewal loop's report.
    #[must_use]
    pub fn renewal(&self) -> watch::Receiver<RenewalState> {
        self.inner.renewal.subscribe()
    }

    /// The roots that the mesh told us last. They stay when the certificate that they came with is
    /// over: after a change of the root they may be the only ones that istiod's certificate fits.
    #[must_use]
    pub fn learned_roots(&self) -> watch::Receiver<Option<Roots>> {
        self.inner.learned.subscribe()
    }

    /// Trusts newer roots that were fetched from the mesh in another way.
    pub fn learn_roots(&self, roots: Roots) {
        self.inner.learned.send_replace(Some(roots));
        let now = self.inner.clock.now();
        self.report(|state| {
            state.roots_replaced_at = Some(now);
            state.roots_trouble = None;
        });
    }

    /// Says why newer roots, which are needed, cannot be had; `None` when they are not any more.
    pub fn report_roots(&self, trouble: Option<Trouble>) {
        self.report(|state| state.roots_trouble = trouble);
    }

    /// Where certificates come from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.inner.config.source
    }

    /// Whose they must be.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.inner.config.id
    }

    /// Asks the renewal loop for a new certificate now.
    pub fn renew_now(&self) {
        self.inner.renew_now.notify_one();
    }

    /// The one door: verifies a candidate, and if it is believed publishes, keeps and exports it.
    /// One that begins in a moment is held until then. It can be dropped while it waits.
    ///
    /// # Errors
    /// When it is refused; the current identity is then untouched. A disk that cannot be written is
    /// no refusal but a condition in [`Vault::renewal`].
    pub async fn admit(&self, candidate: Candidate) -> Result<Arc<IssuedIdentity>, Refusal> {
        let inner = &*self.inner;
        let now = inner.clock.now();
        let this = self.clone();
        // It reads the root file.
        let verified = offload(move || {
            let known = this.known(&candidate.anchors)?;
            IssuedIdentity::verify(candidate, this.id(), &known, now)
        });
        let identity = verified
            .await
            .unwrap_or_else(|error| Err(Refusal::Malformed { why: error.to_string() }));
        if let Err(Refusal::NotYetValid { starts, .. }) = &identity {
            inner.config.skew.note(Skew::at_least_behind(*starts, now));
        }
        let mut identity = identity?;
        if !identity.is_valid_at(now) {
            self.hold(&identity).await?;
            identity = identity.with_received_at(inner.clock.now());
        }
        let identity = Arc::new(identity);
        // Before it is used, not after it is stored: a disk may be slow.
        self.report(|state| state.trouble = None);
        inner.learned.send_replace(Some(identity.roots().clone()));
        inner.identity.send_replace(Some(Arc::clone(&identity)));
        self.store().await;
        Ok(identity)
    }

    fn current(&self) -> Option<Arc<IssuedIdentity>> {
        self.inner.identity.borrow().clone()
    }

    /// Waits until an identity is valid, by the wall clock, which may be set right meanwhile.
    async fn hold(&self, identity: &IssuedIdentity) -> Result<(), Refusal> {
        let starts = identity.not_before();
        loop {
            let now = self.inner.clock.now();
            let Ok(left) = starts.duration_since(now) else { return Ok(()) };
            if left.is_zero() {
                return Ok(());
            }
            let refusal = Refusal::NotYetValid { starts, now };
            if left > IssuedIdentity::TOLERANCE {
                return Err(refusal);
            }
            self.inner.config.skew.note(Skew::at_least_behind(starts, now));
            let hint = format!("it is used then; {CLOCK_HINT}");
            let trouble = Trouble::new(&refusal, Some(hint), Retry::Soon, now);
            self.report(|state| {
                if state.phase != RenewalPhase::Holding {
                    tracing::warn!(%trouble, "Holding a new certificate until it is valid.");
                    state.trouble = Some(trouble);
                }
                state.phase = RenewalPhase::Holding;
                state.next_attempt = Some(starts);
            });
            tokio::time::sleep(left.min(GLANCE)).await;
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(super) fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }

    pub(super) async fn asked_to_renew(&self) {
        self.inner.renew_now.notified().await;
    }

    pub(super) fn report(&self, change: impl FnOnce(&mut RenewalState)) {
        self.inner.renewal.send_modify(change);
    }

    /// Writes the current identity again when the last time failed.
    pub(super) async fn store_again(&self) {
        let failed = self.inner.renewal.borrow().storage_trouble.is_some();
        if failed {
            self.store().await;
        }
    }

    /// Where there is no identity, takes the one on disk if it is valid by now: a clock that was wrong
    /// at the start has been set since.
    pub(super) async fn restore_again(&self) {
        if self.inner.identity.borrow().is_some() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        let found = offload(move || kept::look(&place(&inner.config), inner.clock.now())).await;
        let Ok(KeptIdentity::Good { identity, .. }) = found else { return };
        let serial = identity.serial().to_owned();
        let restored = self.inner.identity.send_if_modified(|current| {
            // One that came meanwhile is newer.
            let is_first = current.is_none();
            if is_first {
                *current = Some(Arc::from(identity));
            }
            is_first
        });
        if restored {
            tracing::info!(serial, "Serving the identity kept on disk.");
            self.report(|state| state.restored = true);
        }
    }

    /// What is trusted before a candidate comes: the root file's roots; and for what istiod sends,
    /// those that it sent before, too.
    fn known(&self, anchors: &Anchors) -> Result<Roots, Refusal> {
        let learned = self.inner.learned.borrow().clone();
        match (read_roots(&self.inner.config.root_cert), learned, anchors) {
            (Ok(roots), Some(learned), Anchors::Sent(_)) => Ok(roots.union(&learned)),
            (Ok(roots), ..) => Ok(roots),
            (Err(_), _, Anchors::Vouched(roots)) => Ok(roots.clone()),
            (Err(_), Some(learned), _) => Ok(learned),
            (Err(error), None, _) => Err(Refusal::Malformed { why: chain(&error) }),
        }
    }

    /// Keeps and exports the current identity, on another thread: a disk that is slow or does not
    /// answer delays nothing else. It is waited for at most [`STORE_LIMIT`].
    async fn store(&self) {
        let Ok(turn) = Arc::clone(&self.inner.storing).try_acquire_owned() else {
            return self.storage_is_late();
        };
        let this = self.clone();
        let stored = offload(move || {
            let mut stored = None;
            // Another one may have come meanwhile.
            while let Some(identity) = this.current()
                && stored.as_ref().is_none_or(|stored| !Arc::ptr_eq(stored, &identity))
            {
                this.store_now(&identity);
                stored = Some(identity);
            }
            drop(turn);
        });
        if timeout(STORE_LIMIT, stored).await.is_err() {
            self.storage_is_late();
        }
    }

    fn storage_is_late(&self) {
        let path = self.inner.config.state_directory.clone();
        let source = std::io::ErrorKind::TimedOut.into();
        let trouble = self.storage_trouble(&FileError { action: "write below", path, source });
        tracing::warn!(%trouble, "The identity is in use but is not kept on disk yet.");
        self.report(|state| state.storage_trouble = Some(trouble));
    }

    fn store_now(&self, identity: &IssuedIdentity) {
        let config = &self.inner.config;
        let kept = persist::save(&config.state_directory, identity);
        let exported = match &config.export_directory {
            Some(directory) => export::export(directory, identity),
            None => Ok(()),
        };
        let trouble = kept.and(exported).err().map(|error| self.storage_trouble(&error));
        if let Some(trouble) = &trouble {
            tracing::warn!(%trouble, "The identity is in use but could not be kept on disk.");
        }
        self.report(|state| state.storage_trouble = trouble);
    }

    fn storage_trouble(&self, error: &FileError) -> Trouble {
        let hint = "free some space or mend the directory; it is tried again by itself".to_owned();
        let since = self.inner.renewal.borrow().storage_trouble.as_ref().map(|old| old.since);
        let since = since.unwrap_or_else(|| self.inner.clock.now());
        Trouble::new(error, Some(hint), Retry::Soon, since)
    }
}

/// What the disk had.
struct Kept {
    identity: Option<IssuedIdentity>,
    roots: Option<Roots>,
}

fn restore(config: &Config, clock: &SharedClock) -> Kept {
    let nothing = Kept { identity: None, roots: None };
    let why = match kept::look(&place(config), clock.now()) {
        KeptIdentity::Nothing => return nothing,
        KeptIdentity::Good { identity, roots } => {
            tracing::info!(serial = identity.serial(), "Serving the identity kept on disk.");
            return Kept { identity: Some(*identity), roots: Some(roots) };
        }
        KeptIdentity::NotNow { why, roots } => {
            tracing::info!(why, "The identity kept on disk is not valid now.");
            return Kept { identity: None, roots: Some(roots) };
        }
        KeptIdentity::Unusable { why } => why,
    };
    match persist::set_aside(&config.state_directory) {
        Ok(path) => {
            tracing::warn!(why, path = %path.display(), "Set aside an unusable kept identity.")
        }
        Err(error) => tracing::warn!(why, error = chain(&error), "Cannot use the kept identity."),
    }
    nothing
}

/// A root file that cannot be used is replaced by the roots that the kept identity came with: they
/// were believed when it was received. Where others keep certificates, so they do roots.
fn restore_root_file(config: &Config, roots: &Roots) {
    let path = &config.root_cert;
    let Err(why) = read_roots(path) else { return };
    if !matches!(config.source, Source::Istiod) {
        return;
    }
    let why = chain(&why);
    match fsio::replace(path, roots.pem().as_bytes(), fsio::PUBLIC) {
        Ok(()) => tracing::warn!(why, path = %path.display(), "Restored the mesh's root file."),
        Err(error) => {
            tracing::warn!(why, error = chain(&error), "Cannot restore the mesh's root file.");
        }
    }
}

fn place(config: &Config) -> Place<'_> {
    Place { state_directory: &config.state_directory, root_cert: &config.root_cert, id: &config.id }
}

/// What mends a clock.
pub(super) const CLOCK_HINT: &str = "set this machine's clock: `timedatectl set-ntp true`";
/// A disk that is busy writes some kilobytes within this time.
const STORE_LIMIT: Duration = Duration::from_secs(10);
/// While a certificate is held, the clock is looked at this often.
const GLANCE: Duration = Duration::from_secs(1);
