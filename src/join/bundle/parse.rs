//! Reads a bundle: every problem at once, each with its line, and no secret in any of them.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{API_VERSION, Bundle, BundleMetadata, KIND};
use crate::base::problem::{Problem, Problems};
use crate::base::trouble::chain;
use crate::identity::{Claims, Roots};
use crate::join::KubernetesAccess;

/// A parsed YAML text and the line of each of its keys.
type Yaml = (Value, BTreeMap<Vec<String>, u64>);

impl Bundle {
    /// The largest bundle that is read, bytes. One with the largest mesh's roots has some hundred
    /// thousand.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// Reads a bundle. `origin` is its place, for problems.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(
        text: &str,
        origin: &str,
        parse_yaml: impl Fn(&str, &str) -> Result<Yaml, Problem>,
    ) -> Result<Self, Problems> {
        let one = |what: &str| Problems(vec![Problem::new(origin, "", what)]);
        if text.len() as u64 > Self::MAX_BYTES {
            return Err(one(&format!("it is larger than {} bytes", Self::MAX_BYTES)));
        }
        if text.trim().is_empty() {
            return Err(one(&no_bundle("an empty file")));
        }
        let (tree, lines) = parse_yaml(text, origin).map_err(|problem| Problems(vec![problem]))?;
        let Value::Object(mut tree) = tree else {
            return Err(one(&no_bundle("no map")));
        };
        let mut reader = Reader { origin, lines: &lines, problems: Vec::new() };
        if !reader.is_ours(&mut tree) {
            return Err(Problems(reader.problems));
        }
        let metadata = reader.metadata(&mut tree);
        let settings = reader.section(&mut tree, "settings");
        reader.our_part(&settings);
        let mut trust = reader.section(&mut tree, "trust");
        let mut credential = reader.section(&mut tree, "credential");
        let mesh_roots = reader.roots(&mut trust, "mesh");
        let kube_roots = reader.roots(&mut trust, "kubernetes");
        let kube_token = reader.token(&mut credential, "kubernetesToken");
        let istio_token = reader.token(&mut credential, "istioToken");
        for (section, rest) in [("", &tree), ("trust", &trust), ("credential", &credential)] {
            reader.unknown(section, rest);
        }
        let kubernetes = match (kube_roots, kube_token) {
            (Some(roots), Some(token)) => Some(KubernetesAccess { roots, token }),
            (None, None) => None,
            (Some(_), None) => {
                reader
                    .missing(&["credential", "kubernetesToken"], "a token for the Kubernetes API");
                None
            }
            (None, Some(_)) => {
                reader.missing(&["trust", "kubernetes"], "the roots of the Kubernetes API");
                None
            }
        };
        if mesh_roots.is_none() {
            reader.missing(&["trust", "mesh"], "the mesh's roots");
        }
        if kubernetes.is_none() && istio_token.is_none() && reader.problems.is_empty() {
            reader.missing(&["credential"], "a token");
        }
        match mesh_roots {
            Some(mesh_roots) if reader.problems.is_empty() => {
                let origins = reader.origins("settings");
                Ok(Self { metadata, settings, mesh_roots, kubernetes, istio_token, origins })
            }
            _ => Err(Problems(reader.problems)),
        }
    }
}

