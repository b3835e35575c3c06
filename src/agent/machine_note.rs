//! The note of which machine the state directory belongs to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::fsio;
use crate::registry::Machine;

/// What is noted of the machine that the state belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    version: u32,
    /// The hash of its id.
    machine: String,
    /// Its name in the mesh.
    pub(super) name: String,
    /// The names of the machines that the disk belonged to before.
    #[serde(default)]
    pub(super) others: Vec<String>,
}

impl Note {
    pub(super) fn new(machine: &Machine, name: &str, others: Vec<String>) -> Self {
        let machine = machine.hash().to_owned();
        Self { version: VERSION, machine, name: name.to_owned(), others }
    }

    /// What cannot be read is as good as nothing: a note is made anew then.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let note: Self = serde_json::from_slice(&fsio::read(path, NOTE_BYTES).ok()?).ok()?;
        (note.version == VERSION).then_some(note)
    }

    /// The machine that it is about.
    pub(super) fn machine(&self) -> Machine {
        Machine::of(&self.machine)
    }

    pub(super) fn is_of(&self, machine: &Machine) -> bool {
        self.machine == machine.hash()
    }

    /// Whether this is the name of another machine, of whose disk this is a copy.
    pub(super) fn is_anothers(&self, name: &str, machine: &Machine) -> bool {
        self.others.iter().any(|other| other == name) || (self.name == name && !self.is_of(machine))
    }
}

const VERSION: u32 = 1;
/// Some names of 253 letters.
const NOTE_BYTES: u64 = 64 << 10;
