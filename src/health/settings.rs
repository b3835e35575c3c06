//! Istio's ReadinessProbe in its JSON form (istio/api `networking/v1alpha3/workload_group.proto`).

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::exec::check_command;
use super::{Config, HttpProbe, Probe};

/// A field that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct ProbeError {
    /// Its path.
    pub field: String,
    /// What was found and what was expected.
    pub what: String,
}

impl Config {
    /// No probe but the proxy's readiness.
    #[must_use]
    pub fn of_proxy(target: IpAddr) -> Self {
        Self {
            probe: Probe::Proxy,
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            success_threshold: 1,
            failure_threshold: 1,
            target,
        }
    }

    /// Reads a probe. Names may be written in camelCase or with underscores; what is absent is as
    /// Istio's prober has it.
    ///
    /// # Errors
    /// All fields that are wrong.
    pub fn from_json(probe: &Map<String, Value>, target: IpAddr) -> Result<Self, Vec<ProbeError>> {
        let mut reader = Reader { errors: Vec::new() };
        let top = reader.fields("", probe, &TOP);
        let usual = Self::of_proxy(target);
        let seconds = |reader: &mut Reader, name: &str, usual: Duration| {
            let found = reader.number("", &top, name, 0, LONGEST);
            // 0 means what is usual, as Protobuf cannot tell it from nothing.
            found.filter(|n| *n > 0).map_or(usual, Duration::from_secs)
        };
        let initial_delay = seconds(&mut reader, "initialDelaySeconds", usual.initial_delay);
        let timeout = seconds(&mut reader, "timeoutSeconds", usual.timeout);
        let period = seconds(&mut reader, "periodSeconds", usual.period);
        let times = |reader: &mut Reader, name: &str| {
            let found = reader.number("", &top, name, 0, TIMES).filter(|n| *n > 0);
            u32::try_from(found.unwrap_or(1)).unwrap_or(1)
        };
        let success_threshold = times(&mut reader, "successThreshold");
        let failure_threshold = times(&mut reader, "failureThreshold");
        let kinds = ["httpGet", "tcpSocket", "exec", "grpc"];
        let named: Vec<_> =
            kinds.iter().filter_map(|kind| Some((*kind, *top.get(*kind)?))).collect();
        let probe = match named[..] {
            [(kind, value)] => reader.probe(kind, value),
            [] => reader.wrong("", "expected one of httpGet, tcpSocket, exec and grpc, found none"),
            _ => {
                reader.wrong("", "expected one of httpGet, tcpSocket, exec and grpc, found several")
            }
        };
        match probe {
            Some(probe) if reader.errors.is_empty() => Ok(Self {
                probe,
                initial_delay,
                timeout,
                period,
                success_threshold,
                failure_threshold,
                ..usual
            }),
            _ => Err(reader.errors),
        }
    }
}

type Fields<'a> = std::collections::BTreeMap<&'static str, &'a Value>;

struct Reader {
    errors: Vec<ProbeError>,
}

impl Reader {
    fn wrong<T>(&mut self, field: &str, what: &str) -> Option<T> {
        self.errors.push(ProbeError { field: field.to_owned(), what: what.to_owned() });
        None
    }

