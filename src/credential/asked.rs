//! A source that is asked for tokens: each is held, and renewed before its end.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rand::RngExt;

use super::error::checked;
use super::gce::Gce;
use super::kubernetes::Kubernetes;
use super::pace::Pace;
use super::{Config, RungError, Token, command, kept};
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::tasks::offload_within;
use crate::base::trouble::chain;

/// Who makes the tokens.
pub(super) enum Supplier {
    Kubernetes(Kubernetes),
    Command(Vec<String>),
    Gce(Gce),
}

impl Supplier {
    async fn obtain(&self, audience: &str) -> Result<Token, RungError> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.obtain(audience).await,
            Self::Command(argv) => Ok(command::obtain(argv).await?),
            Self::Gce(gce) => Ok(gce.obtain(audience).await?),
        }
    }

    /// Where its token is kept over a restart.
    fn kept(&self) -> Option<&Path> {
        if let Self::Kubernetes(kubernetes) = self { kubernetes.kept.as_deref() } else { None }
    }

    /// The share of its life after which a token is renewed.
    fn renew_at(&self) -> f64 {
        match self {
            Self::Kubernetes(_) => HALF,
            Self::Command(_) | Self::Gce(_) => TWO_THIRDS,
        }
    }
}

/// What a new token is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// There is no other one.
    Any,
    /// The one that is held is due.
    Fresh,
}

/// A source with what it gave.
pub(super) struct Asked {
    supplier: Supplier,
    held: Mutex<Option<Held>>,
    /// It is asked once at a time.
    turn: tokio::sync::Mutex<()>,
    pub(super) pace: Pace,
}

/// A token that we have.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) token: Token,
    received_at: SystemTime,
    /// Of its life, after which it is renewed.
    share: f64,
    /// istiod did not accept it.
    refused: bool,
}

impl Held {
    fn new(token: Token, received_at: SystemTime, renew_at: f64) -> Self {
        let share = renew_at + rand::rng().random_range(-JITTER..=JITTER);
        Self { token, received_at, share, refused: false }
    }

    /// When it is renewed: its life is measured by its maker's clock, its age by ours, so that a
    /// clock that is wrong by the same amount all the time changes nothing.
    pub(super) fn due_at(&self) -> Option<SystemTime> {
        let life = self.token.life(self.received_at)?;
        self.received_at.checked_add(life.mul_f64(self.share))
    }

    /// Whether it is due, also because the clock was set back so far that its age is unknown.
    fn is_due(&self, now: SystemTime) -> bool {
        let set_back = now.checked_add(SET_BACK).is_some_and(|later| later < self.received_at);
        self.refused || set_back || self.due_at().is_some_and(|at| at <= now)
    }
}

impl Asked {
    /// A source, with the token that was kept from the last run if it is still good.
    pub(super) fn new(supplier: Supplier, config: &Config, now: SystemTime) -> Self {
        let kept = supplier.kept().and_then(kept::load);
        let kept = kept.and_then(|(token, received_at)| {
            let token = checked(token, &config.id, &config.audience, now);
            let token = token.inspect_err(|error| {
                tracing::info!(why = chain(error), "The kept token is of no use now.");
            });
            Some(Held::new(token.ok()?, received_at, supplier.renew_at()))
        });
        let (turn, pace) = (tokio::sync::Mutex::new(()), Pace::new());
        Self { supplier, held: Mutex::new(kept), turn, pace }
    }

    /// The token that is held, if it is alive.
    pub(super) fn at_hand(&self, now: SystemTime) -> Option<Token> {
        let held = self.lock().clone()?;
        held.token.check_end(now).is_ok().then_some(held.token)
    }

    /// When the source is to be asked next; `None`: at once.
    pub(super) fn due_in(&self, now: SystemTime) -> Option<Duration> {
        let held = self.lock().clone();
        let due = held.filter(|held| held.token.check_end(now).is_ok() && !held.is_due(now));
        let left = due.map(|held| {
            let left = held.due_at().and_then(|at| at.duration_since(now).ok());
            left.unwrap_or(Duration::MAX)
        });
        let left = left.unwrap_or_default().max(self.pace.pause());
        (!left.is_zero()).then_some(left)
    }

    /// Asks for a new token, unless somebody else got one meanwhile.
    pub(super) async fn ask(
        &self,
        config: &Config,
        want: Want,
        clock: &SharedClock,
    ) -> Result<Token, RungError> {
        let _turn = self.turn.lock().await;
        let now = clock.now();
        let held = self.lock().clone().filter(|held| held.token.check_end(now).is_ok());
        if let Some(held) = held.filter(|held| !held.refused)
            && (want == Want::Any || !held.is_due(now))
        {
            return Ok(held.token);
        }
        let was_refused = self.lock().as_ref().is_some_and(|held| held.refused);
        let token = self.supplier.obtain(&config.audience).await;
        let now = clock.now();
        let token = token.and_then(|token| checked(token, &config.id, &config.audience, now));
        match token {
            Ok(token) => {
                // Until one was accepted, the next may be refused as well.
                if !was_refused {
                    self.pace.reset();
                }
                self.keep(&token, now).await;
                Ok(token)
            }
            Err(error) => {
                self.pace.failed(error.retry());
                Err(error)
            }
        }
    }

    /// istiod did not accept this token: another one is wanted, though not at every refusal.
    pub(super) fn refuse(&self, token: &Token) {
        if let Some(held) = self.lock().as_mut().filter(|held| held.token.is(token)) {
            if !held.refused {
                self.pace.failed(Retry::Later);
            }
            held.refused = true;
        }
    }

    /// istiod accepted this token after all.
    pub(super) fn accept(&self, token: &Token) {
        if let Some(held) = self.lock().as_mut().filter(|held| held.token.is(token)) {
            held.refused = false;
            self.pace.reset();
        }
    }

    /// Whether the token that is held was refused, and it is too soon for another one.
    pub(super) fn rests(&self) -> bool {
        let refused = self.lock().as_ref().is_some_and(|held| held.refused);
        refused && !self.pace.pause().is_zero()
    }

    async fn keep(&self, token: &Token, now: SystemTime) {
        *self.lock() = Some(Held::new(token.clone(), now, self.supplier.renew_at()));
        let Some(path) = self.supplier.kept().map(Path::to_owned) else { return };
        let token = token.clone();
        let saved = offload_within(KEEP_LIMIT, move || kept::save(&path, &token, now)).await;
        let error = match saved {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        tracing::warn!(error, "The new token is in use but could not be kept on disk.");
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the API server makes is renewed early: it may be away for as long again.
const HALF: f64 = 0.5;
/// What costs a program's run or another's service is renewed later.
const TWO_THIRDS: f64 = 2.0 / 3.0;
/// A thousand machines that started together shall not ask together.
const JITTER: f64 = 0.1;
/// A disk that is busy writes a token within this time.
const KEEP_LIMIT: Duration = Duration::from_secs(10);
/// A clock that is corrected by a little is nothing.
const SET_BACK: Duration = Duration::from_secs(60);
