//! PgBouncer in transaction mode, between the server under test and PostgreSQL.
//!
//! With `TIDEGATE_PGBOUNCER` set every [`World`](super::World) has it in between.

use std::sync::{Mutex, OnceLock};

use super::left_out;
use super::machine::{Folder, PATIENCE, Service, free_port, program, wait_until};
use super::postgres::{Postgres, command, own, shared};

/// A running PgBouncer.
pub struct Pgbouncer {
    pub port: u16,
    service: Mutex<Option<Service>>,
    target: u16,
    settings: Vec<String>,
}

/// Whether every world is to have one in between.
pub fn everywhere() -> bool {
    std::env::var("TIDEGATE_PGBOUNCER").is_ok_and(|value| !value.is_empty())
}

/// This process's, in front of the PostgreSQL that its tests share.
pub fn of_everybody() -> &'static Pgbouncer {
    static SHARED: OnceLock<Pgbouncer> = OnceLock::new();
    SHARED.get_or_init(|| {
        let pgbouncer = Pgbouncer::start(shared().expect("a PostgreSQL behind it"), &[]);
        pgbouncer.expect("TIDEGATE_PGBOUNCER is set, and pgbouncer is not installed")
    })
}

impl Pgbouncer {
    /// Starts one in front of that server, with further settings (`name = value`); or says that it is not
    /// installed.
    pub fn start(postgres: &Postgres, settings: &[&str]) -> Option<Pgbouncer> {
        if program("pgbouncer").is_none() && !std::path::Path::new("/usr/sbin/pgbouncer").is_file() {
            left_out("needs pgbouncer");
            return None;
        }
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let pgbouncer =
            Pgbouncer { port: free_port(), service: Mutex::new(None), target: postgres.port, settings };
        pgbouncer.start_again();
        Some(pgbouncer)
    }

    /// Starts it, on the same port as before.
    pub fn start_again(&self) {
        let folder = Folder::new("pgbouncer");
        own(folder.path());
        let file = folder.path().join("pgbouncer.ini");
        let users = folder.path().join("users");
        std::fs::write(&users, "\"mastodon\" \"hunter2\"\n").unwrap();
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             max_client_conn = 1000\ndefault_pool_size = 20\nserver_login_retry = 1\n",
            self.target,
            self.port,
            users.display()
        );
        for setting in &self.settings {
            text.push_str(setting);
            text.push('\n');
        }
        std::fs::write(&file, text).unwrap();
        own(&users);
        own(&file);
        let program = program("pgbouncer").unwrap_or_else(|| "/usr/sbin/pgbouncer".into());
        let words = [program.to_str().unwrap(), file.to_str().unwrap()];
        let service = Service::start(folder, "INT", &command(&words));
        wait_until("pgbouncer listens or ends", PATIENCE, || {
            assert!(!service.is_gone(), "pgbouncer has ended:\n{}", service.log());
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        *self.service.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(service);
    }

    /// Ends it, and every connection through it.
    pub fn stop(&self) {
        drop(self.service.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
    }

    pub fn log(&self) -> String {
        let service = self.service.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        service.as_ref().map(Service::log).unwrap_or_default()
    }

    /// What `DATABASE_URL` says.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://mastodon@127.0.0.1:{}/{database}", self.port)
    }
}
