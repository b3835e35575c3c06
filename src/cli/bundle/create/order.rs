//! The arguments that say what a bundle shall be.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::Args;
use crate::base::fsio;
use crate::cli::exit::{Exit, Failure};
use crate::identity::Roots;
use crate::kube::Chosen;
use crate::operator::{Group, Istio, Machines, Order, Registration};

/// Where machines find things.
#[derive(Debug, clap::Args)]
pub(super) struct Mesh {
    /// Who writes the machines' WorkloadEntries
    #[arg(long, value_name = "MODE", default_value = "kubernetes")]
    registration: Mode,
    /// Machines cannot reach the Kubernetes API: the same as --registration istiod
    #[arg(long, conflicts_with = "registration")]
    no_kubernetes: bool,
    /// The namespace of Istio's control plane
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    istio_namespace: String,
    /// The revision of Istio's control plane
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// istiod's address, which machines can resolve [default: the mesh's]
    #[arg(long, value_name = "HOST:PORT")]
    discovery_address: Option<String>,
    /// What machines dial to reach istiod, whose name they need not resolve then [default: the
    /// address of --gateway-service]
    #[arg(long, value_name = "IP-OR-NAME")]
    gateway: Option<String>,
    /// The Service of the gateway through which machines reach istiod
    #[arg(long, value_name = "NAME[.NAMESPACE]", default_value = "istio-eastwestgateway")]
    gateway_service: String,
    /// The cluster's name in the mesh [default: as the sidecar injector has it]
    #[arg(long, value_name = "NAME")]
    cluster_id: Option<String>,
    /// The API server as machines reach it [default: the kubeconfig's]
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,
    /// The roots of the API server [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    api_server_ca: Option<PathBuf>,
}

/// Who registers machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The machines themselves, through the Kubernetes API.
    Kubernetes,
    /// istiod, from the WorkloadGroup.
    Istiod,
}

/// Which machines a bundle is for.
#[derive(Debug, clap::Args)]
pub(super) struct MachineArgs {
    /// The machine's name, for a bundle that is for one machine
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What the names of all machines of the service account begin with; the policy refuses others
    /// [default: any name]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    name_prefix: String,
    /// How many machines the bundle is meant for. A note: Kubernetes cannot count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    uses: Option<u64>,
    /// A label key, besides those of the WorkloadGroup, that machines set as they like; may be given
    /// more than once
    #[arg(long, value_name = "KEY")]
    allow_label: Vec<String>,
    /// Let machines register a host name in the place of an IP address
    #[arg(long)]
    allow_host_names: bool,
}

impl MachineArgs {
    /// What clap cannot say.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let wrong = |what: &str| Err(Failure::new(Exit::Usage, anyhow::anyhow!("{what}")));
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let prefix = self.name_prefix.as_str();
        if !prefix.bytes().all(fits) || prefix.starts_with(['-', '.']) {
            return wrong(
                "--name-prefix: expected a-z, 0-9, '-' and '.', as names in Kubernetes have",
            );
        }
        let is_wrong = |key: &&String| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
            key.is_empty() || !key.bytes().all(fits)
        };
        if let Some(key) = self.allow_label.iter().find(is_wrong) {
            return wrong(&format!("--allow-label: {key:?} is no label key"));
        }
        match (&self.name, self.uses) {
            (None, Some(1)) => wrong("--uses 1 needs --name: the name of the one machine"),
            (Some(_), Some(uses)) if uses > 1 => {
                wrong("--name is for a bundle with --uses 1: machines cannot share a name")
            }
            (Some(name), _) if !name.starts_with(prefix) => {
                wrong("--name does not begin with --name-prefix")
            }
            _ => Ok(()),
        }
    }

    pub(super) fn machines(&self) -> Machines {
        let uses = self.uses.or_else(|| self.name.as_ref().map(|_| 1));
        Machines {
            name: self.name.clone(),
            name_prefix: self.name_prefix.clone(),
            uses,
            free_labels: self.allow_label.clone(),
            host_names: self.allow_host_names,
        }
    }
}

impl Mesh {
    pub(super) fn registers_by_kubernetes(&self) -> bool {
        self.registration == Mode::Kubernetes && !self.no_kubernetes
    }

