//! Whose state directory this is. A disk that was copied to another machine holds the key, the
//! registration and the name of the one that it was copied from: the copy must use none of them.

use std::path::Path;

use super::machine::{known_machine, machine};
use super::machine_note::Note;
use crate::base::fsio::{self, FileError};
use crate::base::trouble::chain;
use crate::config::Paths;
use crate::secrets;

/// The name of this machine, whose settings give it `name`: on a copied disk they may give it the
/// name of the machine that it was copied from, and it has another one then, always the same.
pub(super) fn own_name(paths: &Paths, name: String) -> String {
    let note = Note::read(&paths.machine_note());
    match (note, known_machine(paths)) {
        (Some(note), Some(machine)) if note.is_anothers(&name, &machine) => {
            let digits = machine.hash().get(..DIGITS).unwrap_or_default();
            let start: String = name.chars().take(LONGEST_START).collect();
            format!("{}-{digits}", start.trim_end_matches(['-', '.']))
        }
        _ => name,
    }
}

/// The name that this machine had in the mesh last; `None` where it never ran, or where the state is
/// another machine's.
#[must_use]
pub fn last_name(paths: &Paths) -> Option<String> {
    let machine = known_machine(paths)?;
    Note::read(&paths.machine_note()).filter(|note| note.is_of(&machine)).map(|note| note.name)
}

/// Makes the state this machine's own before anything of it is used. `name` is that of
/// [`own_name`], `export` where the identity is written for other programs.
///
/// # Errors
/// When the state is another machine's and cannot be forgotten. That a note cannot be written is
/// no reason not to start.
pub(super) fn settle(paths: &Paths, name: &str, export: Option<&Path>) -> Result<(), FileError> {
    let machine = machine(paths)?;
    let path = paths.machine_note();
    let before = Note::read(&path);
    let mut others = before.as_ref().map(|note| note.others.clone()).unwrap_or_default();
    if let Some(note) = before.as_ref().filter(|note| !note.is_of(&machine)) {
        secrets::forget(&paths.state_directory(), export)?;
        fsio::remove(&paths.issued_token())?;
        fsio::remove(&paths.registration_record())?;
        fsio::remove(&paths.services_record())?;
        fsio::remove(&paths.entry_record())?;
        others.retain(|other| *other != note.name);
        others.push(note.name.clone());
        others.drain(..others.len().saturating_sub(OTHERS));
        tracing::warn!(
            of = note.name,
            name,
            "This disk is a copy of another machine's. Its certificate, key and registration are \
             forgotten, and this machine registers under its own name. It needs a token that is \
             still good; `vm-agent join` with a fresh bundle brings one."
        );
    }
    let note = Note::new(&machine, name, others);
    if before.as_ref() != Some(&note) {
        let text = serde_json::to_vec(&note).unwrap_or_default();
        if let Err(error) = fsio::replace(&path, &text, fsio::SECRET) {
            tracing::warn!(error = chain(&error), "Whose state this is could not be noted.");
        }
    }
    Ok(())
}

