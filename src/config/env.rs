//! Where settings come from: the process's environment and a `.env` file, as one map.
//!
//! The only place that asks the operating system; everything after it is a pure function of [`Env`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::variables::{self, Group, Variable};

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
    notes: Vec<Note>,
}

/// What the log says at the start about where settings came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Whether the text names a probable mistake.
    pub is_warning: bool,
    /// One line.
    pub text: String,
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
                let text = format!("{name} is ignored: its value is not UTF-8");
                notes.push(Note { is_warning: true, text });
            }
            None
        }));
        Env { notes, ..env }
    }

    /// The process's environment, and below it `.env.production` or `.env` by `NODE_ENV`: from the working
    /// directory, else from the directory above it (where Rails keeps it when a server runs in a folder of
    /// its own). A file that is missing or cannot be read is noted: all its variables may also be set.
    pub fn load() -> Env {
        let mut env = Env::from_process();
        // Of a working directory that was removed there is no absolute path, nor a file.
        env.load_from(&std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")));
        env
    }

    fn load_from(&mut self, directory: &Path) {
        let name = if self.environment() == Environment::Production { ".env.production" } else { ".env" };
        let mut missing = Vec::new();
        let known = self.notes.len();
        for path in directory.ancestors().take(2).map(|directory| directory.join(name)) {
            let shown = path.display();
            match std::fs::read(&path) {
                Ok(content) => {
                    self.add_file(&String::from_utf8_lossy(&content));
                    self.note(false, format!("settings read from {shown}"));
                    return;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => match path.read_link() {
                    Ok(target) => {
                        let target = target.display();
                        self.note(true, format!("{shown} is a link to {target}, which does not exist"));
                    }
                    Err(_) => missing.push(shown.to_string()),
                },
                Err(error) => {
                    let user =
                        current_user().unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
                    self.note(true, format!("{shown} cannot be read by user {user}: {error}"));
                }
            }
        }
        if self.notes.len() == known {
            // Containers set all variables. Where no server is named, the file was probably meant to. Every login
            // sets USER.
            let names_a_server = variables::ALL
                .iter()
                .filter(|variable| matches!(variable.group, Group::Redis | Group::PostgreSQL))
                .any(|variable| variable.name != variables::USER.name && self.get(variable).is_some());
            let is_warning = !names_a_server;
            self.note(is_warning, format!("no settings file at {}", missing.join(" or ")));
        }
    }

    fn note(&mut self, is_warning: bool, text: String) {
        self.notes.push(Note { is_warning, text });
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

    /// The file that was read, or why none was; variables that are ignored.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// The device and inode of the journal's socket, as systemd passes them to a service (systemd.exec(5)).
pub fn journal_stream() -> Option<(u64, u64)> {
    let variable = std::env::var("JOURNAL_STREAM").ok()?;
    let (device, inode) = variable.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// The effective user's name, if `/etc/passwd` has it.
pub fn current_user() -> Option<String> {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_name(&accounts, &rustix::process::geteuid().as_raw().to_string()).map(str::to_owned)
}

fn user_name<'a>(accounts: &'a str, uid: &str) -> Option<&'a str> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    })
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

    /// The notes that reading this directory adds.
    fn notes_of(directory: &Path, pairs: &[(&str, &str)]) -> Vec<(bool, String)> {
        let mut env = Env::from_pairs(pairs.iter().copied());
        env.load_from(directory);
        env.notes.into_iter().map(|note| (note.is_warning, note.text)).collect()
    }

    #[test]
    fn notes_name_every_settings_file_by_its_absolute_path() {
        let top = std::env::temp_dir().join(format!("tidegate-env-{}", std::process::id()));
        let live = top.join("live");
        std::fs::create_dir_all(&live).unwrap();
        let (production, above) = (live.join(".env.production"), top.join(".env.production"));
        let is_production = ("NODE_ENV", "production");
        let absent = format!("no settings file at {} or {}", production.display(), above.display());
        assert_eq!(notes_of(&live, &[is_production, ("USER", "mastodon")]), [(true, absent.clone())]);
        // In a container everything is set.
        assert_eq!(notes_of(&live, &[is_production, ("REDIS_HOST", "redis")]), [(false, absent)]);
        assert!(notes_of(&live, &[])[0].1.contains("live/.env or "));

        std::fs::write(&above, "PORT=1").unwrap();
        let read = |path: &Path| (false, format!("settings read from {}", path.display()));
        assert_eq!(notes_of(&live, &[is_production]), [read(&above)]);
        std::os::unix::fs::symlink("shared/env", &production).unwrap();
        let dangling = format!("{} is a link to shared/env, which does not exist", production.display());
        assert_eq!(notes_of(&live, &[is_production]), [(true, dangling), read(&above)]);
        std::fs::remove_file(&production).unwrap();
        std::fs::create_dir(&production).unwrap();
        let unreadable = &notes_of(&live, &[is_production])[0];
        let expected = format!("{} cannot be read by user ", production.display());
        assert!(unreadable.0 && unreadable.1.starts_with(&expected), "{unreadable:?}");
        std::fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn users_are_named_as_in_etc_passwd() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\nodd\nmastodon:x:998:998::/home/mastodon:/bin/sh\n";
        assert_eq!(user_name(accounts, "998"), Some("mastodon"));
        assert_eq!(user_name(accounts, "99"), None);
    }

    #[test]
    fn printing_it_shows_no_values() {
        let env = Env::from_pairs([("DB_PASS", "hunter2")]);
        assert!(!format!("{env:?}").contains("hunter2"));
    }
}
