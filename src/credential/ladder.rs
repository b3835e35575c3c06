//! The ladder: the first rung with a usable token is taken.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::api::ApiCredential;
use super::asked::{Asked, Supplier, Want};
use super::error::checked;
use super::gce::Gce;
use super::kubernetes::{Kubernetes, account};
use super::{Config, LadderError, Rung, RungError, RungState, Source, SpentRung, State, Token};
use crate::base::backoff::Retry;
use crate::base::clock::SharedClock;
use crate::base::trouble::Trouble;
use crate::kube::Client;

/// A usable token, and the rung that it is from.
pub struct Bearer {
    /// The rung.
    pub rung: Rung,
    /// The token.
    pub token: Token,
}

/// All tokens that we have or can get. Clones are the same ladder.
#[derive(Clone)]
pub struct Ladder {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) clock: SharedClock,
    pub(super) steps: Vec<Step>,
    pub(super) api: Option<ApiCredential>,
    pub(super) state: watch::Sender<State>,
    /// Counts what is good news for who waits for a token.
    pub(super) news: watch::Sender<u64>,
    /// Something may have become possible that was not.
    pub(super) nudge: Notify,
}

/// A rung with its source.
pub(super) struct Step {
    pub(super) rung: Rung,
    pub(super) origin: Origin,
    /// The token that istiod did not accept last.
    refused: Mutex<Option<Token>>,
}

pub(super) enum Origin {
    File(PathBuf),
    Asked(Box<Asked>),
}

impl Step {
    fn is_refused(&self, token: &Token) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().is_some_and(|refused| refused.is(token))
    }
}

impl Ladder {
    /// A ladder. Rungs whose source is not there (no Kubernetes API) are left out.
    #[must_use]
    pub fn new(config: Config, kube: Option<&Arc<Client>>, clock: SharedClock) -> Self {
        let now = clock.now();
        let step = |source: &Source| {
            let origin = origin(source, &config, kube)?.into_origin(&config, now);
            Some(Step { rung: source.rung(), origin, refused: Mutex::new(None) })
        };
        let steps: Vec<Step> = config.sources.iter().filter_map(step).collect();
        let asks_kube = steps.iter().any(|step| step.rung == Rung::Kubernetes);
        let api = kube.filter(|_| asks_kube).and_then(|client| ApiCredential::new(client, &config));
        let state = State {
            id: config.id.clone(),
            rungs: steps.iter().map(|step| (step.rung, RungState::new(now))).collect(),
            in_use: None,
            kubernetes_api: api.as_ref().map(|_| RungState::new(now)),
        };
        let inner = Inner {
            config,
            clock,
            steps,
            api,
            state: watch::Sender::new(state),
            news: watch::Sender::new(0),
            nudge: Notify::new(),
        };
        let ladder = Self { inner: Arc::new(inner) };
        ladder.look();
        ladder
    }

    /// The best token, also one that has to be asked for first: that can take some seconds.
    ///
    /// # Errors
    /// When no rung has one; the error says for each of them why.
    pub async fn token(&self) -> Result<Bearer, LadderError> {
        if let Some(bearer) = self.at_hand() {
            return Ok(bearer);
        }
        let rests = |step: &&Step| matches!(&step.origin, Origin::Asked(asked) if asked.rests());
        for step in self.inner.steps.iter().filter(|step| !rests(step)) {
            if let Some(token) = self.ask(step, Want::Any).await {
                return Ok(self.give(step, token));
            }
        }
        // istiod may have refused it only because it could not look it up.
        let now = self.inner.clock.now();
        let refused = self.inner.steps.iter().find_map(|step| {
            let token = self.held(step, now).and_then(Result::ok)?;
            Some((step, token))
        });
        match refused {
            Some((step, token)) => Ok(self.give(step, token)),
            None => Err(self.spent()),
        }
    }

    /// The best token that needs nobody's answer; `None` when there is none.
    #[must_use]
    pub fn at_hand(&self) -> Option<Bearer> {
        let found = self.look();
        let (step, token) = found.into_iter().next()?;
        Some(self.give(step, token))
    }

    /// istiod did not accept this token: others are preferred until it has been replaced.
    pub fn refuse(&self, bearer: &Bearer, message: &str) {
        let step = self.inner.steps.iter().find(|step| step.rung == bearer.rung);
        let Some(step) = step else { return };
        let mut refused = step.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = Some(bearer.token.clone());
        drop(refused);
        if let Origin::Asked(asked) = &step.origin {
            asked.refuse(&bearer.token);
            self.inner.nudge.notify_one();
        }
        self.note_failure(step.rung, &RungError::Refused { message: message.to_owned() });
    }

    /// istiod accepted this token: that it did not before says nothing of it any more.
    pub fn accept(&self, bearer: &Bearer) {
        let step = self.inner.steps.iter().find(|step| step.rung == bearer.rung);
        let Some(step) = step.filter(|step| step.is_refused(&bearer.token)) else { return };
        *step.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Origin::Asked(asked) = &step.origin {
            asked.accept(&bearer.token);
        }
        self.note_token(step, &bearer.token);
        self.change(step.rung, RungState::settle);
    }

