//! The end: a stop in the one right order (told, handed over, drained, ended, tidied), or a step
//! aside, where the service manager starts another agent in a moment.

use std::time::Duration;

use super::{Agent, FINISH_LIMIT, Reason};
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::capture::FailPolicy;
use crate::systemd::ServiceManager;

/// What the end leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The proxy, its rules and the sockets: the next agent takes them over.
    Aside,
    /// Nothing.
    Out,
}

impl Way {
    /// Only a service manager starts another agent after one that broke.
    fn choose(reason: &Reason, is_service: bool) -> Self {
        match reason {
            Reason::StepAside => Self::Aside,
            // Nor does an order without a word from the service manager take the rules away: the service starts again.
            Reason::Broken(_) | Reason::Quit if is_service => Self::Aside,
            Reason::Broken(_) | Reason::Quit | Reason::Stop => Self::Out,
        }
    }
}

impl Agent {
    /// Ends what runs. A second signal skips the rest of the draining.
    pub async fn stop(self, reason: &Reason) {
        let way = Way::choose(reason, ServiceManager.is_there());
        tracing::info!(?reason, ?way, "Stopping.");
        let end = async {
            match way {
                Way::Aside => self.step_aside().await,
                Way::Out => self.leave(reason).await,
            }
        };
        ServiceManager.watched(STOP_LIMIT, Box::pin(end)).await;
        tracing::info!("Stopped.");
    }

    /// Nobody is told anything, and no connection ends: what is needed for that stays.
    async fn step_aside(self) {
        ServiceManager.stopping("Makes room for the next agent");
        if tokio::time::timeout(FINISH_LIMIT, self.proxy.release()).await.is_err() {
            tracing::warn!("The proxy was not let go in time.");
        }
        if !self.tasks.finish(FINISH_LIMIT).await {
            tracing::warn!("Some tasks did not finish in time.");
        }
    }

    async fn leave(mut self, reason: &Reason) {
        ServiceManager.stopping("Leaving the mesh");
        if matches!(reason, Reason::Stop) {
            self.leaving.services.clone().complete(self.notice()).await;
        }
        self.draining.send_replace(true);
        if self.leaving.remove {
            self.deregister().await;
        }
        self.hand_over(reason).await;
        self.end_proxy(reason).await;
        // Traffic waits for this, and for no other task.
        self.tasks.stop();
        self.release_traffic().await;
        if !self.tasks.finish(FINISH_LIMIT).await {
            tracing::warn!("Some tasks did not finish in time.");
        }
        for path in [
            self.paths.admin_socket(),
            self.paths.sds_socket(),
            self.paths.xds_socket(),
            self.paths.lock_file(),
        ] {
            if let Err(error) = fsio::remove(&path) {
                tracing::warn!(error = chain(&error), "Could not tidy up.");
            }
        }
        fsio::remove_empty_directory(&self.paths.run_directory());
    }

    /// Istiod has been told that the machine is leaving; until the proxies of the others have heard
    /// of it, their requests are still served.
    async fn hand_over(&mut self, reason: &Reason) {
        let notice = self.notice();
        if !matches!(reason, Reason::Stop) || notice.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(notice) => {}
            () = self.hears.signals.stop() => tracing::warn!("Asked again: not waiting for the others."),
        }
    }

    async fn end_proxy(&mut self, reason: &Reason) {
        if matches!(reason, Reason::Quit) {
            return self.proxy.kill().await;
        }
        let proxy = self.proxy.clone();
        tokio::select! {
            () = proxy.stop() => {}
            () = self.hears.signals.stop() => {
                tracing::warn!("Asked again: ending the proxy without waiting.");
                proxy.kill().await;
            }
        }
    }

    /// Without a proxy, redirected traffic goes nowhere. What keeps the rules has to have ended, or it would put them back.
    async fn release_traffic(&self) {
        let Some(plan) = &self.leaving.capture else { return };
        let mut rules = self.board.capture.clone();
        let kept = async { while rules.changed().await.is_ok() {} };
        if tokio::time::timeout(FINISH_LIMIT, kept).await.is_err() {
            tracing::warn!("The keeper of the redirect rules did not finish in time.");
        }
        if plan.fail_policy == FailPolicy::Closed {
            tracing::warn!("The redirect rules stay (capture.failPolicy is closed).");
        } else if let Err(error) = plan.capture.remove().await {
            tracing::error!(error = chain(&error), "The redirect rules are still there.");
        }
    }

    async fn deregister(&self) {
        self.leaving.registrar.stop();
        // In the mode `istiod` the end of the stream is the deregistration.
        let Some(direct) = &self.leaving.registration else { return };
        // A reconciler that still runs would make the entry anew.
        if tokio::time::timeout(FINISH_LIMIT, direct.ended()).await.is_err() {
            tracing::warn!("The registration did not stop in time; the WorkloadEntry stays");
        } else if let Err(error) = direct.remove().await {
            tracing::warn!(error = chain(&error), "The WorkloadEntry is still there.");
        }
    }
}

/// All that a stop waits for, each with a limit of its own; shorter than the unit's `TimeoutStopSec=`.
const STOP_LIMIT: Duration = Duration::from_secs(85);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tasks::Ended;

    #[test]
    fn only_who_is_followed_by_another_agent_leaves_it_the_proxy() {
        let broken = Reason::Broken(Ended { name: "relay", error: None });
        assert_eq!(Way::choose(&Reason::StepAside, false), Way::Aside);
        assert_eq!(Way::choose(&broken, true), Way::Aside, "it is started again");
        assert_eq!(Way::choose(&broken, false), Way::Out);
        assert_eq!(Way::choose(&Reason::Quit, true), Way::Aside, "it is started again");
        for (reason, is_service) in
            [(Reason::Stop, true), (Reason::Stop, false), (Reason::Quit, false)]
        {
            assert_eq!(Way::choose(&reason, is_service), Way::Out, "{reason:?}");
        }
    }
}
