//! Which machine this is, for the registry.

use std::path::Path;

use super::machine_note::Note;
use crate::base::fsio::{self, FileError};
use crate::config::Paths;
use crate::platform::MachineId;
use crate::registry::{Machine, new_instance};

/// The machine: by the system's id below the root, or by one of our own where there is none.
///
/// # Errors
/// When our own cannot be kept.
pub fn machine(paths: &Paths) -> Result<Machine, FileError> {
    if let Some(machine) = known_machine(paths) {
        return Ok(machine);
    }
    let path = paths.machine_id();
    let id = format!("{:032x}", rand::random::<u128>());
    fsio::make_directory(&paths.state_directory(), 0o700)?;
    fsio::replace(&path, id.as_bytes(), fsio::SECRET)?;
    Ok(known(&MachineId::of(&id)))
}

/// The machine, if it has an id already. While the system's id is missing or damaged (empty, cut, or
/// not made yet), it is the machine that the state directory belongs to: damage is no evidence of
/// another machine.
#[must_use]
pub fn known_machine(paths: &Paths) -> Option<Machine> {
    if let Some(id) = MachineId::read(&paths.root().join("etc/machine-id")) {
        return Some(known(&id));
    }
    if let Some(note) = Note::read(&paths.machine_note()) {
        return Some(note.machine());
    }
    MachineId::read(&paths.machine_id()).map(|id| known(&id))
}

/// Which of the machines with our ID this one is: an ID that is drawn once a boot, and
/// stays the same over restarts of the agent. A copy of the disk is of another boot.
pub(super) fn instance(paths: &Paths) -> String {
    if let Some(id) = known_instance(paths) {
        return id;
    }
    let id = new_instance();
    let text = format!("{} {id}\n", boot());
    let made = fsio::make_directory(&paths.state_directory(), 0o700);
    let path = paths.instance_file();
    if let Err(error) = made.and_then(|()| fsio::replace(&path, text.as_bytes(), fsio::SECRET)) {
        tracing::warn!(%error, "Cannot keep the instance ID of this boot");
    }
    id
}

/// The instance ID, if one was drawn since the boot.
#[must_use]
pub fn known_instance(paths: &Paths) -> Option<String> {
    let text = fsio::read_text(&paths.instance_file(), ID_BYTES).ok()?;
    let (of, id) = text.trim().split_once(' ')?;
    (of == boot() && is_instance(id)).then(|| id.to_owned())
}

fn boot() -> String {
    fsio::read_text(Path::new(BOOT), ID_BYTES).unwrap_or_default().trim().to_owned()
}

fn is_instance(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn known(id: &MachineId) -> Machine {
    Machine::of(&id.known_as())
}

/// The kernel's ID of this boot (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
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

    #[test]
    fn an_instance_id_stays_for_a_boot() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |root: &tempfile::TempDir| instance(&Paths::new(root.path()));
        let first = of(&one);
        assert!(is_instance(&first));
        assert_eq!(of(&one), first);
        assert_ne!(of(&other), first, "another root");
        let file = Paths::new(one.path()).instance_file();
        fsio::replace(&file, format!("another-boot {first}").as_bytes(), fsio::SECRET).unwrap();
        assert_ne!(of(&one), first);
    }
}
