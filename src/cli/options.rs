//! Options that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Put every path of the agent below DIR; several agents on one machine then never meet
    #[arg(long, global = true, value_name = "DIR", env = "VM_AGENT_ROOT", default_value = "/")]
    pub(super) root: PathBuf,
    /// Read this configuration instead of ROOT/etc/vm-agent/config.yaml
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Log more (-v debug, -vv trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// How log lines look
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings that `join` and `run` take on the command line.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct Overrides {
    /// The machine's name in the mesh [default: the short host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The address that others connect to [default: the source address of the route to istiod]
    #[arg(long, value_name = "IP-OR-NAME")]
    address: Option<String>,
    /// The mesh network that the machine is in
    #[arg(long)]
    network: Option<String>,
    /// Where the machine runs
    #[arg(long, value_name = "REGION[/ZONE[/SUBZONE]]")]
    locality: Option<String>,
    /// A label of the workload, besides those of the source; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// The namespace of the workload
    #[arg(long)]
    namespace: Option<String>,
    /// The service account whose identity the machine gets
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Who writes the WorkloadEntry: istiod, kubernetes or none
    #[arg(long, value_name = "MODE")]
    registration: Option<String>,
    /// The Kubernetes API server's URL, for --registration kubernetes
    #[arg(long, value_name = "URL")]
    kube_server: Option<String>,
    /// The root certificates of the Kubernetes API server
    #[arg(long, value_name = "FILE")]
    kube_ca: Option<PathBuf>,
    /// A service-account token for the Kubernetes API
    #[arg(long, value_name = "FILE")]
    kube_token_file: Option<PathBuf>,
    /// A kubeconfig, instead of the three options above
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The Envoy binary [default: PATH, then /usr/local/bin/envoy]
    #[arg(long, value_name = "PATH")]
    proxy_binary: Option<PathBuf>,
    /// How traffic is captured: nftables, iptables or none
    #[arg(long, value_name = "KIND")]
    capture: Option<String>,
    /// Set any setting, such as identity.ttl=12h; may be repeated
    #[arg(long = "set", value_name = "PATH=VALUE")]
    sets: Vec<String>,
}

/// One setting from the command line: the flag as origin, the path, the value's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlagSetting {
    /// `--name`, `--set`, …
    pub(super) flag: &'static str,
    /// The setting's path, one element a level.
    pub(super) path: Vec<String>,
    /// The value as typed.
    pub(super) value: String,
    /// Whether the value is text whatever it looks like (`--name 1` is the name "1").
    pub(super) literal: bool,
}

impl Overrides {
    /// The settings in the order in which they win: `--set` last.
    ///
    /// # Errors
    /// With the flag and the text of a `KEY=VALUE` that has no `=` or no key.
    pub(super) fn settings(&self) -> Result<Vec<FlagSetting>, String> {
        let mut all = self.plain();
        for label in &self.labels {
            let (key, value) = pair("--label", label)?;
            all.push(literal("--label", &["workload", "labels", key], value));
        }
        for set in &self.sets {
            let (path, value) = pair("--set", set)?;
            let path = path.split('.').map(str::to_owned).collect();
            all.push(FlagSetting { flag: "--set", path, value: value.to_owned(), literal: false });
        }
        Ok(all)
    }

    /// The settings that have a flag of their own, by path, and the flag.
    pub(super) fn flags() -> Vec<(String, &'static str)> {
        let (text, path) = (|| Some(String::new()), || Some(PathBuf::new()));
        let all = Self {
            name: text(),
            address: text(),
            network: text(),
            locality: text(),
            labels: Vec::new(),
            namespace: text(),
            service_account: text(),
            registration: text(),
            kube_server: text(),
            kube_ca: path(),
            kube_token_file: path(),
            kubeconfig: path(),
            proxy_binary: path(),
            capture: text(),
            sets: Vec::new(),
        };
        let flag = |one: FlagSetting| (one.path.join("."), one.flag);
        let label = ("workload.labels".to_owned(), "--label");
        all.plain().into_iter().map(flag).chain([label]).collect()
    }

    fn plain(&self) -> Vec<FlagSetting> {
        let absolute = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Some(path.to_string_lossy().into_owned())
        };
        let rows = [
            ("--name", &["workload", "name"][..], self.name.clone()),
            ("--address", &["workload", "address"], self.address.clone()),
            ("--network", &["workload", "network"], self.network.clone()),
            ("--locality", &["workload", "locality"], self.locality.clone()),
            ("--namespace", &["workload", "namespace"], self.namespace.clone()),
            ("--service-account", &["workload", "serviceAccount"], self.service_account.clone()),
            ("--registration", &["registration", "mode"], self.registration.clone()),
            ("--kube-server", &["registration", "kubernetes", "server"], self.kube_server.clone()),
            ("--kube-ca", &["registration", "kubernetes", "caFile"], absolute(&self.kube_ca)),
            (
                "--kube-token-file",
                &["registration", "kubernetes", "tokenFile"],
                absolute(&self.kube_token_file),
            ),
            (
                "--kubeconfig",
                &["registration", "kubernetes", "kubeconfig"],
                absolute(&self.kubeconfig),
            ),
            ("--proxy-binary", &["proxy", "binary"], absolute(&self.proxy_binary)),
            ("--capture", &["capture", "mode"], self.capture.clone()),
        ];
        let given = rows.into_iter().filter_map(|(flag, path, value)| Some((flag, path, value?)));
        given.map(|(flag, path, value)| literal(flag, path, &value)).collect()
    }
}

fn literal(flag: &'static str, path: &[&str], value: &str) -> FlagSetting {
    let path = path.iter().map(|&part| part.to_owned()).collect();
    FlagSetting { flag, path, value: value.to_owned(), literal: true }
}

fn pair<'a>(flag: &str, text: &'a str) -> Result<(&'a str, &'a str), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        _ => Err(format!("{flag} {text}: expected KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_wins_over_the_named_flag_by_coming_last() {
        let overrides = Overrides {
            name: Some("vm1".into()),
            labels: vec!["app=details".into()],
            sets: vec!["workload.name=vm2".into()],
            ..Overrides::default()
        };
        let all = overrides.settings().unwrap();
        let paths: Vec<_> = all.iter().map(|set| set.path.join(".")).collect();
        assert_eq!(paths, ["workload.name", "workload.labels.app", "workload.name"]);
    }

    #[test]
    fn a_label_key_with_dots_is_one_path_element() {
        let overrides =
            Overrides { labels: vec!["app.kubernetes.io/name=x".into()], ..Overrides::default() };
        let all = overrides.settings().unwrap();
        assert_eq!(all[0].path, ["workload", "labels", "app.kubernetes.io/name"]);
    }

    #[test]
    fn a_pair_without_a_value_is_refused_with_its_flag() {
        let overrides = Overrides { sets: vec!["identity.ttl".into()], ..Overrides::default() };
        assert_eq!(overrides.settings().unwrap_err(), "--set identity.ttl: expected KEY=VALUE");
    }
}
