//! `vm-agent status`: what is so now.

mod watch;

use serde_json::Value;

use super::exit::{Exit, Failure};
use super::options::Global;
use super::screen::{self, Paint, paint};
use crate::status::{self, AskError};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON with a schema number
    #[arg(long)]
    json: bool,
    /// Go on, and show what changes, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if args.watch {
        return watch::run(global, args.json);
    }
    let status = ask(global)?;
    if args.json {
        let text = serde_json::to_string_pretty(&status).map_err(super::other)?;
        screen::out(&text)?;
    } else {
        screen::out(render(&status).trim_end())?;
    }
    if is(&status, "/ready") {
        return Ok(());
    }
    let phase = text(&status, "/phase");
    Err(Failure::new(Exit::NotReady, anyhow::anyhow!("this machine is not ready: {phase}")))
}

/// The daemon's status, with the failure that each kind of silence means.
pub(super) fn ask(global: &Global) -> Result<Value, Failure> {
    let socket = crate::config::Paths::new(&global.root).admin_socket();
    status::ask(&socket).map_err(|error| {
        let is_nobody = matches!(error, AskError::Nobody { .. });
        let failure = failure(error);
        if is_nobody { failure.hint(start_hint(global)) } else { failure }
    })
}

/// What starts the agent, on this machine.
pub(super) fn start_hint(global: &Global) -> String {
    let paths = crate::config::Paths::new(&global.root);
    if !paths.config_file().exists() && global.config.is_none() {
        return "this machine has not joined: `vm-agent join BUNDLE-OR-DIRECTORY`".to_owned();
    }
    match super::service::Service::installed(global) {
        Some(_) => "`systemctl start vm-agent` starts it; `vm-agent doctor` shows why it ended",
        None => "start it with `vm-agent run`",
    }
    .to_owned()
}

pub(super) fn failure(error: AskError) -> Failure {
    let (exit, hint) = match &error {
        AskError::Nobody { .. } => {
            (Exit::NotRunning, "start it with `vm-agent run`, or join: `vm-agent join --help`")
        }
        AskError::Denied { .. } => {
            (Exit::Host, "only root may ask the agent: `sudo vm-agent status`")
        }
        AskError::Broken { .. } => (Exit::Other, "look at the agent's log"),
    };
    Failure::new(exit, error).hint(hint.to_owned())
}

/// The text form: one line a room, then what is wrong.
fn render(status: &Value) -> String {
    let rows = rows(status).into_iter().map(|(name, value)| format!("{name:<15}{value}\n"));
    rows.chain(conditions(status).into_iter().map(|line| format!("{line}\n"))).collect()
}

