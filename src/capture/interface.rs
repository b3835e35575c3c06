//! Names of interfaces, which end up in the text of rules.

/// Reads the name of an interface; a `*` at its end stands for anything.
///
/// # Errors
/// When the kernel would not let an interface have such a name, or tools would not take it.
pub fn parse_interface(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let good = |letter: u8| letter.is_ascii_alphanumeric() || b"._-@:".contains(&letter);
    let is_good = text.len() <= LENGTH && !text.is_empty() && name.bytes().all(good);
    if is_good && text != "*" {
        return Ok(text.to_owned());
    }
    let found: String = text.chars().take(40).collect();
    Err(format!("found {found:?}, expected the name of an interface such as eth0 or veth*"))
}

/// Whether a name is meant by a pattern.
pub(super) fn is_meant(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// The kernel's `IFNAMSIZ`, its closing zero apart.
const LENGTH: usize = 15;
