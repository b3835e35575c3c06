//! Certificates in files that somebody else keeps: another agent, cert-manager's CSI driver, a
//! person.
//!
//! The files are looked at once a second. The kernel's notifications would be quicker by less than
//! that second, but see nothing on network file systems, bind mounts that are replaced, and links
//! above the watched directory; and a look must follow every such link anyway. It costs some
//! microseconds, and nothing is read while nothing changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Vault;
use super::follow::{Ending, refusal_hint};
use crate::base::backoff::Retry;
use crate::base::fsio::{self, FileError};
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
    #[error("the certificate in {} was refused", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: Refusal,
    },
}

impl FilesError {
    /// Whether files that are being replaced one by one look like this for a moment.
    fn may_be_halfway(&self) -> bool {
        match self {
            Self::File(_) | Self::Roots(_) => true,
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
        }
    }
}

/// What tells a file from the one that was there before it, behind all links.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

struct Follower {
    vault: Vault,
    files: Files,
    /// The files as they were when they were read last.
    seen: Option<Vec<Option<Mark>>>,
    /// Since when they have looked as if they were being replaced.
    unsettled: Option<Instant>,
    /// When files that have not changed are read again.
    again: Option<Instant>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let marks = self.marks();
            let due = self.again.is_some_and(|again| again <= Instant::now());
            if self.seen.as_ref() != Some(&marks) || self.unsettled.is_some() || due {
                if self.seen.as_ref() != Some(&marks) {
                    self.unsettled = None;
                }
                self.seen = Some(marks);
                self.take().await;
            }
            self.look_at_the_end();
            self.vault.store_again();
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.vault.asked_to_renew() => self.seen = None,
            }
        }
    }

    async fn take(&mut self) {
        self.vault.looks();
        let outcome = match self.read() {
            Ok(candidate) => tokio::select! {
                admitted = self.vault.admit(candidate) => admitted.map_err(|source| {
                    FilesError::Refused { path: self.files.certificate.clone(), source }
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

    fn read(&self) -> Result<Candidate, FilesError> {
        let chain_pem = fsio::read_text(&self.files.certificate, FILE_BYTES)?;
        let key = Zeroizing::new(fsio::read_text(&self.files.key, FILE_BYTES)?);
        let anchors = match &self.files.roots {
            Some(path) => Anchors::Vouched(read_roots(path)?),
            None => Anchors::Trusted,
        };
        Ok(Candidate { chain_pem, key_pem: SecretString::from(key.as_str()), anchors })
    }

    async fn changed(&self) {
        while self.seen.as_ref() == Some(&self.marks()) {
            sleep(LOOK).await;
        }
    }

    fn marks(&self) -> Vec<Option<Mark>> {
        let Files { certificate, key, roots } = &self.files;
        [Some(certificate), Some(key), roots.as_ref()]
            .into_iter()
            .flatten()
            .map(|p| mark(p))
            .collect()
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let found = std::fs::metadata(path).ok()?;
    Some(Mark {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

const LOOK: Duration = Duration::from_secs(1);
/// Istio's agent gives a pair this long to become one as well.
const SETTLE: Duration = Duration::from_secs(10);
/// The mesh's roots may have changed, or the clock.
const AGAIN: Duration = Duration::from_secs(30);
const FILE_BYTES: u64 = 1 << 20;
