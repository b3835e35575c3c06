//! Whether tasks are alive. Each round asks every critical task for a beat: the task is woken, and
//! beats once the runtime has run it and it has come to rest again. What a task does on the way from
//! one event to the next has a limit of its own, after which the task counts as late, too: it waits
//! for something that will not come. Between the rounds nothing is woken.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The hand on the pulse of a group of tasks. Clones feel the same.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The number of the round that is asked for.
    round: watch::Sender<u64>,
    hearts: Mutex<Vec<Weak<Heart>>>,
}

/// A task that is late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The task's name.
    pub task: &'static str,
    /// What it has been at for too long; `None` when it does not even run.
    pub at: Option<&'static str>,
}

/// One task's side.
#[derive(Debug)]
struct Heart {
    task: &'static str,
    /// The last round that it has answered.
    beat: AtomicU64,
    /// What it is at, and until when that may take.
    work: Mutex<Vec<Work>>,
}

#[derive(Debug)]
struct Work {
    number: u64,
    at: &'static str,
    until: Instant,
}

tokio::task_local! {
    static HEART: Arc<Heart>;
}

impl Pulse {
    /// Who has not answered the last round, or has been at something for too long; then asks for
    /// the next round. Come again after a time in which each task can be run.
    #[must_use]
    pub fn feel(&self) -> Vec<Late> {
        let asked = *self.inner.round.borrow();
        let now = Instant::now();
        let mut hearts = self.inner.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        hearts.retain(|heart| heart.strong_count() > 0);
        let late =
            hearts.iter().filter_map(Weak::upgrade).filter_map(|heart| heart.late(asked, now));
        let late = late.collect();
        drop(hearts);
        self.inner.round.send_modify(|round| *round = round.wrapping_add(1));
        late
    }

    /// The task with a heart.
    pub(super) fn beating<T: Future>(
        &self,
        task: &'static str,
        body: T,
    ) -> impl Future<Output = T::Output> + use<T> {
        let mut round = self.inner.round.subscribe();
        let beat = AtomicU64::new(*round.borrow_and_update());
        let heart = Arc::new(Heart { task, beat, work: Mutex::default() });
        let mut hearts = self.inner.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        hearts.push(Arc::downgrade(&heart));
        drop(hearts);
        HEART.scope(Arc::clone(&heart), async move {
            let mut body = pin!(body);
            loop {
                tokio::select! {
                    // In this order: it beats only after its body has come to rest.
                    biased;
                    output = &mut body => return output,
                    Ok(()) = round.changed() => heart.beat.store(*round.borrow_and_update(), Relaxed),
                }
            }
        })
    }
}

impl Heart {
    fn late(&self, asked: u64, now: Instant) -> Option<Late> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let over = work.iter().find(|work| work.until < now).map(|work| work.at);
        let is_silent = self.beat.load(Relaxed) != asked;
        (is_silent || over.is_some()).then_some(Late { task: self.task, at: over })
    }
}

/// Something that the current task is at.
#[derive(Debug)]
pub struct Busy(Option<(Arc<Heart>, u64)>);

/// Says what the current task does now, and how long that may take at most: the sum of the limits of
/// all that it waits for meanwhile. It is done when what is returned is dropped. In a task that
/// nobody watches nothing is said.
#[must_use]
pub fn busy(at: &'static str, limit: Duration) -> Busy {
    let Ok(heart) = HEART.try_with(Arc::clone) else { return Busy(None) };
    let until = Instant::now() + limit;
    let mut work = heart.work.lock().unwrap_or_else(PoisonError::into_inner);
    let number = work.last().map_or(0, |last| last.number.wrapping_add(1));
    work.push(Work { number, at, until });
    drop(work);
    Busy(Some((heart, number)))
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some((heart, number)) = &self.0 {
            let mut work = heart.work.lock().unwrap_or_else(PoisonError::into_inner);
            work.retain(|work| work.number != *number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tasks::Tasks;

    const ROUND: Duration = Duration::from_secs(15);

    async fn rounds(pulse: &Pulse, count: usize) -> Vec<Late> {
        let mut late = pulse.feel();
        for _ in 0..count {
            tokio::time::sleep(ROUND).await;
            late = pulse.feel();
        }
        late
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_only_waits_for_events_beats() {
        let (tasks, _ends) = Tasks::new();
        tasks.critical::<String>("relay", std::future::pending());
        tasks.detached("proxy", std::future::pending());
        assert_eq!(rounds(&tasks.pulse(), 3).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_longer_than_its_limit_is_late_with_what_it_is_at() {
        let (tasks, _ends) = Tasks::new();
        let (go_on, mut gone_on) = watch::channel(());
        tasks.critical::<String>("renewal", async move {
            let asking = busy("asking istiod", Duration::from_secs(20));
            gone_on.changed().await.ok();
            drop(asking);
            std::future::pending().await
        });
        let pulse = tasks.pulse();
        assert_eq!(rounds(&pulse, 1).await, [], "within its limit");
        let late = Late { task: "renewal", at: Some("asking istiod") };
        assert_eq!(rounds(&pulse, 2).await, [late]);
        go_on.send_replace(());
        assert_eq!(rounds(&pulse, 1).await, [], "what it waited for came after all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_the_runtime_does_not_run_is_late() {
        let pulse = Pulse::default();
        // Nobody polls it.
        let task = pulse.beating("dns", std::future::pending::<()>());
        assert_eq!(rounds(&pulse, 1).await, [Late { task: "dns", at: None }]);
        drop(task);
        assert_eq!(rounds(&pulse, 1).await, [], "it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_woken_between_the_rounds() {
        let (tasks, _ends) = Tasks::new();
        let polls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&polls);
        let body = std::future::poll_fn(move |_| {
            counted.fetch_add(1, Relaxed);
            std::task::Poll::Pending
        });
        tasks.critical::<String>("relay", body);
        rounds(&tasks.pulse(), 4).await;
        tokio::time::sleep(ROUND).await;
        let before = polls.load(Relaxed);
        tokio::time::sleep(100 * ROUND).await;
        assert!(before >= 5, "it was woken by each round");
        assert_eq!(polls.load(Relaxed), before);
    }

    #[tokio::test]
    async fn work_outside_of_a_watched_task_is_nobodys_business() {
        drop(busy("anything", Duration::ZERO));
    }
}
