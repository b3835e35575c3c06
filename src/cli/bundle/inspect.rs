//! `vm-agent bundle inspect`: what is in a bundle, without its secrets.

use std::path::PathBuf;
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::base::clock::{self, rfc3339};
use crate::cli::exit::{Exit, Failure};
use crate::cli::join::{fresh_bundle, read_bundle};
use crate::cli::screen;
use crate::identity::{Claims, Roots};
use crate::join::{Bundle, BundleMetadata, Setting, leaves, outside, programs};

/// Arguments of `bundle inspect`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The bundle; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let hint = "FILE is a bundle that `vm-agent bundle create` made; `-` is standard input";
    let bundle = read_bundle(&args.file, hint)?;
    let now = clock::system().now();
    let shown = show(&bundle, now);
    if args.json {
        screen::out(&serde_json::to_string_pretty(&shown).map_err(crate::cli::other)?)?;
    } else {
        rows(&bundle, &shown)?;
    }
    match ended(&bundle, now) {
        None => Ok(()),
        Some(end) => {
            let end = rfc3339(end);
            let error = anyhow::anyhow!(
                "the bundle expired at {end}; this machine's clock says {}",
                rfc3339(now)
            );
            Err(Failure::new(Exit::Credential, error)
                .hint(fresh_bundle(&bundle.metadata.renew_with)))
        }
    }
}

/// Its tokens, by name.
fn tokens(bundle: &Bundle) -> Vec<(&'static str, Claims)> {
    let kubernetes = bundle.kubernetes.as_ref().map(|api| &api.token);
    let all = [("kubernetes", kubernetes), ("istio", bundle.istio_token.as_ref())];
    let claims = |token: &SecretString| Claims::read(token.expose_secret()).ok();
    all.into_iter().filter_map(|(name, token)| Some((name, claims(token?)?))).collect()
}

/// When it ended: the token that machines need first is the one for Kubernetes, where there is one.
fn ended(bundle: &Bundle, now: SystemTime) -> Option<SystemTime> {
    let tokens = tokens(bundle);
    let (_, first) = tokens.first()?;
    first.expires_at.filter(|end| *end <= now)
}

fn account(claims: &Claims) -> Option<String> {
    claims.account.as_ref().map(|account| format!("{}/{}", account.namespace, account.name))
}

fn is_over(claims: &Claims, now: SystemTime) -> bool {
    claims.expires_at.is_some_and(|end| end <= now)
}

fn show(bundle: &Bundle, now: SystemTime) -> Value {
    let BundleMetadata { group, namespace, created, name_prefix, uses, secret, renew_with } =
        &bundle.metadata;
    let token = |(name, claims): (&str, Claims)| {
        let shown = json!({
            "account": account(&claims), "audiences": claims.audiences,
            "expires": claims.expires_at.map(rfc3339), "expired": is_over(&claims, now),
        });
        (name.to_owned(), shown)
    };
    let path = |setting: &Setting| setting.path.join(".");
    json!({
        "schema": 1,
        "refused": outside(&bundle.settings).iter().map(path).collect::<Vec<_>>(),
        "programs": programs(&Value::Object(bundle.settings.clone())).iter().map(path).collect::<Vec<_>>(),
        "group": group, "namespace": namespace, "created": created, "name_prefix": name_prefix,
        "uses": uses, "secret": secret, "renew_with": renew_with,
        "expired": ended(bundle, now).is_some(),
        "tokens": tokens(bundle).into_iter().map(token).collect::<serde_json::Map<_, _>>(),
        "roots": {
            "mesh": roots(&bundle.mesh_roots),
            "kubernetes": bundle.kubernetes.as_ref().map(|api| roots(&api.roots)),
        },
        "settings": bundle.settings,
    })
}

fn roots(roots: &Roots) -> Value {
    let root = |root: crate::identity::RootCertificate| json!({"subject": root.subject, "sha256": root.sha256, "not_after": rfc3339(root.not_after)});
    roots.shown().into_iter().map(root).collect()
}

fn rows(bundle: &Bundle, shown: &Value) -> Result<(), Failure> {
    // It may be anybody's file: nothing in it commands the terminal.
    let row = |name: &str, value: &str| {
        screen::out(&format!("{name:<18}{}", value.replace(char::is_control, "\u{fffd}")))
    };
    let text = |at: &str| match shown.pointer(at) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    row("group", &format!("{}/{}", bundle.metadata.namespace, bundle.metadata.group))?;
    for (name, at) in ROWS {
        let value = text(at);
        if !value.is_empty() {
            row(name, &value)?;
        }
    }
    others(bundle, &row)?;
    for (name, claims) in tokens(bundle) {
        let end = claims.expires_at.map_or_else(|| "never".to_owned(), rfc3339);
        let over = if text(&format!("/tokens/{name}/expired")) == "true" { " (over)" } else { "" };
        let audiences = claims.audiences.join(", ");
        row(
            &format!("{name} token"),
            &format!("{} for {audiences}, until {end}{over}", account(&claims).unwrap_or_default()),
        )?;
    }
    let kubernetes = bundle.kubernetes.as_ref().map(|api| ("kubernetes root", &api.roots));
    for (name, roots) in std::iter::once(("mesh root", &bundle.mesh_roots)).chain(kubernetes) {
        for root in roots.shown() {
            let (hash, end) = (&root.sha256, rfc3339(root.not_after));
            row(name, &format!("{}, until {end}, SHA-256 {hash}", root.subject))?;
        }
    }
    Ok(())
}

/// Settings without a row of their own, those that matter most first.
fn others(
    bundle: &Bundle,
    row: &impl Fn(&str, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let shown = |Setting { path, value }: &Setting| format!("{} = {value}", path.join("."));
    for program in programs(&Value::Object(bundle.settings.clone())) {
        row("! runs", &format!("{} (vm-agent join --allow-exec)", shown(&program)))?;
    }
    let refused = outside(&bundle.settings);
    for setting in &refused {
        row("! refused", &format!("{} (not for a bundle to say)", shown(setting)))?;
    }
    let has_row = |setting: &Setting| {
        let at = format!("/settings/{}", setting.path.join("/"));
        ROWS.iter().any(|(_, row)| {
            at == *row || at.strip_prefix(row).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let rest = leaves(&bundle.settings).into_iter();
    for setting in rest.filter(|setting| !has_row(setting) && !refused.contains(setting)) {
        row("setting", &shown(&setting))?;
    }
    Ok(())
}

const ROWS: [(&str, &str); 14] = [
    ("created", "/created"),
    ("name prefix", "/name_prefix"),
    ("meant for machines", "/uses"),
    ("name", "/settings/workload/name"),
    ("service account", "/settings/workload/serviceAccount"),
    ("labels", "/settings/workload/labels"),
    ("ports", "/settings/workload/ports"),
    ("registration", "/settings/registration/mode"),
    ("kubernetes", "/settings/registration/kubernetes/server"),
    ("istiod", "/settings/mesh/discoveryAddress"),
    ("dialled at", "/settings/mesh/connectTo"),
    ("trust domain", "/settings/mesh/trustDomain"),
    ("secret", "/secret"),
    ("renew with", "/renew_with"),
];
