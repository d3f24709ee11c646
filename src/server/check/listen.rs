//! The addresses to listen on, and how many clients fit.

use std::path::Path;

use super::Report;
use super::units::{self, Activation, Service};
use crate::config::{Config, Fit, Listen, current_user};
use crate::door::{Address, ListenError, Listener};
use crate::server::health;
use crate::server::memory_limit;
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
    let service = units::service(&config.listen);
    if let Some(service) = &service {
        runs_as_the_service(report, service);
    }
    files(report, config, service.as_ref());
    memory(report, config, service.as_ref());
}

/// A check of another user or in another directory reads another settings file, with other rights.
fn runs_as_the_service(report: &mut Report<'_>, service: &Service) {
    let user = if service.user.is_empty() { "root" } else { &service.user };
    let here = std::env::current_dir().unwrap_or_default();
    let directory = Path::new(&service.directory);
    // In either form, since systemd takes both.
    let is_user = current_user().is_some_and(|name| name == user)
        || user.parse() == Ok(rustix::process::geteuid().as_raw());
    let is_here =
        directory.canonicalize().map_or(directory.as_os_str().is_empty(), |directory| directory == here);
    if !is_user || !is_here {
        let shown = if directory.as_os_str().is_empty() { Path::new("/") } else { directory };
        report.warn(
            "Service",
            format_args!(
                "{} runs as {user} in {}, this check as {} in {}; settings and rights may differ: run it \
                 there and as that user",
                service.name,
                shown.display(),
                current_user().unwrap_or_else(|| "another user".to_owned()),
                here.display(),
            ),
        );
    }
}

/// Whether the budgets fit into the memory that the process may use: by the unit's limits where there is a unit.
fn memory(report: &mut Report<'_>, config: &Config, service: Option<&Service>) {
    let about = "Memory";
    let limit = match service {
        Some(service) => memory_limit::of_unit(service.memory.clone()),
        None => memory_limit::own(),
    };
    match config.clone().fit_memory(limit.as_ref()) {
        Fit::Fits => report.ok(about, "there is enough for BACKPRESSURE_HIGH_BYTES and FILTER_CACHE_BYTES"),
        Fit::Reduced(text) => report.ok(about, text),
        Fit::TooSmall(text) => report.warn(about, text),
    }
}

/// How many clients fit: by the unit's limit where there is a unit.
fn files(report: &mut Report<'_>, config: &Config, service: Option<&Service>) {
    let about = "Open files";
    let shell = raise_descriptor_limit();
    let (descriptors, limit, advice) = match service {
        Some(service) => {
            let files = service.files_max.unwrap_or(u64::MAX);
            let shown = service.files_max.map_or("infinity".to_owned(), |files| files.to_string());
            let limit = format!("LimitNOFILE={shown} of {}", service.name);
            match units::files_of_systemd().filter(|most| *most < files) {
                Some(most) => (
                    most,
                    format!("systemd itself may open {most}, less than {limit}"),
                    "raise the limit of this container".to_owned(),
                ),
                None => (files, limit, format!("raise it (systemctl edit {})", service.name)),
            }
        }
        None => (
            shell,
            format!("RLIMIT_NOFILE={shell} of this shell; a service has its own"),
            "raise LimitNOFILE= in the unit, or ulimit -Hn".to_owned(),
        ),
    };
    let allowed = clients_allowed(descriptors);
    let wanted = config.limits.connections_max as u64;
    if wanted > allowed {
        report.warn(
            about,
            format_args!("MAX_CONNECTIONS={wanted} is more than fits: {allowed} ({limit}); {advice}"),
        );
    } else if allowed < CLIENTS_FEW && wanted == 0 {
        report.warn(about, format_args!("room for only {allowed} clients ({limit}); {advice}"));
    } else {
        let clients = if wanted == 0 { allowed } else { wanted };
        report.ok(about, format_args!("room for {clients} clients ({limit})"));
    }
}

fn bind(report: &mut Report<'_>, about: &str, address: &Address, listen: &Listen) {
    // First, for a socket file is tried by a connection.
    match units::activation(listen) {
        Activation::None => {}
        Activation::Waiting { socket, service } => {
            return report.warn(
                about,
                format_args!(
                    "{socket} listens on {listen} and starts {service} at the first connection, so none was \
                     made; any other service needs it stopped (systemctl disable --now {socket})"
                ),
            );
        }
        Activation::Unknown(error) => {
            return report.warn(
                about,
                format_args!(
                    "not tried: a connection to {listen} might start a service, and systemd could not be \
                     asked ({error})"
                ),
            );
        }
    }
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
