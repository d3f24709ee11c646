//! PostgreSQL with TLS, and what the server's own code and libpq (psql) make of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate::config::{Config, DatabaseHost, Env, Mode};
use tidegate::db::{DbError, Encryption, Host, Options, Pool};

use super::certificates::{Authority, Pair, path};
use super::left_out;
use super::machine::{Folder, program};
use super::postgres::{Postgres, own};

/// Who may come in, with TLS and without.
pub const ANYONE: &str = "local all all trust\nhost all all all trust\n";
pub const ENCRYPTED_ONLY: &str = "local all all trust\nhostssl all all all trust\n";
pub const PLAIN_ONLY: &str = "local all all trust\nhostnossl all all all trust\n";
pub const BY_PASSWORD: &str = "local all all trust\nhostssl all all all scram-sha-256\n";
pub const BY_CERTIFICATE: &str = "local all all trust\nhostssl all all all cert\n";

/// A PostgreSQL with that certificate, if any, and these rules.
pub fn server(authority: &Authority, pair: Option<&Pair>, rules: &str) -> Option<Postgres> {
    let files = Folder::new("pg-tls");
    own(files.path());
    let copy = |from: &Path, name: &str| -> PathBuf {
        let to = files.path().join(name);
        std::fs::copy(from, &to).unwrap();
        own(&to);
        assert!(Command::new("chmod").arg("600").arg(&to).status().unwrap().success());
        to
    };
    let hba = files.path().join("hba");
    std::fs::write(&hba, rules).unwrap();
    own(&hba);
    let mut settings = vec![format!("hba_file={}", path(&hba))];
    if let Some(pair) = pair {
        settings.push("ssl=on".into());
        settings.push(format!("ssl_cert_file={}", path(&copy(&pair.cert, "crt"))));
        settings.push(format!("ssl_key_file={}", path(&copy(&pair.key, "key"))));
        settings.push(format!("ssl_ca_file={}", path(&copy(&authority.root(), "ca"))));
    }
    let words: Vec<&str> = settings.iter().map(String::as_str).collect();
    let started = Postgres::start_with(None, &words);
    if started.is_none() {
        left_out("needs postgresql");
    }
    // It reads its files at the start, and nothing reloads it.
    started
}

/// Whether the connection that a URL and variables ask for is encrypted, or why there is none.
pub fn ask(url: &str, variables: &[(&str, &str)]) -> Result<bool, DbError> {
    let pairs = [("NODE_ENV", "production"), ("DATABASE_URL", url)];
    let env = Env::from_pairs(pairs.into_iter().chain(variables.iter().copied()));
    let config = Config::from_env(&env, Mode::Serve).unwrap();
    let database = config.database.unwrap();
    let DatabaseHost::Tcp(host) = database.host.clone() else { panic!("TCP") };
    let options = Options {
        host: Host::Tcp(host),
        port: database.port,
        user: database.user.clone(),
        password: database.password.as_ref().map(|secret| secret.expose().to_owned()),
        dbname: database.name.clone(),
        channel_binding: database.channel_binding,
        encryption: Encryption::new(&database.tls, &config.tls).unwrap(),
        pool_size: 1,
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = Pool::new(&options)?;
        let rows = pool.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
        Ok(rows[0].get(0))
    })
}

/// The same by libpq; none where it does not connect.
pub fn judge(url: &str) -> Option<bool> {
    // No ~/.postgresql/root.crt of whoever runs the tests.
    let home = Folder::new("home");
    let output = Command::new(program("psql").expect("psql comes with PostgreSQL"))
        .args(["-qAtX", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", url])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", std::env::var_os("PATH").unwrap())
        .output()
        .unwrap();
    output.status.success().then(|| output.stdout == b"t\n")
}

/// Runs SQL past all rules of who may come in.
pub fn superuser(postgres: &Postgres, sql: &str) {
    let output = Command::new(program("psql").unwrap())
        .args(["-qAtX", "-h", path(postgres.service.folder()), "-p", &postgres.port.to_string()])
        .args(["-U", "mastodon", "-d", "postgres", "-c", sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
