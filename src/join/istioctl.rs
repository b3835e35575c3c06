//! The directory that `istioctl x workload entry configure` writes, translated into our settings
//! (Istio `istioctl/pkg/workload/workload.go`). It reads five files, and Istio's optional
//! `sidecar.env` beside them, and changes nothing.

mod flags;
mod keys;
mod traffic;
mod translate;

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::Source;
use super::shell::{self, Variable};
use crate::base::fsio;
use crate::base::problem::{Problem, Problems};
use crate::base::trouble::chain;
use crate::identity::Roots;

/// A parsed YAML text and the line of each of its keys.
type Yaml = (Value, BTreeMap<Vec<String>, u64>);

/// Reads the directory.
///
/// # Errors
/// With everything that is wrong with its files.
pub fn read_directory(
    directory: &Path,
    parse_yaml: impl Fn(&str, &str) -> Result<Yaml, Problem>,
) -> Result<Source, Problems> {
    no_directory_of_istioctl(directory)?;
    let mut reader = Reader { directory, problems: Vec::new(), warnings: Vec::new() };
    let environment = reader.environment();
    let mesh = reader.mesh(&parse_yaml);
    let facts = reader.facts(mesh, environment, &parse_yaml);
    let root_pem = reader.roots();
    let token = reader.text("istio-token", true).map(|text| SecretString::from(text.trim()));
    let hosts = reader.text("hosts", true);
    let (document, mut origins) = reader.document(&facts, hosts.as_deref());
    origins.insert(vec!["credential".to_owned()], reader.origin("istio-token"));
    if reader.problems.is_empty() {
        let (place, warnings) = (directory.display().to_string(), reader.warnings);
        let (kubernetes, terms) = (None, None);
        Ok(Source { place, document, origins, root_pem, token, kubernetes, terms, warnings })
    } else {
        Err(Problems(reader.problems))
    }
}

/// Says so where none of its files is there.
fn no_directory_of_istioctl(directory: &Path) -> Result<(), Problems> {
    let wanted = ["cluster.env", "mesh.yaml", "root-cert.pem"];
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    let found = entries.flatten().take(ENTRIES).map(|entry| entry.file_name());
    let found: Vec<String> = found.map(|name| name.to_string_lossy().into_owned()).collect();
    if found.iter().any(|name| wanted.contains(&name.as_str())) || found.len() == ENTRIES {
        return Ok(());
    }
    let shown: Vec<String> = found.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let what = format!(
        "this is no join directory: it has no {}; it holds {}",
        wanted.join(", "),
        if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
    );
    Err(Problems(vec![Problem::new(directory.display().to_string(), "", what)]))
}

/// Settings of a ProxyConfig whose `proxyMetadata` says who the machine is, as istioctl writes it
/// into `mesh.yaml`. `origin` is its place, for problems. The second part is what is strange, but no
/// error.
///
/// # Errors
/// With every variable that is wrong.
pub fn translate(
    proxy_config: Map<String, Value>,
    origin: &str,
) -> Result<(Value, Vec<Problem>), Problems> {
    let mut reader =
        Reader { directory: Path::new(origin), problems: Vec::new(), warnings: Vec::new() };
    let (places, variables) = (BTreeMap::new(), BTreeMap::new());
    let mut facts = Facts { proxy_config, places, variables, has_environment: false };
    facts.read_metadata(origin);
    let (document, _) = reader.document(&facts, None);
    if reader.problems.is_empty() {
        Ok((document, reader.warnings))
    } else {
        Err(Problems(reader.problems))
    }
}

struct Reader<'a> {
    directory: &'a Path,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// A value and where it stands.
struct Fact {
    value: String,
    origin: String,
}

/// What the two files say, the environment over the mesh's file.
struct Facts {
    /// Istio's ProxyConfig.
    proxy_config: Map<String, Value>,
    /// Where each part of it stands.
    places: BTreeMap<Vec<String>, String>,
    /// Its `proxyMetadata`, and the variables over it.
    variables: BTreeMap<String, Fact>,
    /// Whether there is a `cluster.env`, from which Istio's script takes what to redirect.
    has_environment: bool,
}

/// `mesh.yaml`, read.
#[derive(Default)]
struct MeshFile {
    config: Map<String, Value>,
    places: BTreeMap<Vec<String>, String>,
    /// Its last line has no end.
    open_end: bool,
}

