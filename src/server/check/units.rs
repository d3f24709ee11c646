//! What systemd knows of this server: the unit that will run it and the socket units that hold its address.
//!
//! `tidegate check` runs in a shell, whose limits, user and directory are not those of the service. And a
//! connection to an address that a socket unit holds would start its service. So systemctl(1) is asked first, by
//! `show`, which any user may do and which starts nothing.
//!
//! Bounds: [`ANSWER_TIME`] and [`ANSWER_BYTES_MAX`] for each question. Tested on answers of systemd 252, and in
//! `tests/systemd.rs` under a real one.

use std::collections::HashMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::config::{Listen, MemoryLimit};
use crate::limits::{CHECK_SYSTEMD_BYTES_MAX as ANSWER_BYTES_MAX, CHECK_SYSTEMD_TIME as ANSWER_TIME};
use crate::server::memory_limit::of_property;

/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// A unit's properties. One that occurs several times has a line for each value.
type Unit = HashMap<String, Vec<String>>;

/// The service unit that will probably run this server.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Service {
    pub name: String,
    /// `LimitNOFILE=`; none is infinity.
    pub files_max: Option<u64>,
    /// The limits on its memory, by `MemoryMax=` and its like.
    pub memory: Vec<MemoryLimit>,
    /// `User=`; empty is root.
    pub user: String,
    /// `WorkingDirectory=`; may be empty.
    pub directory: String,
}

/// Finds the service among the names that this package and Mastodon use. An active one wins over one that is
/// enabled, and that over one that merely exists. None without systemd.
pub(super) fn service(listen: &Listen) -> Option<Service> {
    let instance = match listen {
        Listen::Tcp(at) => at.port.to_string(),
        Listen::Unix(_) => "4000".to_owned(),
    };
    let names = [
        &format!("mastodon-streaming@{instance}.service"),
        &format!("tidegate@{instance}.service"),
        "tidegate.service",
        "mastodon-streaming.service",
    ];
    let properties = [
        "Id",
        "LoadState",
        "ActiveState",
        "UnitFileState",
        "Type",
        "LimitNOFILE",
        "LimitAS",
        "MemoryMax",
        "MemoryHigh",
        "MemoryLimit",
        "User",
        "WorkingDirectory",
    ];
    choose(&units(&show(&names, &properties)?.ok()?))
}

fn choose(units: &[Unit]) -> Option<Service> {
    let rank = |unit: &&Unit| {
        let (active, enabled) = (first(unit, "ActiveState"), first(unit, "UnitFileState"));
        match (active, enabled) {
            ("active" | "activating" | "reloading", _) => 2,
            (_, "enabled") => 1,
            _ => 0,
        }
    };
    // Since Mastodon 4.2 the unit without an instance only starts and stops the others.
    let serves = |unit: &&Unit| first(unit, "LoadState") == "loaded" && first(unit, "Type") != "oneshot";
    // Of several with one rank, `max_by_key` takes the last.
    let unit = units.iter().rev().filter(serves).max_by_key(rank)?;
    let name = first(unit, "Id");
    let memory = ["MemoryMax", "MemoryHigh", "MemoryLimit", "LimitAS"];
    let memory = memory.iter().filter_map(|property| of_property(property, first(unit, property), name));
    Some(Service {
        name: name.to_owned(),
        memory: memory.collect(),
        files_max: first(unit, "LimitNOFILE").parse().ok(),
        user: first(unit, "User").to_owned(),
        directory: first(unit, "WorkingDirectory").trim_start_matches('!').to_owned(),
    })
}

/// What systemd itself may open: in a container without CAP_SYS_RESOURCE no unit gets more, whatever `LimitNOFILE=`
/// says. None where it has no bound, or hides it.
pub(super) fn files_of_systemd() -> Option<u64> {
    hard_limit(&std::fs::read_to_string("/proc/1/limits").ok()?)
}

