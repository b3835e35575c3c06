//! The only place that spawns. Tasks have names; the end of a critical one is an event, and so is
//! its silence.

mod offload;
mod pulse;

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

pub use offload::{offload, offload_within};
pub use pulse::{Busy, Late, Pulse, busy};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The end of a critical task while nobody had asked it to stop.
#[derive(Debug)]
pub struct Ended {
    /// The task's name.
    pub name: &'static str,
    /// Why it ended; `None` when it returned without an error or was lost to a panic.
    pub error: Option<String>,
}

/// A group of tasks that stop together. Clones belong to the same group.
#[derive(Clone, Debug)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
    ended: mpsc::UnboundedSender<Ended>,
    pulse: Pulse,
}

impl Tasks {
    /// A new group and the channel on which the unexpected ends of its critical tasks arrive.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Ended>) {
        // Bounded by the number of critical tasks, each of which ends once.
        let (ended, ends) = mpsc::unbounded_channel();
        let (stop, tracker, pulse) = Default::default();
        (Self { stop, tracker, ended, pulse }, ends)
    }

    /// A group with its own stop signal, which also fires when this group stops. Waiting for this
    /// group waits for the child's tasks too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            tracker: self.tracker.clone(),
            ended: self.ended.clone(),
            pulse: self.pulse.clone(),
        }
    }

    /// Feels whether the critical tasks of this group and its children are alive.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// The signal that asks the tasks to end.
    #[must_use]
    pub fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks all tasks of this group (and of its children) to end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Starts a task whose end, before the group stops, is reported as [`Ended`], and whose silence
    /// is felt by the [`Pulse`].
    pub fn critical<E: Display>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let report =
            Report { name, stop: self.stop.clone(), ended: self.ended.clone(), error: None };
        let task = self.pulse.beating(name, task);
        self.tracker.spawn(async move {
            let mut report = report;
            if let Err(error) = task.await {
                report.error = Some(error.to_string());
            }
        });
    }

    /// Starts a task that is needed for as long as the group runs. It is dropped when the group stops; its end before
    /// that, also by a panic, is reported as [`Ended`], as that of a critical task.
    pub fn essential(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.critical(name, async move {
            tokio::select! {
                () = task => Err("it returned while it was needed"),
                () = stop.cancelled() => Ok(()),
            }
        });
    }

    /// Starts a task that may end whenever it likes. It is dropped when the group stops.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => tracing::trace!(task = name, "Task dropped at stop."),
            }
        });
    }

    /// Starts a task that the group's stop does not touch: it ends by a handle of its own. Its
    /// silence is felt by the [`Pulse`], too.
    pub fn detached(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.pulse.beating(name, task);
        self.tracker.spawn(async move {
            task.await;
            tracing::trace!(task = name, "Task ended.");
        });
    }

    /// Stops the group and waits for its tasks; false when some were still busy after `limit`.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

/// Reports a critical task's end when dropped, so that a panic is reported as well.
struct Report {
    name: &'static str,
    stop: CancellationToken,
    ended: mpsc::UnboundedSender<Ended>,
    error: Option<String>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            let ended = Ended { name: self.name, error: self.error.take() };
            // Nobody listens any more: the agent is already on its way out.
            drop(self.ended.send(ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_critical_task_is_an_event_with_its_error() {
        let (tasks, mut ends) = Tasks::new();
        tasks.critical("sds", async { Err("socket lost") });
        let ended = ends.recv().await.unwrap();
        assert_eq!((ended.name, ended.error.as_deref()), ("sds", Some("socket lost")));
    }

    #[tokio::test]
    async fn a_panic_is_reported_too() {
        let (tasks, mut ends) = Tasks::new();
        tasks.critical::<String>("xds", async { panic!("boom") });
        assert_eq!(ends.recv().await.unwrap().name, "xds");
    }

    #[tokio::test]
    async fn the_end_of_an_essential_task_is_an_event_however_it_ends_and_its_stop_is_none() {
        let (tasks, mut ends) = Tasks::new();
        tasks.essential("claims", async {});
        assert_eq!(ends.recv().await.unwrap().name, "claims");
        tasks.essential("dns-datagrams", async { panic!("boom") });
        assert_eq!(ends.recv().await.unwrap().name, "dns-datagrams");
        tasks.essential("roots", std::future::pending());
        assert!(tasks.finish(Duration::from_secs(5)).await);
        assert!(ends.try_recv().is_err());
    }

    #[tokio::test]
    async fn after_stop_no_end_is_reported_and_all_tasks_are_gone() {
        let (tasks, mut ends) = Tasks::new();
        let stop = tasks.stop_signal();
        tasks.critical::<String>("sds", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("idle", std::future::pending());
        assert!(tasks.finish(Duration::from_secs(5)).await);
        assert!(ends.try_recv().is_err());
    }
}
