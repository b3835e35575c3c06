//! Files and directories: bounded reads, atomic writes with a mode. The only place that writes.

use std::fs::{self, DirBuilder, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

/// The mode of a file that holds a secret.
pub const SECRET: u32 = 0o600;
/// The mode of a file that everyone may read.
pub const PUBLIC: u32 = 0o644;

/// A file operation that failed: which, on what, why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// True when the file or directory does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// What went wrong, for messages that name the file already.
    #[must_use]
    pub fn without_path(&self) -> String {
        if self.is_missing() {
            return "it does not exist".to_owned();
        }
        format!("cannot {} it: {}", self.action, self.source)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError { action, path: path.to_owned(), source }
}

/// Opens a regular file for reading. Anything else is refused and never waited for: a named pipe
/// without a writer would block the thread that opens it for ever, and a device may have no end.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    // O_NONBLOCK: open(2) of a named pipe returns at once. O_NOCTTY: a terminal stays nobody's.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed("read", path))?;
    let kind = file.metadata().map_err(failed("read", path))?.file_type();
    if kind.is_file() { Ok(file) } else { Err(failed("read", path)(not_regular(kind))) }
}

/// The error for something that is not a regular file.
pub(super) fn not_regular(kind: FileType) -> io::Error {
    let found = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "something else",
    };
    let why = format!("expected a regular file, found {found}");
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read, is larger, or is not a regular file ([`open_regular`]).
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    read_open(open_regular(path)?, path, limit)
}

/// Reads the rest of an open file of at most `limit` bytes; `path` is for errors.
///
/// # Errors
/// When it cannot be read, or is larger.
pub fn read_open(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        let why = format!("it is larger than {limit} bytes");
        return Err(failed("read", path)(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    Ok(bytes)
}

/// Identifies one state of a file behind all symbolic links: it differs when the file is replaced,
/// written to, or gets another mode or owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// The stamp of a file; `None` where there is none, or it cannot be looked at.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// Reads a regular UTF-8 text file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read, is larger, is not a regular file, or is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    String::from_utf8(read(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let why = format!("byte {at} is not UTF-8 text");
        failed("read", path)(io::Error::new(io::ErrorKind::InvalidData, why))
    })
}

/// Replaces a file as a whole: readers see the old content or the new one, also after a crash.
///
/// The new file has `mode` before it has content. Its directory must exist.
///
/// # Errors
/// When the directory cannot be written or the disk is full; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    replace_all(&[NewFile { path, content, mode }])
}

/// Writes a file that is there anew, in its place: where its directory may not be written. A crash in the midst leaves a part.
///
/// # Errors
/// When it does not exist or may not be written.
pub fn overwrite(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let mut file = File::options().write(true).open(path).map_err(failed("write", path))?;
    file.write_all(content).map_err(failed("write", path))?;
    file.set_len(content.len() as u64).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("write", path))
}

/// A file as it shall be.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Its content.
    pub content: &'a [u8],
    /// Its mode.
    pub mode: u32,
}

/// Replaces several files, each as [`replace`] does. All of them are written before the first one
/// gets its name, in the order given.
///
/// # Errors
/// As [`replace`]; where one cannot be written, all old files are untouched.
pub fn replace_all(files: &[NewFile<'_>]) -> Result<(), FileError> {
    let written: Result<Vec<_>, _> = files.iter().map(written).collect();
    for (NewFile { path, .. }, fresh) in files.iter().zip(written?) {
        fresh.persist(path).map_err(|error| failed("write", path)(error.error))?;
        sync_directory(directory_of(path))?;
    }
    Ok(())
}

/// A new file beside the one that it will replace, on the disk.
fn written(file: &NewFile<'_>) -> Result<NamedTempFile, FileError> {
    let NewFile { path, content, mode } = *file;
    let mut fresh = tempfile::Builder::new()
        .prefix(".")
        .suffix(".new")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory_of(path))
        .map_err(failed("write", path))?;
    fresh.write_all(content).map_err(failed("write", path))?;
    // The builder's mode passes through the umask.
    fresh.as_file().set_permissions(Permissions::from_mode(mode)).map_err(failed("write", path))?;
    fresh.as_file().sync_all().map_err(failed("write", path))?;
    Ok(fresh)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// Tries whether a directory takes a file of this many bytes. The file has no name, and is gone when
/// this returns.
///
/// # Errors
/// When the directory cannot be written or the disk is full.
pub fn try_write(directory: &Path, bytes: usize) -> Result<(), FileError> {
    let mut file = tempfile::tempfile_in(directory).map_err(failed("write below", directory))?;
    file.write_all(&vec![0; bytes]).map_err(failed("write below", directory))?;
    file.sync_all().map_err(failed("write below", directory))
}

/// Renames a file or directory within its file system, replacing what has the new name.
///
/// # Errors
/// When it does not exist or the directory may not be written.
#[expect(clippy::disallowed_methods, reason = "the one place that writes files")]
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(failed("rename", from))
}

