//! What the machine shows to istiod: the identity kept on disk, and tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokio::time::timeout;

use super::finding::{Finding, Id};
use super::{Case, LIMIT};
use crate::base::clock::rfc3339;
use crate::base::trouble::chain;
use crate::credential::{Config, Ladder, LadderError, RungError, Source, Token, TokenError};
use crate::secrets::{self, KeptIdentity, Place, look};

/// What was found.
pub(super) struct Tokens {
    pub(super) findings: Vec<Finding>,
    /// When the youngest token was made, by the clock of its maker.
    pub(super) issued_at: Option<SystemTime>,
}

/// What the token files say.
#[derive(Default)]
struct Files {
    usable: Option<String>,
    wrong: Vec<(Source, TokenError)>,
    issued_at: Option<SystemTime>,
}

pub(super) async fn examine(case: &Case<'_>) -> Tokens {
    let now = case.patient.clock.now();
    let (identity, mut serves) = kept(case, now);
    let daemon = case.patient.daemon.status();
    let valid =
        daemon.and_then(|status| status.pointer("/identity/valid")).and_then(Value::as_bool);
    if valid == Some(true) {
        serves = Some("the daemon has a valid certificate".to_owned());
    }
    let files = files(&case.outline.credential, now);
    let issued_at = files.issued_at;
    let mut findings = vec![identity];
    findings.extend(judge(case, files, serves).await);
    Tokens { findings, issued_at }
}

/// The identity on disk, and whether it can serve.
fn kept(case: &Case<'_>, now: SystemTime) -> (Finding, Option<String>) {
    let id = Id::Identity;
    match &case.settings.identity.source {
        secrets::Source::Files(files) => {
            let missing = [&files.certificate, &files.key].into_iter().find(|path| !path.exists());
            let finding = match missing {
                Some(path) => Finding::failed(id, format!("{} is not there", path.display())).mend(
                    "have the program that keeps certificates write it (identity.files)".to_owned(),
                ),
                None => Finding::ok(
                    id,
                    format!("{} is kept by somebody else", files.certificate.display()),
                ),
            };
            return (finding, Some("certificates are kept by somebody else".to_owned()));
        }
        secrets::Source::Spiffe(_) => {
            let why = "certificates come from a SPIFFE Workload API".to_owned();
            return (Finding::skipped(id, why.clone()), Some(why));
        }
        secrets::Source::Istiod | secrets::Source::Kubernetes(_) => {}
    }
    let directory = case.patient.paths.state_directory();
    let root_cert = &case.settings.mesh.root_cert;
    let place = Place { state_directory: &directory, root_cert, id: &case.outline.id };
    match look(&place, now) {
        KeptIdentity::Nothing => (Finding::ok(id, "none is kept on disk yet"), None),
        KeptIdentity::Good { identity, .. } => {
            let until = rfc3339(identity.not_after());
            let words = format!("{}, valid until {until}", identity.id());
            (Finding::ok(id, &*words), Some(format!("the identity on disk is valid until {until}")))
        }
        KeptIdentity::NotNow { why, .. } => {
            let finding =
                Finding::warning(id, format!("the identity kept on disk is of no use now: {why}"))
                    .mend("start the agent: it gets a new one where a token is usable".to_owned());
            (finding, None)
        }
        KeptIdentity::Unusable { why } => {
            let file = directory.join("identity.json");
            let finding =
                Finding::warning(id, format!("the identity kept on disk is unusable: {why}")).mend(
                    format!(
                        "start the agent, which sets it aside and gets a new one, or `rm {}`",
                        file.display()
                    ),
                );
            (finding, None)
        }
    }
}

fn files(config: &Config, now: SystemTime) -> Files {
    let mut found = Files::default();
    for source in &config.sources {
        let (Source::TokenFile(path) | Source::OidcTokenFile(path)) = source else { continue };
        match read(path, config, now, &mut found.issued_at) {
            Ok(words) => found.usable = found.usable.or(Some(words)),
            Err(error) => found.wrong.push((source.clone(), error)),
        }
    }
    found
}

