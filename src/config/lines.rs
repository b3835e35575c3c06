//! The line of a setting in a YAML text, for messages. In block style it is exact; in flow style it
//! is the line where the enclosing block begins.

/// `FILE:LINE` of the innermost part of `path` that can be found.
pub(super) fn origin(file: &str, text: &str, path: &[String]) -> String {
    let mut from = 0;
    let mut found = None;
    let mut deeper_than: Option<usize> = None;
    for part in path {
        let Some((line, indent)) = find(text, from, deeper_than, part) else { break };
        (found, from, deeper_than) = (Some(line), line.saturating_add(1), Some(indent));
    }
    found.map_or_else(|| file.to_owned(), |line| format!("{file}:{}", line.saturating_add(1)))
}

fn find(text: &str, from: usize, deeper_than: Option<usize>, key: &str) -> Option<(usize, usize)> {
    for (number, line) in text.lines().enumerate().skip(from) {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len().saturating_sub(content.len());
        if deeper_than.is_some_and(|parent| indent <= parent) {
            return None;
        }
        let name = content.split(':').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        let top_only = deeper_than.is_some() || indent == 0;
        if name == key && top_only {
            return Some((number, indent));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_nested_key_is_found() {
        let text = "# c\nworkload:\n  name: x\nmesh:\n  name: y\n  flow: {a: 1}\n";
        let at = |path: &[&str]| {
            origin("f", text, &path.iter().map(|&part| part.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(at(&["mesh", "name"]), "f:5");
        assert_eq!(at(&["workload", "name"]), "f:3");
        assert_eq!(at(&["mesh", "flow", "a"]), "f:6");
        assert_eq!(at(&["none"]), "f");
    }
}
