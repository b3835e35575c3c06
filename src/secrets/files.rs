//! Certificates in files that somebody else keeps: another agent, cert-manager's CSI driver, a
//! person.
//!
//! The files are looked at once a second. The kernel's notifications would be quicker by less than
//! that second, but see nothing on network file systems, bind mounts that are replaced, and links
//! above the watched directory; and a look must follow every such link anyway. It costs some
//! microseconds, and nothing is read while nothing changed.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Vault;
use super::follow::{Ending, refusal_hint};
use crate::base::backoff::Retry;
use crate::base::fsio::{self, FileError, FileStamp};
use crate::base::tasks::offload;
use crate::controlplane::{RootFileError, read_roots};
use crate::identity::{Anchors, Candidate, Refusal};

/// Where somebody else keeps our certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// PEM: the leaf first, then intermediates.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// PEM roots, where they are not the mesh's.
    pub roots: Option<PathBuf>,
}

/// Takes certificates from files until `stop`, and the first one as soon as they are there.
pub async fn follow_files(vault: Vault, files: Files, stop: CancellationToken) {
    let follower = Follower { vault, files, seen: None, unsettled: None, again: None };
    tokio::select! {
        () = follower.run() => {}
        () = stop.cancelled() => {}
    }
}

/// Files that hold no usable certificate.
#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error("cannot use the certificate files")]
    File(#[from] FileError),
    #[error("the roots of the certificate files cannot be used")]
    Roots(#[from] RootFileError),
    #[error("the certificate in {} with the key in {} was refused", certificate.display(), key.display())]
    Refused {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: Refusal,
    },
    #[error("reading {} takes longer than 10s: its file system does not answer", path.display())]
    Late { path: PathBuf },
    #[error("cannot read the certificate files")]
    Thread(#[from] io::Error),
}

impl FilesError {
    /// Whether files that are being replaced one by one look like this for a moment.
    fn may_be_halfway(&self) -> bool {
        match self {
            Self::File(_) | Self::Roots(_) => true,
            Self::Late { .. } | Self::Thread(_) => false,
            Self::Refused { source, .. } => {
                matches!(
                    source,
                    Refusal::OtherKey | Refusal::Malformed { .. } | Refusal::Untrusted { .. }
                )
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(_) | Self::Roots(_) => {
                Some("check identity.files, and that the agent may read them".to_owned())
            }
            Self::Refused { source: Refusal::OtherKey, .. } => {
                Some("certificate and key must be of one pair: check identity.files".to_owned())
            }
            Self::Refused { source, .. } => refusal_hint(source),
            Self::Late { .. } => Some("look at the mount that the files are on".to_owned()),
            Self::Thread(_) => None,
        }
    }
}

struct Follower {
    vault: Vault,
    files: Files,
    /// The files as they were when they were read last.
    seen: Option<Vec<Option<FileStamp>>>,
    /// Since when they have looked as if they were being replaced.
    unsettled: Option<Instant>,
    /// When files that have not changed are read again.
    again: Option<Instant>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let stamps = self.stamps().await;
            let due = self.again.is_some_and(|again| again <= Instant::now());
            if self.seen.as_ref() != Some(&stamps) || self.unsettled.is_some() || due {
                if self.seen.as_ref() != Some(&stamps) {
                    self.unsettled = None;
                }
                self.seen = Some(stamps);
                self.take().await;
            }
            self.look_at_the_end();
            self.vault.store_again().await;
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.vault.asked_to_renew() => self.seen = None,
            }
        }
    }

    async fn take(&mut self) {
        self.vault.looks();
        let read = self.off_thread(read).await.unwrap_or_else(|error| Err(error.into()));
        let outcome = match read {
            Ok(candidate) => tokio::select! {
                admitted = self.vault.admit(candidate) => admitted.map_err(|source| {
                    let Files { certificate, key, .. } = self.files.clone();
                    FilesError::Refused { certificate, key, source }
                }),
                // What is held until it is valid may be replaced before.
                () = self.changed() => return,
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(identity) => {
                (self.unsettled, self.again) = (None, None);
                self.vault.took(&identity);
            }
            Err(error) => self.wait_or_tell(&error),
        }
    }

    /// Half of a new pair is waited for; only when the other half does not come it is wrong.
    fn wait_or_tell(&mut self, error: &FilesError) {
        let now = Instant::now();
        let since = *self.unsettled.get_or_insert(now);
        if error.may_be_halfway() && now.saturating_duration_since(since) < SETTLE {
            return;
        }
        self.unsettled = None;
        self.again = now.checked_add(AGAIN);
        self.vault.fails(error, error.hint(), Retry::Later);
    }

    fn look_at_the_end(&self) {
        let Some(identity) = self.vault.ending() else { return };
        if self.vault.renewal().borrow().trouble.is_some() {
            return;
        }
        let path = self.files.certificate.display();
        let error = Ending { from: format!("in {path}"), end: identity.not_after() };
        let hint = "find out why whoever keeps this file does not renew it".to_owned();
        self.vault.fails(&error, Some(hint), Retry::Later);
    }

    async fn changed(&self) {
        while self.seen.as_ref() == Some(&self.stamps().await) {
            sleep(LOOK).await;
        }
    }

    async fn stamps(&self) -> Vec<Option<FileStamp>> {
        let stamps = |files: &Files| {
            let Files { certificate, key, roots } = files;
            let paths = [Some(certificate), Some(key), roots.as_ref()].into_iter().flatten();
            paths.map(|path| FileStamp::of(path)).collect()
        };
        self.off_thread(stamps).await.unwrap_or_default()
    }

    /// Works with the files on another thread. A file system that does not answer is reported, and
    /// waited for; it holds up nothing else.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> T + Send + 'static,
    ) -> io::Result<T> {
        let files = self.files.clone();
        let mut done = pin!(offload(move || work(&files)));
        loop {
            tokio::select! {
                done = &mut done => return done,
                () = sleep(LATE) => {
                    let error = FilesError::Late { path: self.files.certificate.clone() };
                    self.vault.fails(&error, error.hint(), Retry::Soon);
                    self.vault.store_again().await;
                }
            }
        }
    }
}

fn read(files: &Files) -> Result<Candidate, FilesError> {
    let chain_pem = fsio::read_text(&files.certificate, FILE_BYTES)?;
    let key = Zeroizing::new(fsio::read_text(&files.key, FILE_BYTES)?);
    let anchors = match &files.roots {
        Some(path) => Anchors::Vouched(read_roots(path)?),
        None => Anchors::Trusted,
    };
    Ok(Candidate { chain_pem, key_pem: SecretString::from(key.as_str()), anchors })
}

const LOOK: Duration = Duration::from_secs(1);
/// Istio's agent gives a pair this long to become one as well.
const SETTLE: Duration = Duration::from_secs(10);
/// The mesh's roots may have changed, or the clock.
const AGAIN: Duration = Duration::from_secs(30);
/// Files on a disk that is well are read in milliseconds.
const LATE: Duration = Duration::from_secs(10);
const FILE_BYTES: u64 = 1 << 20;
