//! The id of a machine's installation, which leaves the machine only as a hash.

use std::path::Path;

use aws_lc_rs::hmac;

use crate::base::fsio;

/// A machine's id. It is not to be shown to others as it is (systemd `machine-id(5)`).
pub struct MachineId(String);

impl MachineId {
    /// The id in a file such as `/etc/machine-id`: 32 hexadecimal digits that stay for the life of an
    /// installation; `None` where there is none, as in an image before its first boot.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let text = fsio::read_text(path, ID_BYTES).ok()?;
        let id = text.trim();
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| Self(id.to_lowercase()))
    }

    /// An id that was made elsewhere.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self(id.to_owned())
    }

    /// By what others know the machine: 32 hexadecimal digits, from which the id cannot be told.
    #[must_use]
    pub fn known_as(&self) -> String {
        let mut hash = self.hash(MACHINE);
        hash.truncate(KNOWN_AS);
        hash
    }

    /// HMAC-SHA256 under the id, as systemd's `sd_id128_get_machine_app_specific` makes it, for one
    /// purpose.
    pub(super) fn hash(&self, purpose: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes());
        let hash = hmac::sign(&key, purpose.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A machine id is 33 bytes with its line end.
const ID_BYTES: u64 = 4096;
/// Hashes of one machine id by different programs must not be the same.
const MACHINE: &str = "vm-agent.io/machine";
/// As many digits as the id itself has.
const KNOWN_AS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_one_or_it_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        assert!(MachineId::read(&path).is_none());
        let write = |text: &str| {
            fsio::replace(&path, text.as_bytes(), fsio::PUBLIC).unwrap();
            MachineId::read(&path)
        };
        let id = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        assert_eq!(write(&format!("{id}\n")).unwrap().0, id);
        // An image that has not been started yet.
        assert!(write("uninitialized\n").is_none());
    }

    #[test]
    fn a_machine_is_known_by_one_hash_that_does_not_show_its_id() {
        let id = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        let known = MachineId::of(id).known_as();
        assert_eq!(known, MachineId::of(id).known_as());
        assert_ne!(known, MachineId::of("other").known_as());
        assert_eq!(known.len(), 32);
        assert!(!known.contains(&id[..8]));
    }
}
