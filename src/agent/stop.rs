//! The stop, in the one right order: told, handed over, drained, ended, tidied.

use super::{Agent, FINISH_LIMIT, Reason};
use crate::base::fsio;
use crate::base::trouble::chain;
use crate::capture::FailPolicy;
use crate::systemd::ServiceManager;

impl Agent {
    /// Stops everything that runs. A second signal skips the rest of the draining.
    pub async fn stop(mut self, reason: &Reason) {
        ServiceManager.stopping();
        self.draining.send_replace(true);
        tracing::info!(?reason, "Stopping.");
        if self.leaving.remove {
            self.deregister().await;
        }
        self.hand_over(reason).await;
        self.end_proxy(reason).await;
        if !self.tasks.finish(FINISH_LIMIT).await {
            tracing::warn!("Some tasks did not finish in time.");
        }
        self.release_traffic().await;
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
        tracing::info!("Stopped.");
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

    /// Without a proxy, redirected traffic goes nowhere.
    async fn release_traffic(&self) {
        let Some(plan) = &self.leaving.capture else { return };
        if plan.fail_policy == FailPolicy::Closed {
            tracing::warn!("The redirect rules stay (capture.failPolicy is closed).");
        } else if let Err(error) = plan.capture.remove().await {
            tracing::error!(error = chain(&error), "The redirect rules are still there.");
        }
    }

    async fn deregister(&self) {
        self.leaving.registrar.stop();
        // In the mode `istiod` the end of the stream is the deregistration.
        if let Some(direct) = &self.leaving.registration
            && let Err(error) = direct.remove().await
        {
            tracing::warn!(error = chain(&error), "The WorkloadEntry is still there.");
        }
    }
}
