//! `vm-agent join`: into the mesh, with every phase shown, and nothing left when one fails.

mod background;
mod checks;
mod dry_run;
mod follow;
mod foreground;
mod joined;
mod kubernetes;
mod outcome;
mod proofs;
mod source;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::interrupt::{Interrupts, interrupted};
use super::options::{Global, Overrides};
use super::progress::{Phase, Progress, Shape};
use super::run::runtime;
use super::service::Service;
use super::{logs, screen, settings};
use crate::config::{self, Document, Loaded, Paths};
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
    /// Make the checks, print what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON event a line (see docs/commands.md)
    #[arg(long)]
    json: bool,
    /// Let the source name a program that this machine runs: an exec probe
    #[arg(long)]
    allow_exec: bool,
    /// How long to wait until the machine is ready (not with --foreground)
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = config::duration)]
    timeout: Duration,
    #[command(flatten)]
    overrides: Overrides,
}

impl Args {
    /// The daemon's log and lines that are redrawn would spoil each other.
    fn shape(&self) -> Shape {
        match self {
            Self { json: true, .. } => Shape::Json,
            Self { foreground: false, .. } if screen::is_live() => Shape::Live,
            _ => Shape::Plain,
        }
    }
}

pub(super) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let progress = Progress::new(args.shape());
    let ended = join(global, args, &progress);
    if let Err(failure) = &ended {
        progress.end(Err(failure));
    }
    ended
}

/// A join whose source has been read.
struct Job<'a> {
    global: &'a Global,
    args: Args,
    progress: &'a Progress,
    loaded: Loaded,
    files: Files,
    /// The command that makes a fresh bundle; empty without one.
    renew_with: String,
    /// Where the source lies; empty where flags say it all.
    place: String,
    way: Way,
}

/// What becomes of the machine.
enum Way {
    /// This process becomes the daemon.
    Foreground,
    /// systemd runs it.
    Service(Service),
}

fn join(global: &Global, args: Args, progress: &Progress) -> Result<(), Failure> {
    progress.begin(Phase::Checks);
    let source = source::read(args.source.as_deref(), progress)?;
    let paths = settings::paths(global);
    let document = source::document(&paths, source.as_ref(), &args.overrides, progress)?;
    let loaded = settings::load(&document, global)?;
    if let Some(source) = &source {
        source::check(source, args.allow_exec)?;
    }
    let way = way(global, &args)?;
    let log = &loaded.settings.log;
    let level = if matches!(way, Way::Foreground) { log.level.as_str() } else { "error" };
    logs::start(global, logs::Wanted { level, json: log.json });
    let terms = source.as_ref().and_then(|source| source.terms.clone()).unwrap_or_default();
    let place = source.as_ref().map(|source| source.place.clone()).unwrap_or_default();
    let files = files(&paths, &document, source)?;
    let renew_with = terms.renew_with;
    let job = Job { global, args, progress, loaded, files, renew_with, place, way };
    let runtime = runtime()?;
    let ended = runtime.block_on(Box::pin(job.run()));
    // As in `run`: nothing that hangs in a file system is waited for.
    runtime.shutdown_background();
    ended
}

fn way(global: &Global, args: &Args) -> Result<Way, Failure> {
    if args.foreground {
        return Ok(Way::Foreground);
    }
    let Some(service) = Service::installed(global) else {
        let error = anyhow::anyhow!("there is no systemd service vm-agent for this root");
        let hint = "add --foreground, or install the vm-agent package".to_owned();
        return Err(Failure::new(Exit::Usage, error).hint(hint));
    };
    // A dry run shows as much as this user may see.
    if !args.dry_run {
        super::needs_root(global, "only root can place the agent's files and start its service")?;
    }
    Ok(Way::Service(service))
}

