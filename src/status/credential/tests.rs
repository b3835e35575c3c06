use super::*;
use crate::base::clock::from_unix_seconds;
use crate::identity::SpiffeId;

fn rung(end: u64, life: u64, trouble: Option<&str>) -> RungState {
    let trouble = trouble.map(|what| Trouble {
        what: what.to_owned(),
        hint: Some("mend it".to_owned()),
        retry: Retry::Later,
        since: from_unix_seconds(0),
    });
    RungState {
        phase: Phase::Usable,
        since: from_unix_seconds(0),
        expires_at: Some(from_unix_seconds(end)),
        life: Some(Duration::from_secs(life)),
        trouble,
        failures: 0,
    }
}

fn state(rungs: Vec<(Rung, RungState)>) -> State {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap();
    State { id, rungs, in_use: Some(Rung::TokenFile), kubernetes_api: None }
}

/// What is said at `now` of a machine whose certificate is valid until 9000.
fn said(rungs: Vec<(Rung, RungState)>, now: u64) -> Option<String> {
    let until = from_unix_seconds(9000);
    weak(&state(rungs), until, from_unix_seconds(now)).map(|trouble| trouble.to_string())
}

#[test]
fn a_token_near_its_end_that_nothing_renews_is_said() {
    let file = || vec![(Rung::TokenFile, rung(3600, 3600, None))];
    assert_eq!(said(file(), 2800), None);
    let words = said(file(), 2900).unwrap();
    assert!(words.starts_with("the token-file token expires in 11m and nothing renews it; only the certificate, valid until 1970-01-01T02:30:00Z, keeps this machine in the mesh"), "{words}");
    let words = said(file(), 3600).unwrap();
    assert!(words.contains("token-file since 1970-01-01T01:00:00Z"), "{words}");
}

#[test]
fn a_token_that_is_renewed_is_worth_a_word_only_when_that_fails() {
    let renewed = |trouble| vec![(Rung::Kubernetes, rung(3600, 3600, trouble))];
    assert_eq!(said(renewed(None), 3500), None);
    assert_eq!(said(renewed(Some("the API server is away")), 2000), None);
    let words = said(renewed(Some("the API server is away")), 3500).unwrap();
    assert!(
        words.contains("kubernetes token expires in 1m") && words.contains("mend it"),
        "{words}"
    );
}

#[test]
fn one_good_rung_is_enough() {
    let spent = || (Rung::TokenFile, rung(10, 10, None));
    assert_eq!(said(vec![spent(), (Rung::Command, rung(3600, 3600, None))], 3500), None);
    assert!(said(vec![spent()], 3500).is_some());
    assert_eq!(said(Vec::new(), 3500), None, "a machine whose certificate comes from elsewhere");
}

#[test]
fn the_view_shows_the_certificate_above_the_tokens() {
    let tokens = state(vec![(Rung::TokenFile, rung(3600, 3600, None))]);
    let view = view(&tokens, None, from_unix_seconds(4000));
    let shown = serde_json::to_value(&view).unwrap();
    let names: Vec<&str> = shown["rungs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rung| rung["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["certificate", "token-file"]);
    assert_eq!(shown["rungs"][0]["state"], "absent");
    let file = &shown["rungs"][1];
    assert_eq!((&file["state"], &file["expires_in"]), (&"spent".into(), &(-400).into()));
    assert_eq!((&file["since"], &file["in_use"]), (&"1970-01-01T01:00:00Z".into(), &true.into()));
}
