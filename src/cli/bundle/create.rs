//! `vm-agent bundle create`: from a WorkloadGroup to a file that machines join with.

mod order;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::cluster::Cluster;
use crate::base::clock;
use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use crate::cli::exit::{Exit, Failure};
use crate::cli::run::runtime;
use crate::cli::screen::{self, Paint, paint};
use crate::config;
use crate::kube::Client;
use crate::operator::{Doors, Grants, Group, Manifest, Operator, OperatorError};

/// Arguments of `bundle create`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// An existing WorkloadGroup
    #[arg(
        value_name = "WORKLOAD-GROUP",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    group: Option<String>,
    /// A file with a WorkloadGroup, which is applied first
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The WorkloadGroup's namespace [default: the context's, then default]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// Where to write the bundle, readable by its owner alone; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Print the objects that would be made, as YAML, and make nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mesh: order::Mesh,
    #[command(flatten)]
    machines: order::MachineArgs,
    /// How long the bundle can be used; the API server may grant less
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = config::duration)]
    ttl: Duration,
    /// Leave out the ServiceAccount, the Role and the RoleBinding: they are there
    #[arg(long)]
    no_rbac: bool,
    /// Leave out the admission policies, without which one machine can take another account's
    /// WorkloadEntries, any labels and weight, and make tokens for years
    #[arg(long)]
    no_policy: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    args.machines.check()?;
    if args.ttl < SHORTEST {
        let error = anyhow::anyhow!("--ttl: Kubernetes makes no token for less than 10m");
        return Err(Failure::new(Exit::Usage, error));
    }
    if !args.dry_run {
        check_output(&args.output)?;
    }
    runtime()?.block_on(async {
        match (&args.file, args.dry_run) {
            // What a file says is enough to print.
            (Some(file), true) => {
                let namespace = args.namespace.as_deref().unwrap_or("default");
                print(args, &read_group(file, namespace)?, &[], true)
            }
            _ => with_cluster(args).await,
        }
    })
}

async fn with_cluster(args: &Args) -> Result<(), Failure> {
    let chosen = args.cluster.choose().await?;
    let namespace = args.namespace.clone().or_else(|| chosen.namespace.clone());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    let api = args.mesh.api(&chosen)?;
    let clock = clock::system();
    let client =
        Client::new(chosen.config, Arc::clone(&clock)).map_err(|error| failed(error.into()))?;
    let doors = Doors { parse_yaml: config::parse_yaml, check_settings };
    let operator = Operator::new(Arc::new(client), doors, clock);
    let group = match (&args.file, &args.group) {
        (Some(file), _) => read_group(file, &namespace)?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            operator.group(&namespace, name).await.map_err(failed)?
        }
    };
    if args.dry_run {
        let siblings = operator.siblings(&group).await.map_err(failed)?;
        let bound = operator.may_bind(&group).await.map_err(failed)?;
        return print(args, &group, &siblings, bound);
    }
    let siblings = operator.siblings(&group).await.map_err(failed)?;
    let bound = operator.may_bind(&group).await.map_err(failed)?;
    let order = args.order(group, api);
    // Everything that can be found wrong is found before the first object is made.
    let prepared = operator.prepare(&order).await.map_err(failed)?;
    let grants =
        Grants { group: &order.group, siblings: &siblings, machines: &order.machines, bound };
    let manifests = manifests(args, grants);
    for manifest in &manifests {
        operator.check(manifest).await.map_err(failed)?;
    }
    for manifest in &manifests {
        let done = operator.apply(manifest).await.map_err(failed)?;
        screen::say(&format!("{} {done}", paint(Paint::Good, "✓")));
    }
    let made = operator.bundle(&order, prepared).await.map_err(failed)?;
    if let Err(failure) = write(&args.output, &made.bundle.to_value()) {
        // Nobody has its tokens.
        if let Err(error) = operator.revoke(&made.bundle).await {
            screen::failure(&failed(error));
        }
        return Err(failure);
    }
    words::tell(args, &order, &made);
    Ok(())
}

/// Everything that shall be in the cluster.
fn manifests(args: &Args, grants: Grants<'_>) -> Vec<Manifest> {
    let mut all = Vec::new();
    if args.file.is_some() {
        all.push(grants.group.manifest());
    }
    if !args.no_rbac {
        all.push(grants.account());
    }
    if args.mesh.registers_by_kubernetes() {
        if !args.no_rbac {
            all.extend(grants.rbac());
        }
        if !args.no_policy {
            all.extend(grants.policy());
        }
    }
    all
}

