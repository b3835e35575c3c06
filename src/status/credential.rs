//! The ladder of credentials as it is shown, and when it is worth a warning.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::base::backoff::Retry;
use crate::base::clock::rfc3339;
use crate::base::trouble::Trouble;
use crate::credential::{Phase, Rung, RungState, State};
use crate::identity::IssuedIdentity;

/// The ladder: the certificate above the tokens.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CredentialView {
    /// From the top.
    pub rungs: Vec<RungView>,
    /// Our token for the Kubernetes API, where that is in a file.
    pub kubernetes_api: Option<RungView>,
}

/// One rung.
#[derive(Clone, Debug, Serialize)]
pub struct RungView {
    /// `certificate`, `token-file`, `kubernetes`, `command`, `platform`, `oidc-token-file`; and
    /// `kubernetes-api`, which is no rung.
    pub name: &'static str,
    /// How it is.
    pub state: Phase,
    /// Since when, RFC 3339.
    pub since: String,
    /// The end of its token or certificate, RFC 3339.
    pub expires_at: Option<String>,
    /// Seconds until then; negative when it is past.
    pub expires_in: Option<i64>,
    /// What went wrong last, if nothing has gone right since.
    pub last_error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// How often something went wrong.
    pub failures: u64,
    /// Whether it is what we show to istiod now.
    pub in_use: bool,
}

/// The view of a ladder.
pub(super) fn view(
    state: &State,
    certificate: Option<&IssuedIdentity>,
    now: SystemTime,
) -> CredentialView {
    let certified = certificate.is_some_and(|identity| identity.is_valid_at(now));
    let mut rungs = vec![of_certificate(certificate, now)];
    rungs.extend(state.rungs.iter().map(|(rung, rung_state)| RungView {
        in_use: !certified && state.in_use == Some(*rung),
        ..of_token(rung.name(), rung_state, now)
    }));
    let api = state.kubernetes_api.as_ref();
    CredentialView { rungs, kubernetes_api: api.map(|state| of_token(API, state, now)) }
}

fn of_certificate(certificate: Option<&IssuedIdentity>, now: SystemTime) -> RungView {
    let end = certificate.map(IssuedIdentity::not_after);
    let valid = certificate.is_some_and(|identity| identity.is_valid_at(now));
    let (state, since) = match certificate {
        Some(identity) if valid => (Phase::Usable, identity.received_at()),
        Some(identity) if identity.not_after() <= now => (Phase::Spent, identity.not_after()),
        Some(identity) => (Phase::Failing, identity.received_at()),
        None => (Phase::Absent, now),
    };
    RungView {
        name: "certificate",
        state,
        since: rfc3339(since),
        expires_at: end.map(rfc3339),
        expires_in: end.map(|end| seconds_until(end, now)),
        last_error: None,
        hint: None,
        failures: 0,
        in_use: valid,
    }
}

fn of_token(name: &'static str, state: &RungState, now: SystemTime) -> RungView {
    let trouble = state.trouble.as_ref();
    RungView {
        name,
        state: state.phase_at(now),
        since: rfc3339(state.since_at(now)),
        expires_at: state.expires_at.map(rfc3339),
        expires_in: state.expires_at.map(|end| seconds_until(end, now)),
        last_error: trouble.map(|trouble| trouble.what.clone()),
        hint: trouble.and_then(|trouble| trouble.hint.clone()),
        failures: state.failures,
        in_use: false,
    }
}

/// Seconds until `at`; negative when it is past.
pub(super) fn seconds_until(at: SystemTime, now: SystemTime) -> i64 {
    match at.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

/// What is wrong with a ladder on which only the certificate holds. Without a valid certificate the
/// renewal itself says what is wrong.
pub(super) fn trouble(
    state: &State,
    certificate: Option<&IssuedIdentity>,
    now: SystemTime,
) -> Option<Trouble> {
    let until = certificate.filter(|identity| identity.is_valid_at(now))?.not_after();
    weak(state, until, now)
}

/// What is wrong while a certificate holds until then.
fn weak(state: &State, until: SystemTime, now: SystemTime) -> Option<Trouble> {
    if state.rungs.is_empty() || state.rungs.iter().any(|(rung, state)| holds(*rung, state, now)) {
        return None;
    }
    let usable = |(_, state): &&(Rung, RungState)| state.phase_at(now) == Phase::Usable;
    let last = state.rungs.iter().filter(usable).max_by_key(|(_, state)| state.expires_at);
    let only = format!(
        "only the certificate, valid until {}, keeps this machine in the mesh",
        rfc3339(until)
    );
    let (what, since) = match last {
        Some((rung, state)) => {
            let end = state.expires_at.unwrap_or(now);
            let minutes = end.duration_since(now).unwrap_or_default().as_secs() / 60;
            let since = end.checked_sub(margin(state)).unwrap_or(now);
            let name = rung.name();
            (format!("the {name} token expires in {minutes}m and nothing renews it; {only}"), since)
        }
        None => {
            let since = state.rungs.iter().map(|(_, state)| state.since_at(now)).max();
            (format!("there is no usable token ({}); {only}", listed(state, now)), since?)
        }
    };
    let hints = state.rungs.iter().filter_map(|(_, state)| state.trouble.as_ref()?.hint.clone());
    let hint = hints.into_iter().next().unwrap_or_else(|| NEW_ONE.to_owned());
    Some(Trouble { what, hint: Some(hint), retry: Retry::Later, since })
}

/// Whether a rung would carry the machine without the certificate, for some time to come.
fn holds(rung: Rung, state: &RungState, now: SystemTime) -> bool {
    if state.phase_at(now) != Phase::Usable {
        return false;
    }
    let renewed = rung.is_renewed() && state.trouble.is_none();
    let left = state.expires_at.map(|end| end.duration_since(now).unwrap_or_default());
    renewed || left.is_none_or(|left| left > margin(state))
}

/// The last part of a token's life.
fn margin(state: &RungState) -> Duration {
    state.life.unwrap_or(USUAL_LIFE).mul_f64(LAST_PART)
}

fn listed(state: &State, now: SystemTime) -> String {
    let one = |(rung, state): &(Rung, RungState)| {
        let since = rfc3339(state.since_at(now));
        let why = state.trouble.as_ref().map(|trouble| trouble.what.clone());
        let why = why.unwrap_or_else(|| "it has no token".to_owned());
        format!("{} since {since}: {why}", rung.name())
    };
    state.rungs.iter().map(one).collect::<Vec<_>>().join("; ")
}

const API: &str = "kubernetes-api";
/// With less than this share of its life left a token that nothing renews is worth a warning.
const LAST_PART: f64 = 0.2;
/// Of a token that does not say when it was made: as Kubernetes makes them.
const USUAL_LIFE: Duration = Duration::from_secs(3600);
const NEW_ONE: &str = "put a new token in its place or run `vm-agent join` with a new bundle; \
                       registration.kubernetes or credential.command would renew it by itself";

#[cfg(test)]
mod tests;
