//! The README's steps under a real systemd, as an administrator takes them: the commands are read from the README
//! and from the units' first lines, and run on a booted Debian ([`support::booted`]).
//!
//! Each test takes half a minute and the first one three minutes more: `tests/run --all` runs them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};

use support::booted::{Booted, HOST, LONG};
use support::machine::Folder;
use support::mastodon::{self, ENV, Units, served_by, until_ready, until_served_by};
use support::{left_out, wait_until};

const DROP_IN: &str = "/etc/systemd/system/mastodon-streaming@.service.d/tidegate.conf";

fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(top(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A system with Mastodon, where Node serves.
fn system(units: Units) -> Option<(Booted, Folder)> {
    let host = Folder::new("systemd");
    let binary = std::env::var_os("TIDEGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tidegate").into());
    std::fs::copy(binary, host.path().join("tidegate")).unwrap();
    for unit in ["tidegate.service", "tidegate@.service", "tidegate.socket"] {
        std::fs::copy(top("dist/systemd").join(unit), host.path().join(unit)).unwrap();
    }
    let system = Booted::start(host.path())?;
    mastodon::install(&system, units);
    Some((system, host))
}

/// The first commands of the README after that text.
#[track_caller]
fn commands(after: &str) -> String {
    let readme = read("README.md");
    let (_, rest) = readme.split_once(after).unwrap_or_else(|| panic!("README has no {after:?}"));
    let is_code = |line: &&str| line.starts_with("    ");
    let lines = rest.lines().skip_while(|line| !is_code(line)).take_while(is_code);
    let block: Vec<&str> = lines.map(str::trim_start).collect();
    assert!(!block.is_empty(), "README has no commands after {after:?}");
    block.join("\n")
}

/// The commands in a unit's first lines after that text.
#[track_caller]
fn header(unit: &str, after: &str) -> String {
    let text = read(&format!("dist/systemd/{unit}"));
    let (_, rest) = text.split_once(after).unwrap_or_else(|| panic!("{unit} has no {after:?}"));
    let lines = rest.lines().skip(1).map_while(|line| line.strip_prefix("#   "));
    let block: Vec<&str> = lines.collect();
    assert!(!block.is_empty(), "{unit} has no commands after {after:?}");
    block.join("\n")
}

const LET_GO: &str = "First let Mastodon's units go";
const ONE: &str = "is one process:";
const SEVERAL: &str = "is one of several, by port";
const SOCKET: &str = "With tidegate.service running:";
const NO_SOCKET: &str = "From there back to tidegate.service alone:";
const BACK: &str = "From any of the three back";

fn drop_in(with: &str) -> String {
    commands("**Change the program**").replace("[Service]", &format!("[Service]{with}"))
}

#[track_caller]
fn active(system: &Booted, unit: &str, expected: bool) {
    let state = system.run(&format!("systemctl is-active {unit}"));
    assert_eq!(state.text.trim() == "active", expected, "{unit} is {}", state.text);
}

/// Node serves again, and nothing of Tidegate runs or would start.
#[track_caller]
fn all_is_mastodons_own(system: &Booted) {
    until_served_by(system, 4000, "Node");
    let units =
        system.run("systemctl list-units --plain --no-legend --all 'tidegate*' | grep -v inactive").text;
    assert_eq!(units, "", "units of Tidegate");
    assert_eq!(system.run("pgrep -l tidegate").text, "");
    let links = system.run("find /etc/systemd/system -name 'tidegate*'").text;
    assert_eq!(links, "", "links or drop-ins of Tidegate");
    assert!(!system.run("ss -ltnpH 'sport = :4000'").text.contains("systemd"), "systemd holds the port");
    // A new client changes nothing.
    assert_eq!(served_by(system, 4000), Some("Node"));
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn mastodons_own_unit_runs_tidegate_and_node_again() {
    let Some((system, _host)) = system(Units::Template) else { return };
    for is_stopped in [false, true] {
        if is_stopped {
            system.succeed("systemctl stop mastodon-streaming");
        }
        system.succeed(&drop_in(""));
        assert_eq!(served_by(&system, 4000), Some("Tidegate"), "at the end of the restart");
        until_ready(&system, 4000);
        let proof = system.run(&commands("otherwise it prints what is missing"));
        assert!(proof.text.ends_with("ready\n"), "{}", proof.text);
        // As the notes to Mastodon's upgrades say.
        let pid = || system.succeed("systemctl show -P MainPID mastodon-streaming@4000");
        let before = pid();
        system.succeed("systemctl restart mastodon-streaming");
        wait_until("another process", LONG, || pid() != before);
        until_served_by(&system, 4000, "Tidegate");
        // A newer program, as the README has it; its build is not tried here.
        let upgrade = commands("**The program of step 1**");
        let built = "cargo build --release && sudo install target/release/tidegate";
        assert!(upgrade.contains(built), "{upgrade}");
        system.succeed(&format!(
            "set -e\n{}",
            upgrade.replace(built, &format!("sudo install {HOST}/tidegate"))
        ));
        until_ready(&system, 4000);
        let exe = system.succeed("readlink /proc/$(systemctl show -P MainPID mastodon-streaming@4000)/exe");
        assert_eq!(exe, "/usr/local/bin/tidegate\n", "the newer program runs");
        system.succeed(&commands("**And back:**"));
        until_served_by(&system, 4000, "Node");
    }
    // The ports are named where the README says.
    system.succeed("systemctl enable --now mastodon-streaming@4001");
    let named = system.succeed("systemctl list-dependencies mastodon-streaming");
    assert!(named.contains("@4000") && named.contains("@4001"), "{named}");
    let files = system.succeed("systemctl list-unit-files 'mastodon-streaming*'");
    assert!(files.contains("mastodon-streaming@.service"), "{files}");
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn single_unit_of_old_mastodon_runs_tidegate_and_node_again() {
    let Some((system, _host)) = system(Units::Single) else { return };
    let files = system.succeed("systemctl list-unit-files 'mastodon-streaming*'");
    assert!(!files.contains("mastodon-streaming@.service"), "{files}");
    let old = |text: String| text.replace("@4000", "").replace('@', "");
    system.succeed(&old(drop_in("")));
    assert_eq!(served_by(&system, 4000), Some("Tidegate"));
    system.run(&commands(LET_GO));
    system.succeed(&commands(ONE));
    until_ready(&system, 4000);
    system.succeed(&commands(BACK));
    all_is_mastodons_own(&system);
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn ways_into_each_unit_lead_back() {
    let Some((system, _host)) = system(Units::Template) else { return };
    // From the drop-in, which must not come back.
    system.succeed(&drop_in(""));
    system.succeed(&commands(LET_GO));
    system.succeed(&commands(ONE));
    until_ready(&system, 4000);
    active(&system, "tidegate", true);
    system.succeed(&commands(BACK));
    all_is_mastodons_own(&system);

    // An instance that was enabled by name must not be in the way.
    system.succeed("systemctl enable --now mastodon-streaming@4001");
    system.succeed(&commands(LET_GO));
    system.succeed(&commands(SEVERAL));
    for port in [4000, 4001] {
        until_ready(&system, port);
        active(&system, &format!("mastodon-streaming@{port}"), false);
    }
    assert_eq!(system.run("systemctl is-enabled mastodon-streaming@4001").text.trim(), "disabled");
    system.succeed(&commands(BACK));
    all_is_mastodons_own(&system);
    assert_eq!(served_by(&system, 4001), None);
    system.succeed("sudo systemctl enable --now mastodon-streaming@4001; systemctl disable --now mastodon-streaming@4001");

    system.succeed(&commands(LET_GO));
    system.succeed(&commands(ONE));
    system.succeed(&commands(SOCKET));
    until_ready(&system, 4000);
    newcomers_wait_during_a_restart(&system);
    system.succeed(&commands(NO_SOCKET));
    until_ready(&system, 4000);
    active(&system, "tidegate.socket", false);
    assert!(!system.run("ss -ltnpH 'sport = :4000'").text.contains("\"systemd\""));
    system.succeed(&commands(SOCKET));
    until_ready(&system, 4000);
    system.succeed(&commands(BACK));
    all_is_mastodons_own(&system);
    // The habit after an upgrade of Mastodon stops the socket too.
    system.succeed(&commands(LET_GO));
    system.succeed(&commands(ONE));
    system.succeed(&commands(SOCKET));
    system.succeed("systemctl restart mastodon-streaming");
    until_served_by(&system, 4000, "Node");
    active(&system, "tidegate.socket", false);
}

/// None is refused while the service restarts.
#[track_caller]
fn newcomers_wait_during_a_restart(system: &Booted) {
    let refused = system.run(
        "systemctl restart tidegate & refused=0
        while kill -0 $! 2>/dev/null; do curl -s -m 30 -o /dev/null 127.0.0.1:4000/ready || refused=$((refused + 1)); done
        wait $! && exit $refused",
    );
    assert_eq!(refused.status, 0, "{}", refused.text);
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn first_lines_of_each_unit_lead_in_and_back() {
    let Some((system, _host)) = system(Units::Template) else { return };
    for (unit, ports) in [("tidegate.service", &[4000][..]), ("tidegate@.service", &[4000, 4001])] {
        system.succeed(&drop_in(""));
        system.succeed(&header(unit, " In:"));
        ports.iter().for_each(|port| until_ready(&system, *port));
        system.succeed(&header(unit, "And back:"));
        all_is_mastodons_own(&system);
    }
    for back in ["Back to tidegate.service alone:", "Back to Mastodon's own units:"] {
        system.succeed(&header("tidegate.service", " In:"));
        system.succeed(&header("tidegate.socket", "\n# In, once"));
        until_ready(&system, 4000);
        active(&system, "tidegate.socket", true);
        system.succeed(&header("tidegate.socket", back));
        if back.contains("alone") {
            until_ready(&system, 4000);
            active(&system, "tidegate.socket", false);
            system.succeed(&header("tidegate.service", "And back:"));
        }
        all_is_mastodons_own(&system);
    }
    // Were the socket to fail, this is the way out.
    system.succeed(&header("tidegate.service", " In:"));
    system.succeed(&header("tidegate.socket", "\n# In, once"));
    system.succeed("mkdir -p /run/systemd/system/tidegate.service.d");
    system.put(
        "/run/systemd/system/tidegate.service.d/limit.conf",
        "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n",
    );
    system.succeed("systemctl daemon-reload; systemctl stop tidegate");
    wait_until("the socket fails", LONG, || {
        system.run("curl -s -m 1 127.0.0.1:4000/ready; systemctl kill -s KILL tidegate");
        system.run("systemctl is-failed tidegate.socket").status == 0
    });
    system.succeed("rm -r /run/systemd/system/tidegate.service.d; systemctl daemon-reload");
    system.succeed(&header("tidegate.socket", "If it has failed"));
    until_ready(&system, 4000);
    active(&system, "tidegate.socket", true);
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn failed_start_fails_the_restart_and_names_the_cause() {
    let Some((system, _host)) = system(Units::Template) else { return };
    let last = || system.run("journalctl -t tidegate -n 1 -o cat").text;
    let restart = "systemctl restart mastodon-streaming@4000";
    system.succeed(&drop_in(""));
    system.succeed(&format!("echo STREAMING_THREADS=many >>{ENV}"));
    assert_ne!(system.run(restart).status, 0);
    assert!(last().contains("STREAMING_THREADS") && last().contains("1 to 16"), "{}", last());
    wait_until("systemd gives up", LONG, || {
        system.run("systemctl show -P Result mastodon-streaming@4000; systemctl is-failed mastodon-streaming@4000")
            .status == 0
    });
    assert!(last().contains("STREAMING_THREADS"), "after systemd's own lines: {}", last());
    system.succeed(&format!("sed -i /STREAMING_THREADS/d {ENV}"));
    system.succeed(&format!("sudo systemctl reset-failed mastodon-streaming@4000 && {restart}"));
    until_ready(&system, 4000);

    // Wrong password: /status would look well.
    system.succeed(&format!("sed -i s/secret/wrong/ {ENV} && {restart}"));
    wait_until("PostgreSQL is named", LONG, || {
        let ready = system.run(&commands("otherwise it prints what is missing"));
        ready.text.contains("not ready") && ready.text.contains("PostgreSQL")
    });
    // The journal knows how serious a line is.
    let at = |priority: &str| {
        system.run(&format!("journalctl -t tidegate --priority={priority}..{priority} -o cat")).text
    };
    wait_until("the warning is in the journal", LONG, || at("warning").contains("PostgreSQL"));
    assert!(!at("info").contains("WARN") && at("info").contains("now listening"), "{}", at("info"));
    assert!(at("err").contains("STREAMING_THREADS"), "{}", at("err"));
    system.succeed(&format!("sed -i s/wrong/secret/ {ENV}"));

    let said = |what: &str| system.run("journalctl -t tidegate -n 10 -o cat").text.contains(what);
    let check =
        || system.run("cd /home/mastodon/live && sudo -u mastodon NODE_ENV=production tidegate check");
    system.succeed(&format!("chown root: {ENV} && chmod 600 {ENV} && {restart}"));
    let unreadable = format!("{ENV} cannot be read by user mastodon: Permission denied");
    assert!(said(&unreadable), "{}", system.run("journalctl -t tidegate -n 10 -o cat").text);
    let checked = check();
    assert!(checked.text.contains(&format!("warn  Settings: {unreadable}")), "{}", checked.text);
    system.succeed(&format!("mv {ENV} /root/settings && {restart}"));
    let missing = format!("no settings file at {ENV} or /home/mastodon/.env.production");
    assert!(said(&missing), "{}", system.run("journalctl -t tidegate -n 10 -o cat").text);
    let checked = check();
    assert!(checked.text.contains(&format!("warn  Settings: {missing}")), "{}", checked.text);
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn bad_setting_fails_neither_socket_nor_later_starts() {
    let Some((system, _host)) = system(Units::Template) else { return };
    system.succeed(&commands(LET_GO));
    system.succeed(&commands(ONE));
    system.succeed(&commands(SOCKET));
    system.succeed(&format!("echo STREAMING_THREADS=many >>{ENV}"));
    assert_ne!(system.run("systemctl restart tidegate").status, 0);
    // Clients knock and wait: one client per second, and one that stays.
    system.succeed("for i in $(seq 15); do curl -s -m 1 -o /dev/null 127.0.0.1:4000/ready; done; true");
    let failures = system.run("journalctl -t tidegate -o cat | grep -c STREAMING_THREADS").text;
    assert!(failures.trim().parse::<u32>().unwrap() > 5, "more than the limit of five: {failures}");
    active(&system, "tidegate.socket", true);
    let waits = "curl -s -m 60 -o /dev/null -w '%{http_code}' 127.0.0.1:4000/api/v1/streaming/health";
    let answer = system.run(&format!("{waits} & sleep 1; sed -i /STREAMING_THREADS/d {ENV}; wait $!")).text;
    assert_eq!(answer, "200", "the client that waits is served as soon as the setting is mended");
    until_ready(&system, 4000);
    assert!(system.run("ss -ltnpH 'sport = :4000'").text.contains("\"systemd\""), "systemd's socket serves");
    system.succeed("systemctl restart tidegate");

    // Without the socket: any number of starts by hand, and then a mended one.
    system.succeed(&commands(NO_SOCKET));
    system.succeed(&format!("echo STREAMING_THREADS=many >>{ENV}"));
    for _ in 0..8 {
        assert_ne!(system.run("systemctl restart tidegate").status, 0);
    }
    system.succeed(&format!("sed -i /STREAMING_THREADS/d {ENV}"));
    system.succeed("systemctl restart tidegate");
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn check_reads_the_units_limits_and_starts_nothing() {
    let Some((system, _host)) = system(Units::Template) else { return };
    let check = commands("**Try what it will meet**");
    let checked = system.run(&check);
    assert_eq!(checked.status, 0, "{}", checked.text);
    assert!(
        checked.text.contains("LimitNOFILE=65536 of mastodon-streaming@4000.service"),
        "{}",
        checked.text
    );
    assert!(!checked.text.contains("Service:"), "{}", checked.text);
    // The one warning is the server that runs.
    assert!(checked.text.contains("ready to serve, 1 warning\n"), "{}", checked.text);
    // Another user, another directory: what he finds is not what the service finds.
    let as_root = system.run("NODE_ENV=production /usr/local/bin/tidegate check");
    let words = "mastodon-streaming@4000.service runs as mastodon in /home/mastodon/live, this check as root in /root";
    assert!(as_root.text.contains(words), "{}", as_root.text);

    system.succeed(&commands(LET_GO));
    let alone = system.run(&check);
    assert!(alone.text.contains("ok    BIND and PORT: 127.0.0.1:4000 is free"), "{}", alone.text);
    system.succeed(&commands(ONE));
    system.succeed("mkdir -p /run/systemd/system/tidegate.service.d");
    system.put("/run/systemd/system/tidegate.service.d/few.conf", "[Service]\nLimitNOFILE=512\n");
    system.succeed("systemctl daemon-reload; systemctl restart tidegate");
    let few = system.run(&check);
    let words = "warn  Open files: room for only 412 clients (LimitNOFILE=512 of tidegate.service)";
    assert!(few.text.contains(words), "{}", few.text);

    // What the server itself then counts, which in a container is less than the unit asks for.
    system.succeed("rm -r /run/systemd/system/tidegate.service.d; systemctl daemon-reload");
    system.succeed("systemctl restart tidegate");
    let counted = system.succeed("journalctl -t tidegate -o cat | grep -o 'clients_max=[0-9]*' | tail -n 1");
    let room =
        format!("Open files: room for {} clients (", counted.trim().trim_start_matches("clients_max="));
    let checked = system.run(&check);
    assert!(
        checked.text.contains(&room) && checked.text.contains("tidegate.service)"),
        "{room}{}",
        checked.text
    );

    // Only the socket listens.
    let pid = || system.run("systemctl show -P MainPID tidegate").text;
    system.succeed("systemctl stop tidegate; systemctl enable --now tidegate.socket");
    let waiting = system.run(&check);
    let words = "warn  BIND and PORT: tidegate.socket listens on 127.0.0.1:4000 and starts tidegate.service";
    assert!(waiting.text.contains(words), "{}", waiting.text);
    let listening = || system.run("systemctl show -P SubState tidegate.socket").text;
    assert_eq!((pid().trim(), listening().trim()), ("0", "listening"), "the check started the service");
    // A socket file is tried by a connection too.
    system.put(
        "/run/systemd/system/other.socket",
        "[Socket]\nListenStream=/run/other.sock\nService=tidegate.service\nSocketUser=mastodon\n",
    );
    system.succeed(
        "systemctl disable --now tidegate.socket; systemctl daemon-reload; systemctl start other.socket",
    );
    let on_file = system.run(&check.replace("NODE_ENV", "SOCKET=/run/other.sock NODE_ENV"));
    let words = "warn  SOCKET: other.socket listens on /run/other.sock and starts tidegate.service";
    assert!(on_file.text.contains(words), "{}", on_file.text);
    assert_eq!(pid().trim(), "0", "the check started the service");
    // Once it runs, it is asked as any other.
    system.succeed(
        "systemctl stop other.socket; systemctl enable --now tidegate.socket; systemctl start tidegate",
    );
    let running = system.run(&check);
    assert!(
        running.text.contains("warn  BIND and PORT: a streaming server is running there"),
        "{}",
        running.text
    );

    // Where the bus cannot be asked, nothing is started either.
    system.succeed("systemctl stop tidegate; systemctl stop dbus.socket dbus");
    let without = system.run(&check);
    assert!(without.text.contains("systemd could not be asked"), "{}", without.text);
    assert_eq!((pid().trim(), listening().trim()), ("0", "listening"), "the check started the service");
}

/// The package with another version number.
fn with_version(deb: &Path, host: &Folder, version: &str) {
    let unpacked = host.path().join("unpacked");
    let run = |program: &str, words: &[&std::ffi::OsStr]| {
        let status = std::process::Command::new(program).args(words).status().unwrap();
        assert!(status.success(), "{program} {words:?}");
    };
    run("dpkg-deb", &["-R".as_ref(), deb.as_ref(), unpacked.as_ref()]);
    let control = unpacked.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(_) => format!("Version: {version}\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(&control, lines.collect::<String>()).unwrap();
    let target = host.path().join(format!("{version}.deb"));
    run("dpkg-deb", &["--root-owner-group".as_ref(), "-b".as_ref(), unpacked.as_ref(), target.as_ref()]);
    std::fs::remove_dir_all(&unpacked).unwrap();
}

#[test]
#[ignore = "boots a Debian: tests/run --all"]
fn package_restarts_what_runs_and_leaves_nothing_behind() {
    let deb = top("target/package/tidegate.deb");
    if !deb.is_file() {
        return left_out("needs target/package/tidegate.deb, which tests/run --all makes");
    }
    let Some((system, host)) = system(Units::Template) else { return };
    system.succeed("rm /usr/bin/tidegate /usr/lib/systemd/system/tidegate*");
    for version in ["1.0-1", "1.0-2", "1.0-3"] {
        with_version(&deb, &host, version);
    }
    let install = |version: &str| system.succeed(&format!("dpkg -i {HOST}/{version}.deb"));
    let old = || system.run("ls -l /proc/*/exe 2>/dev/null | grep 'tidegate (deleted)'").text;

    // Nothing starts by itself.
    install("1.0-1");
    assert_eq!(system.run("pgrep -l tidegate").text, "");
    assert_eq!(served_by(&system, 4000), Some("Node"));
    system.succeed(&commands(LET_GO));
    system.succeed(&commands(SEVERAL));
    until_ready(&system, 4000);
    install("1.0-2");
    [4000, 4001].iter().for_each(|port| until_ready(&system, *port));
    assert_eq!(old(), "", "the old version still runs");

    // Installed once more, with a setting that does not work: it is said, and dpkg does not fail over it.
    system.succeed(&format!("echo STREAMING_THREADS=many >>{ENV}"));
    let said = install("1.0-2");
    assert!(said.contains("tidegate: tidegate@4000.service does not start: journalctl"), "{said}");
    system.succeed(&format!("sed -i /STREAMING_THREADS/d {ENV}"));
    [4000, 4001].iter().for_each(|port| until_ready(&system, *port));

    system.succeed("apt-get remove -y tidegate");
    assert_eq!(system.run("pgrep -l tidegate").text, "");
    let left = system.run("find /etc/systemd /run/systemd/system /usr/lib/systemd -name '*tidegate*'").text;
    assert_eq!(left, "", "left behind");
    assert_eq!(system.run("systemctl list-units --all --plain --no-legend 'tidegate*'").text, "");

    // The socket unit: newcomers wait during the upgrade, and it stops at the removal.
    install("1.0-2");
    system.succeed(&commands(ONE));
    system.succeed(&commands(SOCKET));
    until_ready(&system, 4000);
    let refused = system.run(&format!(
        "dpkg -i {HOST}/1.0-3.deb >/dev/null & refused=0
        while kill -0 $! 2>/dev/null; do curl -s -m 30 -o /dev/null 127.0.0.1:4000/ready || refused=$((refused + 1)); done
        wait $! && exit $refused"
    ));
    assert_eq!(refused.status, 0, "{}", refused.text);
    assert_eq!(old(), "", "the old version still runs");
    system.succeed("apt-get purge -y tidegate");
    assert_eq!(system.run("pgrep -l tidegate; ss -ltnpH 'sport = :4000'").text, "");
    assert_eq!(system.run("find /etc/systemd -name '*tidegate*'").text, "");
    system.succeed("systemctl enable --now mastodon-streaming");
    all_is_mastodons_own(&system);

    // Mastodon's own unit with the package's program is named, and left alone.
    install("1.0-2");
    system.succeed(&drop_in("").replace("/usr/local/bin", "/usr/bin"));
    let said = install("1.0-3");
    assert!(said.contains("mastodon-streaming@4000.service still runs the old version"), "{said}");
    system.succeed("systemctl restart mastodon-streaming");
    wait_until("the new version runs", LONG, || old().is_empty());
    let said = system.succeed("apt-get remove -y tidegate");
    assert!(said.contains("mastodon-streaming@4000.service runs /usr/bin/tidegate"), "{said}");
    assert!(system.run(&format!("test -e {DROP_IN}")).status == 0, "the drop-in is the administrator's");
}
