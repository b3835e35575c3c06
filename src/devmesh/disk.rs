//! The mesh's memory on disk: objects with their revision, and keys. One file, which one process
//! has open; a change is on the disk when its call has been answered.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use zeroize::Zeroizing;

use super::kind::Resource;
use super::store::Key;

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened, read or written.
    #[error("cannot use the database {path}")]
    Database {
        /// The file.
        path: String,
        /// What the database said.
        #[source]
        source: Box<redb::Error>,
    },
    /// What is in it was not written by this program.
    #[error(
        "the database {path} holds {what} that cannot be read; another directory is a new mesh"
    )]
    Foreign {
        /// The file.
        path: String,
        /// What was read.
        what: String,
    },
}

/// An open memory.
pub(super) struct Disk {
    database: Database,
    path: String,
}

impl Disk {
    /// Opens the memory in this directory, or makes it there.
    pub(super) fn open(directory: &Path) -> Result<Self, DiskError> {
        let path = directory.join(FILE);
        let shown = path.display().to_string();
        match Database::create(path) {
            Ok(database) => Ok(Self { database, path: shown }),
            Err(error) => Err(DiskError::Database { path: shown, source: Box::new(error.into()) }),
        }
    }

    fn failed(&self, source: redb::Error) -> DiskError {
        DiskError::Database { path: self.path.clone(), source: Box::new(source) }
    }

    fn foreign(&self, what: &str) -> DiskError {
        DiskError::Foreign { path: self.path.clone(), what: what.to_owned() }
    }

    /// The newest revision, and all objects.
    pub(super) fn load(&self) -> Result<(u64, Vec<(Key, Value)>), DiskError> {
        let read = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_write()?;
            let mut found = Vec::new();
            let revision = {
                // A writing transaction also makes the tables of a new file.
                let objects = transaction.open_table(OBJECTS)?;
                for entry in objects.iter()? {
                    let (key, value) = entry?;
                    found.push((key.value().to_owned(), value.value().to_vec()));
                }
                let numbers = transaction.open_table(NUMBERS)?;
                let revision = numbers.get(REVISION)?.map(|number| number.value());
                transaction.open_table(SECRETS)?;
                revision.unwrap_or_default()
            };
            transaction.commit()?;
            Ok((revision, found))
        };
        let (revision, found) = read().map_err(|error| self.failed(error))?;
        let mut objects = Vec::new();
        for (name, bytes) in found {
            let object = serde_json::from_slice(&bytes).ok();
            let (key, object) =
                key(&name).zip(object).ok_or_else(|| self.foreign(&format!("{name:?}")))?;
            objects.push((key, object));
        }
        Ok((revision, objects))
    }

    /// Keeps what an object is at a revision; `None`: it is no more.
    pub(super) fn put(
        &self,
        key: &Key,
        object: Option<&Value>,
        revision: u64,
    ) -> Result<(), DiskError> {
        let name = name(key);
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut objects = transaction.open_table(OBJECTS)?;
                match object {
                    Some(object) => {
                        let bytes = object.to_string();
                        objects.insert(name.as_str(), bytes.as_bytes())?;
                    }
                    None => drop(objects.remove(name.as_str())?),
                }
                transaction.open_table(NUMBERS)?.insert(REVISION, revision)?;
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|error| self.failed(error))
    }

    /// A secret that was kept under a name.
    pub(super) fn secret(&self, name: &str) -> Result<Option<Value>, DiskError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(SECRETS)?;
            Ok(table.get(name)?.map(|bytes| Zeroizing::new(bytes.value().to_vec())))
        };
        let found = read().map_err(|error| self.failed(error))?;
        let parse = |bytes: Zeroizing<Vec<u8>>| {
            serde_json::from_slice(&bytes).map_err(|_| self.foreign("keys"))
        };
        found.map(parse).transpose()
    }

    /// Keeps a secret under a name.
    pub(super) fn keep(&self, name: &str, secret: &Value) -> Result<(), DiskError> {
        let bytes = Zeroizing::new(secret.to_string());
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(SECRETS)?.insert(name, bytes.as_bytes())?;
            Ok(transaction.commit()?)
        };
        write().map_err(|error| self.failed(error))
    }

    /// The error of a secret of another form.
    pub(super) fn unreadable(&self) -> DiskError {
        self.foreign("keys")
    }
}

/// Names of groups, kinds, namespaces and objects have no slashes in them.
fn name(key: &Key) -> String {
    let (resource, namespace) = (key.resource, &key.namespace);
    format!("{}/{}/{namespace}/{}", resource.group(), resource.plural(), key.name)
}

fn key(name: &str) -> Option<Key> {
    let mut parts = name.splitn(4, '/');
    let resource = Resource::find(parts.next()?, parts.next()?)?;
    Some(Key::new(resource, parts.next()?, parts.next()?))
}

/// The file in the directory.
const FILE: &str = "devmesh.redb";
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");
const REVISION: &str = "revision";
