//! What is a secret, in one list for all that is shown: names of settings, variables and headers whose
//! values are secrets, and texts that are secrets wherever they are: private keys, tokens, passwords in
//! URLs, credentials of the HTTP `Authorization` header.

use serde_json::Value;

/// What stands for a secret that is not shown.
pub const MASKED: &str = "(masked)";

/// Whether the value of something with this name is a secret: `API_KEY`, `accessToken`,
/// `X-Auth-Token`, `Cookie`. One that names a file or a path does not hold the secret itself.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    let plain: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    let names_file = PLACES.iter().any(|place| plain.ends_with(place));
    !names_file
        && (plain.ends_with("key") || plain == "auth" || SECRETS.iter().any(|s| plain.contains(s)))
}

/// The text without private keys (RFC 7468), JSON Web Tokens (RFC 7519), passwords in URLs (RFC 3986
/// section 3.2.1) and credentials of HTTP authentication schemes (RFC 9110 section 11.4).
#[must_use]
pub fn redacted(text: &str) -> String {
    without_credentials(&without_passwords(&without_tokens(&without_keys(text))))
}

/// `https://user:password@host` without what stands before the `@`.
#[must_use]
pub fn without_passwords(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(mark) = rest.find(SCHEME_END) {
        let (scheme, after) = rest.split_at(mark.saturating_add(SCHEME_END.len()));
        kept.push_str(scheme);
        // The last `@` of the authority, which no sensible text has spaces in.
        let end = after.find(|c: char| "/?#\"'<>".contains(c) || c.is_whitespace());
        let (authority, tail) = after.split_at(end.unwrap_or(after.len()));
        match authority.rfind('@') {
            Some(at) => {
                kept.push_str(MASKED);
                kept.push_str(authority.get(at..).unwrap_or_default());
            }
            None => kept.push_str(authority),
        }
        rest = tail;
    }
    kept.push_str(rest);
    kept
}

/// `Basic …` and `Bearer …` without what follows.
fn without_credentials(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((mark, scheme)) = first_scheme(rest) {
        let (before, after) = rest.split_at(mark.saturating_add(scheme));
        kept.push_str(before);
        let end = after.find(|c: char| !is_credential(c)).unwrap_or(after.len());
        let (credential, tail) = after.split_at(end);
        // A word of a sentence is shorter than any credential.
        kept.push_str(if credential.len() >= CREDENTIAL { MASKED } else { credential });
        rest = tail;
    }
    kept.push_str(rest);
    kept
}

fn first_scheme(text: &str) -> Option<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    let found = SCHEMES.iter().filter_map(|scheme| Some((lower.find(scheme)?, scheme.len())));
    found.min()
}

/// `token68` (RFC 9110 section 11.2).
fn is_credential(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/=".contains(c)
}

/// Every text of a tree, redacted.
pub fn redact(value: &mut Value) {
    match value {
        Value::String(text) => *text = redacted(text),
        Value::Array(all) => all.iter_mut().for_each(redact),
        Value::Object(all) => all.values_mut().for_each(redact),
        _ => {}
    }
}

/// Masks the texts of a tree whose names are those of secrets.
pub fn mask(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(mask),
        Value::Object(all) => all.iter_mut().for_each(|(name, value)| match value {
            Value::String(text) if !text.is_empty() && is_secret_name(name) => {
                MASKED.clone_into(text);
            }
            _ => mask(value),
        }),
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

const PLACES: [&str; 4] = ["file", "path", "dir", "directory"];
const SECRETS: [&str; 12] = [
    "token",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "credential",
    "authorization",
    "cookie",
    "bearer",
    "apikey",
    "privatekey",
];
const SCHEMES: [&str; 2] = ["basic ", "bearer "];
const CREDENTIAL: usize = 8;
const SCHEME_END: &str = "://";
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

    #[test]
    fn names_tell_what_is_secret() {
        for name in [
            "API_KEY",
            "apiKey",
            "x-api-key",
            "MY_TOKEN",
            "accessToken",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "DB_PASSWORD",
            "clientSecret",
            "X-Auth-Token",
            "Proxy-Authorization",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["tokenFile", "TOKEN_PATH", "keyFile", "address", "name", "User-Agent", "Accept"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn passwords_of_urls_and_credentials_of_headers_are_taken_out() {
        let text =
            "GET http://u:p@h/x?a=b@c, then https://t@h:1 and Authorization: basic dXNlcjpwYXNz.";
        let shown = "GET http://(masked)@h/x?a=b@c, then https://(masked)@h:1 and Authorization: basic (masked)";
        assert_eq!(redacted(text), shown);
        let plain = "a bearer of news, http://h/a@b";
        assert_eq!(redacted(plain), plain);
    }

    #[test]
    fn a_tree_masks_what_its_names_call_secret() {
        let mut tree = serde_json::json!({"a": [{"apiKey": "x", "tokenFile": "/y", "n": 1}]});
        mask(&mut tree);
        assert_eq!(tree, serde_json::json!({"a": [{"apiKey": MASKED, "tokenFile": "/y", "n": 1}]}));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_key_stays(text in ".*", more in ".*") {
            let all = format!("{text}-----BEGIN PRIVATE KEY-----\nMHcCAQEE{more}");
            prop_assert!(!redacted(&all).contains("PRIVATE KEY-----"));
        }
    }
}
