//! The join that becomes the daemon itself.

use serde_json::Value;

use super::follow::{Follower, Verdict};
use super::outcome::Kind;
use super::{Job, LOOK};
use crate::agent::{Agent, Reason};
use crate::capture::Capture;
use crate::cli::exit::Failure;
use crate::cli::interrupt::{Interrupts, interrupted};
use crate::cli::options::Overrides;
use crate::cli::progress::Phase;
use crate::cli::run::{finish, start};
use crate::cli::{capture, settings};
use crate::join::Layout;

/// Becomes the daemon; what was written is undone when the machine cannot join, or when somebody
/// presses Ctrl-C before it has. Other signals are the daemon's.
pub(super) async fn run(
    job: Job<'_>,
    layout: Layout,
    mut interrupts: Interrupts,
) -> Result<(), Failure> {
    job.progress.begin(Phase::Service);
    let loaded = job.loaded.clone();
    let configuration = settings::configuration(job.global, loaded, Overrides::default());
    let mut agent = match Box::pin(start(job.global, configuration)).await {
        Ok(agent) => agent,
        Err(failure) => {
            job.progress.fail(Phase::Service, &failure);
            layout.undo();
            job.progress.undone(UNDONE);
            return Err(failure);
        }
    };
    let words = format!("this process, pid {}, is the agent", std::process::id());
    job.progress.done(Phase::Service, &words);
    job.begin_the_rest();
    match until_ready(&job, &mut agent, &mut interrupts).await {
        Ok(Some(reason)) => finish(agent, reason).await,
        Ok(None) => {
            let reason = agent.reason().await;
            finish(agent, reason).await
        }
        Err(failure) => {
            agent.stop(&Reason::Quit).await;
            // A closed fail policy is for machines that have joined.
            let rules = Capture::new(settings::paths(job.global).capture_journal());
            rules.remove().await.map_err(capture::failure)?;
            layout.undo();
            job.progress.undone(UNDONE);
            Err(failure)
        }
    }
}

/// `None` when the machine is ready; a reason when the agent was told to end before.
async fn until_ready(
    job: &Job<'_>,
    agent: &mut Agent,
    interrupts: &mut Interrupts,
) -> Result<Option<Reason>, Failure> {
    let mut follower = Follower::default();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            () = interrupts.ctrl_c() => return Err(interrupted("SIGINT")),
            reason = agent.reason() => return Ok(Some(reason)),
            _ = look.tick() => {}
        }
        let status: Value =
            serde_json::to_value(agent.board().snapshot()).map_err(crate::cli::other)?;
        match follower.look(&status, job.progress) {
            Verdict::Ready => {
                job.succeed(&status, Kind::Joined).await;
                return Ok(None);
            }
            Verdict::Waiting => {}
            Verdict::Failed(failure) => return Err(failure),
        }
    }
}

/// What is said when everything was taken back.
pub(super) const UNDONE: &str = "the join is undone: this machine is as it was before";
