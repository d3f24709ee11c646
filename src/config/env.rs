//! Where settings come from: the process's environment and a `.env` file, as one map.
//!
//! The only place that asks the operating system; everything after it is a pure function of [`Env`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::variables::{self, Variable};

/// Which defaults hold, by `NODE_ENV`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Environment {
    /// Unset, or `development`.
    Development,
    /// `production`
    Production,
    /// Anything else: there are no defaults for PostgreSQL.
    Other(String),
}

/// A set of environment variables.
#[derive(Clone, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    environment: Option<String>,
    notes: Vec<String>,
}

impl std::fmt::Debug for Env {
    // Values may be secrets of this or any other program.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl Env {
    /// These variables and nothing else.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Env {
        let variables = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut env = Env { variables: variables.collect(), ..Env::default() };
        env.environment = env.variables.get(variables::NODE_ENV.name).cloned();
        env
    }

    /// The process's environment. Variables that are not UTF-8 count as unset and are noted.
    pub fn from_process() -> Env {
        let mut notes = Vec::new();
        let env = Env::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            if let Ok(value) = value.into_string() {
                return Some((name, value));
            }
            if variables::ALL.iter().any(|variable| variable.name == name) {
                notes.push(format!("{name} is ignored: its value is not UTF-8"));
            }
            None
        }));
        Env { notes, ..env }
    }

    /// The process's environment, and below it `.env.production` or `.env` by `NODE_ENV`: from the working
    /// directory, else from the directory above it (where Rails keeps it when a server runs in a folder of
    /// its own). A file that cannot be read is noted, as all its variables may also be set.
    pub fn load() -> Env {
        let mut env = Env::from_process();
        let name = if env.environment() == Environment::Production { ".env.production" } else { ".env" };
        for path in [Path::new(name), &Path::new("..").join(name)] {
            match std::fs::read(path) {
                Ok(content) => {
                    env.add_file(&String::from_utf8_lossy(&content));
                    let path = path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
                    env.notes.push(format!("settings read from {}", path.display()));
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => env.notes.push(format!("{} is not used: {error}", path.display())),
            }
        }
        env
    }

    /// Adds a `.env` file's variables where they are not set yet.
    pub fn add_file(&mut self, text: &str) {
        let file: BTreeMap<String, String> = dotenv::parse(text).into_iter().collect();
        for (name, value) in file {
            self.variables.entry(name).or_insert(value);
        }
    }

    /// The value of a variable, if it is set; it may be empty.
    pub fn get(&self, variable: &'static Variable) -> Option<&str> {
        self.variables.get(variable.name).map(String::as_str)
    }

    /// Which defaults hold. A `NODE_ENV` inside a `.env` file does not count, as in Node.
    pub fn environment(&self) -> Environment {
        match self.environment.as_deref() {
            None | Some("" | "development") => Environment::Development,
            Some("production") => Environment::Production,
            Some(other) => Environment::Other(other.to_owned()),
        }
    }

    /// What is worth a line in the log once there is one: the file that was read, what was ignored.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The device and inode of the journal's socket, as systemd passes them to a service (systemd.exec(5)).
pub fn journal_stream() -> Option<(u64, u64)> {
    let variable = std::env::var("JOURNAL_STREAM").ok()?;
    let (device, inode) = variable.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_variables_win_over_the_file_even_when_empty() {
        let mut env = Env::from_pairs([("PORT", "1"), ("BIND", "")]);
        env.add_file("PORT=2\nBIND=::1\nDB_POOL=3\nDB_POOL=4\nNODE_ENV=production");
        assert_eq!(env.get(&variables::PORT), Some("1"));
        assert_eq!(env.get(&variables::BIND), Some(""));
        assert_eq!(env.get(&variables::DB_POOL), Some("4"));
        assert_eq!(env.environment(), Environment::Development);
    }

    #[test]
    fn printing_it_shows_no_values() {
        let env = Env::from_pairs([("DB_PASS", "hunter2")]);
        assert!(!format!("{env:?}").contains("hunter2"));
    }
}
