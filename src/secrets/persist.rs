//! The last good identity on disk: one file, mode 0600, replaced as a whole.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::base::clock::{from_unix_seconds, unix_seconds};
use crate::base::fsio::{self, FileError};
use crate::identity::{Anchors, Candidate, IssuedIdentity, Roots};

/// The file's form. Its key makes it a secret as a whole.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    received_at: u64,
    chain: String,
    key: String,
    roots: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

/// What was found on disk.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// An identity, not verified, with the time of its receipt and the roots that it trusted.
    Identity(Box<(Candidate, SystemTime, Roots)>),
    /// Something unusable.
    Unusable(String),
}

pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("identity.json")
}

/// Reads the kept identity.
pub(super) fn load(directory: &Path) -> Found {
    let bytes = match fsio::read(&path(directory), FILE_BYTES) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.is_missing() => return Found::Nothing,
        Err(error) => return Found::Unusable(crate::base::trouble::chain(&error)),
    };
    let kept: Kept = match serde_json::from_slice(&bytes) {
        Ok(kept) => kept,
        // The parser's message may quote the text: it is not shown.
        Err(error) => {
            return Found::Unusable(format!("line {} is not as written", error.line()));
        }
    };
    if kept.version != VERSION {
        return Found::Unusable(format!("version {} is unknown", kept.version));
    }
    match Roots::from_pem(kept.roots.as_bytes()) {
        Ok(roots) => {
            let candidate = Candidate {
                chain_pem: kept.chain.clone(),
                key_pem: SecretString::from(kept.key.as_str()),
                anchors: Anchors::Sent(roots.clone()),
            };
            Found::Identity(Box::new((candidate, from_unix_seconds(kept.received_at), roots)))
        }
        Err(error) => Found::Unusable(format!("its roots: {error}")),
    }
}

/// Keeps an identity.
pub(super) fn save(directory: &Path, identity: &IssuedIdentity) -> Result<(), FileError> {
    let kept = Kept {
        version: VERSION,
        received_at: unix_seconds(identity.received_at()),
        chain: identity.chain_pem().to_owned(),
        key: identity.key_pem().expose_secret().to_owned(),
        roots: identity.roots().pem().to_owned(),
    };
    let text = serde_json::to_vec(&kept).map(Zeroizing::new);
    let path = path(directory);
    let text = text.map_err(|error| FileError {
        action: "write",
        path: path.clone(),
        source: error.into(),
    })?;
    fsio::replace(&path, &text, fsio::SECRET)
}

/// Puts an unusable file out of the way, for a person to look at. Only the last one is kept.
pub(super) fn set_aside(directory: &Path) -> Result<PathBuf, FileError> {
    let aside = aside(directory);
    fsio::rename(&path(directory), &aside)?;
    Ok(aside)
}

/// Removes the identity, and one that was set aside.
pub(super) fn forget(directory: &Path) -> Result<(), FileError> {
    fsio::remove(&path(directory))?;
    fsio::remove(&aside(directory))
}

fn aside(directory: &Path) -> PathBuf {
    directory.join("identity.json.corrupt")
}

const VERSION: u32 = 1;
/// A chain, a key and some roots are some kilobytes.
const FILE_BYTES: u64 = 1 << 20;
