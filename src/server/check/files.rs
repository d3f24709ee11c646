//! Files that the configuration names.

use std::path::Path;

use super::Report;
use crate::config::{Config, RootCerts, variables};

pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    if let Some(path) = &config.tls.extra_ca {
        pem(report, variables::NODE_EXTRA_CA_CERTS.name, path, "CERTIFICATE");
    }
    if let Some(path) = &config.tls.system_ca {
        pem(report, variables::SSL_CERT_FILE.name, path, "CERTIFICATE");
    }
    let Some(database) = &config.database else { return };
    if let RootCerts::File(path) = &database.tls.roots {
        pem(report, "sslrootcert", path, "CERTIFICATE");
    }
    if let Some(client) = &database.tls.client {
        pem(report, "sslcert", &client.cert, "CERTIFICATE");
        pem(report, "sslkey", &client.key, "PRIVATE KEY");
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