/// The hard limit of open files in proc(5)'s table.
fn hard_limit(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("Max open files "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a connection to an address would start a service.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Activation {
    /// No.
    None,
    /// This socket unit listens there and starts this service at the first connection.
    Waiting { socket: String, service: String },
    /// systemd runs here, but could not be asked.
    Unknown(String),
}

/// Asks systemd for the socket unit that listens at this address and whose service does not run.
pub(super) fn activation(listen: &Listen) -> Activation {
    match show(&["*.socket"], &["Id", "SubState", "Listen", "Triggers"]) {
        None => Activation::None,
        Some(Err(error)) => Activation::Unknown(error),
        Some(Ok(text)) => waiting(&units(&text), listen),
    }
}

fn waiting(units: &[Unit], listen: &Listen) -> Activation {
    let holds = |unit: &&Unit| {
        first(unit, "SubState") == "listening"
            && unit.get("Listen").is_some_and(|lines| lines.iter().any(|line| is_at(line, listen)))
    };
    units.iter().find(holds).map_or(Activation::None, |unit| Activation::Waiting {
        socket: first(unit, "Id").to_owned(),
        service: first(unit, "Triggers").to_owned(),
    })
}

/// Whether a line of `Listen`, such as `127.0.0.1:4000 (Stream)`, covers an address.
fn is_at(line: &str, listen: &Listen) -> bool {
    let Some(theirs) = line.strip_suffix(" (Stream)") else { return false };
    match listen {
        Listen::Unix(path) => Path::new(theirs) == path,
        Listen::Tcp(at) => {
            let Some((host, port)) = theirs.rsplit_once(':') else { return false };
            let theirs: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
            let ours: Option<IpAddr> = at.host.parse().ok();
            let is_same = match (theirs, ours) {
                (Some(theirs), Some(ours)) => {
                    theirs.is_unspecified() || ours.is_unspecified() || theirs == ours
                }
                // Rather no connection than one that starts a service: a name may be any address.
                _ => true,
            };
            is_same && port.parse() == Ok(at.port)
        }
    }
}

fn first<'a>(unit: &'a Unit, property: &str) -> &'a str {
    unit.get(property).and_then(|lines| lines.first()).map_or("", String::as_str)
}

/// Reads what `systemctl show` prints: `Name=value` lines, an empty line between units.
fn units(text: &str) -> Vec<Unit> {
    let mut units = vec![Unit::new()];
    for line in text.lines() {
        match (line.split_once('='), units.last_mut()) {
            (Some((name, value)), Some(unit)) => {
                unit.entry(name.to_owned()).or_default().push(value.to_owned());
            }
            _ => units.push(Unit::new()),
        }
    }
    units
}

/// What `systemctl show` prints of these units; none without systemd, an error if it does not answer.
fn show(names: &[&str], properties: &[&str]) -> Option<Result<String, String>> {
    Path::new(BOOTED).exists().then(|| ask(names, properties))
}

