//! Our credential for the Kubernetes API, where it is a token file: the one that a join placed in
//! our own state directory is replaced before it ends; an operator's own is only looked at.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rand::RngExt;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::kubernetes::account;
use super::pace::Pace;
use super::{Config, RungError, Token, TokenError, kept};
use crate::base::clock::SharedClock;
use crate::base::fsio::{self, FileError};
use crate::base::tasks::{offload, offload_within};
use crate::base::trouble::chain;
use crate::identity::SpiffeId;
use crate::kube::{Client, Object};

/// The token file of our client.
pub(super) struct ApiCredential {
    client: Arc<Client>,
    account: Object,
    id: SpiffeId,
    path: PathBuf,
    owner: Owner,
    /// Of its life, after which it is replaced.
    share: f64,
    /// What we put there last, and when by our clock.
    placed: Mutex<Option<(Token, SystemTime)>>,
    /// What could not be written, and is used meanwhile when the file's token has ended.
    unwritten: Mutex<Option<Token>>,
    /// What the second copy holds.
    copied: tokio::sync::Mutex<Option<Token>>,
    pub(super) pace: Pace,
}

/// Who replaces the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// We do.
    Agent,
    /// Somebody else does.
    Operator,
}

impl ApiCredential {
    /// `None` when our credential is no token file.
    pub(super) fn new(client: &Arc<Client>, config: &Config) -> Option<Self> {
        let path = client.token_file()?.to_owned();
        let owner = if path == config.own_kube_token { Owner::Agent } else { Owner::Operator };
        Some(Self {
            client: Arc::clone(client),
            account: account(&config.id),
            id: config.id.clone(),
            path,
            owner,
            share: RENEW_AT + rand::rng().random_range(-JITTER..=JITTER),
            placed: Mutex::new(None),
            unwritten: Mutex::new(None),
            copied: tokio::sync::Mutex::new(None),
            pace: Pace::new(),
        })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The token now.
    ///
    /// # Errors
    /// When it cannot be used. A token that is no JWT is the server's to judge.
    pub(super) fn look(&self, now: SystemTime) -> Result<Token, RungError> {
        let token = match Token::read(&self.path) {
            Err(error @ TokenError::Malformed { .. }) => self.restored(now).ok_or(error)?,
            read => read?,
        };
        match (token.check_end(now), self.unwritten(now)) {
            (Ok(()), _) => Ok(token),
            (Err(_), Some(unwritten)) => Ok(unwritten),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// The second copy of a token file of ours that is empty or was cut, written to the file again.
    /// A file that holds anything else is somebody's doing, and is left alone.
    fn restored(&self, now: SystemTime) -> Option<Token> {
        let found = Zeroizing::new(fsio::read_text(&self.path, FILE_BYTES).ok()?);
        let (copy, _) = kept::load(&self.copy()?)?;
        let is_cut = copy.secret().expose_secret().starts_with(found.trim());
        if !is_cut || copy.check_end(now).is_err() || copy.check_account(&self.id).is_err() {
            return None;
        }
        let path = self.path.display();
        match fsio::replace(&self.path, copy.secret().expose_secret().as_bytes(), fsio::SECRET) {
            Ok(()) => tracing::warn!(%path, "Restored a damaged token file from its second copy."),
            Err(error) => {
                tracing::warn!(%path, error = chain(&error), "Cannot restore a damaged token file.");
            }
        }
        Some(copy)
    }

    /// Keeps a second copy of the token in a file of ours.
    pub(super) async fn keep_copy(&self, token: &Token, now: SystemTime) {
        let mut copied = self.copied.lock().await;
        if copied.as_ref().is_some_and(|copied| copied.is(token)) {
            return;
        }
        let Some(path) = self.copy() else { return };
        let new = token.clone();
        let saved = offload(move || match kept::load(&path) {
            Some((old, _)) if old.is(&new) => Ok(()),
            _ => kept::save(&path, &new, now),
        });
        match saved.await {
            Ok(Ok(())) => *copied = Some(token.clone()),
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "No second copy of a token."),
            Err(_) => {}
        }
    }

    /// Where the second copy is; `None` for a file of the operator's.
    fn copy(&self) -> Option<PathBuf> {
        (self.owner == Owner::Agent).then(|| self.path.with_extension("json"))
    }

    /// What could not be written, while it lives.
    fn unwritten(&self, now: SystemTime) -> Option<Token> {
        let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unwritten.filter(|token| token.check_end(now).is_ok())
    }

    /// When the file is to be replaced: at once (`None`), after a while, or never.
    pub(super) fn due_in(&self, token: &Token, now: SystemTime) -> Option<Duration> {
        let better = |unwritten: Token| unwritten.expires_at() >= token.expires_at();
        let waits = self.unwritten(now).is_some_and(better);
        let at = if waits { Some(now) } else { self.due_at(token, now) };
        let left = at.map_or(Duration::MAX, |at| at.duration_since(now).unwrap_or_default());
        let left = left.max(self.pace.pause());
        (!left.is_zero()).then_some(left)
    }

    /// `None` for a token that is not ours to replace.
    fn due_at(&self, token: &Token, now: SystemTime) -> Option<SystemTime> {
        let claims = token.claims();
        let ours = claims.account.is_some() && token.check_account(&self.id).is_ok();
        let life = claims.life().filter(|_| ours && self.owner == Owner::Agent)?;
        let since = match self.placed_at(token, now) {
            Some(at) => at,
            // Our clock is behind: how old the token is, and when it ends, nobody knows.
            None if is_ahead(claims.issued_at?, now) => return Some(now),
            None => claims.issued_at?,
        };
        since.checked_add(life.mul_f64(self.share))
    }

    /// When we put it there: its age is measured by our own clock, unless that was set back.
    fn placed_at(&self, token: &Token, now: SystemTime) -> Option<SystemTime> {
        let placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let (placed, at) = placed.as_ref()?;
        (placed.is(token) && !is_ahead(*at, now)).then_some(*at)
    }

    /// Replaces the file by a token with the same audiences, life and binding. A server that only
    /// gives tokens that end sooner than what we have is asked again when that has changed.
    ///
    /// # Errors
    /// When the server does not make one, or the file cannot be written: the token is then used all
    /// the same, and written later.
    pub(super) async fn replace(
        &self,
        old: &Token,
        clock: &SharedClock,
    ) -> Result<Option<Token>, RungError> {
        let now = clock.now();
        let unwritten = self.unwritten(now).filter(|token| {
            let is_due = self.due_at(token, now).is_some_and(|at| at <= now);
            !is_due && token.expires_at() >= old.expires_at()
        });
        let new = match unwritten {
            Some(token) => token,
            None => self.request(old).await?,
        };
        let now = clock.now();
        if !new.is(old) && new.expires_at() <= old.expires_at() {
            let given = new.life(now).unwrap_or_default();
            let left = old.expires_at().and_then(|end| end.duration_since(now).ok());
            let rest = left.unwrap_or_default().saturating_sub(given);
            self.pace.rest(rest.clamp(REST, LONGEST_REST));
            return Ok(None);
        }
        let (path, text) = (self.path.clone(), new.secret().clone());
        let write = move || fsio::replace(&path, text.expose_secret().as_bytes(), fsio::SECRET);
        let late = |source| FileError { action: "write", path: self.path.clone(), source };
        let written = offload_within(WRITE_LIMIT, write).await;
        let written = written.unwrap_or_else(|error| Err(late(error)));
        let placed = Some((new.clone(), now));
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = placed;
        let unwritten = written.is_err().then(|| new.clone());
        self.client.spare_token(unwritten.as_ref().map(|token| token.secret().clone()));
        *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = unwritten;
        written.map_err(RungError::Storage)?;
        self.pace.reset();
        Ok(Some(new))
    }

    /// A new token that is like the old one.
    async fn request(&self, old: &Token) -> Result<Token, RungError> {
        let claims = old.claims();
        let audiences: Vec<&str> = claims.audiences.iter().map(String::as_str).collect();
        let life = claims.life().unwrap_or(SHORTEST).max(SHORTEST);
        let bound = claims.bound_to.as_ref();
        let issued = self.client.request_bound_token(&self.account, &audiences, life, bound).await;
        let issued = issued.map_err(RungError::Kube)?;
        let new = Token::parse(issued.token.expose_secret())?;
        new.check_account(&self.id)?;
        Ok(new)
    }
}

/// Whether a moment of the past is none by our clock.
fn is_ahead(past: SystemTime, now: SystemTime) -> bool {
    past.checked_sub(SET_BACK).is_some_and(|past| past > now)
}

/// A disk that is busy writes a token within this time.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Tokens are one or two kilobytes.
const FILE_BYTES: u64 = 64 << 10;
/// As the tokens that are made with it.
const RENEW_AT: f64 = 0.5;
const JITTER: f64 = 0.1;
/// A clock that is corrected by a little is nothing.
const SET_BACK: Duration = Duration::from_secs(60);
/// Kubernetes makes no token for less (`pkg/apis/authentication/validation`).
const SHORTEST: Duration = Duration::from_secs(600);
/// How long a server that gives shorter tokens than before is left alone.
const REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3600);
