//! Files that the configuration names.

use std::path::Path;

use super::Report;
use crate::config::{Config, RootCerts, variables};
use crate::tls::POSTGRESQL;

pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    if let Some(path) = &config.tls.extra_ca {
        pem(report, variables::NODE_EXTRA_CA_CERTS.name, path, "CERTIFICATE");
    }
    if let Some(path) = &config.tls.system_ca {
        pem(report, variables::SSL_CERT_FILE.name, path, "CERTIFICATE");
    }
    database(report, config);
    #[cfg(feature = "otel")]
    traces(report, config);
}

fn database(report: &mut Report<'_>, config: &Config) {
    let Some(database) = &config.database else { return };
    if let RootCerts::File(path) = &database.tls.roots {
        pem(report, POSTGRESQL.roots, path, "CERTIFICATE");
    }
    if let Some(client) = &database.tls.client {
        pem(report, POSTGRESQL.cert, &client.cert, "CERTIFICATE");
        pem(report, POSTGRESQL.key, &client.key, "PRIVATE KEY");
    }
}

#[cfg(feature = "otel")]
fn traces(report: &mut Report<'_>, config: &Config) {
    use crate::telemetry::NAMES;
    let Some(traces) = &config.traces else { return };
    if let RootCerts::File(path) = &traces.roots {
        pem(report, NAMES.roots, path, "CERTIFICATE");
    }
    if let Some(client) = &traces.client {
        pem(report, NAMES.cert, &client.cert, "CERTIFICATE");
        pem(report, NAMES.key, &client.key, "PRIVATE KEY");
    }
}

fn pem(report: &mut Report<'_>, about: &str, path: &Path, what: &str) {
    let shown = path.display();
    match std::fs::read(path) {
        Ok(content) => {
            let text = String::from_utf8_lossy(&content);
            let found = text.lines().filter(|line| line.starts_with("-----BEGIN") && line.contains(what));
            match found.count() {
                0 => report.fail(about, format_args!("{shown} holds no {what} in PEM form; convert it")),
                1 => report.ok(about, format_args!("{shown} is readable")),
                count => report.ok(about, format_args!("{shown} is readable and holds {count}")),
            }
        }
        Err(error) => report.fail(
            about,
            format_args!("{shown} cannot be read ({error}); let the user who runs the server read it"),
        ),
    }
}
