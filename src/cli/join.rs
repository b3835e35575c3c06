//! `vm-agent join`: into the mesh, with every step shown, and nothing left when one fails.

mod checks;
mod kubernetes;
mod source;

use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Exit, Failure};
use super::logs;
use super::options::{Global, Overrides};
use super::progress::{Progress, Verdict};
use super::run::{finish, runtime, start};
use super::{capture, screen, service, settings, status};
use crate::agent::{Agent, Configuration, Reason};
use crate::capture::Capture;
use crate::config::{self, Document, Paths};
use crate::join::{Files, Layout, Source};

pub(super) use kubernetes::fresh_bundle;
pub(super) use source::bundle as read_bundle;

/// Arguments of `join`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A bundle that `vm-agent bundle create` made (`-`: on standard input), or a directory that
    /// `istioctl x workload entry configure` wrote [default: flags say it all]
    #[arg(value_name = "SOURCE")]
    source: Option<PathBuf>,
    /// Become the daemon instead of starting the service
    #[arg(long)]
    foreground: bool,
    /// How long to wait until the machine is ready (not with --foreground)
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = config::duration)]
    timeout: Duration,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut progress = Progress::default();
    let source = source::read(args.source.as_deref(), &mut progress)?;
    let paths = settings::paths(global);
    let document = source::document(&paths, source.as_ref(), &args.overrides)?;
    let loaded = settings::load(&document, global)?;
    let settings = &loaded.settings;
    if !args.foreground && !service::is_ours(global) {
        let error = anyhow::anyhow!("there is no systemd service vm-agent for this root");
        let hint = "add --foreground, or install the vm-agent package".to_owned();
        return Err(Failure::new(Exit::Usage, error).hint(hint));
    }
    let level = if args.foreground { settings.log.level.as_str() } else { "error" };
    logs::start(global, logs::Wanted { level, json: settings.log.json });
    let runtime = runtime()?;
    let renew_with =
        source.as_ref().and_then(|source| source.terms.clone()).unwrap_or_default().renew_with;
    let files = files(&paths, &document, source)?;
    let inputs =
        checks::Inputs { global, settings, renew_with: &renew_with, foreground: args.foreground };
    runtime.block_on(checks::all(&inputs, &files, &mut progress))?;
    let layout = Layout::apply(&files).map_err(|error| {
        let hint = (!nix::unistd::geteuid().is_root()).then(|| "try it with sudo".to_owned());
        Failure::new(Exit::Host, error).hint(hint)
    })?;
    let words = if layout.changed() { "written below" } else { "unchanged below" };
    progress.done("configuration", &format!("{words} {}", paths.config_directory().display()));
    if args.foreground {
        let configuration = settings::configuration(global, loaded, Overrides::default());
        runtime.block_on(foreground(global, configuration, layout, progress))
    } else {
        background(global, layout, progress, args.timeout)
    }
}

fn files(paths: &Paths, document: &Document, source: Option<Source>) -> Result<Files, Failure> {
    let yaml = config::write_yaml(&document.tree());
    let yaml =
        yaml.ok_or_else(|| super::other(anyhow::anyhow!("the settings have no YAML form")))?;
    let config = format!("{CONFIG_HEAD}{yaml}");
    let (root_pem, token, kubernetes) = source
        .map_or((None, None, None), |source| (source.root_pem, source.token, source.kubernetes));
    let (kube_ca, kube_token) =
        kubernetes.map(|api| (api.roots.pem().to_owned(), api.token)).unzip();
    Ok(Files {
        config: (paths.config_file(), config),
        root_cert: root_pem.map(|pem| (paths.root_cert(), pem)),
        kube_ca: kube_ca.map(|pem| (paths.kube_ca(), pem)),
        token: token.map(|token| (paths.token_file(), token)),
        kube_token: kube_token.map(|token| (paths.kube_token_file(), token)),
        state_directory: paths.state_directory(),
        run_directory: paths.run_directory(),
    })
}

/// Becomes the daemon; what was written is undone when the machine cannot join.
async fn foreground(
    global: &Global,
    configuration: Configuration,
    layout: Layout,
    mut progress: Progress,
) -> Result<(), Failure> {
    let mut agent = match start(global, configuration).await {
        Ok(agent) => agent,
        Err(failure) => {
            layout.undo();
            return Err(failure);
        }
    };
    match until_ready(&mut agent, &mut progress).await {
        Ok(None) => {
            succeed(&mut progress);
            let reason = agent.reason().await;
            finish(agent, reason).await
        }
        Ok(Some(reason)) => finish(agent, reason).await,
        Err(failure) => {
            agent.stop(&Reason::Quit).await;
            // A closed fail policy is for machines that have joined.
            let capture = Capture::new(settings::paths(global).capture_journal());
            capture.remove().await.map_err(capture::failure)?;
            layout.undo();
            Err(failure)
        }
    }
}

/// `None` when the machine is ready; a reason when the agent was told to end before.
async fn until_ready(
    agent: &mut Agent,
    progress: &mut Progress,
) -> Result<Option<Reason>, Failure> {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            reason = agent.reason() => return Ok(Some(reason)),
            _ = look.tick() => {}
        }
        let status = serde_json::to_value(agent.board().snapshot()).map_err(super::other)?;
        match progress.update(&status) {
            Verdict::Ready => return Ok(None),
            Verdict::Waiting => {}
            Verdict::Failed(failure) => return Err(failure),
        }
    }
}

/// Starts the service and watches it through its status.
fn background(
    global: &Global,
    layout: Layout,
    mut progress: Progress,
    limit: Duration,
) -> Result<(), Failure> {
    let before = service::Before::look();
    let failed = |layout: Layout, failure: Failure| {
        // The service must not go on trying what we take away.
        drop(service::disable());
        layout.undo();
        // A machine that was in the mesh stays in it.
        if let Err(error) = before.restore() {
            screen::failure(&error);
        }
        Err(failure)
    };
    if let Err(failure) = service::enable() {
        return failed(layout, failure);
    }
    let looks = limit.as_millis() / LOOK.as_millis();
    for _ in 0..=looks {
        if let Ok(now) = status::ask(global) {
            match progress.update(&now) {
                Verdict::Ready => {
                    succeed(&mut progress);
                    return Ok(());
                }
                Verdict::Waiting => {}
                Verdict::Failed(failure) => return failed(layout, failure),
            }
        }
        std::thread::sleep(LOOK);
    }
    let error =
        anyhow::anyhow!("the machine is not ready after {limit:?}; the service goes on trying");
    let hint = "`vm-agent status` and `journalctl -u vm-agent` show more".to_owned();
    Err(Failure::new(Exit::NotReady, error).hint(hint))
}

fn succeed(progress: &mut Progress) {
    progress.done("ready", "this machine is in the mesh (see `vm-agent status`)");
}

const CONFIG_HEAD: &str = "# Written by `vm-agent join`; see `vm-agent config show`.\n";
/// Fast enough to look live.
const LOOK: Duration = Duration::from_millis(50);