    /// How machines register.
    pub(super) fn api(&self, chosen: &Chosen) -> Result<Registration, Failure> {
        if !self.registers_by_kubernetes() {
            return Ok(Registration::Istiod);
        }
        let wrong = |error: anyhow::Error| Failure::new(Exit::Configuration, error);
        let pem = match &self.api_server_ca {
            Some(path) => fsio::read_text(path, ROOT_BYTES).map_err(|error| wrong(error.into()))?,
            None => chosen.ca_pem.clone(),
        };
        let roots = Roots::from_pem(pem.as_bytes()).map_err(|error| {
            wrong(anyhow::Error::new(error).context("the roots of the API server cannot be used"))
        })?;
        if chosen.config.tls_server_name.is_some() && self.api_server.is_none() {
            let error = anyhow::anyhow!("machines cannot use the kubeconfig's tls-server-name");
            let hint =
                "name the API server as its certificate does: --api-server https://NAME:PORT";
            return Err(wrong(error).hint(hint.to_owned()));
        }
        let server = self.api_server.as_deref().unwrap_or(&chosen.config.server);
        Ok(Registration::Kubernetes { server: server.trim_end_matches('/').to_owned(), roots })
    }
}

impl Args {
    pub(super) fn order(&self, group: Group, registration: Registration) -> Order {
        let mesh = &self.mesh;
        Order {
            renew_with: self.again(&group),
            group,
            istio: Istio {
                namespace: mesh.istio_namespace.clone(),
                revision: mesh.revision.clone(),
                discovery_address: mesh.discovery_address.clone(),
                gateway: mesh.gateway.clone(),
                gateway_service: mesh.gateway_service.clone(),
                cluster_id: mesh.cluster_id.clone(),
            },
            registration,
            machines: self.machines.machines(),
            life: self.ttl,
        }
    }

    /// The command that makes such a bundle again. Which kubeconfig that takes is for the person
    /// to know who types it.
    fn again(&self, group: &Group) -> String {
        let mesh = &self.mesh;
        let mut words = format!("vm-agent bundle create {} -n {}", group.name, group.namespace);
        let usual = |text: &String, usual: &str| (text != usual).then(|| text.clone());
        let flags = [
            ("--registration", (!mesh.registers_by_kubernetes()).then(|| "istiod".to_owned())),
            ("--istio-namespace", usual(&mesh.istio_namespace, "istio-system")),
            ("--revision", mesh.revision.clone()),
            ("--discovery-address", mesh.discovery_address.clone()),
            ("--gateway", mesh.gateway.clone()),
            ("--gateway-service", usual(&mesh.gateway_service, "istio-eastwestgateway")),
            ("--cluster-id", mesh.cluster_id.clone()),
            ("--api-server", mesh.api_server.clone()),
            ("--api-server-ca", mesh.api_server_ca.as_ref().map(|path| path.display().to_string())),
            ("--name", self.machines.name.clone()),
            ("--name-prefix", usual(&self.machines.name_prefix, "")),
            ("--uses", self.machines.uses.map(|uses| uses.to_string())),
            ("--ttl", (self.ttl != DAY).then(|| format!("{}s", self.ttl.as_secs()))),
        ];
        for (flag, value) in flags {
            if let Some(value) = value {
                words.push_str(&format!(" {flag} {}", quoted(&value)));
            }
        }
        for key in &self.machines.allow_label {
            words.push_str(&format!(" --allow-label {}", quoted(key)));
        }
        for (flag, given) in [
            ("--allow-host-names", self.machines.allow_host_names),
            ("--no-rbac", self.no_rbac),
            ("--no-policy", self.no_policy),
        ] {
            if given {
                words.push(' ');
                words.push_str(flag);
            }
        }
        words.push_str(" -o bundle.yaml");
        words
    }
}

/// Quoted for a shell where it is needed.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-[]".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

const ROOT_BYTES: u64 = 1 << 20;
/// What `--ttl` is where nobody says it.
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn the_command_for_a_fresh_bundle_asks_for_the_same() {
        let group = serde_json::json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": "g"},
        });
        let group = Group::from_value(&group, "vms").unwrap();
        let again = |flags: &[&str]| {
            let command = <Args as clap::Args>::augment_args(clap::Command::new("create"));
            let given = command.get_matches_from([&["create", "g"], flags].concat());
            Args::from_arg_matches(&given).unwrap().again(&group)
        };
        let usual = "vm-agent bundle create g -n vms";
        assert_eq!(again(&[]), format!("{usual} -o bundle.yaml"));
        let flags = ["--gateway", "lb.example.com", "--name-prefix", "edge-", "--uses", "5"];
        let more = [
            "--ttl",
            "48h",
            "--allow-label",
            "zone",
            "--allow-host-names",
            "--no-rbac",
            "--no-policy",
        ];
        let given = again(&[&flags[..], &more[..]].concat()).replace("172800s", "48h");
        assert_eq!(given, format!("{usual} {} {} -o bundle.yaml", flags.join(" "), more.join(" ")));
    }
}
