//! What holds for any answer of the API server. The fuzz target looks for one for which it does not.

use reqwest::Response;
use serde_json::Value;

use super::error::{KubeError, Verb};
use super::watch::{Watch, WatchEvent, take_line};
use crate::base::printable::is_printable;
use crate::base::trouble::chain;

/// What a watch tells: one line an event, and what is no event is an error that can be shown. It returns the
/// objects.
#[must_use]
pub fn check_watch(bytes: &[u8]) -> Vec<Value> {
    let watch = Watch::new(Response::from(http::Response::new("")), String::new(), String::new());
    let mut buffer = bytes.to_vec();
    let (mut objects, mut taken) = (Vec::new(), 0);
    while let Some(line) = take_line(&mut buffer) {
        taken += line.len() + 1;
        assert!(!line.contains(&b'\n'));
        match watch.read(&line) {
            Ok(WatchEvent::Present(object) | WatchEvent::Deleted(object)) => objects.push(object),
            Ok(WatchEvent::Bookmark(revision)) => assert!(revision.len() < line.len()),
            Err(error) => check_error(&error),
        }
    }
    assert_eq!(taken + buffer.len(), bytes.len(), "nothing is lost");
    objects
}

/// A refusal: what is shown of it is one printable line, and there is a decision about it.
pub fn check_refusal(status: &Value, code: u16) {
    for verb in [Verb::Apply, Verb::RequestToken] {
        let error = KubeError::refused(verb, "object", status, code, None);
        check_error(&error);
        assert_eq!(error.code(), Some(code));
    }
}

fn check_error(error: &KubeError) {
    assert!(chain(error).chars().all(is_printable), "{error:?}");
    _ = (error.retry(), error.hint());
    assert!(error.conflicts().iter().all(|conflict| !conflict.manager.contains('"')));
}
