//! The id of a machine's installation.

use std::path::Path;

use crate::base::fsio;

/// The machine's id below a root directory (systemd `machine-id(5)`): 32 hexadecimal digits that
/// stay for the life of an installation. They are not to be shown to others as they are.
#[must_use]
pub fn machine_id(root: &Path) -> Option<String> {
    let text = fsio::read_text(&root.join("etc/machine-id"), ID_BYTES).ok()?;
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_lowercase())
}

/// A machine id is 33 bytes with its line end.
const ID_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_one_or_it_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(machine_id(root.path()), None);
        fsio::make_directory(&root.path().join("etc"), 0o755).unwrap();
        let write = |text: &str| {
            let path = root.path().join("etc/machine-id");
            fsio::replace(&path, text.as_bytes(), fsio::PUBLIC).unwrap();
            machine_id(root.path())
        };
        let id = "3d1219c7c4c5404aaa1f6d2a48adfda4";
        assert_eq!(write(&format!("{id}\n")).as_deref(), Some(id));
        // An image that has not been started yet.
        assert_eq!(write("uninitialized\n"), None);
    }
}
