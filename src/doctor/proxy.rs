//! The proxy's binary: whether it runs here, and what of Istio it knows.

use tokio::time::timeout;

use super::finding::{Finding, Id};
use super::{LIMIT, Patient};
use crate::base::trouble::chain;
use crate::config::Settings;
use crate::envoy::{Build, find_binary, flavour_of, resolve_user, version_of};

pub(super) async fn examine(settings: Option<&Settings>, patient: &Patient) -> Vec<Finding> {
    let named = settings.and_then(|settings| settings.proxy.binary.as_deref());
    let binary = match find_binary(named, patient.search_path.as_deref()) {
        Ok(binary) => binary,
        Err(error) => return vec![Finding::failed(Id::Proxy, chain(&error)).mend(error.hint())],
    };
    let path = binary.display().to_string();
    // One that does not exist is another finding.
    let user = settings.and_then(|settings| settings.proxy.user.as_deref());
    let user = resolve_user(user).or_else(|_| resolve_user(None)).ok().flatten();
    let version = match timeout(LIMIT, version_of(&binary, user)).await {
        Ok(Ok(version)) => version,
        Ok(Err(error)) => {
            return vec![Finding::failed(Id::Proxy, chain(&error)).mend(error.hint())];
        }
        Err(_) => {
            let cause = format!("{path} does not tell its version within {LIMIT:?}");
            let mend = format!("try it by hand: `{path} --version`");
            return vec![Finding::failed(Id::Proxy, cause).mend(mend)];
        }
    };
    let found = Finding::ok(Id::Proxy, format!("{path} is Envoy {version}"));
    let flavour = timeout(LIMIT, tokio::task::spawn_blocking(move || flavour_of(&binary))).await;
    let Ok(Ok(Ok(flavour))) = flavour else {
        let cause = format!("what {path} knows of Istio could not be found out within {LIMIT:?}");
        return vec![found, Finding::skipped(Id::Flavour, cause)];
    };
    let build = flavour.build;
    let knows = format!("it knows: {}", flavour.knows.join(", "));
    let judged = match build {
        Build::Unknown => {
            Finding::skipped(Id::Flavour, "no extension's name is in it: a wrapper, perhaps")
        }
        _ if flavour.lacks.is_empty() => {
            Finding::ok(Id::Flavour, format!("{build}")).evidence(knows)
        }
        _ => Finding::warning(
            Id::Flavour,
            format!(
                "this build ({build}) lacks Istio's {}: it takes the configuration only of an \
                     istiod that does not send them",
                flavour.lacks.join(", ")
            ),
        )
        .mend(
            "install Istio's Envoy or a contrib build of 1.37 or later, or see docs/traffic.md"
                .to_owned(),
        )
        .evidence(knows),
    };
    vec![found, judged]
}
