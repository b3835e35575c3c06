//! `vm-agent leave`: out of the mesh, and nothing left behind, whatever state the machine is in:
//! joined, half joined, or with an agent that has died.

mod entry;

use std::time::Duration;

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::run::runtime;
use super::screen::{self, Paint, paint};
use super::service::{Service, UNIT};
use super::{capture, settings, sudo_hint};
use crate::base::fsio::FileError;
use crate::capture::{Capture, Removed};
use crate::config::{Loaded, Paths, Settings};
use crate::doctor::is_locked;
use crate::envoy::{end_leftover, living};
use crate::join::Remains;
use crate::secrets::remove_export;
use crate::status::{self, AskError, Wish};

/// Arguments of `leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave even when the WorkloadEntry cannot be removed
    #[arg(long)]
    force: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let mut leave = Leave::look(global, args);
    if args.dry_run {
        return leave.tell();
    }
    super::needs_root(global, "only root can stop the agent's service and remove its files")?;
    runtime()?.block_on(leave.steps())?;
    let (existed, failure) = (leave.did > 0, leave.failures.into_iter().next());
    match failure {
        Some(failure) => Err(failure),
        None => {
            let words = if existed {
                "this machine has left the mesh"
            } else {
                "this machine was not in a mesh"
            };
            screen::say(&format!("{} {words}", paint(Paint::Good, "✓")));
            Ok(())
        }
    }
}

/// A machine that leaves.
struct Leave<'a> {
    global: &'a Global,
    force: bool,
    paths: Paths,
    /// The settings, or why there are none; `None` where no configuration is there.
    settings: Option<Result<Box<Settings>, Failure>>,
    service: Option<Service>,
    /// Steps that did something.
    did: usize,
    /// What could not be done, but did not end the way out either.
    failures: Vec<Failure>,
}

/// Who runs the agent now.
enum Running {
    Nobody,
    Service,
    /// Somebody who started it by hand.
    Hand,
}

impl<'a> Leave<'a> {
    fn look(global: &'a Global, args: &Args) -> Self {
        let paths = settings::paths(global);
        let joined = paths.config_file().exists() || global.config.is_some();
        let read = || {
            let document = settings::from_file(global, &Overrides::default())?;
            let Loaded { settings, .. } = settings::load(&document, global)?;
            Ok(Box::new(settings))
        };
        Self {
            global,
            force: args.force,
            settings: joined.then(read),
            service: Service::installed(global),
            paths,
            did: 0,
            failures: Vec::new(),
        }
    }

    /// Each thing after the other; what holds something else comes first.
    async fn steps(&mut self) -> Result<(), Failure> {
        self.stop_service()?;
        self.stop_agent().await?;
        self.end_proxy().await;
        self.deregister().await?;
        self.release_traffic().await;
        self.remove_exports();
        self.remove_files();
        Ok(())
    }

    fn stop_service(&mut self) -> Result<(), Failure> {
        let Some(service) = self.service.clone() else { return Ok(()) };
        if service.is_enabled() {
            service.disable()?;
            self.done(&format!("{UNIT} does not start at boot any more"));
        }
        if service.last_run().is_some_and(|run| run.is_over()) {
            service.forget_failure();
            return Ok(());
        }
        screen::say("  draining the proxy and stopping the service …");
        service.stop()?;
        service.forget_failure();
        self.done(&format!("{UNIT} is stopped"));
        Ok(())
    }

