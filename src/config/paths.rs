//! Where everything lies, below one root directory.

use std::path::{Path, PathBuf};

/// The agent's paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Paths below `root`, which is made absolute.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()) }
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `/etc/vm-agent`.
    #[must_use]
    pub fn config_directory(&self) -> PathBuf {
        self.root.join("etc/vm-agent")
    }

    /// The configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config_directory().join("config.yaml")
    }

    /// The mesh's roots.
    #[must_use]
    pub fn root_cert(&self) -> PathBuf {
        self.config_directory().join("root-cert.pem")
    }

    /// `/var/lib/vm-agent`, mode 0700.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.root.join("var/lib/vm-agent")
    }

    /// The token that `join` placed.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.state_directory().join("istio-token")
    }

    /// The kept identity: certificate, key and roots.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.state_directory().join("identity.json")
    }

    /// The roots that the machine joined with last.
    #[must_use]
    pub fn root_record(&self) -> PathBuf {
        self.state_directory().join("joined-root-cert.pem")
    }

    /// What istiod made the machine's entry from.
    #[must_use]
    pub fn registration_record(&self) -> PathBuf {
        self.state_directory().join("registration.json")
    }

    /// The machine's entry as the agent applied it last.
    #[must_use]
    pub fn entry_record(&self) -> PathBuf {
        self.state_directory().join("entry.json")
    }

    /// The ports that istiod has configured the machine to serve.
    #[must_use]
    pub fn services_record(&self) -> PathBuf {
        self.state_directory().join("services.json")
    }

    /// The id of a machine whose system has none.
    #[must_use]
    pub fn machine_id(&self) -> PathBuf {
        self.state_directory().join("machine-id")
    }

    /// Which machine the state belongs to.
    #[must_use]
    pub fn machine_note(&self) -> PathBuf {
        self.state_directory().join("machine.json")
    }

    /// The token for the Kubernetes API that `join` placed and the agent renews.
    #[must_use]
    pub fn kube_token_file(&self) -> PathBuf {
        self.state_directory().join(KUBE_TOKEN)
    }

    /// The token for istiod that the Kubernetes API made.
    #[must_use]
    pub fn issued_token(&self) -> PathBuf {
        self.state_directory().join("istio-token.json")
    }

    /// The roots of the Kubernetes API that `join` placed.
    #[must_use]
    pub fn kube_ca(&self) -> PathBuf {
        self.config_directory().join("kube-ca.pem")
    }

    /// What was done to the host's rules.
    #[must_use]
    pub fn capture_journal(&self) -> PathBuf {
        self.state_directory().join("capture.json")
    }

    /// The last name table.
    #[must_use]
    pub fn name_table(&self) -> PathBuf {
        self.state_directory().join("names.pb")
    }

    /// What the cloud said last.
    #[must_use]
    pub fn facts(&self) -> PathBuf {
        self.state_directory().join("facts.json")
    }

    /// `/run/vm-agent`.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        self.root.join("run/vm-agent")
    }

    /// The proxy's secrets.
    #[must_use]
    pub fn sds_socket(&self) -> PathBuf {
        self.run_directory().join("sds.sock")
    }

    /// The proxy's configuration.
    #[must_use]
    pub fn xds_socket(&self) -> PathBuf {
        self.run_directory().join("xds.sock")
    }

    /// The command line's way in.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.run_directory().join("admin.sock")
    }

    /// Behind which the service manager starts the proxy.
    #[must_use]
    pub fn launch_socket(&self) -> PathBuf {
        self.root.join("run/vm-agent-proxy/launch.sock")
    }

    /// Which of the machines with this machine ID this one is, since its boot.
    #[must_use]
    pub fn instance_file(&self) -> PathBuf {
        self.state_directory().join("instance")
    }

    /// Held by the one agent that runs with this root.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.run_directory().join("lock")
    }
}

/// The name that a configuration may use for [`Paths::kube_token_file`].
pub(super) const KUBE_TOKEN: &str = "kube-token";
