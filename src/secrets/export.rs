//! Key, chain and roots as files for other programs, always one consistent set.
//!
//! Each set is a directory of its own; the link `current` is swapped in one step, and the files'
//! fixed names lead through it. Whoever resolves `current` once sees one set.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use crate::base::fsio::{self, FileError};
use crate::identity::IssuedIdentity;

/// Writes the set and makes it the current one.
pub(super) fn export(directory: &Path, identity: &IssuedIdentity) -> Result<(), FileError> {
    claim(directory)?;
    let name = format!("{SET}{}", identity.serial());
    let set = directory.join(&name);
    fsio::make_directory(&set, 0o700)?;
    let key = identity.key_pem().expose_secret().as_bytes();
    fsio::replace(&set.join("key.pem"), key, fsio::SECRET)?;
    fsio::replace(&set.join("cert-chain.pem"), identity.chain_pem().as_bytes(), fsio::SECRET)?;
    fsio::replace(&set.join("root-cert.pem"), identity.roots().pem().as_bytes(), fsio::SECRET)?;
    link(&directory.join(CURRENT), Path::new(&name))?;
    for file in FILES {
        link(&directory.join(file), &Path::new(CURRENT).join(file))?;
    }
    remove_older(directory, &name)
}

/// Makes the directory ours: a new or an empty one gets a marker. One with others' files is refused:
/// it would be no place for a key, and nothing in it is ours to replace.
fn claim(directory: &Path) -> Result<(), FileError> {
    if is_ours(directory) {
        return Ok(());
    }
    if std::fs::symlink_metadata(directory).is_err() {
        fsio::make_directory(directory, 0o700)?;
    }
    if let Some(name) = names(directory)?.first() {
        let why = format!("it holds {name:?}, which is not the agent's: name an empty directory");
        return Err(failed("export to", directory, io::Error::other(why)));
    }
    fsio::replace(&directory.join(MARKER), MARK.as_bytes(), fsio::PUBLIC)
}

/// Whether it has our marker; agents before 0.9 made none, but the same link to a set.
fn is_ours(directory: &Path) -> bool {
    let is_set = |to: PathBuf| to.to_str().is_some_and(is_set_name);
    directory.join(MARKER).is_file()
        || std::fs::read_link(directory.join(CURRENT)).is_ok_and(is_set)
}

/// `set-` and the serial number of a certificate, exactly.
fn is_set_name(name: &str) -> bool {
    let is_hex = |serial: &str| {
        !serial.is_empty()
            && serial.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    };
    name.strip_prefix(SET).is_some_and(is_hex)
}

/// Removes what [`export`] has made of a directory, and the directory itself if it is empty then.
/// Files of others stay. Returns whether there was anything.
///
/// # Errors
/// With the first that cannot be removed.
pub fn remove_export(directory: &Path) -> Result<bool, FileError> {
    if !is_ours(directory) {
        return Ok(false);
    }
    forget(directory)?;
    fsio::remove(&directory.join(MARKER))?;
    fsio::remove_empty_directory(directory);
    Ok(true)
}

/// Removes all sets and the links to them.
pub(super) fn forget(directory: &Path) -> Result<(), FileError> {
    if !is_ours(directory) {
        return Ok(());
    }
    for file in FILES {
        let path = directory.join(file);
        if std::fs::read_link(&path).is_ok_and(|to| to == Path::new(CURRENT).join(file)) {
            fsio::remove(&path)?;
        }
    }
    remove_older(directory, "")?;
    let current = directory.join(CURRENT);
    if std::fs::read_link(&current).is_ok() { fsio::remove(&current) } else { Ok(()) }
}

/// Points a link at `target` in one step. What is no link is not ours, and stays.
fn link(at: &Path, target: &Path) -> Result<(), FileError> {
    match std::fs::read_link(at) {
        Ok(found) if found == target => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let why = io::Error::other("another file has this name");
            return Err(failed("link", at, why));
        }
        _ => {}
    }
    let mut fresh = at.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    fsio::remove(&fresh)?;
    symlink(target, &fresh).map_err(|source| failed("link", at, source))?;
    fsio::rename(&fresh, at)
}

/// Removes all sets but the current one: the files that we put there, and the directories if they
/// are empty then.
fn remove_older(directory: &Path, current: &str) -> Result<(), FileError> {
    for name in names(directory)?.iter().filter(|name| is_set_name(name) && *name != current) {
        let set = directory.join(name);
        if std::fs::symlink_metadata(&set).is_ok_and(|found| found.is_dir()) {
            for file in FILES {
                fsio::remove(&set.join(file))?;
            }
            fsio::remove_empty_directory(&set);
        }
    }
    Ok(())
}

/// The names in a directory; of those that are no UTF-8 what can be shown.
fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = std::fs::read_dir(directory).map_err(|error| failed("list", directory, error))?;
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<io::Result<_>>().map_err(|error| failed("list", directory, error))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError { action, path: path.to_owned(), source }
}

const FILES: [&str; 3] = ["key.pem", "cert-chain.pem", "root-cert.pem"];
const CURRENT: &str = "current";
const SET: &str = "set-";
const MARKER: &str = ".vm-agent-export";
const MARK: &str =
    "vm-agent replaces and removes files in this directory (identity.exportDirectory).\n";
