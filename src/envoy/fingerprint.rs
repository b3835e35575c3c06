//! What an Envoy was started with, as one word: two of the same word are the same Envoy.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use aws_lc_rs::digest::{Context, SHA256};

use super::process::arguments;
use super::{Config, ProxyUser};

/// The fingerprint of what a configuration starts: binary (its place and its file), user, arguments,
/// bootstrap. It is the same for the next agent as long as none of them changes; a package that
/// replaces the binary changes it.
pub(super) fn of(config: &Config) -> String {
    let mut digest = Context::new(&SHA256);
    let mut add = |part: &[u8]| {
        // With their lengths, so that no two lists of parts are the same text.
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    };
    add(config.binary.as_os_str().as_bytes());
    let file = config.binary.metadata().ok();
    let file =
        file.map(|file| (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
    add(format!("{file:?}").as_bytes());
    let user = config.user.map(|ProxyUser { uid, gid }| (uid, gid));
    add(format!("{user:?} {}", config.transparent).as_bytes());
    add(config.bootstrap.to_string().as_bytes());
    for argument in arguments(config) {
        add(argument.as_bytes());
    }
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
