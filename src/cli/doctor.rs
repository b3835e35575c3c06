//! `vm-agent doctor`: what is wrong, why, and what mends it.

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::run::{runtime, search_path};
use super::{screen, service, settings};
use crate::base::clock;
use crate::base::trouble::chain;
use crate::doctor::{Answer, Blame, Finding, Patient, Report, State, examine};
use crate::status::{self, AskError};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON with a schema number
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let patient = patient(global, &args.overrides)?;
    let report = runtime()?.block_on(examine(&patient));
    if args.json {
        screen::out(&serde_json::to_string_pretty(&report).map_err(super::other)?)?;
    } else {
        screen::out(render(&report).trim_end())?;
    }
    let Some(first) = report.first().filter(|_| report.state == State::Failed) else {
        return Ok(());
    };
    let error = anyhow::anyhow!("{}: {}", first.id.name(), first.cause);
    Err(Failure::new(exit(first.blame), error).hint(first.mend.clone()))
}

/// This machine, with what the service manager and the daemon say of it.
pub(super) fn patient(global: &Global, overrides: &Overrides) -> Result<Patient, Failure> {
    let paths = settings::paths(global);
    let document = settings::from_file(global, overrides).map_err(settings::problems_of);
    let configuration = match document {
        Ok(document) => crate::config::load(&document, &paths),
        Err(Ok(problems)) => Err(problems),
        // A wrong command line is no matter for a doctor.
        Err(Err(failure)) => return Err(failure),
    };
    let daemon = match status::ask(&paths.admin_socket()) {
        Ok(status) => Answer::Status(status),
        Err(AskError::Nobody { .. }) => Answer::Nobody,
        Err(error) => Answer::Silence(chain(&error)),
    };
    Ok(Patient {
        config_file: global.config.clone().unwrap_or_else(|| paths.config_file()),
        paths,
        configuration,
        search_path: search_path(),
        daemon,
        unit: service::shown(global),
        clock: clock::system(),
    })
}

/// One line a check; below it, what it is known by and what mends it.
fn render(report: &Report) -> String {
    let mut screen = String::new();
    for finding in &report.findings {
        let Finding { id, state, cause, evidence, mend, .. } = finding;
        let mark = match state {
            State::Ok => "✓",
            State::Warning => "!",
            State::Failed => "✗",
            State::Skipped => "-",
        };
        screen.push_str(&format!("{mark} {:<15}{cause}\n", id.name()));
        if !matches!(state, State::Warning | State::Failed) {
            continue;
        }
        for line in evidence {
            screen.push_str(&format!("    known by: {line}\n"));
        }
        if let Some(mend) = mend {
            screen.push_str(&format!("    mend it: {mend}\n"));
        }
    }
    let count = |state| report.findings.iter().filter(|finding| finding.state == state).count();
    let (good, warned) = (count(State::Ok), count(State::Warning));
    let (failed, skipped) = (count(State::Failed), count(State::Skipped));
    screen.push_str(&format!(
        "{good} checks are good, {warned} warned, {failed} failed, {skipped} were skipped\n"
    ));
    screen
}

fn exit(blame: Blame) -> Exit {
    match blame {
        Blame::Configuration => Exit::Configuration,
        Blame::ControlPlane => Exit::ControlPlane,
        Blame::Credential => Exit::Credential,
        Blame::Daemon => Exit::NotRunning,
        Blame::Host => Exit::Host,
        Blame::NotReady => Exit::NotReady,
        Blame::Proxy => Exit::Proxy,
        Blame::Registration => Exit::Registration,
    }
}
