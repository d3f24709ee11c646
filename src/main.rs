//! The command line: which mode, the configuration, the log, and the exit status.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tidegate::config::{Config, ConfigError, Env, HostPort, Listen, Mode, variables};
use tidegate::logging;
use tidegate::server::check::check;
use tidegate::server::health;

/// A small, fast streaming server for Mastodon: Redis pub/sub to WebSockets and Server-Sent Events.
///
/// Without a command it serves clients, configured by Mastodon's own environment variables.
#[derive(Parser)]
#[command(name = "tidegate", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Serve public and hashtag streams from Redis alone, without PostgreSQL: NO ACCESS CONTROL. For
    /// evaluation and load tests.
    #[arg(long)]
    no_database: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Try it without Redis or PostgreSQL: made-up posts, and a page that shows them arriving.
    Demo {
        /// Port of the page and the streams [default: PORT, else 4000; 0: any free one].
        #[arg(long)]
        port: Option<u16>,
    },
    /// Try everything that the configuration names, and say of each thing whether it works and what to do.
    ///
    /// Run it as the user and in the directory that the service has. Exit status: 0 when a start would serve
    /// (there may be warnings), 1 when something would not work, 2 when the settings are refused.
    Check {
        /// As for the server: without PostgreSQL.
        #[arg(long)]
        no_database: bool,
    },
    /// Ask the server that runs at BIND and PORT, or SOCKET, whether it lives: exit status 0 if it does.
    Health {
        /// Ask besides whether Redis and PostgreSQL are there.
        #[arg(long)]
        ready: bool,
    },
}

fn main() -> ExitCode {
    let command = Arguments::command().after_long_help(variables::help());
    let arguments = match Arguments::from_arg_matches(&command.get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    if let Some(Command::Check { no_database }) = arguments.command {
        let mode = if no_database { Mode::NoDatabase } else { Mode::Serve };
        return check(&Env::load(), mode, &mut std::io::stdout().lock()).code().into();
    }
    let result = match arguments.command {
        Some(Command::Health { ready }) => ask_health(ready),
        _ => start(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            logging::last_words(&lines);
            ExitCode::FAILURE
        }
    }
}

fn ask_health(ready: bool) -> Result<(), Vec<String>> {
    // Where it listens is all that counts here.
    let env = Env::load();
    let config = Config::from_env(&env, Mode::NoDatabase).map_err(|errors| refusal(&env, &errors))?;
    health::ask(&config.listen, if ready { health::READY } else { health::HEALTH })
        .map_err(|error| vec![error])
}

fn start(arguments: Arguments) -> Result<(), Vec<String>> {
    let mode = match &arguments.command {
        Some(Command::Demo { .. }) => Mode::Demo,
        _ if arguments.no_database => Mode::NoDatabase,
        _ => Mode::Serve,
    };
    // The demo belongs to no Mastodon, even where a .env file lies about.
    let env = if mode == Mode::Demo { Env::from_process() } else { Env::load() };
    let mut config = Config::from_env(&env, mode).map_err(|errors| refusal(&env, &errors))?;
    if let (Some(Command::Demo { port: Some(chosen) }), Listen::Tcp(HostPort { port, .. })) =
        (&arguments.command, &mut config.listen)
    {
        *port = *chosen;
    }
    logging::init(&config.log).map_err(|error| vec![error])?;
    for note in env.notes() {
        let text = &note.text;
        if note.is_warning { tracing::warn!("{text}") } else { tracing::info!("{text}") }
    }
    let ended = tidegate::run(config).map_err(|failure| vec![failure.to_string()]);
    logging::flush();
    ended
}

/// Where settings were looked for, then every variable that is refused: the last line is one of these.
fn refusal(env: &Env, errors: &[ConfigError]) -> Vec<String> {
    let notes = env.notes().iter().map(|note| note.text.clone());
    notes.chain(errors.iter().map(ToString::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_parsed() {
        Arguments::command().debug_assert();
        let demo = Arguments::try_parse_from(["tidegate", "demo", "--port", "0"]).unwrap();
        assert!(matches!(demo.command, Some(Command::Demo { port: Some(0) })));
        assert!(Arguments::try_parse_from(["tidegate", "--no-database"]).unwrap().no_database);
        assert!(Arguments::try_parse_from(["tidegate", "--no-database", "demo"]).is_err());
    }
}
