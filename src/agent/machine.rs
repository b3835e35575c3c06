//! Which machine this is, for the registry.

use crate::base::fsio::{self, FileError};
use crate::config::Paths;
use crate::platform::MachineId;
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
    Ok(known(&MachineId::of(&id)))
}

/// The machine, if it has an id already.
///
/// # Errors
/// When the id that we made cannot be read.
pub fn known_machine(paths: &Paths) -> Result<Option<Machine>, FileError> {
    if let Some(id) = MachineId::read(&paths.root().join("etc/machine-id")) {
        return Ok(Some(known(&id)));
    }
    match fsio::read_text(&paths.machine_id(), ID_BYTES) {
        Ok(id) if !id.trim().is_empty() => Ok(Some(known(&MachineId::of(id.trim())))),
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(None),
    }
}

fn known(id: &MachineId) -> Machine {
    Machine::of(&id.known_as())
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
