//! Kubernetes' watch over the kept objects: one JSON object a line, from a revision on
//! (`apimachinery/pkg/watch`). What is kept of the past is bounded: older revisions are gone.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::Refusal;
use super::kind::Resource;
use super::selector::Selector;
use super::store::{Key, Objects};
use super::table;
use crate::base::clock::SharedClock;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Deleted,
    Modified,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Deleted => "DELETED",
            Self::Modified => "MODIFIED",
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) object: Value,
}

/// The latest changes, oldest first.
#[derive(Default)]
pub(super) struct Changes {
    kept: VecDeque<Change>,
    /// The revision of the newest change that is not kept any more.
    forgotten: u64,
}

impl Changes {
    /// Of a past that nobody remembers.
    pub(super) fn since(revision: u64) -> Self {
        Self { kept: VecDeque::new(), forgotten: revision }
    }

    pub(super) fn add(&mut self, change: Change) {
        self.kept.push_back(change);
        while self.kept.len() > CHANGES {
            if let Some(oldest) = self.kept.pop_front() {
                self.forgotten = oldest.revision;
            }
        }
    }

    /// Forgets all that was, as the API server does some minutes later.
    pub(super) fn forget(&mut self) {
        if let Some(newest) = self.kept.back() {
            self.forgotten = newest.revision;
        }
        self.kept.clear();
    }

    /// Those of the changes after a revision that are wanted, and the newest revision of all of
    /// them; `None` when some of them are gone.
    pub(super) fn after(
        &self,
        revision: u64,
        is_wanted: impl Fn(&Change) -> bool,
    ) -> Option<(u64, Vec<Change>)> {
        if revision < self.forgotten {
            return None;
        }
        // Thousands of watchers look after each change, and most have nearly all behind them.
        let start = self.kept.partition_point(|change| change.revision <= revision);
        let newest = self.kept.back().map_or(revision, |change| change.revision.max(revision));
        let wanted = self.kept.range(start..).filter(|change| is_wanted(change)).cloned();
        Some((newest, wanted.collect()))
    }
}

/// Whether the options of a call ask for a watch.
pub(super) fn is_wanted(options: &BTreeMap<String, String>) -> bool {
    options.get("watch").is_some_and(|value| ["true", "1"].contains(&value.as_str()))
}

/// What is watched.
pub(super) struct Scope {
    pub(super) resource: Resource,
    /// Empty for all namespaces.
    pub(super) namespace: String,
    /// True when each change is told as a table.
    pub(super) table: bool,
    selector: Selector,
}

impl Scope {
    /// The collection, narrowed by the selectors of a call.
    pub(super) fn new(
        resource: Resource,
        namespace: &str,
        options: &BTreeMap<String, String>,
    ) -> Self {
        let option = |name: &str| options.get(name).map(String::as_str).unwrap_or_default();
        Self {
            resource,
            namespace: namespace.to_owned(),
            table: false,
            selector: Selector::new(option("labelSelector"), option("fieldSelector")),
        }
    }

    pub(super) fn has(&self, object: &Value) -> bool {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        (self.namespace.is_empty() || namespace == Some(&self.namespace))
            && self.selector.has(object)
    }

    /// A line that only tells a revision, with this metadata beside it.
    fn bookmark(&self, revision: u64, mut metadata: Value) -> String {
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
        }
        let (kind, version) = (self.resource.kind(), self.resource.api_version());
        line("BOOKMARK", &json!({"kind": kind, "apiVersion": version, "metadata": metadata}))
    }

    /// A change of an object as a line.
    fn line(&self, kind: Kind, object: &Value, clock: &SharedClock) -> String {
        if !self.table {
            return line(kind.word(), object);
        }
        let table = table::of(self.resource, std::slice::from_ref(object), "", clock.now());
        line(kind.word(), &table)
    }
}

/// A running watch.
struct Watcher {
    objects: Objects,
    changed: watch::Receiver<u64>,
    scope: Scope,
    clock: SharedClock,
    revision: u64,
    bookmarks: bool,
    end: Instant,
    over: bool,
}

/// Answers with what changes. Without a revision it begins with what is there.
pub(super) fn follow(
    objects: &Objects,
    scope: Scope,
    options: &BTreeMap<String, String>,
    of: &super::Options,
) -> Result<Response, Refusal> {
    let number = |name: &str| options.get(name).and_then(|text| text.parse::<u64>().ok());
    let changed = objects.changed();
    // Newer callers read the list from the watch itself, and want to be told where it ends.
    let whole = options.get("sendInitialEvents").is_some_and(|value| value == "true");
    let (start, first) = match number("resourceVersion").filter(|at| *at > 0 && !whole) {
        Some(revision) => (revision, String::new()),
        None => {
            let revision = objects.revision();
            let there = objects.list(scope.resource, None).into_iter();
            let there = there.filter(|object| scope.has(object));
            let lines = there.map(|object| scope.line(Kind::Added, &object, &of.clock));
            let mut lines: String = lines.collect();
            if whole {
                let mark = json!({"annotations": {"k8s.io/initial-events-end": "true"}});
                lines.push_str(&scope.bookmark(revision, mark));
            }
            (revision, lines)
        }
    };
    if objects.changes_after(start, |_| false).is_none() {
        return Err(Refusal::expired(start));
    }
    let limit = number("timeoutSeconds").map_or(of.longest_watch, Duration::from_secs);
    let limit = limit.min(of.longest_watch);
    let bookmarks = options.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let watcher = Watcher {
        objects: objects.clone(),
        changed,
        scope,
        clock: Arc::clone(&of.clock),
        revision: start,
        bookmarks,
        end: Instant::now() + limit,
        over: false,
    };
    let rest = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let lines = watcher.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), watcher))
    });
    let first = futures_util::stream::iter((!first.is_empty()).then(|| Ok(Bytes::from(first))));
    let body = Body::from_stream(futures_util::StreamExt::chain(first, rest));
    Ok(([("content-type", "application/json")], body).into_response())
}

impl Watcher {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.over {
                return None;
            }
            self.changed.borrow_and_update();
            let fits = |change: &Change| {
                change.key.resource == self.scope.resource && self.scope.has(&change.object)
            };
            let found = self.objects.changes_after(self.revision, fits);
            let Some((newest, changes)) = found else {
                self.over = true;
                let body = Refusal::expired(self.revision).into_status();
                return Some(line("ERROR", &body));
            };
            let lines: String = changes
                .iter()
                .map(|change| self.scope.line(change.kind, &change.object, &self.clock))
                .collect();
            let moved = newest > self.revision;
            self.revision = newest;
            if !lines.is_empty() {
                return Some(lines);
            }
            if moved && self.bookmarks {
                return Some(self.scope.bookmark(self.revision, json!({})));
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.end) => return None,
            }
        }
    }
}

fn line(word: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": word, "object": object}))
}

/// Changes that are kept; the API server keeps those of the last minutes.
const CHANGES: usize = 10_000;
