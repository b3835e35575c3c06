//! Which machine this is, for the registry.

use crate::base::fsio::{self, FileError};
use crate::config::Paths;
use crate::platform;
use crate::registry::Machine;

/// The machine: by the system's id below the root, or by one of our own where there is none.
///
/// # Errors
/// When our own cannot be kept.
pub fn machine(paths: &Paths) -> Result<Machine, FileError> {
    if let Some(machine) = known_machine(paths)? {
        return Ok(machine);
    }
    let path = paths.machine_id();
    let id = format!("{:032x}", rand::random::<u128>());
    fsio::make_directory(&paths.state_directory(), 0o700)?;
    fsio::replace(&path, id.as_bytes(), fsio::SECRET)?;
    Ok(Machine::of(&id))
}

/// The machine, if it has an id already.
///
/// # Errors
/// When the id that we made cannot be read.
pub fn known_machine(paths: &Paths) -> Result<Option<Machine>, FileError> {
    if let Some(id) = platform::machine_id(paths.root()) {
        return Ok(Some(Machine::of(&id)));
    }
    match fsio::read_text(&paths.machine_id(), ID_BYTES) {
        Ok(id) if !id.trim().is_empty() => Ok(Some(Machine::of(id.trim()))),
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(None),
    }
}

/// An id is 32 bytes.
const ID_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_an_id_gets_one_and_keeps_it() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |root: &tempfile::TempDir| machine(&Paths::new(root.path())).unwrap();
        let first = of(&one);
        assert_eq!(of(&one), first);
        assert_ne!(of(&other), first);
    }
}
