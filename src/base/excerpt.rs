//! Excerpts of text that a peer wrote, such as Envoy's reason for rejecting a configuration. An
//! excerpt is one line of bounded length, without control characters and without values that may be
//! secrets. This module never decides where an excerpt is shown.

/// An excerpt of at most `limit` characters.
///
/// Envoy quotes the configuration that it rejects, as text or JSON form of protobuf, and that
/// configuration may hold credentials (a WasmPlugin's pull secret is an environment variable of its
/// virtual machine). So the value of a quoted field is kept only if the field is known to hold a
/// name or a place ([`HARMLESS`]), and long random words are masked everywhere.
#[must_use]
pub fn excerpt(text: &str, limit: usize) -> String {
    let mut kept = String::new();
    let mut rest = text.trim();
    while let Some(start) = rest.find('"') {
        let (before, literal) = rest.split_at(start);
        kept.push_str(&without_secrets(before));
        let (literal, after) = literal.split_at(literal_length(literal));
        // A value is no field name, whatever follows it.
        let is_value = kept.trim_end().ends_with(':');
        let is_field_name = !is_value && after.trim_start().starts_with(':');
        if is_field_name || is_harmless(&kept) {
            kept.push_str(&without_secrets(literal));
        } else {
            kept.push_str(MASKED_LITERAL);
        }
        rest = after;
        // The rest would be cut anyway, and the text may have megabytes.
        if kept.len() > limit.saturating_mul(WIDEST) {
            break;
        }
    }
    kept.push_str(&without_secrets(rest));
    shortened(&printable(&kept), limit)
}

/// The length in bytes of the quoted literal at the start of `text`; one without an end is all of it.
fn literal_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            '"' if !escaped => return at.saturating_add(1),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Whether a literal that follows `before` may be shown: the value of a harmless field, or a word
/// that is quoted in a sentence.
fn is_harmless(before: &str) -> bool {
    let before = before.trim_end();
    if let Some(field) = before.strip_suffix(':') {
        let field = field.trim_end().trim_end_matches('"');
        let start = field.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '@');
        let name = start.map_or(field, |at| field.get(at.saturating_add(1)..).unwrap_or_default());
        return HARMLESS.contains(&name.to_ascii_lowercase().as_str());
    }
    // An element of a list in JSON.
    !before.ends_with(['[', ','])
}

/// The text without words that look like keys or tokens.
fn without_secrets(text: &str) -> String {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "+/_=-".contains(c);
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        kept.push_str(if is_random(word) { MASKED } else { word });
        let next = tail.find(is_letter).unwrap_or(tail.len());
        let (between, tail) = tail.split_at(next);
        kept.push_str(between);
        rest = tail;
    }
    kept
}

/// Names that people and Kubernetes give are in lower case, or have no digits.
fn is_random(word: &str) -> bool {
    word.len() >= RANDOM
        && word.bytes().any(|byte| byte.is_ascii_digit())
        && word.bytes().any(|byte| byte.is_ascii_uppercase())
        && word.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// One line without control characters.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => line.push_str("; "),
            '\t' => line.push(' '),
            // A direction of writing could reorder what a terminal shows.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                line.extend(letter.escape_unicode());
            }
            letter if letter.is_control() => line.extend(letter.escape_default()),
            letter => line.push(letter),
        }
    }
    line
}

fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Fields of Envoy's configuration that hold names and places.
const HARMLESS: [&str; 16] = [
    "@type",
    "address",
    "cluster",
    "cluster_name",
    "code",
    "domains",
    "filename",
    "name",
    "path",
    "prefix",
    "route_config_name",
    "root_id",
    "stat_prefix",
    "type_url",
    "uri",
    "vm_id",
];
const MASKED: &str = "(masked)";
const MASKED_LITERAL: &str = "\"(masked)\"";
/// The shortest word that may be a key: a key of 128 bits has 22 letters in base64, a token more.
const RANDOM: usize = 22;
/// The most bytes of one character.
const WIDEST: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reasons_of_envoy_stay_readable() {
        for reason in [
            "Error adding/updating listener(s) virtualInbound: cannot bind '0.0.0.0:15006': Address already in use",
            "unable to open file '/var/log/istio/envoy_access.log': No such file or directory",
            "Didn't find a registered implementation for 'x' with type URL: 'istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig'",
            // Access logs in a format of the user's, which Envoy writes to the same place.
            "GET \"/\" \"curl/8.0\" host=\"reviews\" 200",
            "Unknown cluster \"outbound|9080||reviews.default.svc.cluster.local\"",
        ] {
            assert_eq!(excerpt(reason, 1000), reason);
        }
    }

    #[test]
    fn values_of_a_quoted_configuration_are_masked() {
        let text = "Proto constraint validation failed (X.Cluster: too short): config { name: \"p\" \
            vm_config { environment_variables { key_values { key: \"ISTIO_META_WASM_IMAGE_PULL_SECRET\" \
            value: \"{\\\"auths\\\":{\\\"r\\\":{\\\"auth\\\":\\\"dXNlcjpwYXNz\\\"}}}\" } } } }";
        let shown = excerpt(text, 1000);
        assert!(shown.contains("name: \"p\"") && shown.contains("value: \"(masked)\""), "{shown}");
        assert!(!shown.contains("auth"), "{shown}");
        let json =
            r#"Unable to parse {"name": "n", "password": "hunter2", "list": ["s3cret", "t"]}"#;
        let shown = excerpt(json, 1000);
        assert!(shown.contains(r#""name": "n""#), "{shown}");
        for secret in ["hunter2", "s3cret", "\"t\""] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let bearer =
            "got 'Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJhdWQiOiJpc3Rpby1jYSJ9x.c2ln'";
        assert!(!excerpt(bearer, 1000).contains("eyJ"), "{}", excerpt(bearer, 1000));
        assert!(!excerpt("value: \"cut off hunter2", 1000).contains("hunter2"));
    }

    #[test]
    fn an_excerpt_is_one_printable_line_of_bounded_length() {
        assert_eq!(excerpt("a\nb\t\u{1b}[2Jc\u{202e}", 1000), "a; b \\u{1b}[2Jc\\u{202e}");
        assert_eq!(excerpt("äöüß", 3), "äöü…");
        assert_eq!(excerpt("äöü", 3), "äöü");
    }

    proptest! {
        #[test]
        fn any_text_gives_a_bounded_line(text in "\\PC*|.*", limit in 0usize..60) {
            let line = excerpt(&text, limit);
            prop_assert!(line.chars().count() <= limit + 1);
            prop_assert!(!line.chars().any(char::is_control));
        }

        #[test]
        fn the_value_of_an_unknown_field_never_shows(
            before in "[a-z {}:\"]{0,20}",
            after in ".{0,20}",
        ) {
            // An even number of quotes before it: the value is a literal of its own.
            prop_assume!(before.matches('"').count() % 2 == 0);
            let text = format!("{before} inline_string: \"hunter2\" {after}");
            prop_assert!(!excerpt(&text, 1000).contains("hunter2"));
        }
    }
}
