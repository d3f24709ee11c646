//! Runs the program to its end, as `tidegate check` is run.

use std::process::{Command, Stdio};

use super::machine::Folder;
use super::server::Env;

/// How `tidegate check` ended, and what it printed.
pub struct Checked {
    pub code: i32,
    pub text: String,
}

impl Checked {
    /// The lines with that verdict.
    pub fn lines(&self, verdict: &str) -> Vec<&str> {
        self.text.lines().filter(|line| line.starts_with(verdict)).collect()
    }

    #[track_caller]
    /// That exit status, and a line with that verdict and these words.
    pub fn expect(&self, code: i32, verdict: &str, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        let found = self.lines(verdict).iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no {verdict} line with {words:?} in\n{}", self.text);
    }
}

pub fn run(arguments: &[&str], env: &Env) -> Checked {
    run_in(&Folder::new("check"), arguments, env)
}

pub fn run_in(folder: &Folder, arguments: &[&str], env: &Env) -> Checked {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name == "LLVM_PROFILE_FILE"))
        .envs(env)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Checked { code: output.status.code().unwrap(), text }
}