struct Reader<'a> {
    origin: &'a str,
    lines: &'a BTreeMap<Vec<String>, u64>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// The place of a field, or of the innermost section around it that is there.
    fn place(&self, path: &[&str]) -> String {
        let line = (1..=path.len()).rev().find_map(|length| {
            let path: Vec<String> = path.iter().take(length).map(|&part| part.to_owned()).collect();
            self.lines.get(&path)
        });
        line.map_or_else(|| self.origin.to_owned(), |line| format!("{}:{line}", self.origin))
    }

    fn wrong(&mut self, path: &[&str], what: impl Into<String>) {
        // A problem that follows from another of the same field says nothing new.
        let field = path.join(".");
        if !self.problems.iter().any(|problem| problem.field == field) {
            self.problems.push(Problem::new(self.place(path), field, what));
        }
    }

    fn missing(&mut self, path: &[&str], what: &str) {
        self.wrong(path, format!("missing: {what}"));
    }

    /// Whether it is a bundle of the version that we know: of another one nothing more can be said.
    fn is_ours(&mut self, tree: &mut Map<String, Value>) -> bool {
        let (version, kind) = (tree.remove("apiVersion"), tree.remove("kind"));
        let kind = kind.as_ref().and_then(Value::as_str);
        if kind != Some(KIND) {
            let found: String = kind.unwrap_or("a file without a kind").chars().take(60).collect();
            self.wrong(&["kind"], no_bundle(&found));
            return false;
        }
        let found = version.as_ref().and_then(Value::as_str).unwrap_or_default();
        if found == API_VERSION {
            return true;
        }
        let found: String = found.chars().take(60).collect();
        let what = format!(
            "found {found:?}, expected {API_VERSION}: it was made by another version of vm-agent"
        );
        self.wrong(&["apiVersion"], what);
        false
    }

    fn metadata(&mut self, tree: &mut Map<String, Value>) -> BundleMetadata {
        let mut section = self.section(tree, "metadata");
        let mut text = |name: &str| match section.remove(name) {
            None => String::new(),
            Some(Value::String(text)) if !text.contains(char::is_control) => text,
            Some(_) => {
                self.wrong(&["metadata", name], "expected a text of one line");
                String::new()
            }
        };
        let metadata = BundleMetadata {
            group: text("group"),
            namespace: text("namespace"),
            created: text("created"),
            name_prefix: text("namePrefix"),
            secret: text("secret"),
            renew_with: text("renewWith"),
            uses: None,
        };
        let uses = section.remove("uses");
        let count = uses.as_ref().and_then(Value::as_u64).filter(|count| *count > 0);
        if uses.is_some() && count.is_none() {
            self.wrong(&["metadata", "uses"], "expected a number from 1");
        }
        self.unknown("metadata", &section);
        BundleMetadata { uses: count, ..metadata }
    }

    fn section(&mut self, tree: &mut Map<String, Value>, name: &str) -> Map<String, Value> {
        match tree.remove(name) {
            Some(Value::Object(section)) => return section,
            Some(_) => self.wrong(&[name], "expected a map"),
            None => self.missing(&[name], "the file was cut off, or is another one"),
        }
        Map::new()
    }

    /// The join itself says where credentials lie.
    fn our_part(&mut self, settings: &Map<String, Value>) {
        if settings.contains_key("credential") {
            self.wrong(&["settings", "credential"], "it belongs below credential of the bundle");
        }
        let kubernetes = settings.get("registration").and_then(|one| one.get("kubernetes"));
        for name in ["caFile", "tokenFile", "kubeconfig", "context"] {
            if kubernetes.is_some_and(|kubernetes| kubernetes.get(name).is_some()) {
                let path = ["settings", "registration", "kubernetes", name];
                self.wrong(&path, "a bundle holds what such a file would");
            }
        }
    }

    fn roots(&mut self, trust: &mut Map<String, Value>, name: &str) -> Option<Roots> {
        let value = trust.remove(name)?;
        let roots = match value.as_str() {
            Some(pem) => Roots::from_pem(pem.as_bytes()).map_err(|error| chain(&error)),
            None => Err("expected certificates in PEM".to_owned()),
        };
        roots.map_err(|what| self.wrong(&["trust", name], what)).ok()
    }

    fn token(&mut self, credential: &mut Map<String, Value>, name: &str) -> Option<SecretString> {
        let Value::String(token) = credential.remove(name)? else {
            self.wrong(&["credential", name], "expected a text");
            return None;
        };
        match Claims::read(&token) {
            Ok(_) => Some(SecretString::from(token)),
            Err(why) => {
                self.wrong(&["credential", name], format!("it is no JSON Web Token: {why}"));
                None
            }
        }
    }

    fn unknown(&mut self, section: &str, rest: &Map<String, Value>) {
        for name in rest.keys() {
            let path = [section, name.as_str()];
            let path = if section.is_empty() { &path[1..] } else { &path[..] };
            self.wrong(path, "there is no such field");
        }
    }

    /// The place of each setting, below the section.
    fn origins(&self, section: &str) -> BTreeMap<Vec<String>, String> {
        let inner = self.lines.iter().filter_map(|(path, line)| {
            let (first, rest) = path.split_first()?;
            let wanted = first == section && !rest.is_empty();
            wanted.then(|| (rest.to_vec(), format!("{}:{line}", self.origin)))
        });
        inner.collect()
    }
}

fn no_bundle(found: &str) -> String {
    format!(
        "this is no join bundle: found {found}, expected {KIND} of {API_VERSION}, which `vm-agent \
         bundle create` makes"
    )
}
