//! A kubeconfig as it is written (Kubernetes `client-go/tools/clientcmd/api/v1/types.go`), and how
//! several become one.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

/// One file, or several that were merged.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Document {
    pub(super) current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

/// A cluster and a user that belong together.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Context {
    pub(super) cluster: String,
    pub(super) user: String,
    pub(super) namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

/// An API server.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Cluster {
    pub(super) server: String,
    pub(super) certificate_authority: Option<PathBuf>,
    pub(super) certificate_authority_data: Option<String>,
    pub(super) insecure_skip_tls_verify: bool,
    pub(super) tls_server_name: Option<String>,
    pub(super) proxy_url: Option<String>,
    /// What plugins may be told.
    pub(super) extensions: Option<Vec<Extension>>,
}

/// Something of others about a cluster.
#[derive(Deserialize)]
pub(super) struct Extension {
    pub(super) name: String,
    pub(super) extension: Value,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

/// A credential.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct User {
    pub(super) token: Option<SecretString>,
    #[serde(rename = "tokenFile")]
    pub(super) token_file: Option<PathBuf>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_certificate_data: Option<String>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) client_key_data: Option<SecretString>,
    pub(super) username: Option<String>,
    pub(super) exec: Option<Exec>,
    pub(super) auth_provider: Option<AuthProvider>,
}

/// What `exec` replaced.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthProvider {
    pub(super) name: String,
}

/// A program that makes a credential.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exec {
    pub(super) api_version: String,
    pub(super) command: String,
    pub(super) args: Option<Vec<String>>,
    pub(super) env: Option<Vec<Variable>>,
    pub(super) install_hint: Option<String>,
    pub(super) provide_cluster_info: bool,
    pub(super) interactive_mode: Option<String>,
}

/// A variable of the program's environment.
#[derive(Clone, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

impl Document {
    /// Makes relative paths relative to the file's directory, as they are meant.
    pub(super) fn anchor(&mut self, directory: &Path) {
        let anchor = |path: &mut Option<PathBuf>| {
            if let Some(path) = path {
                *path = directory.join(&*path);
            }
        };
        for named in self.clusters.iter_mut().flatten() {
            anchor(&mut named.cluster.certificate_authority);
        }
        for named in self.users.iter_mut().flatten() {
            let user = &mut named.user;
            anchor(&mut user.token_file);
            anchor(&mut user.client_certificate);
            anchor(&mut user.client_key);
            if let Some(exec) = user.exec.as_mut().filter(|exec| exec.command.contains('/')) {
                exec.command = directory.join(&exec.command).to_string_lossy().into_owned();
            }
        }
    }

    /// Adds what another file says and this one does not: the first to name something wins, whole.
    pub(super) fn merge(&mut self, other: Self) {
        if self.current_context.as_ref().is_none_or(String::is_empty) {
            self.current_context = other.current_context;
        }
        add(&mut self.contexts, other.contexts, |one| &one.name);
        add(&mut self.clusters, other.clusters, |one| &one.name);
        add(&mut self.users, other.users, |one| &one.name);
    }

    pub(super) fn context(&self, name: &str) -> Option<Context> {
        let found = self.contexts.iter().flatten().find(|named| named.name == name);
        found.map(|named| named.context.clone())
    }

    pub(super) fn take_cluster(&mut self, name: &str) -> Option<Cluster> {
        let all = self.clusters.as_mut()?;
        let at = all.iter().position(|named| named.name == name)?;
        Some(all.swap_remove(at).cluster)
    }

    pub(super) fn take_user(&mut self, name: &str) -> Option<User> {
        let all = self.users.as_mut()?;
        let at = all.iter().position(|named| named.name == name)?;
        Some(all.swap_remove(at).user)
    }
}

fn add<T>(mine: &mut Option<Vec<T>>, theirs: Option<Vec<T>>, name: impl Fn(&T) -> &String) {
    let mine = mine.get_or_insert_default();
    for one in theirs.into_iter().flatten() {
        if !mine.iter().any(|known| name(known) == name(&one)) {
            mine.push(one);
        }
    }
}
