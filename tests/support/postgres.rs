//! A private PostgreSQL per test process, with Mastodon's tables.
//!
//! `initdb` runs once per machine and schema; the result is kept in Cargo's folder for test files and copied.
//! PostgreSQL refuses to run as root: then the user `postgres` runs it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};

use super::machine::{Folder, PATIENCE, Service, free_port, left_out, peer, program, wait_until};

const SCHEMA: &str = include_str!("../schema.sql");
const DATABASE: &str = "mastodon_test";

/// The grants that are shipped, for the role that the server under test has.
pub const GRANTS: &str = include_str!("../../dist/postgresql-grants.sql");
pub const ROLE: &str = "tidegate";
pub const PASSWORD: &str = "postgres-password-4Tz9wB";

/// A running PostgreSQL.
pub struct Postgres {
    pub port: u16,
    // Whose folder holds the data goes last.
    again: Option<Service>,
    pub service: Service,
}

/// This process's PostgreSQL, shared by all tests that do not need one of their own.
pub fn shared() -> Option<&'static Postgres> {
    static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
    SHARED.get_or_init(|| Postgres::start_with(None, &[])).as_ref()
}

impl Postgres {
    /// Starts one, or says that it is not installed.
    pub fn start() -> Option<Postgres> {
        let started = Postgres::start_with(None, &[]);
        if started.is_none() {
            left_out("needs postgresql");
        }
        started
    }

    /// Starts one on a given port, with further settings (`name=value`).
    pub fn start_with(port: Option<u16>, settings: &[&str]) -> Option<Postgres> {
        let template = template()?;
        for _ in 0..10 {
            let folder = Folder::new("pg");
            let data = folder.path().join("data");
            copy(&template, &data);
            let service = run(folder, port.unwrap_or_else(free_port), settings);
            if let Some(postgres) = service.ready() {
                return Some(postgres);
            }
        }
        panic!("PostgreSQL found no free port in ten attempts");
    }

    /// Starts one in whose environment that stands (`NAME=value`).
    pub fn start_with_environment(environment: &str, settings: &[&str]) -> Option<Postgres> {
        let template = template()?;
        let folder = Folder::new("pg");
        let port = free_port();
        copy(&template, &folder.path().join("data"));
        own(folder.path());
        let words =
            [vec!["env".to_owned(), environment.to_owned()], words(folder.path(), port, settings)].concat();
        Postgres { port, again: None, service: Service::start(folder, "QUIT", &words) }.ready()
    }

    /// A hot standby of it, in step with what it has now.
    pub fn standby(&self, settings: &[&str]) -> Postgres {
        let folder = Folder::new("pg-standby");
        own(folder.path());
        let data = folder.path().join("data");
        let (port, program) = (self.port.to_string(), program("pg_basebackup").expect("pg_basebackup"));
        let words =
            ["-h", "127.0.0.1", "-p", &port, "-U", "mastodon", "-R", "-X", "stream", "-c", "fast", "-D"];
        let words = [&[program.to_str().unwrap()], &words[..], &[data.to_str().unwrap()]].concat();
        try_run(&words).expect("a copy of the primary");
        run(folder, free_port(), settings).ready().expect("the standby starts")
    }

    fn ready(self) -> Option<Postgres> {
        self.is_up().then_some(self)
    }

    /// Waits until it answers; false if it ends instead.
    fn is_up(&self) -> bool {
        let mut up = false;
        wait_until("PostgreSQL answers or ends", Duration::from_secs(60), || {
            let log = self.running().log();
            up = ["", "read-only "]
                .iter()
                .any(|kind| log.contains(&format!("ready to accept {kind}connections")));
            up || self.running().is_gone()
        });
        up
    }

    fn running(&self) -> &Service {
        self.again.as_ref().unwrap_or(&self.service)
    }

    /// Ends it: connections are cut, data stays. `crash` ends it without a goodbye.
    pub fn stop(&mut self, crash: bool) {
        super::machine::signal(self.running().pid(), if crash { "QUIT" } else { "INT" });
        wait_until("PostgreSQL has ended", PATIENCE, || self.running().is_gone());
    }