/// Makes a directory and its missing parents; the last one gets `mode`, also when it existed.
///
/// # Errors
/// When a part of the path is no directory or may not be made.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("make", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("make", path))
}

/// Makes a named pipe for its owner alone; one that is there stays as it is, and anything else in its
/// place goes.
///
/// # Errors
/// When the directory cannot be written.
pub fn make_pipe(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_fifo() => return Ok(()),
        Ok(_) => remove(path)?,
        Err(_) => {}
    }
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    nix::unistd::mkfifo(path, mode).map_err(|error| failed("make", path)(error.into()))
}

/// Removes a file; a missing one is fine.
///
/// # Errors
/// When it exists and cannot be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all it holds; a missing one is fine.
///
/// # Errors
/// When it exists and cannot be removed.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory if it is empty; otherwise it stays.
pub fn remove_empty_directory(path: &Path) {
    drop(fs::remove_dir(path));
}

fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_in_its_place_stays_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-cert.pem");
        assert!(overwrite(&path, b"x").unwrap_err().is_missing());
        replace(&path, b"a longer text", PUBLIC).unwrap();
        overwrite(&path, b"short").unwrap();
        assert_eq!(read(&path, 100).unwrap(), b"short");
    }

    #[test]
    fn a_replaced_file_has_its_mode_and_leaves_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        replace(&path, b"one", SECRET).unwrap();
        replace(&path, b"two", SECRET).unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SECRET);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_several_files_none_is_replaced_when_one_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("a"), dir.path().join("none/b"));
        replace(&good, b"old", PUBLIC).unwrap();
        let file = |path, content| NewFile { path, content, mode: PUBLIC };
        let error = replace_all(&[file(&good, b"new"), file(&bad, b"new")]).unwrap_err();
        assert_eq!(error.path, bad);
        assert_eq!(read(&good, 10).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_not_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        replace(&path, &[b'x'; 11], PUBLIC).unwrap();
        assert!(read(&path, 10).is_err());
        assert_eq!(read(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn only_regular_files_are_read_and_nothing_else_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        make_pipe(&pipe).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let cases: [(&Path, &str); 4] = [
            (&pipe, "found a named pipe"),
            (&link, "found a named pipe"),
            (dir.path(), "found a directory"),
            (Path::new("/dev/zero"), "found a device"),
        ];
        for (path, words) in cases {
            let error = crate::base::trouble::chain(&read(path, 10).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        assert!(!read(Path::new("/proc/self/stat"), 4096).unwrap().is_empty());
    }

    #[test]
    fn a_pipe_takes_the_place_of_anything_but_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        replace(&path, b"one", PUBLIC).unwrap();
        make_pipe(&path).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert!(made.file_type().is_fifo());
        make_pipe(&path).unwrap();
        let inode = |found: fs::Metadata| MetadataExt::ino(&found);
        assert_eq!(inode(fs::metadata(&path).unwrap()), inode(made));
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("none")).unwrap();
        remove_tree(&dir.path().join("none")).unwrap();
    }
}
