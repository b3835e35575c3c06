//! What `--help` shows beyond the arguments: the commands by who uses them, and examples.

use clap::{Command, CommandFactory};

use super::Cli;
use super::man::EXAMPLES;

/// The command line with all its help.
pub(super) fn command() -> Command {
    let command = Cli::command();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{}\n{{options}}{{after-help}}\n",
        groups(&command)
    );
    with_examples(command.help_template(template), "vm-agent")
}

/// The commands, group by group.
fn groups(command: &Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("\n{title}:\n"));
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {name:<12} {about}\n"));
        }
    }
    text
}

/// The examples of the manual below the help of each command.
fn with_examples(command: Command, page: &str) -> Command {
    let lines: String = EXAMPLES
        .iter()
        .filter(|example| example.page == page && page != "vm-agent")
        .map(|example| format!("\n  {}\n    {}", example.does, example.line))
        .collect();
    let command =
        if lines.is_empty() { command } else { command.after_help(format!("Examples:{lines}")) };
    command.mut_subcommands(|below| {
        let page = format!("{page}-{}", below.get_name());
        with_examples(below, &page)
    })
}

/// Who uses which command.
const GROUPS: &[(&str, &[&str])] = &[
    ("Into the mesh, and out of it", &["join", "status", "wait", "leave"]),
    ("When something is wrong", &["doctor", "bugreport", "facts"]),
    ("While the agent runs", &["cert", "proxy", "capture", "config", "reload"]),
    ("For the cluster's operator", &["bundle"]),
    ("For units, shells and scripts", &["run", "completions", "version"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_none_is_there_that_does_not_exist() {
        let command = Cli::command();
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        let mut named: Vec<_> = visible.map(Command::get_name).collect();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        named.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, named);
    }

    #[test]
    fn the_overview_tells_of_each_command_and_each_status() {
        let help = command().render_help().to_string();
        assert!(help.contains("  join         Bring this machine into the mesh"), "{help}");
        assert!(help.contains("For the cluster's operator:\n  bundle "), "{help}");
        assert!(help.contains("--root <DIR>") && help.contains("130  somebody"), "{help}");
    }

    #[test]
    fn the_help_of_a_command_ends_with_examples() {
        let mut all = command();
        all.build();
        let join = all.find_subcommand_mut("join").unwrap();
        let help = join.render_help().to_string();
        assert!(help.contains("Examples:\n") && help.contains("    vm-agent join"), "{help}");
    }
}
