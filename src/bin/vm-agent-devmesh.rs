//! The development mesh as a program: prints where it listens as one line of JSON and runs until
//! it is asked to stop.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use vm_agent::base::fsio;
use vm_agent::devmesh::{Mesh, MutualTls, Options, Resource, write_join_directory};

/// A small control plane to try vm-agent with. Nothing of it is for production.
#[derive(Parser)]
#[command(name = "vm-agent-devmesh", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the mesh until SIGINT or SIGTERM
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// Keep objects, keys and the kubeconfig here; what is there is gone on with
    #[arg(long, value_name = "DIRECTORY")]
    state: PathBuf,
    /// The address of all servers, a loopback or a private one
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// istiod's port: certificates and configuration; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 15012)]
    istiod_port: u16,
    /// The Kubernetes API's port; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    kube_port: u16,
    /// The port for the picture, faults and the rotation of roots; 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    admin_port: u16,
    /// Ask the machines every second, at this port of their status servers, what they say of
    /// themselves and their calls, to show it
    #[arg(long, value_name = "PORT")]
    status_port: Option<u16>,
    /// How long certificates live, such as 90s or 24h
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    cert_ttl: Duration,
    /// How long the entry of a machine that has gone is kept
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    grace: Duration,
    /// The trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// Take calls without mutual TLS where no PeerAuthentication says otherwise
    #[arg(long)]
    permissive: bool,
    /// Sign with an intermediate certificate
    #[arg(long)]
    intermediate: bool,
    /// Make a WorkloadGroup, NAMESPACE/NAME, and write a join directory for it in istioctl's format
    #[arg(long, value_name = "GROUP=DIRECTORY", value_parser = join)]
    join: Vec<(String, PathBuf)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Command::Serve(serve) = Cli::parse().command;
    match run(serve).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where not even this can be written, the exit status has to do.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(serve: Serve) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    fsio::make_directory(&serve.state, PRIVATE)?;
    let at = |port| SocketAddr::new(serve.listen, port);
    let mesh = Mesh::start(Options {
        state: Some(serve.state.clone()),
        listen: at(serve.istiod_port),
        kube_listen: at(serve.kube_port),
        admin_listen: Some(at(serve.admin_port)),
        status_port: serve.status_port,
        trust_domain: serve.trust_domain,
        default_ttl: serve.cert_ttl,
        intermediate: serve.intermediate,
        mutual_tls: if serve.permissive { MutualTls::Permissive } else { MutualTls::Strict },
        grace: serve.grace,
        sweep_every: Some(SWEEP),
        ..Options::default()
    })
    .await?;
    let kubeconfig = serve.state.join("kubeconfig");
    fsio::replace(&kubeconfig, mesh.kubeconfig().as_bytes(), fsio::SECRET)?;
    for namespace in ["default", "istio-system"] {
        mesh.add_namespace(namespace);
    }
    for (group, directory) in &serve.join {
        join_directory(&mesh, group, directory)?;
    }
    let about = serde_json::json!({
        "istiod": mesh.address().to_string(),
        "kubernetes": format!("https://{}", mesh.kube_address()),
        "kubeconfig": kubeconfig,
        "admin": mesh.admin_address().map(|address| format!("http://{address}")),
    });
    writeln!(std::io::stdout(), "{about}")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    mesh.go_away().await?;
    Ok(())
}

fn join_directory(mesh: &Mesh, group: &str, directory: &Path) -> anyhow::Result<()> {
    let (namespace, name) = group.split_once('/').unwrap_or(("default", group));
    mesh.add_namespace(namespace);
    mesh.objects().put(Resource::ServiceAccounts, namespace, name, serde_json::json!({}));
    mesh.add_group(group);
    mesh.grant(namespace, name);
    write_join_directory(directory, &mesh.join_spec(namespace, name, name))?;
    Ok(())
}

fn join(text: &str) -> Result<(String, PathBuf), String> {
    let (group, directory) = text.split_once('=').ok_or("it must be GROUP=DIRECTORY")?;
    Ok((group.to_owned(), directory.into()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "it must be a number with s, m, h or d")?;
    let unit = match text.strip_prefix(digits) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 24 * 3600,
        _ => return Err("its unit must be s, m, h or d".to_owned()),
    };
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=MOST).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| "it must be between 1s and 90d".to_owned())
}

/// Soon after the grace time, without work worth mentioning.
const SWEEP: Duration = Duration::from_secs(5);
/// Keys and tokens are in there.
const PRIVATE: u32 = 0o700;
/// istiod's longest life of a certificate.
const MOST: u64 = 90 * 24 * 3600;
