//! One look at the files of a secret.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Files;
use super::memory::Last;
use crate::base::fsio::{self, FileError, FileStamp};
use crate::base::tasks::offload;
use crate::base::trouble::chain;
use crate::base::user_file::{FileOrder, OpenError};
use crate::identity::{PemPair, Refusal, certificates_of};
use crate::sds::name::SecretName;
use crate::sds::source::Versioned;

/// Why a file secret is not served. Paths come from the network: they are quoted.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileSecretError {
    #[error("cannot open {path:?}: {source}")]
    Open { path: PathBuf, source: OpenError },
    #[error("{}", chain(.0))]
    Read(FileError),
    #[error("certificate {certificate:?} and key {key:?} cannot be used: {source}")]
    Pair { certificate: PathBuf, key: PathBuf, source: Refusal },
    #[error("{path:?} has no X.509 certificate (expected -----BEGIN CERTIFICATE-----)")]
    NoCertificate { path: PathBuf },
    #[error("reading it takes longer than 10s: its file system does not answer")]
    Late,
    #[error("cannot read it: {0}")]
    Thread(io::Error),
}

impl FileSecretError {
    pub(super) fn hint(&self, allowed: &[PathBuf]) -> String {
        match self {
            Self::Open { source: OpenError::Outside { .. }, .. } => {
                let allowed: Vec<_> = allowed.iter().map(|path| path.to_string_lossy()).collect();
                format!(
                    "add its directory to proxy.secretDirectories ({}), or correct the path in the \
                     DestinationRule or Gateway that names it",
                    allowed.join(", ")
                )
            }
            Self::Open { .. } => "it must be a file that the proxy's user may read".to_owned(),
            Self::Pair { source: Refusal::OtherKey, .. } => {
                "the last pair stays in use until both files are of one pair".to_owned()
            }
            Self::Late => "look at the mount that the file is on".to_owned(),
            _ => "place a PEM file there; it is read again when it changes".to_owned(),
        }
    }
}

/// What came of a look.
pub(super) struct Looked {
    pub(super) stamps: Vec<Option<FileStamp>>,
    /// `None` when nothing has changed.
    pub(super) found: Option<Result<Versioned, FileSecretError>>,
}

impl Looked {
    fn failed(error: FileSecretError) -> Self {
        Self { stamps: Vec::new(), found: Some(Err(error)) }
    }
}

/// Looks at the files of a secret, and reads them unless the last look covers what is there. It takes
/// as long as the file system does.
pub(super) async fn look(files: Files, name: String, last: Option<Last>) -> (String, Looked) {
    let _turn = files.inner.turns.acquire().await;
    let looked = match orders(&files, &name) {
        Ok(orders) => look_at(&files, &name, orders, last).await,
        Err(error) => Looked::failed(error),
    };
    (name, looked)
}

/// The files of a secret; of several candidates the first that is there counts.
struct Orders {
    files: Vec<FileOrder>,
    alternatives: bool,
}

/// Nothing is opened, nor looked at, that the list does not allow by its name.
fn orders(files: &Files, name: &str) -> Result<Orders, FileSecretError> {
    let config = &files.inner.config;
    let order = |file: &Path, allowed: &[PathBuf]| FileOrder {
        file: file.to_owned(),
        user: config.user,
        allowed: allowed.to_vec(),
        refused: config.refused.clone(),
    };
    let named = |file: &Path| {
        let order = order(file, &config.allowed);
        match order.check_name() {
            Ok(()) => Ok(order),
            Err(source) => Err(FileSecretError::Open { path: file.to_owned(), source }),
        }
    };
    let files = match SecretName::parse(name) {
        Some(SecretName::FileCertificate { certificate, key }) => {
            vec![named(certificate)?, named(key)?]
        }
        Some(SecretName::FileRoots(path)) => vec![named(path)?],
        _ => SYSTEM_ROOTS.iter().map(|path| order(Path::new(path), &[])).collect(),
    };
    let alternatives = SecretName::parse(name) == Some(SecretName::SystemRoots);
    Ok(Orders { files, alternatives })
}

async fn look_at(files: &Files, name: &str, orders: Orders, last: Option<Last>) -> Looked {
    let Orders { files: mut orders, alternatives } = orders;
    let stamped = offload(move || {
        if alternatives {
            let first = orders.iter().position(|order| order.file.exists()).unwrap_or_default();
            orders = orders.into_iter().skip(first).take(1).collect();
        }
        let stamps: Vec<_> = orders.iter().map(|order| FileStamp::of(&order.file)).collect();
        (orders, stamps)
    });
    let (orders, stamps) = match stamped.await {
        Ok(stamped) => stamped,
        Err(error) => return Looked::failed(FileSecretError::Thread(error)),
    };
    if last.is_some_and(|last| last.covers(&stamps)) {
        return Looked { stamps, found: None };
    }
    Looked { stamps, found: Some(read(files, name, orders).await) }
}

async fn read(
    files: &Files,
    name: &str,
    orders: Vec<FileOrder>,
) -> Result<Versioned, FileSecretError> {
    let mut opened = Vec::new();
    for order in orders {
        let path = order.file.clone();
        match files.inner.config.opener.open(order).await {
            Ok(file) => opened.push((path, file)),
            Err(source) => return Err(FileSecretError::Open { path, source }),
        }
    }
    let name = name.to_owned();
    offload(move || make(&name, opened)).await.map_err(FileSecretError::Thread)?
}

/// Only certificates and keys are handed out, whatever else a file contains.
fn make(name: &str, opened: Vec<(PathBuf, File)>) -> Result<Versioned, FileSecretError> {
    let read = |(path, file): (PathBuf, File)| {
        let bytes = fsio::read_open(file, &path, FILE_BYTES).map_err(FileSecretError::Read)?;
        Ok((path, Zeroizing::new(bytes)))
    };
    let mut opened = opened.into_iter().map(read);
    let missing = || FileSecretError::Thread(io::ErrorKind::NotFound.into());
    let (path, first) = opened.next().ok_or_else(missing)??;
    let Some(second) = opened.next() else {
        let Some(pem) = certificates_of(&first) else {
            return Err(FileSecretError::NoCertificate { path });
        };
        return Ok(Versioned::roots(name, pem.as_bytes()));
    };
    let (key_path, key) = second?;
    match PemPair::read(&first, key) {
        Ok(pair) => Ok(Versioned::certificate(name, pair.chain_pem.as_bytes(), pair.key())),
        Err(source) => Err(FileSecretError::Pair { certificate: path, key: key_path, source }),
    }
}

/// Debian and Alpine; Fedora and RHEL (two places); openSUSE; OpenELEC; Alpine's link.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];
/// A system's bundle is some hundred kilobytes.
const FILE_BYTES: u64 = 4 << 20;
