//! The addresses to listen on, and how many clients fit.

use super::Report;
use crate::config::{Config, Listen};
use crate::door::{Address, ListenError, Listener};
use crate::server::health;
use crate::server::{clients_allowed, listen_address, raise_descriptor_limit};

/// Fewer clients than this are worth a warning: browsers and apps of a few dozen people.
const CLIENTS_FEW: u64 = 1000;

/// To be called within a tokio runtime.
pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    let about = match &config.listen {
        Listen::Tcp(_) => "BIND and PORT",
        Listen::Unix(_) => "SOCKET",
    };
    bind(report, about, &listen_address(&config.listen), &config.listen);
    if let Some(admin) = &config.monitoring.admin {
        let address = Address::Admin(admin.host.clone(), admin.port);
        bind(report, "ADMIN_BIND", &address, &Listen::Tcp(admin.clone()));
    }
    if config.monitoring.status_public {
        report.warn("STATUS_PUBLIC", "the status pages are for everybody");
    }
    let descriptors = raise_descriptor_limit();
    let allowed = clients_allowed(descriptors);
    let (clients, is_set) = match config.limits.connections_max {
        0 => (allowed, false),
        wanted => (wanted as u64, true),
    };
    if clients > allowed {
        report.warn(
            "Open files",
            format_args!(
                "MAX_CONNECTIONS={clients} is more than RLIMIT_NOFILE={descriptors} allows; raise \
                 LimitNOFILE= in the unit, or ulimit -Hn"
            ),
        );
    } else if clients < CLIENTS_FEW && !is_set {
        report.warn(
            "Open files",
            format_args!(
                "RLIMIT_NOFILE={descriptors} allows {clients} clients; raise LimitNOFILE= in the unit, or \
                 ulimit -Hn"
            ),
        );
    } else {
        report.ok("Open files", format_args!("room for {clients} clients"));
    }
}

fn bind(report: &mut Report<'_>, about: &str, address: &Address, listen: &Listen) {
    match Listener::bind(address) {
        Ok(listener) => report.ok(about, format_args!("{} is free to listen on", listener.address())),
        Err(error @ (ListenError::PortInUse(..) | ListenError::SocketInUse(_))) => {
            // The one to be replaced, or ourselves.
            if health::ask(listen, health::HEALTH).is_ok() {
                report.warn(
                    about,
                    format_args!(
                        "a streaming server is running there; it has to stop before this one can start"
                    ),
                );
            } else {
                report.fail(about, error);
            }
        }
        Err(error) => report.fail(about, error),
    }
}
