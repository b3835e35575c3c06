//! Whom we believe to be the control plane: the mesh's root file, the roots that came with our
//! certificates, and somebody who can fetch newer ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::RefusedCertificate;
use crate::base::fsio::{self, FileError};
use crate::identity::{Roots, RootsError};

/// A root file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootFileError {
    /// It cannot be read.
    #[error("cannot use the mesh's root certificate")]
    File(#[source] FileError),
    /// It holds no roots.
    #[error("{} is no root certificate file", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RootsError,
    },
}

/// Reads a file of PEM roots.
///
/// # Errors
/// When it cannot be read, or holds no roots.
pub fn read_roots(path: &Path) -> Result<Roots, RootFileError> {
    let pem = fsio::read(path, ROOT_BYTES).map_err(RootFileError::File)?;
    Roots::from_pem(&pem).map_err(|source| RootFileError::Roots { path: path.to_owned(), source })
}

/// What is trusted beside the root file, who can fetch newer roots, and how istiod sees us. The
/// default is nothing and nobody. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Roots that the mesh itself told us.
    pub learned: Option<watch::Receiver<Option<Roots>>>,
    /// Who fetches newer ones.
    pub refresh: Option<RootRefresh>,
    /// The certificate that istiod does not trust.
    pub refused: RefusedCertificate,
}

impl Trust {
    /// The learned roots.
    pub(super) fn learned_roots(&self) -> Option<Roots> {
        self.learned.as_ref().and_then(|learned| learned.borrow().clone())
    }

    /// Has newer roots fetched; true when there are some now, so that a dial is worth another try.
    pub async fn refreshed(&self) -> bool {
        match &self.refresh {
            Some(refresh) => refresh.ask().await,
            None => false,
        }
    }
}

/// Asks somebody to fetch the mesh's roots in another way. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct RootRefresh {
    questions: mpsc::Sender<RootQuestion>,
}

/// Somebody met a root that we do not trust.
#[derive(Debug)]
pub struct RootQuestion {
    answer: oneshot::Sender<bool>,
}

impl RootRefresh {
    /// The asking side, and the questions for who answers them.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<RootQuestion>) {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        (Self { questions }, asked)
    }

    async fn ask(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.questions.send(RootQuestion { answer }).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_LIMIT, asked).await.ok().flatten().unwrap_or(false)
    }
}

impl RootQuestion {
    /// Answers: whether there are roots now that were not there before.
    pub fn answer(self, newer: bool) {
        // Who asked may have given up.
        self.answer.send(newer).ok();
    }
}

/// A handful of roots; larger is no root file.
const ROOT_BYTES: u64 = 1 << 20;
/// The two lines to istiod, and some room.
const QUESTIONS: usize = 4;
/// One call to the Kubernetes API, which has a limit of its own, and its turn.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