fn read(
    path: &Path,
    config: &Config,
    now: SystemTime,
    issued_at: &mut Option<SystemTime>,
) -> Result<String, TokenError> {
    let token = Token::read(path)?;
    *issued_at = (*issued_at).max(token.claims().issued_at);
    token.check(&config.id, &config.audience, now)?;
    let end = token.expires_at().map(|end| format!(", valid until {}", rfc3339(end)));
    let (path, audience) = (path.display(), &config.audience);
    Ok(format!("{path}: audience {audience}{}", end.unwrap_or_default()))
}

/// One usable token is enough, and none is needed at once where a certificate serves.
async fn judge(case: &Case<'_>, files: Files, serves: Option<String>) -> Vec<Finding> {
    let Config { id, audience, .. } = &case.outline.credential;
    let whose = format!("{}/{}", id.namespace(), id.service_account());
    let account = || Finding::ok(Id::Account, format!("service account {whose}"));
    if let Some(words) = files.usable {
        return vec![Finding::ok(Id::Token, words), account()];
    }
    let others = match &serves {
        // The daemon tells by itself what it lacks.
        Some(_) => None,
        None => asked(case).await,
    };
    let wrong = match (files.wrong.into_iter().next(), others) {
        (_, Some(Ok(words))) => return vec![Finding::ok(Id::Token, words), account()],
        (Some((source, error)), others) => {
            let is_account = matches!(error, TokenError::Subject { .. });
            let error = RungError::Token(error);
            let which = if is_account { Id::Account } else { Id::Token };
            let hint = error.hint(source.rung(), id, audience);
            let cause = chain(&error);
            let other = others.and_then(Result::err).map(|(why, _)| why);
            Wrong { which, cause, hint, other }
        }
        (None, Some(Err((cause, hint)))) => Wrong { which: Id::Token, cause, hint, other: None },
        (None, None) => match serves {
            Some(words) => {
                return vec![Finding::ok(Id::Token, format!("none is needed: {words}")), account()];
            }
            None => {
                let error = LadderError::None;
                Wrong {
                    which: Id::Token,
                    cause: error.to_string(),
                    hint: error.hint(),
                    other: None,
                }
            }
        },
    };
    wrong.findings(serves)
}

/// What is wrong with the tokens.
struct Wrong {
    which: Id,
    cause: String,
    hint: Option<String>,
    other: Option<String>,
}

impl Wrong {
    fn findings(self, serves: Option<String>) -> Vec<Finding> {
        let Self { which, cause, hint, other } = self;
        let finding = match &serves {
            Some(_) => Finding::warning(which, cause),
            None => Finding::failed(which, cause),
        };
        let finding = other.into_iter().chain(serves).fold(finding.mend(hint), Finding::evidence);
        match which {
            Id::Account => {
                vec![Finding::ok(Id::Token, "it is alive and for this audience"), finding]
            }
            _ => vec![finding],
        }
    }
}

/// The sources that are asked, without keeping what they give; `None` where there is none.
async fn asked(case: &Case<'_>) -> Option<Result<String, (String, Option<String>)>> {
    let clock = &case.patient.clock;
    let is_asked =
        |source: &Source| !matches!(source, Source::TokenFile(_) | Source::OidcTokenFile(_));
    let mut config = case.outline.credential.clone();
    config.sources.retain(is_asked);
    let kube = case.kube().ok().flatten().map(Arc::new);
    let words = |bearer: crate::credential::Bearer| {
        let end = bearer.token.expires_at().map(|end| format!(", valid until {}", rfc3339(end)));
        format!("one from {}{}", bearer.rung.setting(), end.unwrap_or_default())
    };
    let held = Ladder::new(config.clone(), kube.as_ref(), Arc::clone(clock)).at_hand();
    if let Some(bearer) = held {
        return Some(Ok(words(bearer)));
    }
    for source in &mut config.sources {
        if let Source::Kubernetes { kept, .. } = source {
            *kept = None;
        }
    }
    let ladder = Ladder::new(config, kube.as_ref(), Arc::clone(clock));
    match timeout(LIMIT, ladder.token()).await {
        Ok(Ok(bearer)) => Some(Ok(words(bearer))),
        Ok(Err(LadderError::None)) => None,
        Ok(Err(error)) => Some(Err((error.to_string(), error.hint()))),
        Err(_) => Some(Err((format!("no source gave a token within {LIMIT:?}"), None))),
    }
}