    /// The known fields that say something; unknown ones are errors.
    fn fields<'a>(
        &mut self,
        at: &str,
        map: &'a Map<String, Value>,
        known: &[&'static str],
    ) -> Fields<'a> {
        let mut found = Fields::new();
        for (name, value) in map {
            match known.iter().find(|known| **known == camel(name)) {
                Some(known) if !value.is_null() => drop(found.insert(known, value)),
                Some(_) => {}
                None => {
                    self.wrong::<()>(&join(at, name), "there is no such field");
                }
            }
        }
        found
    }

    fn number(
        &mut self,
        at: &str,
        fields: &Fields<'_>,
        name: &str,
        low: u64,
        high: u64,
    ) -> Option<u64> {
        let value = *fields.get(name)?;
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        match number.filter(|number| (low..=high).contains(number)) {
            Some(number) => Some(number),
            None => self.wrong(
                &join(at, name),
                &format!("found {}, expected a number from {low} to {high}", short(value)),
            ),
        }
    }

    fn text(&mut self, at: &str, fields: &Fields<'_>, name: &str) -> Option<String> {
        let value = *fields.get(name)?;
        match value.as_str() {
            Some("") => None,
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong(&join(at, name), &format!("found {}, expected a text", short(value)))
            }
        }
    }

    fn port(&mut self, at: &str, fields: &Fields<'_>) -> Option<u16> {
        if !fields.contains_key("port") {
            return self.wrong(&join(at, "port"), "missing: the port to connect to");
        }
        self.number(at, fields, "port", 1, 65_535).and_then(|port| u16::try_from(port).ok())
    }

    fn probe(&mut self, kind: &'static str, value: &Value) -> Option<Probe> {
        let Some(map) = value.as_object() else {
            return self.wrong(kind, &format!("found {}, expected a map", short(value)));
        };
        match kind {
            "httpGet" => self.http(map),
            "tcpSocket" => {
                let fields = self.fields(kind, map, &["host", "port"]);
                let host = self.text(kind, &fields, "host");
                Some(Probe::Tcp { host, port: self.port(kind, &fields)? })
            }
            "grpc" => {
                let fields = self.fields(kind, map, &["host", "port", "service"]);
                let host = self.text(kind, &fields, "host");
                let service = self.text(kind, &fields, "service").unwrap_or_default();
                Some(Probe::Grpc { host, port: self.port(kind, &fields)?, service })
            }
            _ => self.exec(map),
        }
    }

    fn http(&mut self, map: &Map<String, Value>) -> Option<Probe> {
        let kind = "httpGet";
        let known = ["host", "httpHeaders", "path", "port", "scheme"];
        let fields = self.fields(kind, map, &known);
        let host = self.text(kind, &fields, "host");
        let path = self.text(kind, &fields, "path").unwrap_or_else(|| "/".to_owned());
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        if path.parse::<http::Uri>().is_err() {
            self.wrong::<()>("httpGet.path", &format!("found {path:?}, expected a path of a URL"));
        }
        let scheme = self.text(kind, &fields, "scheme").unwrap_or_default().to_ascii_lowercase();
        if !["", "http", "https"].contains(&scheme.as_str()) {
            let what = format!("found {scheme:?}, expected HTTP or HTTPS");
            self.wrong::<()>("httpGet.scheme", &what);
        }
        let headers = self.headers(fields.get("httpHeaders").copied());
        let port = self.port(kind, &fields)?;
        Some(Probe::Http(HttpProbe { tls: scheme == "https", host, port, path, headers }))
    }

    fn headers(&mut self, value: Option<&Value>) -> Vec<(String, String)> {
        let Some(value) = value else { return Vec::new() };
        let one = |value: &Value| {
            let name = value.get("name")?.as_str()?;
            let text = value.get("value").and_then(Value::as_str).unwrap_or_default();
            let good = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && http::HeaderValue::from_str(text).is_ok();
            good.then(|| (name.to_owned(), text.to_owned()))
        };
        let list = value.as_array().map(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
        match list.flatten() {
            Some(headers) => headers,
            None => {
                let what = "expected a list of headers, each with a name and a value";
                self.wrong::<()>("httpGet.httpHeaders", what);
                Vec::new()
            }
        }
    }

    fn exec(&mut self, map: &Map<String, Value>) -> Option<Probe> {
        let fields = self.fields("exec", map, &["command"]);
        let list = fields.get("command").and_then(|value| value.as_array());
        let texts = |list: &Vec<Value>| {
            list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let Some(command) = list.and_then(texts) else {
            return self.wrong("exec.command", "expected a program and its arguments, as a list");
        };
        if let Err(error) = check_command(&command) {
            return self.wrong("exec.command", &error.to_string());
        }
        Some(Probe::Exec { command })
    }
}

/// `http_get` is `httpGet`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        text.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

const TOP: [&str; 9] = [
    "exec",
    "failureThreshold",
    "grpc",
    "httpGet",
    "initialDelaySeconds",
    "periodSeconds",
    "successThreshold",
    "tcpSocket",
    "timeoutSeconds",
];
/// A day: more is a mistake.
const LONGEST: u64 = 86_400;
const TIMES: u64 = 10_000;
