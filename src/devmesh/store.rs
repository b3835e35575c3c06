//! Kubernetes objects: kept, versioned, and listed. Who may do what is not known here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::apply::{self, Conflict, Manager, Operation};
use super::disk::{Disk, DiskError};
use super::kind::Resource;
use super::lock;
use super::watch::{Change, Changes, Kind};
use crate::base::clock::{SharedClock, rfc3339};

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `namespace/name`.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Why an object was not written.
#[derive(Debug)]
pub(super) enum WriteRefusal {
    /// It exists (create).
    Exists,
    /// It does not exist (update).
    Missing,
    /// The writer has seen another version of it, or another object of that name.
    Stale,
    /// Others own fields that an apply would change.
    Conflicts(Vec<Conflict>),
    /// It cannot be kept.
    Disk(DiskError),
}

/// Who writes, and how.
pub(super) enum Write<'a> {
    Apply { manager: &'a str, force: bool },
    Create { manager: &'a str },
    Update { manager: &'a str },
}

/// Whether something is done, or only tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    Dry,
    Really,
}

/// The objects. Clones are the same objects.
#[derive(Clone)]
pub struct Objects {
    kept: Arc<Mutex<Kept>>,
    changed: watch::Sender<u64>,
    clock: SharedClock,
    disk: Option<Arc<Disk>>,
}

#[derive(Default)]
struct Kept {
    objects: BTreeMap<Key, Value>,
    changes: Changes,
    revision: u64,
}

impl Kept {
    /// Writes down a change under the newest revision.
    fn note(&mut self, kind: Kind, key: &Key, object: Value) {
        let revision = self.revision;
        self.changes.add(Change { revision, kind, key: key.clone(), object });
    }
}

/// What an object must be to be deleted.
#[derive(Clone, Debug, Default)]
pub(super) struct Preconditions {
    pub(super) uid: Option<String>,
    pub(super) revision: Option<String>,
}

impl Preconditions {
    fn fit(&self, object: &Value) -> bool {
        let is = |path: &str, wanted: &Option<String>| {
            let found = object.pointer(path).and_then(Value::as_str);
            wanted.is_none() || found == wanted.as_deref()
        };
        is("/metadata/uid", &self.uid) && is("/metadata/resourceVersion", &self.revision)
    }
}

impl Objects {
    /// Those that the disk holds, where there is one. Who watched before has to read again.
    pub(super) fn new(clock: SharedClock, disk: Option<Arc<Disk>>) -> Result<Self, DiskError> {
        let (revision, objects) =
            disk.as_ref().map(|disk| disk.load()).transpose()?.unwrap_or_default();
        let changes = Changes::since(revision);
        let kept = Kept { objects: objects.into_iter().collect(), changes, revision };
        let kept = Arc::new(Mutex::new(kept));
        Ok(Self { kept, changed: watch::Sender::new(revision), clock, disk })
    }

    /// Keeps a change on the disk.
    fn keep(&self, key: &Key, object: Option<&Value>, revision: u64) -> Result<(), DiskError> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.put(key, object, revision))
    }

    /// As [`Objects::keep`], where nobody waits for an answer.
    fn try_keep(&self, key: &Key, object: Option<&Value>, revision: u64) {
        if let Err(error) = self.keep(key, object, revision) {
            let error = crate::base::trouble::chain(&error);
            tracing::error!(error, "A change of {} will be forgotten at a restart.", key.path());
        }
    }

    /// An object as the API shows it.
    #[must_use]
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        lock(&self.kept).objects.get(&Key::new(resource, namespace, name)).cloned()
    }

    /// All objects of a kind, in one namespace or in all.
    #[must_use]
    pub fn list(&self, resource: Resource, namespace: Option<&str>) -> Vec<Value> {
        let kept = lock(&self.kept);
        let start = Key::new(resource, namespace.unwrap_or_default(), "");
        let is_here = |key: &Key| {
            key.resource == resource && namespace.is_none_or(|wanted| key.namespace == wanted)
        };
        let here = kept.objects.range(start..).take_while(|(key, _)| is_here(key));
        here.map(|(_, object)| object.clone()).collect()
    }

    /// True when there is no object of a kind.
    pub(super) fn has_no(&self, resource: Resource) -> bool {
        let start = Key::new(resource, "", "");
        let kept = lock(&self.kept);
        kept.objects.range(start..).next().is_none_or(|(key, _)| key.resource != resource)
    }

    /// Writes an object as somebody else would (field manager `kubectl`, an update): its metadata's
    /// labels and annotations, and its spec.
    pub fn put(&self, resource: Resource, namespace: &str, name: &str, object: Value) {
        let key = Key::new(resource, namespace, name);
        let create = Write::Create { manager: "kubectl" };
        let create = self.write(&key, object.clone(), &create, Commit::Really);
        if create.is_err() {
            // It exists; an update without a version always fits.
            let update = Write::Update { manager: "kubectl" };
            drop(self.write(&key, object, &update, Commit::Really));
        }
    }

    /// Removes an object and returns it.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let key = Key::new(resource, namespace, name);
        self.remove(&key, &Preconditions::default()).unwrap_or_default()
    }

    /// Removes all objects of a namespace.
    pub(super) fn empty(&self, namespace: &str) {
        let keys: Vec<Key> = lock(&self.kept).objects.keys().cloned().collect();
        for key in keys.iter().filter(|key| key.namespace == namespace) {
            // Somebody else may have removed it meanwhile.
            drop(self.remove(key, &Preconditions::default()));
        }
    }

    /// Removes an object that is as expected, and returns it.
    pub(super) fn remove(
        &self,
        key: &Key,
        wanted: &Preconditions,
    ) -> Result<Option<Value>, WriteRefusal> {
        let mut kept = lock(&self.kept);
        let Some(object) = kept.objects.get(key) else { return Ok(None) };
        if !wanted.fit(object) {
            return Err(WriteRefusal::Stale);
        }
        let removed = kept.objects.remove(key);
        kept.revision += 1;
        self.try_keep(key, None, kept.revision);
        let mut last = removed.clone().unwrap_or_default();
        stamp(&mut last, "resourceVersion", json!(kept.revision.to_string()));
        kept.note(Kind::Deleted, key, last);
        self.changed.send_replace(kept.revision);
        Ok(removed)
    }

    /// Wakes at each change.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Those of the changes after a revision that are wanted, and the newest revision; `None` when
    /// some of them are gone.
    pub(super) fn changes_after(
        &self,
        revision: u64,
        is_wanted: impl Fn(&Change) -> bool,
    ) -> Option<(u64, Vec<Change>)> {
        lock(&self.kept).changes.after(revision, is_wanted)
    }

    /// Forgets the changes so far: who watches from an older revision has to read again.
    pub fn compact(&self) {
        let mut kept = lock(&self.kept);
        kept.changes.forget();
        self.changed.send_replace(kept.revision);
    }

    /// The version of the newest change.
    pub(super) fn revision(&self) -> u64 {
        lock(&self.kept).revision
    }

    /// Changes an object in place, as a controller does; false when there is none.
    pub(super) fn modify(&self, key: &Key, change: impl FnOnce(&mut Value)) -> bool {
        let mut kept = lock(&self.kept);
        let Kept { objects, revision, .. } = &mut *kept;
        let Some(object) = objects.get_mut(key) else { return false };
        change(object);
        *revision += 1;
        stamp(object, "resourceVersion", json!(revision.to_string()));
        let now = object.clone();
        self.try_keep(key, Some(&now), kept.revision);
        kept.note(Kind::Modified, key, now);
        self.changed.send_replace(kept.revision);
        true
    }

    /// Writes an object; true when it is new.
    pub(super) fn write(
        &self,
        key: &Key,
        wanted: Value,
        how: &Write<'_>,
        commit: Commit,
    ) -> Result<(Value, bool), WriteRefusal> {
        let mut kept = lock(&self.kept);
        let live = kept.objects.get(key);
        match (how, live) {
            (Write::Create { .. }, Some(_)) => return Err(WriteRefusal::Exists),
            (Write::Update { .. }, None) => return Err(WriteRefusal::Missing),
            _ => {}
        }
        let version = wanted.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        if version.is_some_and(|version| {
            live.and_then(|live| live.pointer("/metadata/resourceVersion")?.as_str())
                != Some(version)
        }) {
            return Err(WriteRefusal::Stale);
        }
        let now = self.clock.now();
        let start = live.cloned().unwrap_or_else(|| skeleton(key, now));
        let written = match how {
            Write::Apply { manager, force } => {
                let manager = Manager::new(manager, Operation::Apply);
                apply::apply(start, &wanted, &manager, *force, now)
                    .map_err(WriteRefusal::Conflicts)?
            }
            Write::Create { manager } | Write::Update { manager } => {
                apply::update(start, &wanted, &Manager::new(manager, Operation::Update), now)
            }
        };
        let created = live.is_none();
        if live.is_some_and(|live| apply::same(live, &written)) {
            return Ok((live.cloned().unwrap_or_default(), false));
        }
        let generation = live.map_or(1, |live| {
            let before = live.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(1);
            before + u64::from(live.get("spec") != written.get("spec"))
        });
        let mut written = written;
        stamp(&mut written, "generation", json!(generation));
        if commit == Commit::Dry {
            return Ok((written, created));
        }
        let revision = kept.revision + 1;
        stamp(&mut written, "resourceVersion", json!(revision.to_string()));
        self.keep(key, Some(&written), revision).map_err(WriteRefusal::Disk)?;
        kept.revision = revision;
        kept.objects.insert(key.clone(), written.clone());
        let kind = if created { Kind::Added } else { Kind::Modified };
        kept.note(kind, key, written.clone());
        self.changed.send_replace(kept.revision);
        Ok((written, created))
    }
}

/// A random (version 4) UUID, as Kubernetes' uids are.
pub(super) fn random_uid() -> String {
    let number = rand::random::<u128>() & !(0xf << 76) & !(0b11 << 62) | 0x4 << 76 | 0b10 << 62;
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

fn skeleton(key: &Key, now: SystemTime) -> Value {
    let mut object = json!({
        "apiVersion": key.resource.api_version(),
        "kind": key.resource.kind(),
        "metadata": {
            "name": key.name,
            "uid": random_uid(),
            "creationTimestamp": rfc3339(now),
        },
    });
    if !key.namespace.is_empty() {
        stamp(&mut object, "namespace", json!(key.namespace));
    }
    object
}

fn stamp(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut()
        && let Some(metadata) =
            object.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut()
    {
        metadata.insert(field.to_owned(), value);
    }
}
