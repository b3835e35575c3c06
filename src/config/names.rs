//! Names of settings: what is meant by one that does not exist.

/// The part of `path` that is not known, and the words for it.
pub(super) fn unknown_name(path: &[String], known: &[Vec<String>]) -> (String, String) {
    // The longest beginning that some setting shares; the part after it is the unknown one.
    let shared = (0..path.len())
        .rev()
        .find(|&length| known.iter().any(|known| starts_with(known, path, length)))
        .unwrap_or_default();
    let name = path.get(shared).map(String::as_str).unwrap_or_default();
    let until = shared.saturating_add(1);
    let at = path.get(..until).unwrap_or(path).join(".");
    // A whole section with a plain value.
    if path.len() == until
        && known.iter().any(|known| known.len() > until && known.starts_with(path))
    {
        return (at, "expected a map of settings".to_owned());
    }
    let candidates = known.iter().filter(|known| starts_with(known, path, shared));
    let near = candidates
        .filter_map(|known| Some((known.get(shared)?, known)))
        .map(|(candidate, known)| (distance(candidate, name), known))
        .filter(|(edits, _)| *edits <= (name.chars().count() / 2).clamp(1, 3))
        .min_by_key(|(edits, _)| *edits);
    let what = near
        .and_then(|(_, known)| known.get(..until))
        .map(|near| format!(": did you mean {}?", near.join(".")))
        .unwrap_or_default();
    (at, format!("there is no such setting{what}"))
}

/// The name that is meant by one that does not exist.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (distance(known, name), *known));
    let near = near.filter(|(edits, _)| *edits <= (name.chars().count() / 2).clamp(1, 3));
    near.min_by_key(|(edits, _)| *edits).map(|(_, known)| known)
}

fn starts_with(known: &[String], path: &[String], length: usize) -> bool {
    path.get(..length).is_some_and(|start| known.starts_with(start))
}

/// Edits between two short names, letters of either case being the same (Levenshtein).
fn distance(one: &str, two: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        text.chars().take(LETTERS).flat_map(char::to_lowercase).collect()
    };
    let (one, two) = (letters(one), letters(two));
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        let mut next = vec![left];
        for (b, &up) in two.iter().zip(row.iter().skip(1)) {
            let change = diagonal.saturating_add(usize::from(a != b));
            left = change.min(left.saturating_add(1)).min(up.saturating_add(1));
            diagonal = up;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// No setting has a longer name.
const LETTERS: usize = 60;