    /// Starts it again after [`stop`](Self::stop), on the same port with the same data.
    pub fn start_again(&mut self) {
        let folder = Folder::new("pg-again");
        own(folder.path());
        let words = words(self.service.folder(), self.port, &[]);
        self.again = Some(Service::start(folder, "QUIT", &words));
        assert!(self.is_up(), "PostgreSQL does not start again:\n{}", self.running().log());
    }

    /// A fresh database with the tables and nothing in them; its name. May be called anywhere, as
    /// [`psql`](Self::psql).
    pub fn fresh(&self) -> String {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE mastodon_empty"));
        name
    }

    /// How the server's own code connects to that database: by the unix socket, as the least role.
    pub fn options(&self, database: &str) -> tidegate::db::Options {
        tidegate::db::Options {
            host: tidegate::db::Host::Unix(self.service.folder().to_owned()),
            port: self.port,
            user: ROLE.into(),
            password: Some(PASSWORD.into()),
            dbname: database.into(),
            ..tidegate::db::Options::default()
        }
    }

    /// Runs SQL through psql(1), in one session, and gives what it printed (unaligned, no headings).
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut child = Command::new(program("psql").expect("psql"))
            .args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "mastodon", "-d", database, "-h"])
            .arg(self.service.folder())
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql runs");
        let mut stdin = child.stdin.take().expect("piped");
        let sql = sql.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(sql.as_bytes()));
        let output = child.wait_with_output().expect("psql ends");
        let _ = writer.join();
        assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What `DATABASE_URL` says to reach a database of it: ours as the role that may do the least.
    pub fn url(&self, database: &str) -> String {
        let user = if peer().is_some() { "mastodon".to_owned() } else { format!("{ROLE}:{PASSWORD}") };
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// A connection to the database that all tests share.
    pub fn database(&self) -> Database {
        self.open(DATABASE)
    }

    pub fn open(&self, name: &str) -> Database {
        self.open_as("user=mastodon", name)
    }

    /// A connection of somebody else: `user=NAME password=…`.
    pub fn open_as(&self, who: &str, name: &str) -> Database {
        Database::connect(self.port, who, name)
    }

    /// A copy of the empty database for one test alone.
    pub fn own_database(&self) -> Database {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let name = format!("own_{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.open("postgres").run(&format!("CREATE DATABASE {name} TEMPLATE mastodon_empty"));
        self.open(&name)
    }
}

/// A connection for fixtures.
pub struct Database {
    pub name: String,
    inner: Mutex<(tokio::runtime::Runtime, tokio_postgres::Client)>,
}

impl Database {
    fn connect(port: u16, who: &str, name: &str) -> Database {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = format!("host=127.0.0.1 port={port} {who} dbname={name}");
        let client = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&config, NoTls).await.expect("PostgreSQL answers");
            tokio::spawn(connection);
            client
        });
        Database { name: name.to_owned(), inner: Mutex::new((runtime, client)) }
    }

    /// Runs statements without parameters.
    #[track_caller]
    pub fn run(&self, sql: &str) {
        let guard = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        guard.0.block_on(guard.1.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The same, or SQLSTATE and text of PostgreSQL's refusal.
    pub fn try_run(&self, sql: &str) -> Result<(), String> {
        let guard = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        guard.0.block_on(guard.1.batch_execute(sql)).map_err(|error| match error.as_db_error() {
            Some(error) => format!("{} {}", error.code().code(), error.message()),
            None => error.to_string(),
        })
    }

    #[track_caller]
    pub fn rows(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let guard = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        guard.0.block_on(guard.1.query(sql, values)).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The first column of the first row, a bigint.
    #[track_caller]
    pub fn id(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> i64 {
        self.rows(sql, values).first().expect("a row").get(0)
    }
}

/// Root cannot run PostgreSQL; `postgres` can.
fn as_postgres() -> &'static [String] {
    static PREFIX: OnceLock<Vec<String>> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        let words: &[&str] =
            if root { &["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] } else { &[] };
        words.iter().map(|&word| word.to_owned()).collect()
    })
}

/// A command for the user who runs PostgreSQL.
pub fn command(words: &[&str]) -> Vec<String> {
    as_postgres().iter().cloned().chain(words.iter().map(|&word| word.to_owned())).collect()
}

fn run(folder: Folder, port: u16, settings: &[&str]) -> Postgres {
    let words = words(folder.path(), port, settings);
    own(folder.path());
    Postgres { port, again: None, service: Service::start(folder, "QUIT", &words) }
}

/// The command that runs PostgreSQL on the data in that folder.
fn words(folder: &Path, port: u16, settings: &[&str]) -> Vec<String> {
    let postgres = program("postgres").expect("postgres");
    let data = folder.join("data").to_str().unwrap().to_owned();
    let (port_text, socket) = (port.to_string(), folder.to_str().unwrap().to_owned());
    let mut words = vec![postgres.to_str().unwrap(), "-D", &data, "-p", &port_text, "-k", &socket];
    let fast = [
        "listen_addresses=127.0.0.1",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "max_connections=400",
        "shared_buffers=64MB",
        "autovacuum=off",
    ];
    for setting in fast.iter().chain(settings) {
        words.extend(["-c", setting]);
    }
    command(&words)
}

/// Gives a file, or a folder without what is in it, to the user who runs PostgreSQL.
pub fn own(path: &Path) {
    if !as_postgres().is_empty() {
        let done = Command::new("chown").arg("postgres:postgres").arg(path).status();
        assert!(done.is_ok_and(|status| status.success()), "chown {}", path.display());
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.is_ok_and(|status| status.success()), "cp -a {}", from.display());
}

/// The data folder that all are copied from, made once.
fn template() -> Option<PathBuf> {
    static TEMPLATE: OnceLock<Option<PathBuf>> = OnceLock::new();
    TEMPLATE.get_or_init(make_template).clone()
}

fn make_template() -> Option<PathBuf> {
    let initdb = program("initdb")?;
    program("postgres")?;
    let Some(version) = try_run(&[initdb.to_str().unwrap(), "--version"]) else {
        left_out("needs a user named postgres, since PostgreSQL does not run as root");
        return None;
    };
    let version: String = version.chars().filter(char::is_ascii_alphanumeric).collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{version}-{:08x}", crc(&format!("{SCHEMA}{GRANTS}"))));
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let lock = std::fs::File::create(kept.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if kept.is_dir() {
        return Some(kept);
    }
    let folder = Folder::new("initdb");
    own(folder.path());
    let data = folder.path().join("data");
    let words = [
        initdb.to_str().unwrap(),
        "-D",
        data.to_str().unwrap(),
        "-U",
        "mastodon",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ];
    try_run(&words).expect("initdb");
    // Trust is for fixtures; the server under test has to know its password.
    let rules = data.join("pg_hba.conf");
    let trusting = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("host all {ROLE} 127.0.0.1/32 scram-sha-256\n{trusting}")).unwrap();
    let postgres = run(folder, free_port(), &[]).ready().expect("PostgreSQL starts on its new data");
    let admin = postgres.open("postgres");
    admin.run(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"));
    for name in ["mastodon_empty", DATABASE] {
        admin.run(&format!("CREATE DATABASE {name}"));
        let database = postgres.open(name);
        database.run(SCHEMA);
        database.run(GRANTS);
    }
    drop(admin);
    let (data, pid) = (postgres.service.folder().join("data"), postgres.service.pid());
    super::machine::signal(pid, "INT");
    wait_until("PostgreSQL has shut down", PATIENCE, || postgres.service.is_gone());
    let half = kept.with_extension("half");
    let _ = std::fs::remove_dir_all(&half);
    copy(&data, &half);
    std::fs::rename(&half, &kept).unwrap();
    Some(kept)
}

fn try_run(words: &[&str]) -> Option<String> {
    let words = command(words);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tells schemas apart in a file name.
fn crc(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
