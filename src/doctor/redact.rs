//! Takes secrets out of text that was written by others: private keys and bearer tokens.

use serde_json::Value;

/// The text without what looks like a private key (RFC 7468) or a JSON Web Token (RFC 7519).
#[must_use]
pub fn redacted(text: &str) -> String {
    without_tokens(&without_keys(text))
}

/// Every text of a tree, redacted.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::String(text) => *text = redacted(text),
        Value::Array(all) => all.iter_mut().for_each(redact),
        Value::Object(all) => all.values_mut().for_each(redact),
        _ => {}
    }
}

fn without_keys(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(mark) = rest.find(KEY) {
        let start = rest.get(..mark).and_then(|before| before.rfind(BEGIN)).unwrap_or(mark);
        kept.push_str(rest.get(..start).unwrap_or_default());
        kept.push_str("(private key)");
        let after = rest.get(mark..).unwrap_or_default();
        // A key that is cut off is one all the same.
        let end = after.find(END).and_then(|end| {
            let tail = after.get(end..)?;
            let close = tail.get(END.len()..)?.find(DASHES)?;
            Some(end.saturating_add(END.len()).saturating_add(close).saturating_add(DASHES.len()))
        });
        rest = end.and_then(|end| after.get(end..)).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// A token is a run of its letters with two dots in it, whose head is the JSON `{"…`.
fn without_tokens(text: &str) -> String {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "-_=.".contains(c);
    let mut kept = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        kept.push_str(if is_token(run) { "(token)" } else { run });
        let next = tail.find(is_letter).unwrap_or(tail.len());
        let (between, tail) = tail.split_at(next);
        kept.push_str(between);
        rest = tail;
    }
    kept
}

fn is_token(run: &str) -> bool {
    run.contains("eyJ") && run.matches('.').count() >= 2
}

const BEGIN: &str = "-----BEGIN";
const KEY: &str = "PRIVATE KEY-----";
const END: &str = "-----END";
const DASHES: &str = "-----";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_tokens_are_taken_out_and_the_rest_stays() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----";
        assert_eq!(redacted(&format!("a {key} b {key}")), "a (private key) b (private key)");
        assert_eq!(redacted("x -----BEGIN PRIVATE KEY-----\nMHc"), "x (private key)");
        assert_eq!(redacted("Bearer eyJhbGciOi.eyJhdWQi.c2ln, next"), "Bearer (token), next");
        let plain = "istiod.istio-system.svc:15012 1.40.0 eyJust a word";
        assert_eq!(redacted(plain), plain);
        let certificate = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----";
        assert_eq!(redacted(certificate), certificate);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_key_stays(text in ".*", more in ".*") {
            let all = format!("{text}-----BEGIN PRIVATE KEY-----\nMHcCAQEE{more}");
            prop_assert!(!redacted(&all).contains("PRIVATE KEY-----"));
        }
    }
}
