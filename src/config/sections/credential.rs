//! `credential`: the tokens by which istiod knows us without a certificate.

use std::path::PathBuf;

use http::uri::Authority;

use crate::config::paths::Paths;
use crate::config::reader::Reader;
use crate::credential::Source;

/// Where tokens for istiod come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The audience that a token must name.
    pub audience: String,
    /// The sources, the best first.
    pub sources: Vec<Source>,
}

/// A platform that knows its machines.
#[derive(Clone, Copy)]
enum Platform {
    None,
    Gce,
}

impl Credential {
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let audience = reader.text("credential.audience", "istio-ca");
        let at = |path: PathBuf| super::below(&paths.state_directory(), &path);
        let token_file = reader.path("credential.tokenFile", "");
        let kubernetes = reader.flag("credential.kubernetes", true);
        let life = reader.duration("credential.tokenLife", "24h");
        let command = command(reader);
        let platform = platform(reader);
        let oidc = reader.path("credential.oidcTokenFile", "");
        let kept = Some(paths.issued_token());
        let sources = [
            token_file.map(at).map(Source::TokenFile),
            life.filter(|_| kubernetes).map(|life| Source::Kubernetes { life, kept }),
            command.map(Source::Command),
            platform.map(|address| Source::Gce { address }),
            oidc.map(at).map(Source::OidcTokenFile),
        ];
        Some(Self { audience: audience?, sources: sources.into_iter().flatten().collect() })
    }
}

/// A program and its arguments; whether it is there is the ladder's to say, since it may come later.
fn command(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let argv = reader.texts("credential.command");
    let program = argv.first()?;
    if program.is_empty() || (program.contains('/') && !program.starts_with('/')) {
        let what =
            format!("found {program:?}, expected the absolute path of a program, or its name");
        reader.wrong("credential.command", what);
        return None;
    }
    Some(argv)
}

fn platform(reader: &mut Reader<'_>) -> Option<Authority> {
    let kinds = [("none", Platform::None), ("gce", Platform::Gce)];
    let platform = reader.choice("credential.platform", "none", &kinds);
    let address = reader.parse("credential.platformAddress", METADATA_SERVER);
    match platform? {
        Platform::None => None,
        Platform::Gce => address,
    }
}

/// Google's metadata server; by its address, since names may be ours to answer.
const METADATA_SERVER: &str = "169.254.169.254";