    /// An agent that somebody runs by hand. Nothing is removed under an agent that runs.
    async fn stop_agent(&mut self) -> Result<(), Failure> {
        let (socket, lock) = (self.paths.admin_socket(), self.paths.lock_file());
        match status::order(&socket, Wish::Stop) {
            Ok(()) => {}
            Err(AskError::Denied { socket }) => {
                return Err(super::status::failure(AskError::Denied { socket }));
            }
            Err(_) if !is_locked(&lock) => return Ok(()),
            Err(error) => {
                let failure = super::status::failure(error);
                if failure.exit == Exit::Host {
                    // It is not the agent that is at fault.
                    return Err(failure);
                }
                let hint = format!("end it (`fuser -k {}`), and leave again", lock.display());
                return Err(failure.hint(hint));
            }
        }
        screen::say("  draining the proxy and stopping the agent …");
        let looks = STOP_LIMIT.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            if !is_locked(&lock) {
                self.done("the agent is stopped");
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        let error = anyhow::anyhow!("the agent did not stop within {STOP_LIMIT:?}");
        let hint = "look at its log, then end it and leave again".to_owned();
        Err(Failure::new(Exit::Other, error).hint(hint))
    }

    /// A proxy that has outlived its agent.
    async fn end_proxy(&mut self) {
        let directory = self.paths.run_directory();
        let Some(pid) = living(&directory) else { return };
        screen::say("  draining the proxy that an agent left …");
        end_leftover(&directory).await;
        if living(&directory).is_none() {
            self.done(&format!("the proxy that a dead agent had left is ended (pid {pid})"));
        } else {
            let error = anyhow::anyhow!("the proxy, pid {pid}, could not be ended");
            self.failed(Failure::new(Exit::Proxy, error).hint(sudo_hint()));
        }
    }

    async fn deregister(&mut self) -> Result<(), Failure> {
        let removed = match self.settings.take() {
            None => return Ok(()),
            Some(Ok(settings)) => {
                let removed = entry::deregister(self.global, &settings).await;
                self.settings = Some(Ok(settings));
                removed
            }
            Some(Err(failure)) => Err(failure),
        };
        match removed {
            Ok(Some(words)) => self.done(&words),
            Ok(None) => {}
            Err(failure) if self.force => self.failed_mildly(&failure),
            Err(failure) => {
                let hint = failure.hint.clone().unwrap_or_default();
                let way = "`vm-agent leave --force` leaves all the same";
                let hint = if hint.is_empty() { way.to_owned() } else { format!("{hint}; {way}") };
                return Err(failure.hint(hint));
            }
        }
        Ok(())
    }

    /// Whatever the fail policy left in place, and what a killed agent could not take away.
    async fn release_traffic(&mut self) {
        let rules = Capture::new(self.paths.capture_journal());
        match rules.remove().await {
            Ok(Removed::Nothing) => {}
            Ok(Removed::Undone) => self.done("the redirect rules are removed"),
            Err(error) => self.failed(capture::failure(error)),
        }
    }

    /// Keys that were written for other programs.
    fn remove_exports(&mut self) {
        let Some(Ok(settings)) = &self.settings else { return };
        let Some(directory) = settings.identity.export_directory.clone() else { return };
        match remove_export(&directory) {
            Ok(false) => {}
            Ok(true) => {
                let words = format!("key and certificate in {} are removed", directory.display());
                self.done(&words);
            }
            Err(error) => self.failed(host(error)),
        }
    }

    fn remove_files(&mut self) {
        if !self.failures.is_empty() && !self.force {
            // The journal of what could not be undone lies there.
            return;
        }
        let remains = self.remains();
        match remains.remove() {
            Ok(()) => {
                for path in &remains.ours {
                    self.done(&format!("{} is removed", path.display()));
                }
            }
            Err(error) => self.failed(host(error)),
        }
        for path in &remains.others {
            let words = format!("{} stays: it was not made by vm-agent", path.display());
            screen::say(&format!("{} {words}", paint(Paint::Warn, "!")));
        }
    }

    fn remains(&self) -> Remains {
        let paths = &self.paths;
        let own = [paths.run_directory(), paths.state_directory()];
        let beside = [paths.root_cert(), paths.kube_ca()];
        Remains::find(paths.root(), &own, &paths.config_file(), &beside)
    }

    /// What would be done.
    fn tell(&self) -> Result<(), Failure> {
        let mut all = Vec::new();
        let running = self.running();
        if self.service.as_ref().is_some_and(Service::is_enabled) {
            all.push(format!("disable {UNIT}"));
        }
        match running {
            Running::Service => all.push(format!("drain the proxy and stop {UNIT}")),
            Running::Hand => all.push("drain the proxy and stop the agent".to_owned()),
            Running::Nobody => {
                let proxy = living(&self.paths.run_directory());
                all.extend(proxy.map(|pid| format!("end the proxy, pid {pid}")));
            }
        }
        match &self.settings {
            Some(Ok(settings)) => all.extend(entry::preview(settings)),
            Some(Err(failure)) => all.push(format!("fail without --force: {:#}", failure.error)),
            None => {}
        }
        if Capture::new(self.paths.capture_journal()).has_journal() {
            all.push("remove the redirect rules".to_owned());
        }
        let remains = self.remains();
        all.extend(remains.ours.iter().map(|path| format!("remove {}", path.display())));
        let stay = remains.others.iter();
        all.extend(stay.map(|path| format!("leave {}, which others made", path.display())));
        if all.is_empty() {
            all.push("nothing: this machine is not in a mesh".to_owned());
        }
        screen::out("Nothing was changed. Leaving would do this:")?;
        all.iter().try_for_each(|line| screen::out(&format!("  {line}")))
    }

    fn running(&self) -> Running {
        let run = self.service.as_ref().and_then(Service::last_run);
        if run.is_some_and(|run| !run.is_over()) {
            Running::Service
        } else if is_locked(&self.paths.lock_file()) {
            Running::Hand
        } else {
            Running::Nobody
        }
    }

    fn done(&mut self, words: &str) {
        self.did = self.did.saturating_add(1);
        screen::say(&format!("{} {words}", paint(Paint::Good, "✓")));
    }

    fn failed(&mut self, failure: Failure) {
        self.failed_mildly(&failure);
        self.failures.push(failure);
    }

    fn failed_mildly(&self, failure: &Failure) {
        screen::say(&format!("{} not done: {:#}", paint(Paint::Warn, "!"), failure.error));
    }
}

fn host(error: FileError) -> Failure {
    Failure::new(Exit::Host, error).hint(sudo_hint())
}

/// Draining takes as long as the mesh's settings say, some seconds as a rule.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(100);
