//! The token that was made for us, kept over a restart: one file, mode 0600, replaced as a whole.

use std::path::Path;
use std::time::SystemTime;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Token;
use crate::base::clock::{from_unix_seconds, unix_seconds};
use crate::base::fsio::{self, FileError};
use crate::base::trouble::chain;

/// The file's form.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    received_at: u64,
    token: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token);
    }
}

/// The kept token and when it was received; what cannot be used is as good as none.
pub(super) fn load(path: &Path) -> Option<(Token, SystemTime)> {
    let bytes = match fsio::read(path, FILE_BYTES) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.is_missing() => return None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "Cannot use the kept token.");
            return None;
        }
    };
    let kept: Option<Kept> = serde_json::from_slice(&bytes).ok();
    let kept = kept.filter(|kept| kept.version == VERSION);
    let token = kept.and_then(|kept| {
        Some((Token::parse(&kept.token).ok()?, from_unix_seconds(kept.received_at)))
    });
    if token.is_none() {
        // A parser's message may quote the text: it is not shown.
        tracing::warn!(path = %path.display(), "Cannot use the kept token: it is not as written.");
    }
    token
}

/// Keeps a token.
pub(super) fn save(path: &Path, token: &Token, received_at: SystemTime) -> Result<(), FileError> {
    let kept = Kept {
        version: VERSION,
        received_at: unix_seconds(received_at),
        token: token.secret().expose_secret().to_owned(),
    };
    let text = serde_json::to_vec(&kept).map(Zeroizing::new);
    let text = text.map_err(|error| FileError {
        action: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    fsio::replace(path, &text, fsio::SECRET)
}

const VERSION: u32 = 1;
/// Tokens are one or two kilobytes.
const FILE_BYTES: u64 = 128 << 10;
