//! `identity`: key and certificate.

use std::path::PathBuf;
use std::time::Duration;

use crate::ca::CsrApi;
use crate::config::paths::Paths;
use crate::config::reader::Reader;
use crate::identity::KeyAlgorithm;
use crate::secrets::{Files, Source};

/// How the machine's identity is made and renewed.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Where certificates come from.
    pub source: Source,
    /// The kind of key.
    pub key_algorithm: KeyAlgorithm,
    /// The lifetime to ask for.
    pub ttl: Duration,
    /// The share of its life after which a certificate is renewed.
    pub renew_at: f64,
    /// The largest random change of that share.
    pub renew_jitter: f64,
    /// Where the identity is written for other programs.
    pub export_directory: Option<PathBuf>,
}

impl Identity {
    pub(super) fn read(reader: &mut Reader<'_>, paths: &Paths) -> Option<Self> {
        let key_algorithm = reader.parse("identity.keyAlgorithm", "ecdsa-p256");
        let ttl = reader.duration("identity.ttl", "24h");
        let source = source(reader, paths);
        if matches!(source, Some(Source::Kubernetes(_))) && ttl.is_some_and(|ttl| ttl < LEAST_TTL) {
            let what = "the Kubernetes API signs for 10 minutes or longer".to_owned();
            reader.wrong("identity.ttl", what);
        }
        let renew_at = reader.share("identity.renewAt", 0.5, 0.1, 0.95);
        let renew_jitter = reader.share("identity.renewJitter", 0.15, 0.0, 0.3);
        let export = reader.path("identity.exportDirectory", "");
        Some(Self {
            source: source?,
            key_algorithm: key_algorithm?,
            ttl: ttl?,
            renew_at,
            renew_jitter,
            export_directory: export.map(|path| super::below(&paths.state_directory(), &path)),
        })
    }
}

/// The names of the sources, and the settings that each has for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Istiod,
    Kubernetes,
    Files,
    Spiffe,
}

fn source(reader: &mut Reader<'_>, paths: &Paths) -> Option<Source> {
    let kinds = [
        ("istiod", Kind::Istiod),
        ("kubernetes", Kind::Kubernetes),
        ("files", Kind::Files),
        ("spiffe", Kind::Spiffe),
    ];
    let kind = reader.choice("identity.source", "istiod", &kinds);
    let at = |path: PathBuf| super::below(&paths.config_directory(), &path);
    let signer = reader.parse("identity.signerName", "");
    let root_cert = reader.path("identity.rootCert", "").map(at);
    let certificate = reader.path("identity.files.certFile", "").map(at);
    let key = reader.path("identity.files.keyFile", "").map(at);
    let roots = reader.path("identity.files.rootFile", "").map(at);
    let socket = reader.parse("identity.spiffeSocket", "");
    let kind = kind?;
    for (setting, whose, words) in [
        ("identity.signerName", Kind::Kubernetes, "kubernetes"),
        ("identity.rootCert", Kind::Kubernetes, "kubernetes"),
        ("identity.files", Kind::Files, "files"),
        ("identity.spiffeSocket", Kind::Spiffe, "spiffe"),
    ] {
        if kind != whose && reader.is_set(setting) {
            reader
                .wrong(setting, format!("it has a meaning only where identity.source is {words}"));
        }
    }
    let mut needed = |setting: &str, is_there: bool| {
        if !is_there && !reader.is_set(setting) {
            reader.wrong("identity.source", format!("this source needs {setting}"));
        }
    };
    match kind {
        Kind::Istiod => Some(Source::Istiod),
        Kind::Kubernetes => {
            needed("identity.signerName", signer.is_some());
            Some(Source::Kubernetes(CsrApi { signer: signer?, root_cert }))
        }
        Kind::Files => {
            needed("identity.files.certFile", certificate.is_some());
            needed("identity.files.keyFile", key.is_some());
            Some(Source::Files(Files { certificate: certificate?, key: key?, roots }))
        }
        Kind::Spiffe => {
            needed("identity.spiffeSocket", socket.is_some());
            Some(Source::Spiffe(socket?))
        }
    }
}

/// Kubernetes' least `expirationSeconds`.
const LEAST_TTL: Duration = Duration::from_secs(600);
