//! A watch: the API server tells what changes, one JSON object a line.

use reqwest::Response;
use serde_json::Value;

use super::error::{KubeError, Verb};

/// Something that happened to a watched object.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// It is there, and so now.
    Present(Value),
    /// It was deleted; this is the last that was known of it.
    Deleted(Value),
    /// Nothing changed up to this revision.
    Bookmark(String),
}

/// A running watch.
pub struct Watch {
    response: Response,
    buffer: Vec<u8>,
    what: String,
    server: String,
}

impl Watch {
    pub(super) fn new(response: Response, what: String, server: String) -> Self {
        Self { response, buffer: Vec::new(), what, server }
    }

    /// The next event; `None` when the server ended the watch. It can be dropped and called again.
    ///
    /// # Errors
    /// When the connection broke, or the server refuses to go on; code 410 when the revision from
    /// which it started is too old.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, KubeError>> {
        loop {
            if let Some(line) = take_line(&mut self.buffer) {
                return Some(self.read(&line));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) if self.buffer.len().saturating_add(chunk.len()) > EVENT_BYTES => {
                    let (verb, what) = (Verb::Watch, self.what.clone());
                    return Some(Err(KubeError::TooLarge { verb, what, limit: EVENT_BYTES }));
                }
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return None,
                Err(source) => {
                    let (what, server) = (self.what.clone(), self.server.clone());
                    let source = source.without_url();
                    return Some(Err(KubeError::Transport {
                        verb: Verb::Watch,
                        what,
                        server,
                        source,
                    }));
                }
            }
        }
    }

    pub(super) fn read(&self, line: &[u8]) -> Result<WatchEvent, KubeError> {
        let rubbish = || KubeError::Rubbish { verb: Verb::Watch, what: self.what.clone() };
        let mut event: Value = serde_json::from_slice(line).map_err(|_| rubbish())?;
        let object = event.get_mut("object").map(Value::take).ok_or_else(rubbish)?;
        match event.get("type").and_then(Value::as_str) {
            Some("ADDED" | "MODIFIED") => Ok(WatchEvent::Present(object)),
            Some("DELETED") => Ok(WatchEvent::Deleted(object)),
            Some("BOOKMARK") => {
                let revision = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
                Ok(WatchEvent::Bookmark(revision.ok_or_else(rubbish)?.to_owned()))
            }
            Some("ERROR") => {
                let code = object.get("code").and_then(Value::as_u64);
                let code = code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
                Err(KubeError::refused(Verb::Watch, &self.what, &object, code, None))
            }
            _ => Err(rubbish()),
        }
    }
}

/// Takes the first whole line out of the buffer.
pub(super) fn take_line(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let mut line: Vec<u8> = buffer.drain(..=end).collect();
    line.pop();
    Some(line)
}

/// etcd's objects are at most 1.5 MiB.
const EVENT_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watch() -> Watch {
        let response = Response::from(http::Response::new(""));
        Watch::new(response, "workloadentries vms/vm1".to_owned(), "https://k".to_owned())
    }

    #[test]
    fn each_kind_of_event_is_known_and_rubbish_is_an_error() {
        let read = |event: Value| watch().read(event.to_string().as_bytes());
        let object = json!({"metadata": {"resourceVersion": "7"}});
        let event = |kind: &str| json!({"type": kind, "object": object});
        assert_eq!(read(event("ADDED")).unwrap(), WatchEvent::Present(object.clone()));
        assert_eq!(read(event("DELETED")).unwrap(), WatchEvent::Deleted(object.clone()));
        assert_eq!(read(event("BOOKMARK")).unwrap(), WatchEvent::Bookmark("7".to_owned()));
        let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "old"});
        assert_eq!(read(json!({"type": "ERROR", "object": gone})).unwrap_err().code(), Some(410));
        assert!(read(event("x")).is_err() && read(json!([])).is_err());
    }

    #[test]
    fn lines_are_taken_whole() {
        let mut buffer = b"one\ntw".to_vec();
        assert_eq!(take_line(&mut buffer), Some(b"one".to_vec()));
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b"o\n");
        assert_eq!(take_line(&mut buffer), Some(b"two".to_vec()));
    }
}
