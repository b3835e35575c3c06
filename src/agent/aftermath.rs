//! What is done when an agent has ended, by another process of the same service: what it could not
//! do itself, and no more than that.

use std::path::Path;

use super::doors;
use crate::base::trouble::chain;
use crate::capture::{ApplyError, Capture, FailPolicy, Removed};
use crate::config::Paths;
use crate::envoy;
use crate::systemd::Job;

/// Tidies up behind an agent that has ended.
///
/// A proxy that lives goes on with its rules, as the next agent takes it over; only where the
/// service is stopped it is ended. Rules that lead to no proxy go, unless the policy is closed. An
/// agent that runs (another one, started by hand) does all of this itself.
///
/// # Errors
/// When rules are still there that should not be.
pub async fn tidy_up(
    paths: &Paths,
    policy: FailPolicy,
    job: Option<Job>,
) -> Result<(), ApplyError> {
    if doors::is_locked(paths) {
        tracing::info!("An agent is running: there is nothing to tidy up.");
        return Ok(());
    }
    let directory = paths.run_directory();
    match envoy::living(&directory) {
        Some(pid) if job != Some(Job::Stop) => {
            tracing::info!(pid, "The proxy runs on for the next agent.");
            return Ok(());
        }
        _ if job == Some(Job::Stop) => drop(envoy::end_leftover(&directory).await),
        _ => {}
    }
    let capture = Capture::new(paths.capture_journal());
    if !capture.has_journal() {
        return Ok(());
    }
    // What this process takes for the policy may lack a setting that only the agent's unit has.
    if policy == FailPolicy::Closed || capture.is_closed() {
        tracing::warn!("The redirect rules stay (capture.failPolicy is closed).");
        return Ok(());
    }
    match remove(&capture, paths).await {
        Ok(removed) => {
            tracing::warn!(?removed, "Redirect rules without a proxy are taken away.");
            Ok(())
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "The redirect rules are still there.");
            Err(error)
        }
    }
}

/// The machine's own agent is the only one here. In a container its sandbox sees another number of
/// the boot than we do, so that its journal seems to be of another boot: then the name has to do.
async fn remove(capture: &Capture, paths: &Paths) -> Result<Removed, ApplyError> {
    match capture.remove().await? {
        Removed::Nothing if paths.root() == Path::new("/") => capture.remove_by_name().await,
        removed => Ok(removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with a journal of rules (of an earlier boot, so that no tool is run) and a note that
    /// names this process as the proxy.
    fn root() -> (tempfile::TempDir, Paths) {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        std::fs::create_dir_all(paths.run_directory()).unwrap();
        std::fs::create_dir_all(paths.state_directory()).unwrap();
        let journal = r#"{"boot": "another", "undo": [], "shown": null}"#;
        std::fs::write(paths.capture_journal(), journal).unwrap();
        (directory, paths)
    }

    fn note(paths: &Paths, pid: u32) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
        std::fs::write(paths.run_directory().join("envoy.pid"), format!("{pid} {started}\n"))
            .unwrap();
    }

    fn has(path: &Path) -> bool {
        path.exists()
    }

    #[tokio::test]
    async fn a_living_proxy_keeps_its_rules_unless_the_service_is_stopped() {
        let (_root, paths) = root();
        note(&paths, std::process::id());
        for job in [None, Some(Job::Restart), Some(Job::Other)] {
            tidy_up(&paths, FailPolicy::Open, job).await.unwrap();
            assert!(has(&paths.capture_journal()), "{job:?}");
            assert!(has(&paths.run_directory().join("envoy.pid")), "{job:?}");
        }
    }

    #[tokio::test]
    async fn a_stop_ends_the_proxy_that_was_left() {
        let (_root, paths) = root();
        let mut proxy = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        note(&paths, proxy.id().unwrap());
        let (tidied, ended) =
            tokio::join!(tidy_up(&paths, FailPolicy::Open, Some(Job::Stop)), proxy.wait());
        tidied.unwrap();
        assert!(!ended.unwrap().success());
        assert!(!has(&paths.capture_journal()));
    }

    #[tokio::test]
    async fn rules_that_lead_to_no_proxy_go_unless_the_policy_is_closed() {
        let (_root, paths) = root();
        tidy_up(&paths, FailPolicy::Closed, None).await.unwrap();
        assert!(has(&paths.capture_journal()));
        tidy_up(&paths, FailPolicy::Open, None).await.unwrap();
        assert!(!has(&paths.capture_journal()));
    }

    #[tokio::test]
    async fn rules_that_were_made_under_a_closed_policy_stay() {
        let (_root, paths) = root();
        let journal = r#"{"boot": "another", "undo": [], "shown": null, "restore": true}"#;
        std::fs::write(paths.capture_journal(), journal).unwrap();
        tidy_up(&paths, FailPolicy::Open, Some(Job::Stop)).await.unwrap();
        assert!(has(&paths.capture_journal()));
    }

    #[tokio::test]
    async fn nothing_is_touched_while_an_agent_runs() {
        let (_root, paths) = root();
        let lock = doors::lock(&paths).unwrap();
        tidy_up(&paths, FailPolicy::Open, Some(Job::Stop)).await.unwrap();
        assert!(has(&paths.capture_journal()));
        drop(lock);
    }
}
