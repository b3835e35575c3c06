//! Text of other parties (peers, files, programs) made safe to show: one line, no control characters,
//! a limited length. The log, the status, the terminal and error reports pass through here.
//!
//! The escapes are those of JSON strings (RFC 8259 section 7), so that serialised JSON stays valid and
//! keeps its meaning when it passes through [`line`] or [`lines`].

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

/// Whether a character shows itself and nothing else. Characters that do not: control characters (C0,
/// DEL, C1), line and paragraph separators, bidirectional marks and overrides (Unicode UAX #9), invisible
/// operators, the byte-order mark, interlinear annotations and tags.
#[must_use]
pub fn is_printable(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter,
            '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text in one line: every character that is not printable is escaped.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_printable)
}

/// The text in its lines: line feeds and tabs stay, everything else is as in [`line`].
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| matches!(letter, '\n' | '\t') || is_printable(letter))
}

/// The beginning of the text, at most `limit` bytes, with the number of bytes that are missing.
#[must_use]
pub fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(limit);
    let missing = text.len().saturating_sub(end);
    Cow::Owned(format!("{}… ({missing} more bytes)", text.get(..end).unwrap_or_default()))
}

/// [`line`] of at most [`TEXT_BYTES`] bytes of a text: for one message of another party.
#[must_use]
pub fn message(text: &str) -> String {
    line(&cut(text, TEXT_BYTES)).into_owned()
}

/// Makes every text and every name of a tree safe, as [`message`] does.
pub fn sanitize(tree: &mut Value) {
    match tree {
        Value::String(text) => replace_unsafe(text),
        Value::Array(all) => all.iter_mut().for_each(sanitize),
        Value::Object(all) => {
            if all.keys().any(|name| !is_safe(name)) {
                let named = std::mem::take(all).into_iter();
                all.extend(named.map(|(name, value)| (message(&name), value)));
            }
            all.values_mut().for_each(sanitize);
        }
        _ => {}
    }
}

fn replace_unsafe(text: &mut String) {
    if !is_safe(text) {
        *text = message(text);
    }
}

fn is_safe(text: &str) -> bool {
    text.len() <= TEXT_BYTES && text.chars().all(is_printable)
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(|letter| !stays(letter)) else { return Cow::Borrowed(text) };
    let mut safe = text.get(..first).unwrap_or_default().to_owned();
    for letter in text.get(first..).unwrap_or_default().chars() {
        match letter {
            _ if stays(letter) => safe.push(letter),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            _ => letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                // Writing to a string does not fail.
                write!(safe, "\\u{unit:04x}").ok();
            }),
        }
    }
    Cow::Owned(safe)
}

/// The longest message that is shown of another party. istiod's and Envoy's longest useful ones
/// (a rejected listener) have about 1 KiB.
pub const TEXT_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_or_a_log_reader_would_obey_is_escaped() {
        let hostile = "a\u{1b}[31mred\r\nb\u{9b}2J\u{202e}c\u{2028}d\u{e0041}é";
        let shown = "a\\u001b[31mred\\r\\nb\\u009b2J\\u202ec\\u2028d\\udb40\\udc41é";
        assert_eq!(line(hostile), shown);
        assert_eq!(line(&line(hostile)), shown, "escaping again changes nothing");
        assert_eq!(lines("a\n\tb\u{7}"), "a\n\tb\\u0007");
        assert!(matches!(line("plain – text"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("ééé", 3), "é… (4 more bytes)");
        assert_eq!(cut("ééé", 6), "ééé");
        assert!(message(&"x".repeat(1 << 20)).len() < TEXT_BYTES + 40);
    }

    #[test]
    fn a_tree_has_no_unsafe_text_and_no_unsafe_name() {
        let mut tree = json!({"a\n": [{"b": "\u{1b}[0m"}, 1, null], "c": "fine"});
        sanitize(&mut tree);
        assert_eq!(tree, json!({"a\\n": [{"b": "\\u001b[0m"}, 1, null], "c": "fine"}));
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_printable_line(text in "\\PC*|.*|(?s).*") {
            prop_assert!(line(&text).chars().all(is_printable));
        }

        #[test]
        fn json_keeps_its_meaning(text in "(?s).*") {
            let shown = serde_json::to_string_pretty(&json!({"text": &text})).unwrap();
            let back: Value = serde_json::from_str(&lines(&shown)).unwrap();
            prop_assert_eq!(back, json!({"text": text}));
        }
    }
}