/// `cluster.env`, read.
#[derive(Default)]
struct Environment {
    /// Each with its place; as in a shell, the last one of a name counts.
    variables: Vec<(Variable, String)>,
    open_end: bool,
}

impl Reader<'_> {
    fn origin(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    fn wrong(&mut self, origin: &str, field: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(origin, field, what));
    }

    fn warn(&mut self, origin: &str, field: &str, what: impl Into<String>) {
        self.warnings.push(Problem::new(origin, field, what));
    }

    fn text(&mut self, file: &str, optional: bool) -> Option<String> {
        match fsio::read_text(&self.directory.join(file), FILE_BYTES) {
            Ok(text) => Some(text),
            Err(error) if optional && error.is_missing() => None,
            Err(error) => {
                let what = error.without_path();
                self.wrong(&self.origin(file), "", what);
                None
            }
        }
    }

    /// The variables of sidecar.env, where there is one, and of cluster.env over them, in the order
    /// of Istio's script.
    fn environment(&mut self) -> Environment {
        let mut environment = Environment::default();
        if let Some(text) = self.text("sidecar.env", true) {
            environment.variables = self.variables(&text, "sidecar.env");
        }
        let Some(text) = self.text("cluster.env", false) else { return environment };
        let problems = self.problems.len();
        let variables = self.variables(&text, "cluster.env");
        if variables.is_empty() && self.problems.len() == problems {
            let file = self.origin("cluster.env");
            self.wrong(&file, "", "it sets nothing: it is empty or was cut off");
        }
        environment.variables.extend(variables);
        environment.open_end = !text.is_empty() && !text.ends_with('\n');
        environment
    }

    fn variables(&mut self, text: &str, file: &str) -> Vec<(Variable, String)> {
        let file = self.origin(file);
        let (variables, problems) = shell::parse(text, &file);
        self.problems.extend(problems);
        let placed = |one: Variable| {
            let place = format!("{file}:{}", one.line);
            (one, place)
        };
        variables.into_iter().map(placed).collect()
    }

    /// `defaultConfig` of mesh.yaml, or of a whole MeshConfig.
    fn mesh(&mut self, parse_yaml: &impl Fn(&str, &str) -> Result<Yaml, Problem>) -> MeshFile {
        let Some(text) = self.text("mesh.yaml", false) else { return MeshFile::default() };
        let origin = self.origin("mesh.yaml");
        let parsed = parse_yaml(&text, &origin);
        let (mut mesh, lines) = match parsed {
            Ok(parsed) => parsed,
            Err(problem) => {
                self.problems.push(problem);
                return MeshFile::default();
            }
        };
        let places = lines.into_iter().filter_map(|(path, line)| match path.split_first() {
            Some((first, rest)) if first == CONFIG => {
                Some((rest.to_vec(), format!("{origin}:{line}")))
            }
            _ => None,
        });
        let places: BTreeMap<_, _> = places.collect();
        match mesh.get_mut(CONFIG).map(Value::take) {
            Some(Value::Object(config)) => {
                return MeshFile { config, places, open_end: !text.ends_with('\n') };
            }
            Some(_) => {
                let at = places.get(&Vec::new()).unwrap_or(&origin).clone();
                self.wrong(&at, CONFIG, "expected a map: the file was cut off, or is another one");
            }
            None => {
                let what = "missing: this is no mesh.yaml of istioctl, or it was cut off";
                self.wrong(&origin, CONFIG, what);
            }
        }
        MeshFile::default()
    }

    /// proxyMetadata of mesh.yaml and cluster.env over it, as Istio's agent reads them. Names and
    /// identities that differ between the two are contradictions.
    fn facts(
        &mut self,
        mesh: MeshFile,
        environment: Environment,
        parse_yaml: &impl Fn(&str, &str) -> Result<Yaml, Problem>,
    ) -> Facts {
        let open_ends = [("cluster.env", environment.open_end), ("mesh.yaml", mesh.open_end)];
        let mut facts = Facts {
            proxy_config: mesh.config,
            places: mesh.places,
            variables: BTreeMap::new(),
            has_environment: true,
        };
        let all = environment
            .variables
            .into_iter()
            .map(|(one, origin)| (one.name, Fact { value: one.value, origin }));
        // As in a shell, the last one counts.
        let all: BTreeMap<String, Fact> = all.collect();
        if let Some(fact) = all.get("PROXY_CONFIG") {
            self.overlay(&mut facts, fact, parse_yaml);
        }
        facts.read_metadata(&self.origin("mesh.yaml"));
        self.refuse_cut_off(&facts, &all, open_ends);
        for (name, fact) in all {
            let other = facts.variables.get(&name).filter(|other| other.value != fact.value);
            if let Some(other) = other.filter(|_| keys::is_one_truth(&name)) {
                let what =
                    format!("found {:?}, but {} says {:?}", fact.value, other.origin, other.value);
                self.wrong(&fact.origin, &name, what);
            }
            if let Some(what) = keys::refusal(&name, &fact.value) {
                self.wrong(&fact.origin, &name, what);
            } else if let Some(what) = keys::oddity(&name, &fact.value) {
                self.warn(&fact.origin, &name, what);
            }
            facts.variables.insert(name, fact);
        }
        facts
    }

    /// The variable `PROXY_CONFIG` is a ProxyConfig over the one of mesh.yaml (Istio
    /// `pilot/cmd/pilot-agent/config/config.go`).
    fn overlay(
        &mut self,
        facts: &mut Facts,
        fact: &Fact,
        parse_yaml: &impl Fn(&str, &str) -> Result<Yaml, Problem>,
    ) {
        let field = "PROXY_CONFIG";
        let over = match parse_yaml(&fact.value, &fact.origin) {
            Ok((Value::Object(over), _)) => over,
            Ok(_) => return self.wrong(&fact.origin, field, "expected a map in YAML"),
            Err(problem) => return self.wrong(&fact.origin, field, problem.what),
        };
        for (name, value) in over {
            match (facts.proxy_config.get_mut(&name), value) {
                (Some(Value::Object(mine)), Value::Object(theirs)) if name == METADATA => {
                    for (key, value) in theirs {
                        facts
                            .places
                            .insert(vec![METADATA.to_owned(), key.clone()], fact.origin.clone());
                        mine.insert(key, value);
                    }
                }
                (_, value) => {
                    facts.places.retain(|path, _| path.first() != Some(&name));
                    facts.places.insert(vec![name.clone()], fact.origin.clone());
                    facts.proxy_config.insert(name, value);
                }
            }
        }
    }

    /// Both files say who the machine is. One that says less and whose last line has no end was
    /// cut off; YAML and shell lines alone do not show it.
    fn refuse_cut_off(
        &mut self,
        facts: &Facts,
        environment: &BTreeMap<String, Fact>,
        open_ends: [(&str, bool); 2],
    ) {
        let in_mesh = |name: &str| facts.variables.contains_key(name);
        let in_environment = |name: &str| environment.contains_key(name);
        for (file, _) in open_ends.into_iter().filter(|(_, open)| *open) {
            let missing = keys::ONE_TRUTH.into_iter().find(|name| match file {
                "mesh.yaml" => in_environment(name) && !in_mesh(name),
                _ => in_mesh(name) && !in_environment(name),
            });
            let origin = self.origin(file);
            if let Some(name) = missing {
                let other = if file == "mesh.yaml" { "cluster.env" } else { "mesh.yaml" };
                let what = format!(
                    "its last line has no end, and {name}, which {other} has, is missing: it was cut off"
                );
                self.wrong(&origin, "", what);
            } else {
                self.warn(&origin, "", "its last line has no end: was it cut off?");
            }
        }
    }

    fn roots(&mut self) -> Option<String> {
        let pem = self.text("root-cert.pem", false)?;
        match Roots::from_pem(pem.as_bytes()) {
            Ok(_) => Some(pem),
            Err(error) => {
                let what = chain(&error);
                self.wrong(&self.origin("root-cert.pem"), "", what);
                None
            }
        }
    }
}

impl Facts {
    fn read_metadata(&mut self, file: &str) {
        let metadata = self.proxy_config.get(METADATA).and_then(Value::as_object);
        for (name, value) in metadata.into_iter().flatten() {
            // What is no text is told when the settings are read.
            let Some(value) = value.as_str().map(str::to_owned) else { continue };
            let place = self.places.get(&[METADATA.to_owned(), name.clone()][..]);
            let origin = place.map_or_else(|| file.to_owned(), Clone::clone);
            self.variables.insert(name.clone(), Fact { value, origin });
        }
    }
}

const CONFIG: &str = "defaultConfig";
const METADATA: &str = "proxyMetadata";
const FILE_BYTES: u64 = 1 << 20;
/// Entries of a directory that are looked through to tell that it is another one.
const ENTRIES: usize = 1000;
/// Names of them that are shown.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests;
