//! A SPIFFE Workload API that serves what lies in a directory as PEM, for tests on a real control
//! plane: `cert.pem`, `key.pem` and `bundle.pem`, read again whenever `cert.pem` changes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use vm_agent::devmesh::{ClientIdentity, WorkloadApi};

/// A SPIFFE Workload API for tests. Nothing of it is for production.
#[derive(Parser)]
#[command(name = "vm-agent-workload-api", version)]
struct Args {
    /// Where it listens
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
    /// Where cert.pem, key.pem and bundle.pem are
    #[arg(long, value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Whose certificate it is
    #[arg(long, value_name = "SPIFFE-ID")]
    id: String,
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
    let api = WorkloadApi::serve(&args.socket)?;
    let mut pushed: Option<SystemTime> = None;
    loop {
        let changed = std::fs::metadata(args.directory.join("cert.pem"))?.modified()?;
        if pushed != Some(changed) {
            let (identity, bundle) = read(&args.directory)?;
            api.push(&args.id, &identity, &bundle);
            pushed = Some(changed);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn read(directory: &Path) -> anyhow::Result<(ClientIdentity, String)> {
    let text = |name: &str| std::fs::read_to_string(directory.join(name));
    let identity =
        ClientIdentity { chain_pem: text("cert.pem")?, key_pem: text("key.pem")?.into() };
    Ok((identity, text("bundle.pem")?))
}

const LOOK: Duration = Duration::from_millis(200);
