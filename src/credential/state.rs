//! What is known of each rung.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{Rung, RungError, Token};
use crate::base::trouble::Trouble;
use crate::identity::SpiffeId;

/// How a rung is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its token is good for istiod, as far as we know.
    Usable,
    /// Its token has expired.
    Spent,
    /// It has no token.
    #[default]
    Absent,
    /// Its source fails, or its token is known to be useless for another reason than age.
    Failing,
}

/// A rung.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RungState {
    /// How it was when it was last looked at; see [`RungState::phase_at`].
    pub phase: Phase,
    /// Since when.
    pub since: SystemTime,
    /// The end of its token, where it tells.
    pub expires_at: Option<SystemTime>,
    /// How long its token lives in all.
    pub life: Option<Duration>,
    /// What went wrong last, if nothing has gone right since.
    pub trouble: Option<Trouble>,
    /// How often something went wrong.
    pub failures: u64,
}

impl RungState {
    pub(super) fn new(now: SystemTime) -> Self {
        let (phase, expires_at, life, trouble) = (Phase::Absent, None, None, None);
        Self { phase, since: now, expires_at, life, trouble, failures: 0 }
    }

    /// How it is at `now`: a token ends without anything happening.
    #[must_use]
    pub fn phase_at(&self, now: SystemTime) -> Phase {
        match self.phase {
            Phase::Usable if self.expires_at.is_some_and(|end| end <= now) => Phase::Spent,
            phase => phase,
        }
    }

    /// Since when it has been so.
    #[must_use]
    pub fn since_at(&self, now: SystemTime) -> SystemTime {
        match (self.phase_at(now), self.expires_at) {
            (Phase::Spent, Some(end)) => end.min(now),
            _ => self.since,
        }
    }

    /// It has this token.
    pub(super) fn hold(&mut self, token: &Token, now: SystemTime) {
        self.turn(Phase::Usable, now);
        self.expires_at = token.expires_at();
        self.life = token.life(now);
    }

    /// Nothing is wrong with it.
    pub(super) fn settle(&mut self) {
        self.trouble = None;
    }

    /// It failed. A token that it still has stays usable.
    pub(super) fn fail(&mut self, error: &RungError, hint: Option<String>, now: SystemTime) {
        let since = self.trouble.as_ref().map_or(now, |old| old.since);
        let trouble = Trouble::new(error, hint, error.retry(), since);
        // A useless token is one failure however often it is looked at; a source that was asked
        // again failed again.
        let looked_at = matches!(error, RungError::Token(_));
        if !looked_at || self.trouble.as_ref().map(|old| &old.what) != Some(&trouble.what) {
            self.failures = self.failures.saturating_add(1);
        }
        self.trouble = Some(trouble);
        let lives = self.expires_at.is_none_or(|end| end > now);
        let of_source = matches!(
            error,
            RungError::Kube(_)
                | RungError::Command(_)
                | RungError::Metadata(_)
                | RungError::Storage(_)
        );
        if self.phase == Phase::Usable && lives && of_source {
            return;
        }
        self.turn(error.phase(), error.since().unwrap_or(now));
        match error {
            RungError::Token(_) => self.expires_at = error.since(),
            RungError::Refused { .. } => {}
            _ if lives => self.expires_at = None,
            // The end of the last token says since when there is none.
            _ => {}
        }
    }

    /// What went wrong, where that is not what went wrong before.
    pub(super) fn news_since(&self, before: &Self) -> Option<&Trouble> {
        let old = before.trouble.as_ref().map(|trouble| &trouble.what);
        self.trouble.as_ref().filter(|new| Some(&new.what) != old)
    }

    fn turn(&mut self, phase: Phase, since: SystemTime) {
        if self.phase != phase {
            (self.phase, self.since) = (phase, since);
        }
    }
}

/// The ladder.
#[derive(Clone, Debug)]
pub struct State {
    /// Whose the tokens must be.
    pub id: SpiffeId,
    /// The rungs in order; the certificate, which stands above them, is not here.
    pub rungs: Vec<(Rung, RungState)>,
    /// The rung whose token was given out last.
    pub in_use: Option<Rung>,
    /// Our token for the Kubernetes API, where that is in a file.
    pub kubernetes_api: Option<RungState>,
}

impl State {
    /// A rung, where it is configured.
    #[must_use]
    pub fn rung(&self, rung: Rung) -> Option<&RungState> {
        self.rungs.iter().find(|(name, _)| *name == rung).map(|(_, state)| state)
    }

    pub(super) fn rung_mut(&mut self, rung: Rung) -> Option<&mut RungState> {
        self.rungs.iter_mut().find(|(name, _)| *name == rung).map(|(_, state)| state)
    }
}