/// Enough to tell the copies of one disk apart.
const DIGITS: usize = 6;
/// Names have 253 letters at most (RFC 1123), of which the digits and a hyphen are ours.
const LONGEST_START: usize = 246;
/// A copy of a copy of a copy: nobody has more, and the note stays small.
const OTHERS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk {
        root: tempfile::TempDir,
        paths: Paths,
    }

    impl Disk {
        fn of(machine: &str) -> Self {
            let root = tempfile::tempdir().unwrap();
            let paths = Paths::new(root.path());
            fsio::make_directory(&paths.state_directory(), 0o700).unwrap();
            let disk = Self { root, paths };
            disk.wakes_as(machine);
            disk
        }

        /// The disk is started as this machine.
        fn wakes_as(&self, machine: &str) {
            let etc = self.root.path().join("etc");
            fsio::make_directory(&etc, 0o755).unwrap();
            let id = format!("{machine:0>32}\n");
            fsio::replace(&etc.join("machine-id"), id.as_bytes(), fsio::PUBLIC).unwrap();
        }

        fn holds(&self, files: &[&str]) {
            for file in files {
                let path = self.paths.state_directory().join(file);
                fsio::make_directory(path.parent().unwrap(), 0o700).unwrap();
                fsio::replace(&path, b"{}", fsio::SECRET).unwrap();
            }
        }

        fn has(&self, file: &str) -> bool {
            self.paths.state_directory().join(file).exists()
        }

        fn starts(&self, name: &str) -> String {
            let name = own_name(&self.paths, name.to_owned());
            let export = self.paths.state_directory().join("export");
            settle(&self.paths, &name, Some(&export)).unwrap();
            name
        }
    }

    const ITS_OWN: [&str; 5] = [
        "identity.json",
        "identity.json.corrupt",
        "istio-token.json",
        "registration.json",
        "export/set-1/key.pem",
    ];
    const FOR_ALL: [&str; 5] =
        ["istio-token", "kube-token", "names.pb", "capture.json", "export/.vm-agent-export"];

    #[test]
    fn a_machine_keeps_what_it_has_over_restarts_and_upgrades() {
        let disk = Disk::of("a");
        disk.holds(&ITS_OWN);
        assert_eq!(disk.starts("vm1"), "vm1", "an agent that made no notes was here before");
        assert_eq!(disk.starts("vm1"), "vm1");
        assert!(ITS_OWN.iter().all(|file| disk.has(file)));
        assert_eq!(disk.starts("vm2"), "vm2", "its operator gave it another name");
        assert_eq!(disk.starts("vm1"), "vm1");
    }

    #[test]
    fn a_copied_disk_forgets_whose_it_was_and_keeps_what_is_for_all_machines() {
        let disk = Disk::of("a");
        disk.starts("vm1");
        disk.holds(&ITS_OWN);
        disk.holds(&FOR_ALL);
        disk.wakes_as("b");
        let name = disk.starts("vm1");
        assert!(name.starts_with("vm1-") && name.len() == 10, "{name}");
        for file in ITS_OWN {
            assert!(!disk.has(file), "{file}");
        }
        assert!(FOR_ALL.iter().all(|file| disk.has(file)));
        disk.holds(&ITS_OWN);
        assert_eq!(disk.starts("vm1"), name, "from now on it is a machine like others");
        assert!(ITS_OWN.iter().all(|file| disk.has(file)));
        assert_eq!(disk.starts("web2"), "web2", "a name that was never another's is fine");
    }

    #[test]
    fn an_id_that_is_damaged_does_not_make_it_another_machine() {
        let disk = Disk::of("a");
        disk.starts("vm1");
        disk.holds(&ITS_OWN);
        let id = disk.root.path().join("etc/machine-id");
        let good = std::fs::read(&id).unwrap();
        for damaged in [&good[..0], &good[..7], b"uninitialized\n"] {
            fsio::replace(&id, damaged, fsio::PUBLIC).unwrap();
            assert_eq!(disk.starts("vm1"), "vm1");
            assert!(ITS_OWN.iter().all(|file| disk.has(file)), "{damaged:?}");
        }
        fsio::remove(&id).unwrap();
        assert_eq!(disk.starts("vm1"), "vm1");
        assert!(ITS_OWN.iter().all(|file| disk.has(file)), "there is none");
        fsio::replace(&id, &good, fsio::PUBLIC).unwrap();
        assert_eq!(disk.starts("vm1"), "vm1");
        assert!(ITS_OWN.iter().all(|file| disk.has(file)), "it is there again");
    }

    #[test]
    fn an_id_of_our_own_that_is_damaged_does_not_make_it_another_machine() {
        let disk = Disk::of("a");
        fsio::remove(&disk.root.path().join("etc/machine-id")).unwrap();
        disk.starts("vm1");
        let before = machine(&disk.paths).unwrap();
        disk.holds(&ITS_OWN);
        let own = disk.paths.machine_id();
        let good = std::fs::read(&own).unwrap();
        for damaged in [&good[..0], &good[..9], b"\xff\xff"] {
            fsio::replace(&own, damaged, fsio::SECRET).unwrap();
            assert_eq!(disk.starts("vm1"), "vm1");
            assert_eq!(machine(&disk.paths).unwrap(), before, "{damaged:?}");
            assert!(ITS_OWN.iter().all(|file| disk.has(file)));
        }
    }

    #[test]
    fn a_copy_of_a_copy_has_the_name_of_neither() {
        let disk = Disk::of("a");
        let first = disk.starts("vm1");
        disk.wakes_as("b");
        let second = disk.starts("vm1");
        disk.wakes_as("c");
        let third = disk.starts("vm1");
        assert!(first != second && second != third && first != third, "{second} {third}");
        assert_ne!(disk.starts(&second), second);
        for machine in 0..40 {
            disk.wakes_as(&format!("d{machine}"));
            disk.starts("vm1");
        }
        assert!(Note::read(&disk.paths.machine_note()).unwrap().others.len() <= OTHERS);
    }

    #[test]
    fn a_long_name_stays_a_name() {
        let disk = Disk::of("a");
        let long = format!("{}.{}", "a".repeat(245), "b".repeat(7));
        disk.starts(&long);
        disk.wakes_as("b");
        let name = disk.starts(&long);
        assert!(crate::workload::is_subdomain(&name) && name.len() <= 253, "{name}");
    }

    #[test]
    fn a_note_that_is_no_note_is_made_anew() {
        let disk = Disk::of("a");
        fsio::replace(&disk.paths.machine_note(), b"{", fsio::SECRET).unwrap();
        assert_eq!(disk.starts("vm1"), "vm1");
        assert_eq!(Note::read(&disk.paths.machine_note()).unwrap().name, "vm1");
    }
}
