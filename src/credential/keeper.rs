//! Keeps the ladder fresh: tokens that we have made are made anew before they end, and files that
//! somebody replaces are noticed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::api::ApiCredential;
use super::asked::Want;
use super::ladder::{Origin, Step};
use super::{Ladder, Phase, RungError, RungState};
use crate::base::tasks::busy;

/// What tells one content of a file from the next without reading it.
type Mark = Option<(u64, i64, i64, u64)>;

impl Ladder {
    /// Keeps the tokens until `stop`. By the wall clock: a machine that slept, or whose clock was
    /// set, notices within [`LOOK`].
    pub async fn keep(self, stop: CancellationToken) {
        tokio::select! {
            () = self.renewals() => {}
            () = self.files() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn renewals(&self) {
        loop {
            let next = self.tend().await;
            tokio::select! {
                () = sleep(next.min(LOOK)) => {}
                () = self.inner.nudge.notified() => {}
            }
        }
    }

    /// Renews what is due; tells when to come again at the latest.
    async fn tend(&self) -> Duration {
        let _busy = busy("renewing tokens", PATIENCE);
        let mut next = Duration::MAX;
        if let Some(api) = &self.inner.api {
            next = next.min(self.tend_api(api).await);
        }
        for step in &self.inner.steps {
            next = next.min(self.tend_step(step).await);
        }
        next
    }

    async fn tend_step(&self, step: &Step) -> Duration {
        let Origin::Asked(asked) = &step.origin else { return Duration::MAX };
        if let Some(left) = asked.due_in(self.inner.clock.now()) {
            return left;
        }
        let had_one = self.is_usable(step);
        if self.ask(step, Want::Fresh).await.is_some() {
            tracing::info!(rung = %step.rung, "New token.");
            if !had_one {
                self.tell();
            }
        }
        asked.due_in(self.inner.clock.now()).unwrap_or(AT_LEAST)
    }

    /// The credential for the Kubernetes API itself.
    async fn tend_api(&self, api: &ApiCredential) -> Duration {
        let now = self.inner.clock.now();
        let token = match api.look(now) {
            Ok(token) => token,
            Err(error) => {
                self.note_api(|state| state.fail(&error, self.api_hint(&error), now));
                return LOOK;
            }
        };
        self.note_api(|state| {
            // A file that could not be used can be now; why it was not replaced still holds.
            if state.phase != Phase::Usable {
                state.settle();
            }
            state.hold(&token, now);
        });
        api.keep_copy(&token, now).await;
        if let Some(left) = api.due_in(&token, now) {
            return left;
        }
        match api.replace(&token, &self.inner.clock).await {
            Ok(new) => {
                let now = self.inner.clock.now();
                self.note_api(|state| {
                    state.hold(new.as_ref().unwrap_or(&token), now);
                    state.settle();
                });
                if let Some(new) = &new {
                    tracing::info!("New token for the Kubernetes API.");
                    api.keep_copy(new, now).await;
                }
                api.due_in(new.as_ref().unwrap_or(&token), now).unwrap_or(AT_LEAST)
            }
            Err(error) => {
                api.pace.failed(error.retry());
                let now = self.inner.clock.now();
                self.note_api(|state| state.fail(&error, self.api_hint(&error), now));
                api.pace.pause()
            }
        }
    }

    fn api_hint(&self, error: &RungError) -> Option<String> {
        match error {
            RungError::Kube(error) => error.hint(),
            RungError::Storage(_) => Some("free some space or mend the directory".to_owned()),
            _ => Some(
                "run `vm-agent join` with a new bundle, or put a new token into the file that \
                 registration.kubernetes.tokenFile names"
                    .to_owned(),
            ),
        }
    }

    fn note_api(&self, change: impl FnOnce(&mut RungState)) {
        let mut news = None;
        self.inner.state.send_if_modified(|state| {
            let Some(state) = state.kubernetes_api.as_mut() else { return false };
            let before = state.clone();
            change(state);
            news = state.news_since(&before).cloned();
            *state != before
        });
        if let Some(trouble) = news {
            tracing::warn!(%trouble, "The credential for the Kubernetes API cannot be renewed.");
        }
    }

    /// Follows the files by a slow look: an inode, a time and a size.
    async fn files(&self) {
        let mut marks = self.marks();
        loop {
            self.look();
            sleep(if self.is_calm() { LOOK } else { PEEK }).await;
            let now = self.marks();
            if now != marks {
                marks = now;
                self.renewed_by_others();
            }
        }
    }

    /// Somebody replaced a file: what failed because of the old one is tried at once.
    fn renewed_by_others(&self) {
        for step in &self.inner.steps {
            if let Origin::Asked(asked) = &step.origin {
                asked.pace.reset();
            }
        }
        if let Some(api) = &self.inner.api {
            api.pace.reset();
        }
        self.inner.nudge.notify_one();
        if !self.look().is_empty() {
            self.tell();
        }
    }

    fn marks(&self) -> Vec<Mark> {
        let of_step = |step: &Step| match &step.origin {
            Origin::File(path) => mark(path),
            Origin::Asked(_) => None,
        };
        let api = self.inner.api.as_ref().and_then(|api| mark(api.path()));
        self.inner.steps.iter().map(of_step).chain([api]).collect()
    }

    /// Whether nothing is waited for.
    fn is_calm(&self) -> bool {
        let now = self.inner.clock.now();
        let state = self.inner.state.borrow();
        let good =
            |state: &RungState| state.phase_at(now) == Phase::Usable && state.trouble.is_none();
        state.rungs.iter().all(|(_, state)| good(state))
            && state.kubernetes_api.as_ref().is_none_or(good)
    }

    fn is_usable(&self, step: &Step) -> bool {
        let now = self.inner.clock.now();
        let state = self.inner.state.borrow();
        state.rung(step.rung).is_some_and(|state| state.phase_at(now) == Phase::Usable)
    }

    fn tell(&self) {
        self.inner.news.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn mark(path: &Path) -> Mark {
    let about = std::fs::metadata(path).ok()?;
    Some((about.ino(), about.mtime(), about.mtime_nsec(), about.size()))
}

/// For each source in turn; a plugin for the Kubernetes API may take two minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// The wall clock is looked at at least this often.
const LOOK: Duration = Duration::from_secs(30);
/// Files from which help is expected are looked at this often.
const PEEK: Duration = Duration::from_secs(2);
/// However short a token lives.
const AT_LEAST: Duration = Duration::from_secs(1);
