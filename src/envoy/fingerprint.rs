//! What an Envoy was started with, as one word, for the note that outlives its agent.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Map, Value};

use super::process::{BOOTSTRAP, arguments};
use super::{Config, ProxyUser};

/// What an Envoy was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Of the process: binary (its place and its file), user, arguments, and the port by which it is
    /// told what to do. A package that replaces the binary changes it.
    pub(super) process: String,
    /// Of the bootstrap without what the relay says anew.
    bootstrap: String,
    /// Of what it says anew: who and where the machine was.
    node: String,
    /// Of the agent that made the bootstrap.
    pub(super) version: String,
}

/// What a running Envoy is to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// What it would start itself.
    Same,
    /// The same process, with another bootstrap, which another version of the agent has made, or which
    /// is of a time when the machine had other addresses or labels: istiod is told the present ones all the
    /// same. It is as good as on the day before, and worth more than what is new in ours.
    Older,
    /// Something else.
    Other,
}

impl Fingerprint {
    /// The fingerprint of what a configuration starts.
    pub(super) fn of(config: &Config) -> Self {
        let (bootstrap, node) = parts(config.bootstrap.clone());
        Self {
            process: Self::process_of(config),
            bootstrap: Digest::of(&bootstrap),
            node: Digest::of(&node),
            version: config.version.clone(),
        }
    }

    /// The part of the process, which another file at the binary's place changes.
    pub(super) fn process_of(config: &Config) -> String {
        let binary = config.binary.metadata().ok();
        let file = binary
            .map(|file| (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
        let user = config.user.map(|ProxyUser { uid, gid }| (uid, gid));
        let rest = format!("{file:?} {user:?} {} {}", config.transparent, config.admin_port);
        let mut process = Digest::new();
        process.add(config.binary.as_os_str().as_bytes());
        process.add(rest.as_bytes());
        for argument in arguments(config, BOOTSTRAP) {
            process.add(argument.as_bytes());
        }
        process.finish()
    }

    /// What an Envoy that was started with `other` is to an agent that starts this.
    pub(super) fn fits(&self, other: &Self) -> Fit {
        let (is_same, is_by_us) =
            (self.bootstrap == other.bootstrap, self.version == other.version);
        if self.process != other.process || (!is_same && is_by_us) {
            Fit::Other
        } else if is_same && self.node == other.node {
            Fit::Same
        } else {
            Fit::Older
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}:{}:{}", self.process, self.bootstrap, self.node, self.version)
    }
}

/// It is no fingerprint.
#[derive(Debug)]
pub(super) struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut part = || parts.next().ok_or(NoFingerprint);
        Ok(Self { process: part()?, bootstrap: part()?, node: part()?, version: part()? })
    }
}

/// A bootstrap without the parts of its node that the relay says anew for the machine as it is now
/// (`xds/node.rs`), and these parts. The cluster's name follows the labels.
fn parts(mut bootstrap: Value) -> (Value, Value) {
    let mut parts = Map::new();
    for (place, names) in [
        ("/node", &["id", "cluster", "locality"][..]),
        ("/node/metadata", &["INSTANCE_IPS", "LABELS", "NETWORK", "STATIC_LABELS"]),
    ] {
        let Some(fields) = bootstrap.pointer_mut(place).and_then(Value::as_object_mut) else {
            continue;
        };
        parts.extend(names.iter().filter_map(|name| fields.remove_entry(*name)));
    }
    (bootstrap, Value::Object(parts))
}

struct Digest(Context);

impl Digest {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn of(value: &Value) -> String {
        let mut digest = Self::new();
        digest.add(value.to_string().as_bytes());
        digest.finish()
    }

    /// With its length, so that no two lists of parts are the same text.
    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    /// Half of it says enough: nobody gains by two that are alike.
    fn finish(self) -> String {
        let digest = self.0.finish();
        digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}