/// The rooms, each with what is so.
fn rows(status: &Value) -> Vec<(&'static str, String)> {
    let ready = is(status, "/ready");
    let name = text(status, "/workload/name");
    let namespace = text(status, "/workload/namespace");
    let cloud = status.pointer("/facts/cloud/name").and_then(Value::as_str).map(|cloud| {
        let (zone, source) = (text(status, "/facts/cloud/zone"), text(status, "/facts/source"));
        format!("{cloud}, zone {zone} (by {source})")
    });
    let locality = status.pointer("/workload/locality").and_then(Value::as_str);
    let peer = status.pointer("/control_plane/peer").and_then(Value::as_str);
    let peer = peer.map(|peer| format!(" ({peer})")).unwrap_or_default();
    let line = text(status, "/control_plane/phase");
    let endpoint = text(status, "/control_plane/endpoint");
    let phase = format!("{}{}", text(status, "/phase"), if ready { "" } else { " (not ready)" });
    let workload = format!("{namespace}/{name} at {}", text(status, "/workload/address"));
    let all = [
        ("phase", Some(phase)),
        ("workload", Some(workload)),
        ("cloud", cloud),
        ("locality", locality.map(str::to_owned)),
        ("labels", Some(labels(status)).filter(|labels| !labels.is_empty())),
        ("identity", Some(identity(status))),
        ("credential", Some(credential(status))),
        ("control plane", Some(format!("{line} {endpoint}{peer}"))),
        ("registration", Some(registration(status))),
        ("proxy", Some(proxy(status))),
        ("capture", Some(capture(status))),
        ("names", Some(names(status))),
        ("health", Some(health(status))),
        ("clock", clock(status)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// What is wrong, each with its hint on a line of its own.
fn conditions(status: &Value) -> Vec<String> {
    let all = status.pointer("/conditions").and_then(Value::as_array).into_iter().flatten();
    let line = |condition: &Value| {
        let (room, what) = (text(condition, "/room"), text(condition, "/what"));
        let hint = condition.pointer("/hint").and_then(Value::as_str);
        let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        format!("{} {room}: {what}{hint}", paint(Paint::Warn, "!"))
    };
    all.map(line).collect()
}

fn labels(status: &Value) -> String {
    let labels = status.pointer("/workload/labels").and_then(Value::as_object);
    let pair = |(key, value): (&String, &Value)| Some(format!("{key}={}", value.as_str()?));
    labels.into_iter().flatten().filter_map(pair).collect::<Vec<_>>().join(", ")
}

fn identity(status: &Value) -> String {
    let id = text(status, "/identity/id");
    let valid = is(status, "/identity/valid");
    match status.pointer("/identity/expires_in").and_then(Value::as_i64) {
        Some(left) if valid => format!("{id}{}, valid for {}", source(status), span(left)),
        Some(left) => format!("{id}, EXPIRED {} ago", span(-left)),
        None => format!("{id}, no certificate yet"),
    }
}

fn registration(status: &Value) -> String {
    let mode = text(status, "/registration/mode");
    let entry = text(status, "/registration/name");
    let mut line = format!("{} {entry} (by {mode})", text(status, "/registration/phase"));
    if let Some(manager) = status.pointer("/registration/manager").and_then(Value::as_str) {
        let applied = text(status, "/registration/applied_at");
        line.push_str(&format!(", as {manager}, last applied at {applied}"));
    }
    if let Some(drift) = status.pointer("/registration/drift").and_then(Value::as_u64)
        && drift > 0
    {
        line.push_str(&format!(", repaired {drift} times"));
    }
    let restart = status.pointer("/configuration/restart").and_then(Value::as_array);
    if let Some(settings) = restart.filter(|settings| !settings.is_empty()) {
        let names: Vec<&str> = settings.iter().filter_map(Value::as_str).collect();
        line.push_str(&format!("\n! {} changed: needs a restart of the agent", names.join(", ")));
    }
    line
}

/// istiod is where everybody looks first.
fn source(status: &Value) -> String {
    match status.pointer("/identity/renewal/source").and_then(Value::as_str) {
        Some(name) if name != "istiod" => format!(" from {name}"),
        _ => String::new(),
    }
}

/// Said only where it may matter.
fn clock(status: &Value) -> Option<String> {
    let ahead = status.pointer("/clock/skew_ms").and_then(Value::as_i64)?;
    let error = status.pointer("/clock/error_ms").and_then(Value::as_u64).unwrap_or(0);
    if ahead.unsigned_abs().saturating_sub(error) <= NEAR_MS {
        return None;
    }
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    let seconds = std::time::Duration::from_millis(ahead.unsigned_abs()).as_secs_f64();
    Some(format!("{seconds:.1} s {side} {}", text(status, "/clock/measured_by")))
}

/// Each rung with what is left of it.
fn credential(status: &Value) -> String {
    let rungs = status.pointer("/credential/rungs").and_then(Value::as_array);
    let one = |rung: &Value| {
        let (name, state) = (text(rung, "/name"), text(rung, "/state"));
        match rung.pointer("/expires_in").and_then(Value::as_i64) {
            Some(left) if state == "usable" => format!("{name} for {}", span(left)),
            Some(left) if state == "spent" => format!("{name} SPENT {} ago", span(-left)),
            _ => format!("{name} {state}"),
        }
    };
    let line = rungs.map(|rungs| rungs.iter().map(one).collect::<Vec<_>>().join(", "));
    line.filter(|line| !line.is_empty()).unwrap_or_else(|| "-".to_owned())
}

fn proxy(status: &Value) -> String {
    let number = |at: &str| status.pointer(at).and_then(Value::as_u64);
    let mut line = text(status, "/proxy/phase");
    if let Some(pid) = number("/proxy/pid") {
        line.push_str(&format!(", pid {pid}"));
    }
    if status.pointer("/proxy/origin").and_then(Value::as_str) == Some("adopted") {
        line.push_str(" (adopted)");
    }
    if let Some(version) = status.pointer("/proxy/bootstrap_of").and_then(Value::as_str) {
        line.push_str(&format!(
            ", with the bootstrap of vm-agent {version} (`vm-agent proxy restart` gives it ours)"
        ));
    }
    let version = |at: &str| status.pointer(at).and_then(Value::as_str);
    if let Some(installed) = version("/proxy/installed_version")
        && version("/proxy/version").is_some_and(|running| running != installed)
    {
        line.push_str(&format!(
            ", Envoy {installed} is installed (`vm-agent proxy restart` starts it)"
        ));
    }
    if let Some(restarts) = number("/proxy/restarts").filter(|&count| count > 0) {
        line.push_str(&format!(", {restarts} restarts"));
    }
    line
}

fn capture(status: &Value) -> String {
    let mut line = text(status, "/capture/phase");
    if let Some(backend) = status.pointer("/capture/backend").filter(|backend| !backend.is_null()) {
        let name = backend.as_str().unwrap_or("iptables");
        line.push_str(&format!(" (by {name})"));
    }
    match status.pointer("/capture/ipv6").and_then(Value::as_str) {
        Some("redirect") => line.push_str(", IPv4 and IPv6"),
        Some("reject") => line.push_str(", IPv4; IPv6 is refused inbound and passes outbound"),
        Some("leave") => line.push_str(", IPv4; IPv6 is left alone (capture.ipv6)"),
        _ => {}
    }
    if let Some(repairs) = status.pointer("/capture/repairs").and_then(Value::as_u64)
        && repairs > 0
    {
        let when = text(status, "/capture/repaired_at");
        line.push_str(&format!(", repaired {repairs} times, last at {when}"));
    }
    line
}

fn health(status: &Value) -> String {
    let (is, probe) = (text(status, "/health/health/is"), text(status, "/health/probe"));
    match status.pointer("/health/health/message").and_then(Value::as_str) {
        Some(message) => format!("{is}: {message} ({probe})"),
        None => format!("{is} ({probe})"),
    }
}

fn names(status: &Value) -> String {
    let number = |at: &str| status.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let listens = status.pointer("/dns/listen").and_then(Value::as_array);
    if listens.is_none_or(Vec::is_empty) {
        return "off".to_owned();
    }
    let old = status.pointer("/dns/from_disk").and_then(Value::as_bool) == Some(true);
    let old = if old { ", those of the last run" } else { "" };
    let (names, queries) = (number("/dns/names"), number("/dns/queries"));
    format!("{names} of the mesh{old}; {queries} queries, {} forwarded", number("/dns/forwarded"))
}

/// A text field, or `-`.
pub(super) fn text(value: &Value, at: &str) -> String {
    match value.pointer(at) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Whether a field is true.
pub(super) fn is(value: &Value, at: &str) -> bool {
    value.pointer(at).and_then(Value::as_bool) == Some(true)
}

/// The exit status of a command that a condition of the daemon's ends, by the component that has it.
pub(super) fn exit_of(status: &Value, condition: &Value) -> Exit {
    match text(condition, "/room").as_str() {
        "configuration" => Exit::Configuration,
        "credential" => Exit::Credential,
        "identity" if !has_token(status) => Exit::Credential,
        // istiod refuses a stream for the registration that comes with it.
        "control-plane" if is_of_registration(status, condition) => Exit::Registration,
        "registration" => Exit::Registration,
        "proxy" | "proxy-binary" | "proxy-configuration" | "secrets" => Exit::Proxy,
        "capture" | "clock" | "dns" | "facts" | "storage" => Exit::Host,
        _ => Exit::ControlPlane,
    }
}

/// Whether one of the sources of tokens has a usable one.
fn has_token(status: &Value) -> bool {
    let rungs = status.pointer("/credential/rungs").and_then(Value::as_array);
    rungs.into_iter().flatten().any(|rung| text(rung, "/state") == "usable")
}

/// Whether the registration has failed for the very same reason.
fn is_of_registration(status: &Value, condition: &Value) -> bool {
    let all = status.pointer("/conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|other| {
        text(other, "/room") == "registration" && text(other, "/what") == text(condition, "/what")
    })
}

/// Seconds as people read them: the two largest units.
pub(super) fn span(seconds: i64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// What nothing of ours minds.
const NEAR_MS: u64 = 5000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_two_largest_units() {
        let spans = [5, 65, 3_660, 90_000].map(span);
        assert_eq!(spans, ["5s", "1m 5s", "1h 1m", "1d 1h"]);
    }

    #[test]
    fn a_clock_is_shown_when_it_is_off_by_more_than_its_error_explains() {
        let shown = |ahead: i64| {
            let clock =
                serde_json::json!({"skew_ms": ahead, "error_ms": 1000, "measured_by": "istiod"});
            clock_row(&clock)
        };
        assert_eq!(shown(6000), None);
        assert_eq!(shown(-6100).as_deref(), Some("6.1 s behind istiod"));
    }

    #[test]
    fn a_condition_ends_a_command_with_the_status_of_its_component() {
        let of = |status: Value| exit_of(&status, &status["conditions"][0]);
        let condition =
            |room: &str| serde_json::json!({"room": room, "what": "a token or a WorkloadGroup"});
        for (room, exit) in [
            ("configuration", Exit::Configuration),
            ("credential", Exit::Credential),
            ("registration", Exit::Registration),
            ("control-plane", Exit::ControlPlane),
            ("roots", Exit::ControlPlane),
            ("proxy", Exit::Proxy),
            ("dns", Exit::Host),
            ("clock", Exit::Host),
        ] {
            assert_eq!(of(serde_json::json!({"conditions": [condition(room)]})), exit, "{room}");
        }
        let both = [condition("control-plane"), condition("registration")];
        assert_eq!(of(serde_json::json!({ "conditions": both })), Exit::Registration);
        for (state, exit) in [("usable", Exit::ControlPlane), ("refused", Exit::Credential)] {
            let status = serde_json::json!({"conditions": [condition("identity")],
                "credential": {"rungs": [{"name": "file", "state": state}]}});
            assert_eq!(of(status), exit, "{state}");
        }
    }

    fn clock_row(clock: &Value) -> Option<String> {
        super::clock(&serde_json::json!({"clock": clock}))
    }

    #[test]
    fn a_status_of_another_version_is_rendered_without_its_missing_fields() {
        let screen = render(&serde_json::json!({"phase": "ready", "ready": true}));
        assert!(screen.starts_with("phase          ready\n"), "{screen}");
        assert!(screen.contains("control plane  - -"), "{screen}");
    }
}
