#![allow(clippy::too_many_lines, reason = "a table of cases is read from top to bottom")]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn line_of(text: &str, path: &[&str]) -> Option<u64> {
    let (_, lines) = parse_with_lines(text, "f").unwrap();
    lines.get(&path.iter().map(|&part| part.to_owned()).collect::<Vec<_>>()).copied()
}

#[test]
fn every_key_knows_its_line_in_block_and_in_flow_style() {
    let text = "# c\nworkload:\n  name: x\nmesh:\n  proxyConfig:\n    discoveryAddress: a\n  \
                discoveryAddress: b\n  note: |\n    clusterId: no\n  clusterId: c\n  flow: {a: 1,\n    \
                \"b:c\": 2}\n";
    assert_eq!(line_of(text, &["workload", "name"]), Some(3));
    assert_eq!(line_of(text, &["mesh", "discoveryAddress"]), Some(7));
    assert_eq!(line_of(text, &["mesh", "clusterId"]), Some(10));
    assert_eq!(line_of(text, &["mesh", "flow", "a"]), Some(11));
    assert_eq!(line_of(text, &["mesh", "flow", "b:c"]), Some(12));
}

#[test]
fn words_that_older_yaml_turned_into_something_else_stay_texts() {
    let text = "a: no\nb: 010\nc: 1_000\nd: on\ne: 1:30\nf: 2024-01-01\ng: true\nh: 5\ni: ~\n";
    let expected = json!({"a": "no", "b": "010", "c": "1_000", "d": "on", "e": "1:30",
        "f": "2024-01-01", "g": true, "h": 5, "i": null});
    assert_eq!(parse(text, "f").unwrap(), expected);
}

#[test]
fn a_text_that_would_grow_without_bound_is_refused() {
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (next, last) in ('b'..='i').zip('a'..) {
        laughs
            .push_str(&format!("{next}: &{next} [{}]\n", vec![format!("*{last}"); 10].join(", ")));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(900_000), "*a, ".repeat(10_000));
    let deep = "[".repeat(100_000);
    let large = "x".repeat(usize::try_from(MAX_BYTES).unwrap() + 1);
    for text in [laughs, long, deep, large] {
        let problem = parse(&text, "f").unwrap_err();
        assert!(problem.to_string().len() < 400, "{problem}");
    }
}

#[test]
fn broken_yaml_is_refused_with_its_line() {
    for (text, line) in [
        ("a: 1\na: 2\n", 2),
        ("a: 1\nb: 'x\n", 2),
        ("a: 1\n\tb: 2\n", 1),
        ("a: b: c\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: *none\n", 2),
        ("a: [1, 2\nb: 3\n", 2),
        ("\u{0}\u{1}\u{2}", 1),
    ] {
        let problem = parse(text, "f").unwrap_err();
        assert_eq!(problem.origin, format!("f:{line}"), "{text:?}: {problem}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    let tricky = prop::sample::select(vec![
        "",
        " ",
        "~",
        "null",
        "true",
        "False",
        "no",
        "010",
        "0x1f",
        "0o7",
        "1e3",
        "1.10",
        "-1",
        ".5",
        ".inf",
        ".nan",
        "1_000",
        "1:30",
        "2024-01-01",
        "- a",
        "a: b",
        "#x",
        "x #y",
        "a\nb",
        "\n",
        "a\n",
        "\ta",
        "'",
        "\"",
        "\\",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a",
        "{}",
        "[]",
        "?",
        "|",
        ">",
        "=",
        "<<",
        "\u{7f}",
        "\u{85}",
        "\u{feff}",
        "\u{2028}",
        "a\r\nb",
        "---",
        "...",
        "{\"app\":\"client\"}",
    ]);
    let text = prop_oneof![tricky.prop_map(str::to_owned), "[ -~]{0,20}", "\\PC{0,90}"];
    let leaf = prop_oneof![
        text.prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z./:# -]{1,12}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        drop(parse(&text, "f"));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[-a:&*!|>{}\\[\\],#'\"\n\t ?%@0.~<]{0,120}") {
        drop(parse(&text, "f"));
    }

    #[test]
    fn what_is_written_reads_back_the_same(inner in value()) {
        let tree = json!({ "setting": inner });
        let text = write(&tree).unwrap();
        prop_assert_eq!(parse(&text, "f"), Ok(tree), "{}", text);
    }
}
