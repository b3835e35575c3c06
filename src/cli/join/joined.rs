//! What this machine has joined as, before another join.

use serde_json::Value;

use crate::cli::exit::{Exit, Failure};
use crate::config::{self, Document, Paths, Settings};
use crate::doctor::is_locked;
use crate::envoy::living;

/// A workload that this machine already is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    namespace: String,
    account: String,
    /// The WorkloadGroup; empty where the configuration names none.
    group: String,
    /// Whether an agent or a proxy is running, which the machine can lose.
    pub(super) serves: bool,
}

impl Joined {
    /// Reads it from the configuration that is in place; `None` for a machine that has not joined:
    /// it has no identity, and neither an agent nor a proxy is running.
    pub(super) fn read(paths: &Paths) -> Option<Self> {
        let has_identity = paths.identity().exists();
        let serves = is_locked(&paths.lock_file()) || living(&paths.run_directory()).is_some();
        if !has_identity && !serves {
            return None;
        }
        let mut document = Document::new();
        config::add_file(&mut document, &paths.config_file()).ok()?;
        let tree = document.tree();
        let text = |field: &str| {
            let value = tree.pointer(&format!("/workload/{field}"));
            value.and_then(Value::as_str).map(str::to_owned)
        };
        Some(Self {
            namespace: text("namespace")?,
            account: text("serviceAccount")?,
            group: text("group").unwrap_or_default(),
            serves,
        })
    }

    /// Refuses settings that would make another workload of the machine: its registration would
    /// stay behind, and the new one would be refused where the name is the same.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Failure> {
        let wanted = &settings.workload;
        let new = Self {
            namespace: wanted.namespace.to_string(),
            account: wanted.service_account.to_string(),
            group: wanted.group.clone().unwrap_or_default(),
            serves: false,
        };
        let same_group = self.group == new.group || self.group.is_empty() || new.group.is_empty();
        if same_group && (&self.namespace, &self.account) == (&new.namespace, &new.account) {
            return Ok(());
        }
        let error = anyhow::anyhow!(
            "this machine has joined as {}, and this source is for {}",
            self.words(),
            new.words()
        );
        let hint = "run `vm-agent leave` first: it removes the registration and the identity that \
                    this machine has";
        Err(Failure::new(Exit::Registration, error).hint(hint.to_owned()))
    }

    fn words(&self) -> String {
        let Self { namespace, account, group, .. } = self;
        match group.as_str() {
            "" => format!("service account {namespace}/{account}"),
            group => format!("WorkloadGroup {namespace}/{group} (service account {account})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(root: &Path, account: &str, group: &str) -> Settings {
        let mut document = Document::new();
        let tree = serde_json::json!({"workload":
            {"namespace": "vms", "serviceAccount": account, "group": group, "name": "vm1"}});
        document.add(&tree, &|_| "test".to_owned());
        config::load(&document, &Paths::new(root)).unwrap().settings
    }

    #[test]
    fn a_machine_becomes_another_workload_only_after_it_has_left() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        for directory in [paths.config_directory(), paths.state_directory()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let text = "workload: {namespace: vms, serviceAccount: client, group: client}\n";
        std::fs::write(paths.config_file(), text).unwrap();
        assert_eq!(Joined::read(&paths), None, "a configuration alone is no join");
        std::fs::write(paths.identity(), "{}").unwrap();
        let joined = Joined::read(&paths).unwrap();
        assert!(joined.check(&settings(root.path(), "client", "client")).is_ok());
        for (account, group) in [("client", "other"), ("details", "client")] {
            let failure = joined.check(&settings(root.path(), account, group)).unwrap_err();
            assert_eq!(failure.exit, Exit::Registration);
            let told = failure.error.to_string();
            assert!(told.contains("joined as WorkloadGroup vms/client"), "{told}");
            assert!(told.contains(&format!("for WorkloadGroup vms/{group}")), "{told}");
            assert!(failure.hint.unwrap().contains("`vm-agent leave` first"));
        }
    }
}
