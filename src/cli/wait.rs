//! `vm-agent wait`: for scripts and units.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::Global;
use super::status;
use crate::config;

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to wait for
    #[arg(long = "for", value_name = "STATE", default_value = "ready")]
    goal: Goal,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = config::duration)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Goal {
    /// The machine is in the mesh.
    Ready,
    /// There is a valid certificate.
    Identity,
    /// The WorkloadEntry stands.
    Registered,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let tries = args.timeout.as_millis() / PERIOD.as_millis();
    let mut last = None;
    for _ in 0..=tries {
        match status::ask(global) {
            Ok(now) if args.goal.reached(&now) => return Ok(()),
            // The daemon may not listen yet: that is one of the things to wait for.
            Err(failure) if failure.exit != Exit::NotRunning => return Err(failure),
            now => last = now.ok(),
        }
        std::thread::sleep(PERIOD);
    }
    Err(timed_out(global, args, last.as_ref()))
}

fn timed_out(global: &Global, args: &Args, last: Option<&Value>) -> Failure {
    let goal = format!("{:?}", args.goal).to_lowercase();
    let Some(status) = last else {
        let error = anyhow::anyhow!("not {goal} within {:?}: no agent is running", args.timeout);
        return Failure::new(Exit::NotRunning, error).hint(status::start_hint(global));
    };
    let so_far = match status.pointer("/conditions/0/what").and_then(Value::as_str) {
        Some(what) => format!("{}: {what}", status::text(status, "/phase")),
        None => status::text(status, "/phase"),
    };
    let error = anyhow::anyhow!("not {goal} within {:?}; its phase is {so_far}", args.timeout);
    Failure::new(Exit::NotReady, error).hint("`vm-agent status` shows more".to_owned())
}

impl Goal {
    fn reached(self, status: &Value) -> bool {
        let is = |at: &str| status.pointer(at).and_then(Value::as_bool) == Some(true);
        match self {
            Self::Ready => is("/ready"),
            Self::Identity => is("/identity/valid"),
            Self::Registered => is("/registration/registered"),
        }
    }
}

/// Short against a start of half a second, long against the cost of asking.
const PERIOD: Duration = Duration::from_millis(100);
