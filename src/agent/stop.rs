//! The stop, in the one right order: told, deregistered, drained, ended, tidied.

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
        if self.remove_on_stop {
            self.deregister().await;
        }
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

    async fn end_proxy(&mut self, reason: &Reason) {
        if matches!(reason, Reason::Quit) {
            return self.proxy.kill().await;
        }
        let proxy = self.proxy.clone();
        tokio::select! {
            () = proxy.stop() => {}
            () = self.signals.stop() => {
                tracing::warn!("Asked again: ending the proxy without waiting.");
                proxy.kill().await;
            }
        }
    }

    /// Without a proxy, redirected traffic goes nowhere.
    async fn release_traffic(&self) {
        let Some(plan) = &self.capture else { return };
        if plan.fail_policy == FailPolicy::Closed {
            tracing::warn!("The redirect rules stay (capture.failPolicy is closed).");
        } else if let Err(error) = plan.capture.remove().await {
            tracing::error!(error = chain(&error), "The redirect rules are still there.");
        }
    }

    async fn deregister(&self) {
        self.registrar.stop();
        // In the mode `istiod` the end of the stream is the deregistration.
        if let Some(direct) = &self.registration
            && let Err(error) = direct.remove().await
        {
            tracing::warn!(error = chain(&error), "The WorkloadEntry is still there.");
        }
    }
}
