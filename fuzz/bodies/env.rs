//! Random environments: a configuration or errors that name their variable, never a panic, and never a
//! password in what is printed.
//!
//! Input: a byte for the mode, then variables with values, plausible and arbitrary ones, then a `.env` file.

use tidegate::config::{Config, Env, Mode, variables};

use super::input::Input;

/// Stands in every password.
const PASSWORD: &str = "hunter2~pass";

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.of(&[Mode::Serve, Mode::Serve, Mode::NoDatabase, Mode::Demo]);
    let mut pairs = Vec::new();
    for _ in 0..input.below(12) {
        let variable = input.of(variables::ALL);
        let value = if variable.is_secret() { secret(&mut input) } else { value(&mut input) };
        pairs.push((variable.name, value));
    }
    let mut env = Env::from_pairs(pairs);
    env.add_file(&String::from_utf8_lossy(input.rest()));
    let _ = env.environment();

    let read = Config::from_env(&env, mode);
    assert!(!format!("{env:?} {read:?}").contains(PASSWORD), "a password is printed: {read:?}");
    match &read {
        Ok(config) => {
            assert_eq!(config.mode, mode);
            assert_eq!(config.database.is_some(), mode == Mode::Serve);
            assert!((1..=16).contains(&config.limits.reactors));
            assert!(config.limits.request_head_bytes_max > 0 && config.limits.message_bytes_max > 0);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                let text = error.to_string();
                assert!(variables::ALL.iter().any(|variable| variable.name == error.variable), "{text}");
                assert!(text.contains(error.variable) && !text.contains(PASSWORD), "{text}");
                assert!(!error.allowed.is_empty() && !text.contains('\n'), "{text:?}");
            }
        }
    }
    assert!(read == Config::from_env(&env, mode), "the same environment means two things");
}

/// A URL or a password, the password in a place where one stands.
fn secret(input: &mut Input<'_>) -> String {
    let before =
        input.of(&["", "", "redis://:", "rediss://user:", "postgres://u:", "postgresql://%20:", "unix://:"]);
    if before.is_empty() {
        return PASSWORD.to_owned();
    }
    let after = match input.below(3) {
        0 => input
            .of(&["@localhost:6379/1", "@[::1]:5432/db?sslmode=require", "@/run/x.sock?db=2", "@"])
            .to_owned(),
        1 => format!("@{}", input.text(24)),
        _ => {
            let options = ["sslmode", "host", "port", "db", "connect_timeout", "sslrootcert", "user", "pool"];
            format!("@h:{}/{}?{}={}", input.byte(), input.byte(), input.of(&options), input.text(12))
        }
    };
    format!("{before}{PASSWORD}{after}")
}

fn value(input: &mut Input<'_>) -> String {
    const PLAUSIBLE: &[&str] = &[
        "",
        "0",
        "1",
        "4000",
        "65535",
        "65536",
        "-1",
        "1.5",
        ".5",
        "64KiB",
        "16 MiB",
        "99999999999999999999",
        "true",
        "no",
        "production",
        "development",
        "localhost",
        "[::1]",
        "::",
        "127.0.0.1",
        "/run/postgresql",
        "a:1,b,[c]:3",
        "10.0.0.0/8, loopback",
        "::ffff:1.2.3.4/200",
        "require",
        "verify-full",
        "json",
        "trace",
        "tidegate=debug,info",
        "a:b_c",
    ];
    match input.below(3) {
        0 => input.text(40),
        _ => input.of(PLAUSIBLE).to_owned(),
    }
}
