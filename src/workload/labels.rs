//! Kubernetes' rules for labels and names, and istiod's for ports.

/// What is wrong with a label; `None` when it is fine.
#[must_use]
pub fn label_problem(key: &str, value: &str) -> Option<String> {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if !is_name(name) || !prefix.is_none_or(is_subdomain) {
        return Some(format!("{key:?} is no label key: expected [prefix.example.com/]name"));
    }
    let fits = value.is_empty() || is_name(value);
    (!fits).then(|| {
        format!("{value:?} is no label value: at most 63 letters, digits, '-', '_' and '.'")
    })
}

/// What is wrong with a named port; `None` when it is fine.
#[must_use]
pub fn port_problem(name: &str, port: u64) -> Option<String> {
    let fits = (1..=62).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        return Some(format!("{name:?} is no port name: letters, digits and '-', at most 62"));
    }
    (!(1..=65_535).contains(&port)).then(|| format!("{port} is no port: expected 1 to 65535"))
}

/// Whether a text is a DNS subdomain, as Kubernetes' object names are (RFC 1123).
#[must_use]
pub fn is_subdomain(text: &str) -> bool {
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && edge(bytes.first())
            && edge(bytes.last())
    };
    (1..=253).contains(&text.len()) && text.split('.').all(is_label)
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && edge(bytes.first())
        && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_kubernetes() {
        for (key, value) in [("app", ""), ("app.kubernetes.io/name", "A_b-1.x"), ("a", "x")] {
            assert_eq!(label_problem(key, value), None, "{key}={value}");
        }
        let long = "x".repeat(64);
        for (key, value) in [
            ("", "x"),
            ("/a", "x"),
            ("-a", "x"),
            ("A.com/a", "x"),
            ("a", "b c"),
            ("a", long.as_str()),
            ("a/b/c", ""),
        ] {
            assert!(label_problem(key, value).is_some(), "{key}={value}");
        }
    }

    #[test]
    fn ports_follow_istiods_webhook() {
        assert_eq!(port_problem("http", 9080), None);
        assert!(port_problem("http", 0).is_some() && port_problem("http", 65_536).is_some());
        assert!(port_problem("", 1).is_some() && port_problem("a_b", 1).is_some());
    }
}