fn print(args: &Args, group: &Group, siblings: &[Group], bound: bool) -> Result<(), Failure> {
    let machines = args.machines.machines();
    for manifest in manifests(args, Grants { group, siblings, machines: &machines, bound }) {
        screen::out(&format!("---\n{}", yaml(&manifest.body)?.trim_end()))?;
    }
    Ok(())
}

fn read_group(file: &Path, namespace: &str) -> Result<Group, Failure> {
    let origin = file.display().to_string();
    let text = fsio::read_text(file, config::MAX_BYTES)
        .map_err(|error| Problems(vec![Problem::new(&*origin, "", error.without_path())]))?;
    let value = config::parse_yaml(&text, &origin).map_err(|problem| Problems(vec![problem]))?;
    Group::from_value(&value, namespace).map_err(|error| {
        Failure::new(Exit::Configuration, anyhow::Error::new(error).context(origin))
    })
}

/// What a machine would find wrong with the settings.
fn check_settings(settings: &Map<String, Value>) -> Result<(), Problems> {
    let mut document = config::Document::new();
    let mut settings = settings.clone();
    // Whether the probe's program exists is for the machines to find out.
    if let Some(Value::Object(mesh)) = settings.get_mut("mesh")
        && let Some(Value::Object(proxy)) = mesh.get_mut("proxyConfig")
    {
        proxy.remove("readinessProbe");
    }
    document.add(&Value::Object(settings), &|_| "the WorkloadGroup or the mesh".to_owned());
    let api = document.tree().pointer("/registration/kubernetes").is_some();
    for field in ["caFile", "tokenFile"].iter().filter(|_| api) {
        let path = ["registration", "kubernetes", field].map(str::to_owned);
        document.set(&path, "/".into(), "the bundle");
    }
    config::load(&document, &config::Paths::new(Path::new("/"))).map(drop)
}

/// Whether a bundle can be written there, asked before anything is made in the cluster.
fn check_output(output: &Path) -> Result<(), Failure> {
    let wrong = |what: &str| {
        let error = anyhow::anyhow!("--output {}: {what}", output.display());
        Err(Failure::new(Exit::Host, error))
    };
    if output == Path::new("-") {
        return Ok(());
    }
    // A new file takes the place of the old one: of a device or a link that would be no joke.
    match output.symlink_metadata() {
        Ok(about) if !about.is_file() => return wrong("it exists, and is no regular file"),
        _ => {}
    }
    let output = std::path::absolute(output).unwrap_or_else(|_| output.to_owned());
    if output.parent().is_some_and(Path::is_dir) {
        Ok(())
    } else {
        wrong("there is no such directory")
    }
}

fn write(output: &Path, bundle: &Value) -> Result<(), Failure> {
    let yaml = zeroize::Zeroizing::new(yaml(bundle)?);
    if output == Path::new("-") {
        return screen::out(yaml.trim_end());
    }
    let output = std::path::absolute(output).unwrap_or_else(|_| output.to_owned());
    let written = fsio::replace(&output, yaml.as_bytes(), fsio::SECRET);
    written.map_err(|error| Failure::new(Exit::Host, error))
}

fn yaml(value: &Value) -> Result<String, Failure> {
    let yaml = config::write_yaml(value);
    yaml.ok_or_else(|| crate::cli::other(anyhow::anyhow!("it has no YAML form")))
}

fn failed(error: OperatorError) -> Failure {
    let exit = match &error {
        OperatorError::Kube(error) => match error.code() {
            Some(401) => Exit::Credential,
            Some(_) => Exit::Other,
            None => Exit::ControlPlane,
        },
        OperatorError::NoGroup { .. } => Exit::Other,
        _ => Exit::Configuration,
    };
    let hint = error.hint();
    Failure::new(exit, error).hint(hint)
}

/// Kubernetes makes no token for less (`pkg/apis/authentication/validation`).
const SHORTEST: Duration = Duration::from_secs(600);
const AFTER_HELP: &str = "\
A bundle holds the tokens of its service account: whoever has the file can join as it until it
expires. Kubernetes cannot count uses; --uses is a note in the bundle, and --uses 1 gives it the one
name that it is for. To take a bundle back, delete its Secret, which `vm-agent bundle inspect` names.";
