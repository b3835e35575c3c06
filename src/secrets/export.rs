//! Key, chain and roots as files for other programs, always one consistent set.
//!
//! Each set is a directory of its own; the link `current` is swapped in one step, and the files'
//! fixed names lead through it. Whoever resolves `current` once sees one set.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use crate::base::fsio::{self, FileError};
use crate::identity::IssuedIdentity;

/// Writes the set and makes it the current one.
pub(super) fn export(directory: &Path, identity: &IssuedIdentity) -> Result<(), FileError> {
    fsio::make_directory(directory, 0o700)?;
    let name = format!("set-{}", identity.serial());
    let set = directory.join(&name);
    fsio::make_directory(&set, 0o700)?;
    let key = identity.key_pem().expose_secret().as_bytes();
    fsio::replace(&set.join("key.pem"), key, fsio::SECRET)?;
    fsio::replace(&set.join("cert-chain.pem"), identity.chain_pem().as_bytes(), fsio::SECRET)?;
    fsio::replace(&set.join("root-cert.pem"), identity.roots().pem().as_bytes(), fsio::SECRET)?;
    link(&directory.join("current"), Path::new(&name))?;
    for file in FILES {
        link(&directory.join(file), &Path::new("current").join(file))?;
    }
    remove_older(directory, &name)
}

/// Removes what [`export`] has made of a directory, and the directory itself if it is empty then.
/// Files of others stay. Returns whether there was anything.
///
/// # Errors
/// With the first that cannot be removed.
pub fn remove_export(directory: &Path) -> Result<bool, FileError> {
    let current = directory.join("current");
    if std::fs::read_link(&current).is_err() {
        return Ok(false);
    }
    for file in FILES {
        let path = directory.join(file);
        if std::fs::read_link(&path).is_ok_and(|to| to == Path::new("current").join(file)) {
            fsio::remove(&path)?;
        }
    }
    remove_older(directory, "")?;
    fsio::remove(&current)?;
    fsio::remove_empty_directory(directory);
    Ok(true)
}

/// Points a link at `target` in one step.
fn link(at: &Path, target: &Path) -> Result<(), FileError> {
    if std::fs::read_link(at).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let mut fresh = at.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    fsio::remove(&fresh)?;
    symlink(target, &fresh).map_err(|source| FileError {
        action: "link",
        path: at.to_owned(),
        source,
    })?;
    fsio::rename(&fresh, at)
}

/// Removes all sets and the links to them.
pub(super) fn forget(directory: &Path) -> Result<(), FileError> {
    for link in FILES.into_iter().chain(["current"]) {
        fsio::remove(&directory.join(link))?;
    }
    if directory.exists() { remove_older(directory, "") } else { Ok(()) }
}

fn remove_older(directory: &Path, current: &str) -> Result<(), FileError> {
    let failed = |source| FileError { action: "list", path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_older =
            name.to_str().is_some_and(|name| name.starts_with("set-") && name != current);
        if is_older {
            fsio::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

const FILES: [&str; 3] = ["key.pem", "cert-chain.pem", "root-cert.pem"];
