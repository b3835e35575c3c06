//! `vm-agent proxy`: the proxy restarted, or taken out of traffic and back, by the running agent.

use std::time::Duration;

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::Global;
use super::screen::{self, Paint, paint};
use super::{settings, status};
use crate::status::{Wish, order};

/// What is done with the proxy.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Drain the proxy and start it anew; everything else goes on
    Restart,
    /// Take the proxy out of traffic: others are told to send nothing, and what comes is still served
    Drain,
    /// Take the proxy back into traffic
    Undrain,
}

pub(super) fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let before = status::ask(global)?;
    let socket = settings::paths(global).admin_socket();
    order(&socket, command.wish()).map_err(status::failure)?;
    let looks = command.limit().as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        let now = status::ask(global)?;
        if command.is_done(&before, &now) {
            screen::say(&format!("{} {}", paint(Paint::Good, "✓"), command.words(&before, &now)));
            return Ok(());
        }
        if refused(&now) > refused(&before) {
            let what = status::text(&now, "/proxy/rejected_replacement/what");
            let error = anyhow::anyhow!("the proxy was not restarted: {what}");
            let hint = status::text(&now, "/proxy/rejected_replacement/hint");
            return Err(Failure::new(Exit::Proxy, error).hint(hint));
        }
        std::thread::sleep(LOOK);
    }
    Err(command.failure(&status::ask(global)?))
}

impl Command {
    fn wish(self) -> Wish {
        match self {
            Self::Restart => Wish::RestartProxy,
            Self::Drain => Wish::DrainProxy,
            Self::Undrain => Wish::UndrainProxy,
        }
    }

    fn is_done(self, before: &Value, now: &Value) -> bool {
        let phase = phase(now);
        match self {
            // One that was out of traffic is out of traffic again.
            Self::Restart => {
                restarts(now) > restarts(before) && matches!(phase, "ready" | "drained")
            }
            Self::Drain => phase == "drained",
            Self::Undrain => phase == "ready",
        }
    }

    fn words(self, before: &Value, now: &Value) -> String {
        let (old, new) = (status::text(before, "/proxy/pid"), status::text(now, "/proxy/pid"));
        match self {
            Self::Restart => {
                format!("the proxy was restarted: process {new} in place of {old}, {}", phase(now))
            }
            Self::Drain => {
                "the proxy is out of traffic: others are told to send nothing, and what \
                            comes is still served; `vm-agent proxy undrain` takes it back"
                    .to_owned()
            }
            Self::Undrain => "the proxy is in traffic".to_owned(),
        }
    }

    fn failure(self, now: &Value) -> Failure {
        let (limit, phase) = (self.limit(), phase(now));
        let goal = match self {
            Self::Restart => "restarted and ready",
            Self::Drain => "out of traffic",
            Self::Undrain => "in traffic",
        };
        let error = match now.pointer("/proxy/trouble/what").and_then(Value::as_str) {
            Some(what) => anyhow::anyhow!("the proxy is not {goal} within {limit:?}: {what}"),
            None => anyhow::anyhow!("the proxy is not {goal} within {limit:?}; it is {phase}"),
        };
        let hint = "`vm-agent status` shows what it waits for, and the agent's log tells more";
        Failure::new(Exit::Proxy, error).hint(hint.to_owned())
    }

    /// A restart waits for the others, and drains for as long as the mesh's settings say.
    fn limit(self) -> Duration {
        match self {
            Self::Restart => Duration::from_secs(120),
            Self::Drain | Self::Undrain => Duration::from_secs(15),
        }
    }
}

fn phase(status: &Value) -> &str {
    status.pointer("/proxy/phase").and_then(Value::as_str).unwrap_or("unknown")
}

fn restarts(status: &Value) -> Option<u64> {
    status.pointer("/proxy/ordered_restarts").and_then(Value::as_u64)
}

/// Restarts that were refused, as what is installed cannot be started.
fn refused(status: &Value) -> Option<u64> {
    status.pointer("/proxy/refused_restarts").and_then(Value::as_u64)
}

const LOOK: Duration = Duration::from_millis(50);
