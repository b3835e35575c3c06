//! What the identity kept on disk is worth, without doing anything about it.

use std::path::Path;
use std::time::SystemTime;

use super::{export, persist};
use crate::base::clock::rfc3339;
use crate::base::fsio::FileError;
use crate::controlplane::read_roots;
use crate::identity::{IssuedIdentity, Refusal, Roots, SpiffeId};

/// Where an identity is kept, and what it must be.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where it lies.
    pub state_directory: &'a Path,
    /// PEM roots that it must lead to, beside those that it was kept with.
    pub root_cert: &'a Path,
    /// Whose it must be.
    pub id: &'a SpiffeId,
}

/// What the disk has.
#[derive(Debug)]
pub enum KeptIdentity {
    /// Nothing.
    Nothing,
    /// An identity that can be served.
    Good {
        /// The identity.
        identity: Box<IssuedIdentity>,
        /// The roots that it was kept with.
        roots: Roots,
    },
    /// One that is over, or has not begun.
    NotNow {
        /// Which of the two.
        why: String,
        /// The roots that it was kept with.
        roots: Roots,
    },
    /// Something that is of no use, also later.
    Unusable {
        /// Why.
        why: String,
    },
}

/// Looks at the identity kept on disk, and verifies it as of `now`.
#[must_use]
pub fn look(place: &Place<'_>, now: SystemTime) -> KeptIdentity {
    let (candidate, received_at, roots) = match persist::load(place.state_directory) {
        persist::Found::Nothing => return KeptIdentity::Nothing,
        persist::Found::Unusable(why) => return KeptIdentity::Unusable { why },
        persist::Found::Identity(found) => *found,
    };
    let known = read_roots(place.root_cert);
    let known = known.map_or_else(|_| roots.clone(), |known| known.union(&roots));
    match IssuedIdentity::verify(candidate, place.id, &known, now) {
        Ok(identity) if identity.is_valid_at(now) => {
            let identity = Box::new(identity.with_received_at(received_at));
            KeptIdentity::Good { identity, roots }
        }
        Ok(identity) => {
            let why = format!("it is valid only from {}", rfc3339(identity.not_before()));
            KeptIdentity::NotNow { why, roots }
        }
        Err(error @ (Refusal::Expired { .. } | Refusal::NotYetValid { .. })) => {
            KeptIdentity::NotNow { why: error.to_string(), roots }
        }
        Err(error) => KeptIdentity::Unusable { why: error.to_string() },
    }
}

/// Removes the identity kept on disk, and what of it was written for other programs.
///
/// # Errors
/// With the first file that cannot be removed.
pub fn forget(state_directory: &Path, exported: Option<&Path>) -> Result<(), FileError> {
    persist::forget(state_directory)?;
    exported.map_or(Ok(()), export::forget)
}
