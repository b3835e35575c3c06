//! Finding Envoy, and learning whether it runs here.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use super::ProxyUser;
use super::launcher::OURSELVES;

/// Why there is no Envoy to start.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It is in none of the usual places.
    #[error("no Envoy found; looked at {looked_at}")]
    NotFound {
        /// The places.
        looked_at: String,
    },
    /// The named file cannot be started.
    #[error("{} cannot be the proxy: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl BinaryError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(
            "install Envoy (Istio's package istio-sidecar has it as /usr/local/bin/envoy), or name it \
             with --proxy-binary PATH"
                .to_owned(),
        )
    }
}

/// Envoy's binary: the named one, or the first of `search_path` (as `$PATH`), or
/// `/usr/local/bin/envoy`.
///
/// # Errors
/// When the named one cannot be started, or there is none.
pub fn find_binary(
    named: Option<&Path>,
    search_path: Option<&OsStr>,
) -> Result<PathBuf, BinaryError> {
    if let Some(path) = named {
        return match problem(path) {
            None => Ok(path.to_owned()),
            Some(why) => Err(BinaryError::Unusable { path: path.to_owned(), why }),
        };
    }
    let directories = search_path.map(std::env::split_paths).into_iter().flatten();
    let places = directories.map(|directory| directory.join("envoy"));
    let mut places: Vec<PathBuf> = places.collect();
    if !places.iter().any(|path| path == Path::new(USUAL)) {
        places.push(PathBuf::from(USUAL));
    }
    first_of(&places)
}

/// The first that can be started; else one that is there tells more than that there is none.
fn first_of(places: &[PathBuf]) -> Result<PathBuf, BinaryError> {
    let found = places.iter().find(|path| problem(path).is_none()).cloned();
    found.ok_or_else(|| {
        let there = places.iter().find(|path| path.exists());
        if let Some((path, why)) = there.and_then(|path| Some((path, problem(path)?))) {
            return BinaryError::Unusable { path: path.clone(), why };
        }
        let names: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        BinaryError::NotFound { looked_at: names.join(", ") }
    })
}

/// What Envoy says of its version; proves that it can be started on this machine. It runs as the proxy's user, where it
/// has one: whoever may replace the file must not get more by this than by starting Envoy.
///
/// # Errors
/// When it cannot be started, fails, or takes too long.
#[expect(clippy::disallowed_methods, reason = "one of the two places that start Envoy")]
pub async fn version_of(path: &Path, user: Option<ProxyUser>) -> Result<String, BinaryError> {
    let unusable = |why: String| BinaryError::Unusable { path: path.to_owned(), why };
    let mut command = match user {
        // Our own program gives up what it must not have, and becomes the other.
        Some(ProxyUser { uid, gid }) => {
            let mut command = tokio::process::Command::new(OURSELVES);
            command.arg("tell-version").arg("--binary").arg(path);
            command.args(["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
            command
        }
        None => {
            let mut command = tokio::process::Command::new(path);
            command.arg("--version");
            command
        }
    };
    let output = command.env_clear().stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(VERSION_LIMIT, output).await;
    let output = output.map_err(|_| unusable(format!("no version within {VERSION_LIMIT:?}")))?;
    let output = output.map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().chars().take(WORDS).collect();
        return Err(unusable(format!("`--version` ended with {}: {words}", output.status)));
    }
    version_in(&text).ok_or_else(|| unusable(NOT_ENVOY.to_owned()))
}

/// The version in the output of `--version`: `…  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
pub(super) fn version_in(text: &str) -> Option<String> {
    let (_, version) = text.split_once("version:")?;
    Some(version.split('/').nth(1)?.chars().take(100).collect())
}

fn problem(path: &Path) -> Option<String> {
    match path.metadata() {
        Err(error) => Some(error.to_string()),
        Ok(found) if !found.is_file() => Some("it is no file".to_owned()),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Some(format!("it is not executable (mode {:o})", found.permissions().mode() & 0o7777))
        }
        Ok(_) => None,
    }
}

/// Where Istio's packages put it.
const USUAL: &str = "/usr/local/bin/envoy";
/// A cold start from a slow disk takes seconds.
const VERSION_LIMIT: Duration = Duration::from_secs(20);
const NOT_ENVOY: &str = "what it answers to `--version` is not what Envoy says";
/// What an error quotes of its words.
const WORDS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_the_proxy_is_said_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("envoy");
        std::fs::write(&file, "text").unwrap();
        let why = |path: &Path| find_binary(Some(path), None).unwrap_err().to_string();
        assert!(why(&file).contains("not executable"));
        assert!(why(directory.path()).contains("no file"));
        assert!(why(&directory.path().join("none")).contains("No such file"));
        let missing = directory.path().join("none");
        let searched = first_of(&[missing.clone(), file.clone()]).unwrap_err().to_string();
        assert!(searched.contains("not executable"), "{searched}");
        assert!(first_of(&[missing]).unwrap_err().to_string().starts_with("no Envoy found"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = find_binary(None, Some(directory.path().as_os_str())).unwrap();
        assert_eq!(found, file);
        assert!(version_of(&found, None).await.is_err(), "a text file does not run");
        let other = version_of(Path::new("/bin/true"), None).await.unwrap_err().to_string();
        assert!(other.contains(NOT_ENVOY), "{other}");
    }
}
