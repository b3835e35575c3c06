//! Files of `KEY=value` lines as a shell's `set -a; . FILE` would read them, without running
//! anything.

use crate::base::problem::Problem;

/// A variable and the line where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) line: usize,
}

/// The variables of a text, in their order; what would run a command or expand is a problem.
pub(super) fn parse(text: &str, file: &str) -> (Vec<Variable>, Vec<Problem>) {
    let (mut variables, mut problems) = (Vec::new(), Vec::new());
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let start = line;
        let taken = match assignment(rest) {
            Ok((assigned, tail)) => {
                if let Some((name, value)) = assigned {
                    variables.push(Variable { name, value, line: start });
                }
                tail
            }
            Err(what) => {
                problems.push(Problem::new(format!("{file}:{start}"), "", what));
                rest.split_once('\n').map_or("", |(_, tail)| tail)
            }
        };
        let consumed = rest.get(..rest.len().saturating_sub(taken.len())).unwrap_or_default();
        line = line.saturating_add(consumed.matches('\n').count());
        rest = taken;
    }
    (variables, problems)
}

type Assigned = Option<(String, String)>;

/// One logical line and what follows it.
fn assignment(text: &str) -> Result<(Assigned, &str), String> {
    let trimmed = text.trim_start_matches([' ', '\t', '\r']);
    if let Some(tail) = trimmed.strip_prefix('\n') {
        return Ok((None, tail));
    }
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok((None, trimmed.split_once('\n').map_or("", |(_, tail)| tail)));
    }
    let trimmed = trimmed.strip_prefix("export ").unwrap_or(trimmed).trim_start_matches(' ');
    let line = trimmed.lines().next().unwrap_or_default();
    let shown: String = line.chars().take(20).filter(|letter| !letter.is_control()).collect();
    let wrong = || format!("found {shown:?}…, expected KEY=value");
    let (name, _) = line.split_once('=').ok_or_else(wrong)?;
    let is_name = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if !is_name {
        return Err(wrong());
    }
    let value_at = name.len().saturating_add(1);
    let (value, tail) = word(trimmed.get(value_at..).unwrap_or_default())
        .map_err(|what| format!("{name}: {what}"))?;
    if value.contains('\0') {
        return Err(format!("{name}: there is a NUL in its value"));
    }
    Ok((Some((name.to_owned(), value)), tail))
}

/// A shell word with its quotes taken off, and what follows its line.
fn word(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        let tail = |skip: usize| text.get(at.saturating_add(skip)..).unwrap_or_default();
        match letter {
            '\n' => return Ok((value, tail(1))),
            '\r' => {}
            ' ' | '\t' => return end_of_line(value, tail(1)),
            '\'' => loop {
                match letters.next() {
                    Some((_, '\'')) => break,
                    Some((_, letter)) => value.push(letter),
                    None => return Err("a single quote is not closed".to_owned()),
                }
            },
            '"' => double_quoted(&mut letters, &mut value)?,
            '\\' => match letters.next() {
                Some((_, '\n')) | None => {}
                Some((_, letter)) => value.push(letter),
            },
            '~' if value.is_empty() => {
                return Err("~ would be expanded by a shell; quote it".to_owned());
            }
            '$' | '`' => return Err(format!("{letter} would be expanded by a shell; quote it")),
            ';' | '&' | '|' | '<' | '>' | '(' | ')' => {
                return Err(format!("{letter} outside quotes would be run by a shell"));
            }
            letter => value.push(letter),
        }
    }
    Ok((value, ""))
}

fn double_quoted(
    letters: &mut std::str::CharIndices<'_>,
    value: &mut String,
) -> Result<(), String> {
    loop {
        match letters.next().map(|(_, letter)| letter) {
            Some('"') => return Ok(()),
            Some('\\') => match letters.next().map(|(_, letter)| letter) {
                Some(letter @ ('"' | '\\' | '$' | '`')) => value.push(letter),
                Some('\n') | None => {}
                Some(letter) => value.extend(['\\', letter]),
            },
            Some(letter @ ('$' | '`')) => {
                return Err(format!("{letter} in double quotes would be expanded by a shell"));
            }
            Some(letter) => value.push(letter),
            None => return Err("a double quote is not closed".to_owned()),
        }
    }
}

fn end_of_line(value: String, rest: &str) -> Result<(String, &str), String> {
    let (line, tail) = rest.split_once('\n').unwrap_or((rest, ""));
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        Ok((value, tail))
    } else {
        Err("there is more than one word; quote it".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_as_a_shell_reads_them() {
        let text = "# comment\nA='x y'\nexport B=\"a\\\"b\"\nC=plain # note\nD=\nE='a'\\''b'\n  F=1\r\nG='two\nlines'\nH=x";
        let (variables, problems) = parse(text, "cluster.env");
        assert_eq!(problems, []);
        let pairs: Vec<_> =
            variables.iter().map(|one| (one.name.as_str(), one.value.as_str(), one.line)).collect();
        let expected = [
            ("A", "x y", 2),
            ("B", "a\"b", 3),
            ("C", "plain", 4),
            ("D", "", 5),
            ("E", "a'b", 6),
            ("F", "1", 7),
            ("G", "two\nlines", 8),
            ("H", "x", 10),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn what_a_shell_would_run_is_a_problem_with_its_line() {
        let (variables, problems) = parse("A=1\nB=$(id)\nC=`id`\nD='open\n", "cluster.env");
        assert_eq!(variables.len(), 1);
        let origins: Vec<_> = problems.iter().map(|problem| problem.origin.as_str()).collect();
        assert_eq!(origins, ["cluster.env:2", "cluster.env:3", "cluster.env:4"]);
        let (_, problems) = parse("no assignment\n=x\n1A=2\nA=b c\nA=x;reboot", "f");
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            drop(parse(&text, "f"));
        }
    }
}