    /// What is known of the rungs.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.subscribe()
    }

    /// Changes whenever a token became usable that was not.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.inner.news.subscribe()
    }

    /// Looks at all tokens that are at hand; those that istiod has refused are not among them.
    pub(super) fn look(&self) -> Vec<(&Step, Token)> {
        let now = self.inner.clock.now();
        let mut found = Vec::new();
        for step in &self.inner.steps {
            match self.held(step, now) {
                Some(Ok(token)) if step.is_refused(&token) => {}
                Some(Ok(token)) => {
                    self.note_token(step, &token);
                    found.push((step, token));
                }
                Some(Err(error)) => self.note_failure(step.rung, &error),
                None => {}
            }
        }
        found
    }

    /// A step's token without asking anybody; `None` when that is its source's part.
    fn held(&self, step: &Step, now: SystemTime) -> Option<Result<Token, RungError>> {
        let config = &self.inner.config;
        match &step.origin {
            Origin::Asked(asked) => asked.at_hand(now).map(Ok),
            Origin::File(path) => Some(
                Token::read(path)
                    .map_err(RungError::from)
                    .and_then(|token| checked(token, &config.id, &config.audience, now)),
            ),
        }
    }

    /// Has a step's source make a token; `None` when it fails, or there is nobody to ask.
    pub(super) async fn ask(&self, step: &Step, want: Want) -> Option<Token> {
        let Origin::Asked(asked) = &step.origin else { return None };
        match asked.ask(&self.inner.config, want, &self.inner.clock).await {
            Ok(token) => {
                self.note_token(step, &token);
                self.change(step.rung, RungState::settle);
                Some(token)
            }
            Err(error) => {
                self.note_failure(step.rung, &error);
                None
            }
        }
    }

    fn give(&self, step: &Step, token: Token) -> Bearer {
        let rung = step.rung;
        self.inner.state.send_if_modified(|state| {
            let before = state.in_use.replace(rung);
            before != Some(rung)
        });
        Bearer { rung, token }
    }

    fn note_token(&self, step: &Step, token: &Token) {
        let now = self.inner.clock.now();
        let is_file = matches!(step.origin, Origin::File(_));
        self.change(step.rung, |state| {
            state.hold(token, now);
            // What went wrong while asking for the next one is still so.
            if is_file {
                state.settle();
            }
        });
    }

    fn note_failure(&self, rung: Rung, error: &RungError) {
        let Config { id, audience, .. } = &self.inner.config;
        let hint = error.hint(rung, id, audience);
        let now = self.inner.clock.now();
        if let Some(trouble) = self.change(rung, |state| state.fail(error, hint, now)) {
            tracing::warn!(%rung, %trouble, "No token from this source.");
        }
    }

    /// Changes what is known of a rung; tells what is wrong with it that was not before.
    fn change(&self, rung: Rung, change: impl FnOnce(&mut RungState)) -> Option<Trouble> {
        let mut news = None;
        self.inner.state.send_if_modified(|state| {
            let Some(state) = state.rung_mut(rung) else { return false };
            let before = state.clone();
            change(state);
            news = state.news_since(&before).cloned();
            *state != before
        });
        news
    }

    fn spent(&self) -> LadderError {
        let now = self.inner.clock.now();
        let state = self.inner.state.borrow();
        if state.rungs.is_empty() {
            return LadderError::None;
        }
        let one = |(rung, state): &(Rung, RungState)| SpentRung {
            rung: *rung,
            why: state.trouble.as_ref().map_or_else(|| NO_TOKEN.to_owned(), |one| one.what.clone()),
            since: state.since_at(now),
            hint: state.trouble.as_ref().and_then(|one| one.hint.clone()),
            retry: state.trouble.as_ref().map_or(Retry::Later, |one| one.retry),
        };
        LadderError::Spent { rungs: state.rungs.iter().map(one).collect() }
    }
}

/// A source, ready to be used.
enum Ready {
    File(PathBuf),
    Supplier(Supplier),
}

impl Ready {
    fn into_origin(self, config: &Config, now: SystemTime) -> Origin {
        match self {
            Self::File(path) => Origin::File(path),
            Self::Supplier(supplier) => Origin::Asked(Box::new(Asked::new(supplier, config, now))),
        }
    }
}

fn origin(source: &Source, config: &Config, kube: Option<&Arc<Client>>) -> Option<Ready> {
    Some(match source {
        Source::TokenFile(path) | Source::OidcTokenFile(path) => Ready::File(path.clone()),
        Source::Kubernetes { life, kept } => Ready::Supplier(Supplier::Kubernetes(Kubernetes {
            client: Arc::clone(kube?),
            account: account(&config.id),
            life: *life,
            kept: kept.clone(),
        })),
        Source::Command(argv) => Ready::Supplier(Supplier::Command(argv.clone())),
        Source::Gce { address } => Ready::Supplier(Supplier::Gce(Gce { address: address.clone() })),
    })
}

const NO_TOKEN: &str = "it has given no token yet";