fn ask(names: &[&str], properties: &[&str]) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("systemctl: {error}");
    let mut child = Command::new("systemctl")
        .args(["show", "--no-pager", "--no-ask-password"])
        .arg(format!("--property={}", properties.join(",")))
        .arg("--")
        .args(names)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take();
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|stdout| stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut text));
        // Nobody receives any more after the time-out.
        let _ = sender.send(read.is_some_and(|read| read.is_ok()).then_some(text));
    });
    let text = answer.recv_timeout(ANSWER_TIME).ok().flatten();
    // It has ended or has had its time.
    let _ = child.kill();
    let status = child.wait().map_err(failed)?;
    match text {
        None => Err(format!("systemctl does not answer within {} s", ANSWER_TIME.as_secs())),
        Some(text) if text.is_empty() => Err(format!("systemctl gives no answer ({status})")),
        Some(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPort;

    /// As systemd 252 prints it.
    const SOCKETS: &str = "Listen=/run/systemd/journal/dev-log (Datagram)\n\
         Id=systemd-journald-dev-log.socket\nSubState=running\n\n\
         Triggers=tidegate.service\nListen=127.0.0.1:4000 (Stream)\nListen=/run/tide.sock (Stream)\n\
         Id=tidegate.socket\nSubState=listening\n\n\
         Triggers=web.service\nListen=[::]:80 (Stream)\nListen=53 (Datagram)\nId=web.socket\nSubState=listening\n\n\
         Triggers=other.service\nListen=127.0.0.2:4001 (Stream)\nId=other.socket\nSubState=running\n";

    fn tcp(host: &str, port: u16) -> Listen {
        Listen::Tcp(HostPort { host: host.into(), port })
    }

    #[test]
    fn socket_unit_that_waits_at_an_address_is_found() {
        let units = units(SOCKETS);
        let named = |socket: &str, service: &str| Activation::Waiting {
            socket: socket.to_owned(),
            service: service.to_owned(),
        };
        let ours = named("tidegate.socket", "tidegate.service");
        for listen in [
            tcp("127.0.0.1", 4000),
            tcp("localhost", 4000),
            tcp("0.0.0.0", 4000),
            Listen::Unix("/run/tide.sock".into()),
        ] {
            assert_eq!(waiting(&units, &listen), ours, "{listen}");
        }
        assert_eq!(waiting(&units, &tcp("10.0.0.1", 80)), named("web.socket", "web.service"));
        for listen in [
            tcp("127.0.0.3", 4000),
            tcp("127.0.0.1", 400),
            tcp("127.0.0.2", 4001),
            tcp("127.0.0.1", 53),
            Listen::Unix("/run/tide".into()),
        ] {
            assert_eq!(waiting(&units, &listen), Activation::None, "{listen}");
        }
    }

    #[test]
    fn hard_limit_of_open_files_is_read_from_proc() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             95000                95000                processes \n\
            Max open files            1024                 20000                files     \n";
        assert_eq!(hard_limit(table), Some(20000));
        assert_eq!(
            hard_limit("Max open files            1024                 unlimited            files\n"),
            None
        );
        assert_eq!(hard_limit(""), None);
    }

    #[test]
    fn active_service_wins_over_an_enabled_one_and_that_over_one_that_exists() {
        let block = |name: &str, load: &str, active: &str, enabled: &str, more: &str| {
            format!(
                "User=mastodon\nWorkingDirectory=!/home/mastodon/live\nId={name}\nLoadState={load}\n\
                 ActiveState={active}\nUnitFileState={enabled}\n{more}\n"
            )
        };
        let chosen = |blocks: &[String]| choose(&units(&blocks.join("\n"))).map(|found| found.name);
        let node = |active: &str| {
            block(
                "mastodon-streaming@4000.service",
                "loaded",
                active,
                "disabled",
                "LimitNOFILE=65536\nType=simple",
            )
        };
        let ours = |active: &str, enabled: &str| {
            let memory = "MemoryMax=67108864\nMemoryHigh=infinity\nMemoryLimit=infinity\nLimitAS=infinity";
            let more = format!("LimitNOFILE=512\nType=notify\n{memory}");
            block("tidegate.service", "loaded", active, enabled, &more)
        };
        let wrapper =
            block("mastodon-streaming.service", "loaded", "active", "enabled", "Type=oneshot\nLimitNOFILE=1");
        let absent = block("tidegate@4000.service", "not-found", "inactive", "", "LimitNOFILE=1");
        let all = |node: String, ours: String| [node, absent.clone(), ours, wrapper.clone()];
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            chosen(&all(node("active"), ours("inactive", "enabled"))),
            name("mastodon-streaming@4000.service")
        );
        assert_eq!(chosen(&all(node("inactive"), ours("failed", "enabled"))), name("tidegate.service"));
        assert_eq!(
            chosen(&all(node("inactive"), ours("inactive", "disabled"))),
            name("mastodon-streaming@4000.service")
        );
        assert_eq!(chosen(&[absent.clone(), wrapper.clone()]), None);
        assert_eq!(
            choose(&units(&ours("active", "enabled"))),
            Some(Service {
                name: "tidegate.service".into(),
                files_max: Some(512),
                memory: vec![MemoryLimit { bytes: 64 << 20, source: "MemoryMax of tidegate.service".into() }],
                user: "mastodon".into(),
                directory: "/home/mastodon/live".into(),
            })
        );
        assert_eq!(choose(&units("")), None);
    }
}
