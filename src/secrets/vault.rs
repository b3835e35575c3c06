//! The shelf with the current identity, and the one door to it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use super::{Config, RenewalState, export, persist};
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::fsio::{self, FileError};
use crate::base::trouble::{Trouble, chain};
use crate::identity::{Candidate, IssuedIdentity, Refusal, Roots};

/// The current identity. Clones share it.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    clock: SharedClock,
    identity: watch::Sender<Option<Arc<IssuedIdentity>>>,
    renewal: watch::Sender<RenewalState>,
    renew_now: Notify,
    /// One candidate passes the door at a time.
    door: Mutex<()>,
}

impl Vault {
    /// Opens the vault with the last good identity, if the disk has one that is still ours, still
    /// trusted and still valid. What cannot be used is set aside and never an error.
    #[must_use]
    pub fn open(config: Config, clock: SharedClock) -> Self {
        let restored = restore(&config, &clock).map(Arc::new);
        let state = RenewalState { restored: restored.is_some(), ..RenewalState::default() };
        let inner = Inner {
            config,
            clock,
            identity: watch::Sender::new(restored),
            renewal: watch::Sender::new(state),
            renew_now: Notify::new(),
            door: Mutex::new(()),
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

    /// Asks the renewal loop for a new certificate now.
    pub fn renew_now(&self) {
        self.inner.renew_now.notify_one();
    }

    /// The one door: verifies a candidate, and if it is believed publishes, keeps and exports it.
    ///
    /// # Errors
    /// When it is refused; the current identity is then untouched. A disk that cannot be written is
    /// no refusal but a condition in [`Vault::renewal`].
    pub fn admit(&self, candidate: Candidate) -> Result<Arc<IssuedIdentity>, Refusal> {
        let inner = &*self.inner;
        let _one_at_a_time = inner.door.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = self.trust()?;
        let now = inner.clock.now();
        let identity = IssuedIdentity::verify(candidate, &inner.config.id, &trust, now)?;
        let identity = Arc::new(identity);
        inner.identity.send_replace(Some(Arc::clone(&identity)));
        self.store(&identity);
        Ok(identity)
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
    pub(super) fn store_again(&self) {
        if self.inner.renewal.borrow().storage_trouble.is_some() {
            let current = self.inner.identity.borrow().clone();
            if let Some(identity) = current {
                self.store(&identity);
            }
        }
    }

    /// The roots of the root file and those that came with the current identity.
    fn trust(&self) -> Result<Roots, Refusal> {
        let current =
            self.inner.identity.borrow().as_ref().map(|identity| identity.roots().clone());
        match (root_file(&self.inner.config), current) {
            (Ok(roots), Some(current)) => Ok(roots.union(&current)),
            (Ok(roots), None) => Ok(roots),
            (Err(_), Some(current)) => Ok(current),
            (Err(why), None) => Err(Refusal::Malformed { why }),
        }
    }

    fn store(&self, identity: &IssuedIdentity) {
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

fn root_file(config: &Config) -> Result<Roots, String> {
    let pem = fsio::read(&config.root_cert, ROOT_BYTES).map_err(|error| chain(&error))?;
    Roots::from_pem(&pem).map_err(|error| format!("{}: {error}", config.root_cert.display()))
}

fn restore(config: &Config, clock: &SharedClock) -> Option<IssuedIdentity> {
    let why = match persist::load(&config.state_directory) {
        persist::Found::Nothing => return None,
        persist::Found::Unusable(why) => why,
        persist::Found::Identity(found) => {
            let (candidate, received_at, kept_roots) = *found;
            let trust = root_file(config)
                .map_or_else(|_| kept_roots.clone(), |roots| roots.union(&kept_roots));
            match IssuedIdentity::verify(candidate, &config.id, &trust, clock.now()) {
                Ok(identity) => {
                    let identity = identity.with_received_at(received_at);
                    tracing::info!(
                        serial = identity.serial(),
                        "Serving the identity kept on disk."
                    );
                    return Some(identity);
                }
                Err(error @ (Refusal::Expired { .. } | Refusal::NotYetValid { .. })) => {
                    tracing::info!(%error, "The identity kept on disk is not valid now.");
                    return None;
                }
                Err(error) => error.to_string(),
            }
        }
    };
    match persist::set_aside(&config.state_directory) {
        Ok(path) => {
            tracing::warn!(why, path = %path.display(), "Set aside an unusable kept identity.")
        }
        Err(error) => tracing::warn!(why, error = chain(&error), "Cannot use the kept identity."),
    }
    None
}

/// A handful of roots; larger is no root file.
const ROOT_BYTES: u64 = 1 << 20;
