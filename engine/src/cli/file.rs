//! The configuration file: its values become the defaults of the command line's options, so flags and
//! environment stand above them and `--help` shows what is in force.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Command;
use toml::{Table, Value};

/// Applies the file that `--config`, `DOLPHIN_CONFIG` or its usual place names to every subcommand.
pub(super) fn apply(command: Command, args: impl Iterator<Item = OsString>) -> anyhow::Result<Command> {
    let named = from_args(args).or_else(|| std::env::var_os("DOLPHIN_CONFIG").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => match usual_place() {
            Some(path) if path.is_file() => path,
            _ => return Ok(command),
        },
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    with_defaults(command, &text).with_context(|| format!("{}", path.display()))
}

/// `$XDG_CONFIG_HOME/dolphin`, or `~/.config/dolphin`.
pub(super) fn directory() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    base.map(|base| base.join("dolphin"))
}

fn usual_place() -> Option<PathBuf> {
    directory().map(|directory| directory.join("config.toml"))
}

fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else { continue };
        if text == "--" {
            return None;
        }
        if text == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    None
}

fn with_defaults(mut command: Command, text: &str) -> anyhow::Result<Command> {
    let table: Table = text.parse()?;
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let (sections, general): (Vec<_>, Vec<_>) =
        table.into_iter().partition(|(key, value)| value.is_table() && names.contains(key));
    for (key, value) in &general {
        let mut known = false;
        for name in &names {
            command = command.mut_subcommand(name, |sub| {
                let (sub, applied) = set(sub, key, value);
                known |= applied;
                sub
            });
        }
        let (changed, applied) = set(command, key, value);
        command = changed;
        if !known && !applied {
            bail!("no command has an option `{key}`; `dolphin COMMAND --help` lists them");
        }
    }
    for (name, section) in sections {
        for (key, value) in section.as_table().into_iter().flatten() {
            let mut known = false;
            command = command.mut_subcommand(&name, |sub| {
                let (sub, applied) = set(sub, key, value);
                known = applied;
                sub
            });
            if !known {
                bail!("`dolphin {name}` has no option `{key}`; `dolphin {name} --help` lists them");
            }
        }
    }
    Ok(command)
}

fn set(command: Command, key: &str, value: &Value) -> (Command, bool) {
    let long = key.replace('_', "-");
    let id =
        command.get_arguments().find(|arg| arg.get_long() == Some(&long)).map(|arg| arg.get_id().clone());
    let Some(id) = id else { return (command, false) };
    let texts: Vec<String> = match value {
        Value::Array(values) => values.iter().map(text).collect(),
        value => vec![text(value)],
    };
    (command.mut_arg(id, |arg| arg.default_values(texts)), true)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn sample() -> Command {
        let up = Command::new("up")
            .arg(Arg::new("nodes").long("nodes").env("DOLPHIN_TEST_NODES_UNSET").default_value("3"))
            .arg(Arg::new("key").long("api-key").action(ArgAction::Append))
            .arg(Arg::new("private").long("private").action(ArgAction::SetTrue));
        Command::new("dolphin")
            .subcommand(up)
            .subcommand(Command::new("node").arg(Arg::new("nodes").long("nodes")))
    }

    fn get(command: Command, args: &[&str], id: &str) -> Vec<String> {
        let matches = command.try_get_matches_from(args).unwrap();
        let (_, sub) = matches.subcommand().unwrap();
        sub.get_raw(id).unwrap().map(|v| v.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn flags_stand_above_the_file_and_the_file_above_defaults() {
        let command = || with_defaults(sample(), "nodes = 5\napi_key = ['a', 'b']\nprivate = true").unwrap();
        assert_eq!(get(command(), &["dolphin", "up"], "nodes"), ["5"]);
        assert_eq!(get(command(), &["dolphin", "up", "--nodes", "7"], "nodes"), ["7"]);
        assert_eq!(get(command(), &["dolphin", "up"], "key"), ["a", "b"]);
        let matches = command().try_get_matches_from(["dolphin", "up"]).unwrap();
        assert!(matches.subcommand().unwrap().1.get_flag("private"));
    }

    #[test]
    fn a_section_is_for_one_command() {
        let command = || with_defaults(sample(), "[node]\nnodes = 9").unwrap();
        assert_eq!(get(command(), &["dolphin", "up"], "nodes"), ["3"]);
        assert_eq!(get(command(), &["dolphin", "node"], "nodes"), ["9"]);
    }

    #[test]
    fn unknown_keys_and_broken_files_are_errors() {
        assert!(with_defaults(sample(), "nods = 5").unwrap_err().to_string().contains("`nods`"));
        assert!(with_defaults(sample(), "[up]\nkey = 5").unwrap_err().to_string().contains("dolphin up"));
        assert!(with_defaults(sample(), "nodes = ").is_err());
    }

    #[test]
    fn the_file_is_found_on_the_command_line() {
        let find = |args: &[&str]| from_args(args.iter().map(OsString::from));
        assert_eq!(find(&["dolphin", "--config", "a", "up"]), Some("a".into()));
        assert_eq!(find(&["dolphin", "up", "--config=b"]), Some("b".into()));
        assert_eq!(find(&["dolphin", "run", "--", "--config", "c"]), None);
    }
}
