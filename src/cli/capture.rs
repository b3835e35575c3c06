//! `vm-agent capture`: the host's redirect rules, by hand.

use super::exit::{Exit, Failure};
use super::options::{Global, Overrides};
use super::run::{make_plan, plan_failure, runtime};
use super::{screen, settings, stopping};
use crate::agent::CapturePlan;
use crate::base::clock;
use crate::capture::{ApplyError, Capture, Found, OnFailure, Removed};
use crate::config::Loaded;

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the commands that `apply` would run, as a script
    Plan(PlanArgs),
    /// Put the rules in place, or in order again, and try them
    Apply(PlanArgs),
    /// Undo what was done to this host's rules, whatever the configuration is now
    Remove,
    /// Put the rules of the last boot back, where capture.failPolicy is closed
    #[command(hide = true)]
    Restore,
}

/// Options of `plan` and `apply`.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(global: &Global, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Plan(args) => runtime()?.block_on(plan(global, args)),
        Command::Apply(args) => runtime()?.block_on(apply(global, args)),
        Command::Restore => stopping::restore(global),
        Command::Remove => {
            let capture = Capture::new(settings::paths(global).capture_journal());
            let words = match runtime()?.block_on(capture.remove_by_name()).map_err(failure)? {
                Removed::Nothing => "there was nothing to remove",
                Removed::Undone => "the rules are removed",
            };
            screen::say(words);
            Ok(())
        }
    }
}

async fn plan(global: &Global, args: &PlanArgs) -> Result<(), Failure> {
    let wanted = wanted(global, args).await?;
    let plan = wanted.capture.plan(&wanted.config).await.map_err(failure)?;
    screen::out(plan.to_string().trim_end())
}

async fn apply(global: &Global, args: &PlanArgs) -> Result<(), Failure> {
    let wanted = wanted(global, args).await?;
    let before = wanted.capture.look().await.map_err(failure)?;
    // Rules that were in place are not removed because these fail.
    let on_failure = match before {
        Found::Absent => OnFailure::Undo,
        Found::Intact | Found::Broken => OnFailure::Keep,
    };
    let applied = wanted.capture.apply(&wanted.config, on_failure).await.map_err(failure)?;
    let words = match before {
        Found::Absent => "the rules are in place",
        Found::Intact => "the rules were in place, and are applied anew",
        Found::Broken => "the rules were broken (somebody else changed them), and are repaired",
    };
    screen::say(&format!("{words}: {}", applied.probed));
    Ok(())
}

async fn wanted(global: &Global, args: &PlanArgs) -> Result<CapturePlan, Failure> {
    let document = settings::from_file(global, &args.overrides)?;
    let Loaded { settings, .. } = settings::load(&document, global)?;
    let plan = make_plan(global, &settings, &clock::system()).await.map_err(plan_failure)?;
    plan.capture.ok_or_else(|| {
        let error = anyhow::anyhow!("capture.mode is none: there is nothing to redirect");
        let hint = "name one with --capture nftables, or set capture.mode".to_owned();
        Failure::new(Exit::Configuration, error).hint(hint)
    })
}

pub(super) fn failure(error: ApplyError) -> Failure {
    let hint = error.hint().or_else(super::sudo_hint);
    Failure::new(Exit::Host, error).hint(hint)
}
