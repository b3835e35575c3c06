//! What joining and running have left on a host, and its removal.
//!
//! The agent's state and run directories are its own, and go as a whole. The configuration's
//! directory is shared with the operator: of it go the files that `join` writes, unless the
//! configuration was written by somebody else, to whom the others belong then too.

use std::path::{Path, PathBuf};

use super::Files;
use crate::base::fsio::{self, FileError};

/// What is on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    root: PathBuf,
    /// Where something of ours may have been; what is above it may be empty.
    places: Vec<PathBuf>,
    /// What goes, directories as a whole.
    pub ours: Vec<PathBuf>,
    /// What stays, as somebody else has put it there.
    pub others: Vec<PathBuf>,
}

impl Remains {
    /// Looks at a host: `own` are directories of the agent's, `configuration` is the file that
    /// `join` writes, `beside` are further files that it writes into the same directory.
    #[must_use]
    pub fn find(root: &Path, own: &[PathBuf], configuration: &Path, beside: &[PathBuf]) -> Self {
        let mut places = own.to_vec();
        if is_ours(configuration) {
            places.extend_from_slice(beside);
            places.push(configuration.to_owned());
        }
        let exists = |path: &&PathBuf| path.symlink_metadata().is_ok();
        let ours: Vec<PathBuf> = places.iter().filter(exists).cloned().collect();
        let directory = configuration.parent().unwrap_or(root);
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut others: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| !ours.contains(path)).collect();
        others.sort();
        Self { root: root.to_owned(), places, ours, others }
    }

    /// Removes what is ours, and the directories above that are empty then.
    ///
    /// # Errors
    /// With the first that cannot be removed; those after it are still there.
    pub fn remove(&self) -> Result<(), FileError> {
        for path in &self.ours {
            if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                fsio::remove_tree(path)?;
            } else {
                fsio::remove(path)?;
            }
        }
        for path in &self.places {
            let above = path.ancestors().skip(1);
            let below_root = |path: &&Path| *path != self.root && path.starts_with(&self.root);
            above.take_while(below_root).for_each(fsio::remove_empty_directory);
        }
        Ok(())
    }
}

/// A configuration that is missing is that of a join that was cut off: it comes last.
fn is_ours(configuration: &Path) -> bool {
    match fsio::read_text(configuration, CONFIGURATION_BYTES) {
        Ok(text) => text.starts_with(Files::CONFIG_HEAD),
        Err(error) => error.is_missing(),
    }
}

/// A configuration has some kilobytes.
const CONFIGURATION_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn host(configuration: Option<&str>) -> (tempfile::TempDir, Remains) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["etc/vm-agent", "var/lib/vm-agent", "run/vm-agent", "var/lib/other"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["etc/vm-agent/root-cert.pem", "var/lib/vm-agent/istio-token"] {
            std::fs::write(path(name), "").unwrap();
        }
        if let Some(text) = configuration {
            std::fs::write(path("etc/vm-agent/config.yaml"), text).unwrap();
        }
        let remains = find(root.path());
        (root, remains)
    }

    fn find(root: &Path) -> Remains {
        let own = ["var/lib/vm-agent", "run/vm-agent"].map(|name| root.join(name));
        let beside =
            [root.join("etc/vm-agent/root-cert.pem"), root.join("etc/vm-agent/kube-ca.pem")];
        Remains::find(root, &own, &root.join("etc/vm-agent/config.yaml"), &beside)
    }

    fn left(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                directories.extend(path.is_dir().then_some(path));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn leaving_removes_everything_but_what_others_put_there() {
        let joined = format!("{}workload: {{}}\n", Files::CONFIG_HEAD);
        for configuration in [Some(joined.as_str()), None] {
            let (root, _) = host(configuration);
            // An agent that has stopped has taken its own directory away.
            std::fs::remove_dir(root.path().join("run/vm-agent")).unwrap();
            let remains = find(root.path());
            remains.remove().unwrap();
            assert_eq!(left(root.path()), ["var", "var/lib", "var/lib/other"]);
            let again = find(root.path());
            assert_eq!((again.ours, again.others), (Vec::new(), Vec::new()));
        }
    }

    #[test]
    fn a_file_that_an_operator_put_beside_ours_stays_and_is_named() {
        let (root, _) = host(Some(Files::CONFIG_HEAD));
        let other = root.path().join("etc/vm-agent/notes");
        std::fs::write(&other, "").unwrap();
        let remains = find(root.path());
        assert_eq!(remains.others, std::slice::from_ref(&other));
        remains.remove().unwrap();
        assert!(other.exists() && !root.path().join("etc/vm-agent/config.yaml").exists());
    }

    #[test]
    fn a_configuration_that_somebody_else_wrote_stays_with_all_that_is_beside_it() {
        let (root, remains) = host(Some("workload: {}\n"));
        assert_eq!(remains.others.len(), 2);
        remains.remove().unwrap();
        let etc = root.path().join("etc/vm-agent");
        assert!(etc.join("config.yaml").exists() && etc.join("root-cert.pem").exists());
        assert!(!root.path().join("var/lib/vm-agent").exists());
    }
}
