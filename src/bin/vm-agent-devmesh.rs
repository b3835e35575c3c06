//! The development mesh as a program: prints where it listens as one line of JSON and runs until
//! it is asked to stop.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use vm_agent::devmesh::{ISTIO_AUDIENCE, Mesh, Options, write_join_directory};

/// A small control plane on this machine, to try vm-agent with. Nothing of it is for production.
#[derive(Parser)]
#[command(name = "vm-agent-devmesh", version)]
struct Args {
    /// Where istiod listens, on loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the Kubernetes API listens, on loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    kube_listen: SocketAddr,
    /// Write a join directory in istioctl's format here
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// The namespace of the WorkloadGroup
    #[arg(long, default_value = "vms")]
    namespace: String,
    /// The WorkloadGroup, and its service account
    #[arg(long, default_value = "client")]
    group: String,
    /// Sign with an intermediate certificate
    #[arg(long)]
    intermediate: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where not even this can be written, the exit status has to do.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let options = Options {
        listen: args.listen,
        kube_listen: args.kube_listen,
        intermediate: args.intermediate,
        sweep_every: Some(SWEEP),
        ..Options::default()
    };
    let mesh = Mesh::start(options).await?;
    mesh.add_group(&format!("{}/{}", args.namespace, args.group));
    mesh.grant(&args.namespace, &args.group);
    if let Some(directory) = &args.directory {
        write_join_directory(
            directory,
            &mesh.join_spec(&args.namespace, &args.group, &args.group),
        )?;
    }
    let life = Duration::from_secs(3600);
    let about = serde_json::json!({
        "istiod": mesh.address().to_string(),
        "kubernetes": format!("https://{}", mesh.kube_address()),
        "directory": args.directory,
        "root": mesh.root_pem(),
        "token": mesh.token(&args.namespace, &args.group, ISTIO_AUDIENCE, life),
        "admin_token": mesh.admin_token(),
    });
    writeln!(std::io::stdout(), "{about}")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    mesh.go_away().await?;
    Ok(())
}

/// Soon after the grace time, without work worth mentioning.
const SWEEP: Duration = Duration::from_secs(5);