impl Job<'_> {
    async fn run(self) -> Result<(), Failure> {
        let mut interrupts = Interrupts::new()?;
        let joined = joined::Joined::read(&settings::paths(self.global));
        if let Some(joined) = &joined {
            joined.check(&self.loaded.settings)?;
        }
        if let Way::Service(service) = &self.way
            && !self.args.dry_run
            && self.files.are_in_place()
            && service.last_run().is_some_and(|run| run.is_active())
        {
            self.progress.done(Phase::Checks, "this machine has joined from the same source");
            let again = background::Job { join: &self, service, placed: None };
            return Box::pin(again.run(&mut interrupts)).await;
        }
        let inputs = checks::Inputs {
            global: self.global,
            settings: &self.loaded.settings,
            renew_with: &self.renew_with,
            place: &self.place,
            foreground: matches!(self.way, Way::Foreground),
            serves: joined.is_some_and(|joined| joined.serves),
        };
        let checks = Box::pin(checks::all(&inputs, &self.files, self.progress));
        let capture = attend(self.progress, &mut interrupts, checks).await?;
        self.progress.done(Phase::Checks, "this machine can join");
        if self.args.dry_run {
            return dry_run::show(&self, capture).await;
        }
        let layout = self.place()?;
        match &self.way {
            Way::Service(service) => {
                let first = background::Job { join: &self, service, placed: Some(layout) };
                Box::pin(first.run(&mut interrupts)).await
            }
            Way::Foreground => Box::pin(foreground::run(self, layout, interrupts)).await,
        }
    }

    fn place(&self) -> Result<Layout, Failure> {
        self.progress.begin(Phase::Files);
        let layout = Layout::apply(&self.files)
            .map_err(|error| Failure::new(Exit::Host, error).hint(super::sudo_hint()))?;
        let words = if layout.changed() { "written below" } else { "unchanged below" };
        let directory = settings::paths(self.global).config_directory();
        self.progress.done(Phase::Files, &format!("{words} {}", directory.display()));
        Ok(layout)
    }

    /// Phases that go on side by side once a daemon runs.
    fn begin_the_rest(&self) {
        follow::phases(&self.loaded.settings).for_each(|phase| self.progress.begin(phase));
    }

    /// The machine is in the mesh.
    async fn succeed(&self, status: &Value, result: outcome::Kind) {
        let outcome = outcome::Outcome::find(status, &self.loaded.settings).await;
        self.progress.done(Phase::Ready, &outcome.sentence(result));
        self.progress.end(Ok(&outcome.event(result, self.progress.elapsed())));
    }
}

/// Waits for a step of a join, with a sign of life; a signal ends the wait.
async fn attend<T>(
    progress: &Progress,
    interrupts: &mut Interrupts,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut step = std::pin::pin!(step);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            biased;
            signal = interrupts.next() => return Err(interrupted(signal)),
            result = &mut step => return result,
            _ = tick.tick() => progress.tick(),
        }
    }
}

fn files(paths: &Paths, document: &Document, source: Option<Source>) -> Result<Files, Failure> {
    let yaml = config::write_yaml(&document.tree());
    let yaml =
        yaml.ok_or_else(|| super::other(anyhow::anyhow!("the settings have no YAML form")))?;
    let config = format!("{}{yaml}", Files::CONFIG_HEAD);
    let (root_pem, token, kubernetes) = source
        .map_or((None, None, None), |source| (source.root_pem, source.token, source.kubernetes));
    let (kube_ca, kube_token) =
        kubernetes.map(|api| (api.roots.pem().to_owned(), api.token)).unzip();
    Ok(Files {
        config: (paths.config_file(), config),
        root_cert: root_pem.map(|pem| (paths.root_cert(), pem)),
        root_record: paths.root_record(),
        kube_ca: kube_ca.map(|pem| (paths.kube_ca(), pem)),
        token: token.map(|token| (paths.token_file(), token)),
        kube_token: kube_token.map(|token| (paths.kube_token_file(), token)),
        state_directory: paths.state_directory(),
        run_directory: paths.run_directory(),
        identity: paths.identity(),
    })
}

/// How often the sign of life turns.
const TICK: Duration = Duration::from_millis(100);
/// How often the daemon is asked: fast enough to look live.
const LOOK: Duration = Duration::from_millis(50);
