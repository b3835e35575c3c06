//! `identity`: key and certificate.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::paths::Paths;
use crate::config::reader::Reader;
use crate::identity::KeyAlgorithm;

/// How the machine's identity is made and renewed.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
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
        let renew_at = reader.share("identity.renewAt", 0.5, 0.1, 0.95);
        let renew_jitter = reader.share("identity.renewJitter", 0.15, 0.0, 0.3);
        let export = reader.path("identity.exportDirectory", "");
        Some(Self {
            key_algorithm: key_algorithm?,
            ttl: ttl?,
            renew_at,
            renew_jitter,
            export_directory: export.map(|path| super::below(&paths.state_directory(), &path)),
        })
    }
}
