//! `vm-agent man`: the manual pages, one for each command, from what `--help` says and the tables
//! of `pages`. The packages are made with it; nobody else needs it, so it is hidden.

mod pages;

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

pub(super) use pages::EXAMPLES;

use super::exit::{self, Exit, Failure};
use crate::base::fsio;

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write the pages
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let host = |error| Failure::new(Exit::Host, error);
    fsio::make_directory(&args.directory, 0o755).map_err(host)?;
    for page in all().map_err(super::other)? {
        let path = args.directory.join(format!("{}.1", page.name));
        fsio::replace(&path, page.text.as_bytes(), fsio::PUBLIC).map_err(host)?;
    }
    Ok(())
}

/// One page.
struct Page {
    /// `vm-agent-bundle-create`.
    name: String,
    /// Its source, for troff.
    text: String,
}

/// The pages of all commands that are not hidden.
fn all() -> std::io::Result<Vec<Page>> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, None, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, above: Option<&str>, pages: &mut Vec<Page>) -> std::io::Result<()> {
    let name = name(command);
    pages.push(Page { text: text(command, above)?, name: name.clone() });
    visible(command).try_for_each(|below| add(below, Some(&name), pages))
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn text(command: &Command, above: Option<&str>) -> std::io::Result<String> {
    let name = name(command);
    // "See a summary with -h" is for those who have not opened the manual.
    let mut command = command.clone().mut_args(|arg| match arg.get_id().as_str() {
        "help" => arg.help("Print help").long_help("Print help"),
        _ => arg,
    });
    let mut head = Roff::new();
    synopsis(&mut head, &mut command);
    description(&mut head, &command, &name);
    let source = concat!("vm-agent ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(&*name).source(source).manual("vm-agent");
    let mut bytes = Vec::new();
    man.render_title(&mut bytes)?;
    man.render_name_section(&mut bytes)?;
    head.to_writer(&mut bytes)?;
    if visible(&command).next().is_some() {
        man.render_subcommands_section(&mut bytes)?;
    }
    man.render_options_section(&mut bytes)?;
    let mut rest = Roff::new();
    match above {
        None => whole(&mut rest),
        Some(_) => {
            rest.control("SH", ["EXIT STATUS"]);
            rest.text([
                roman("0 when all is well; the other statuses are those of "),
                bold("vm-agent"),
                roman("(1)."),
            ]);
        }
    }
    examples(&mut rest, &name);
    see_also(&mut rest, &command, above);
    rest.to_writer(&mut bytes)?;
    Ok(bold_code(&once(&String::from_utf8_lossy(&bytes))))
}

/// The usage as `--help` has it; all options would be half a page, and stand below.
fn synopsis(page: &mut Roff, command: &mut Command) {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let end = usage.find(['[', '<']).unwrap_or(usage.len());
    let (words, arguments) = usage.split_at(end);
    page.control("SH", ["SYNOPSIS"]).text([bold(words), roman(arguments)]);
}

fn description(page: &mut Roff, command: &Command, name: &str) {
    page.control("SH", ["DESCRIPTION"]);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    page.text([roman(format!("{about}."))]);
    for (_, paragraph) in pages::DESCRIPTIONS.iter().filter(|(page, _)| *page == name) {
        page.control("PP", []).text([roman(*paragraph)]);
    }
}

/// What holds for all commands, on the first page.
fn whole(page: &mut Roff) {
    page.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in exit::MEANINGS {
        let status = (status as u8).to_string();
        entry(page, bold(status), meaning);
    }
    page.control("SH", ["ENVIRONMENT"]);
    for (variable, meaning) in pages::ENVIRONMENT {
        entry(page, bold(variable), meaning);
    }
    page.control("SH", ["FILES"]);
    page.text([roman("All of them lie below the directory of "), bold("--root"), roman(".")]);
    for (file, meaning) in pages::files() {
        entry(page, italic(file), meaning);
    }
}

fn entry(page: &mut Roff, term: Inline, meaning: &str) {
    page.control("TP", []).text([term]).text([roman(meaning)]);
}

fn examples(page: &mut Roff, name: &str) {
    let mut examples = EXAMPLES.iter().filter(|example| example.page == name).peekable();
    if examples.peek().is_none() {
        return;
    }
    page.control("SH", ["EXAMPLES"]);
    for example in examples {
        page.control("PP", []).text([roman(example.does)]);
        page.control("RS", ["4"]).control("nf", []).text([bold(example.line)]);
        page.control("fi", []).control("RE", []);
    }
}

fn see_also(page: &mut Roff, command: &Command, above: Option<&str>) {
    let mut others: Vec<String> = above.map(str::to_owned).into_iter().collect();
    others.extend(visible(command).map(name));
    page.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for other in others {
        line.extend([bold(other), roman("(1), ")]);
    }
    line.extend([bold("systemctl"), roman("(1), "), bold("journalctl"), roman("(1)")]);
    page.text(line);
    page.control("PP", []);
    page.text([italic(pages::DOCUMENTS), roman(" has the documents that are read as a whole.")]);
}

/// The preamble once: each section comes with its own.
fn once(text: &str) -> String {
    let preamble = |line: &str| {
        [r".ie \n(.g .ds Aq", r".el .ds Aq"].iter().any(|start| line.starts_with(start))
    };
    let mut page = String::new();
    for (at, line) in text.lines().enumerate() {
        if at < PREAMBLE || !preamble(line) {
            page.push_str(line);
            page.push('\n');
        }
    }
    page
}

/// What stands between backticks is bold, as in a manual.
fn bold_code(text: &str) -> String {
    let mut page = String::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.split('`').collect();
        let paired = parts.len() % 2 == 1;
        for (at, part) in parts.iter().enumerate() {
            page.push_str(match (at, paired) {
                (0, _) => "",
                (_, false) => "`",
                (at, true) if at % 2 == 1 => r"\fB",
                _ => r"\fR",
            });
            page.push_str(part);
        }
        page.push('\n');
    }
    page
}

/// The lines of the preamble, for apostrophes.
const PREAMBLE: usize = 2;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn every_visible_command_has_a_page_and_every_page_says_where_to_read_on() {
        let pages = all().unwrap();
        let names: Vec<&str> = pages.iter().map(|page| &*page.name).collect();
        for name in ["vm-agent", "vm-agent-join", "vm-agent-bundle", "vm-agent-bundle-create"] {
            assert!(names.contains(&name), "{name}");
        }
        for hidden in ["vm-agent-launch-proxy", "vm-agent-man", "vm-agent-help"] {
            assert!(!names.contains(&hidden), "{hidden}");
        }
        for page in &pages {
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"] {
                let heading = format!(".SH {section}\n");
                let quoted = format!(".SH \"{section}\"\n");
                let count =
                    page.text.matches(&heading).count() + page.text.matches(&quoted).count();
                assert_eq!(count, 1, "{}: {section}", page.name);
            }
            assert_eq!(page.text.matches(".ds Aq").count(), 2, "{}", page.name);
            assert!(!page.text.contains('`'), "{}: an unpaired backtick", page.name);
        }
    }

    #[test]
    fn every_command_that_does_something_has_an_example_and_every_example_is_a_command_line() {
        let mut command = super::super::Cli::command().disable_help_subcommand(true);
        command.build();
        let mut leaves = vec![&command];
        while let Some(command) = leaves.pop() {
            if visible(command).next().is_none() {
                let name = name(command);
                let shown = EXAMPLES.iter().any(|example| example.page == name);
                assert!(shown, "{name} has no example");
            }
            leaves.extend(visible(command));
        }
        for example in EXAMPLES {
            // The words of a pipe or a redirection are the shell's.
            let ours = example.line.split(['|', '>', '&']).find(|part| part.contains("vm-agent"));
            let words = ours.unwrap().split_whitespace().skip_while(|word| *word != "vm-agent");
            let parsed = super::super::Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{}: {}", example.line, parsed.unwrap_err());
        }
    }
}
