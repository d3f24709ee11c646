//! Mastodon on a booted system, as its guide installs it: the user, the folder, `.env.production`, the databases, and
//! units of the same shape as its own. A few lines of Node stand in for its streaming server.

use super::booted::{Booted, HOST, LONG};
use super::machine::wait_until;

const SCHEMA: &str = include_str!("../schema.sql");

/// The settings file.
pub const ENV: &str = "/home/mastodon/live/.env.production";

const SETTINGS: &str =
    "DB_NAME=mastodon\nDB_USER=mastodon\nDB_PASS=secret\nDB_HOST=127.0.0.1\nREDIS_HOST=127.0.0.1\n";

/// Answers every request, with a header by which it is known.
const STAND_IN: &str = "require('http').createServer((request, response) => {
    response.setHeader('Server', 'stand-in');
    response.end('OK');
}).listen(process.env.PORT, '127.0.0.1');\n";

/// What matters of Mastodon's service: who runs it where, its time limits, its sandbox.
const SERVICE: &str = "[Service]
Type=simple
User=mastodon
WorkingDirectory=/home/mastodon/live
Environment=NODE_ENV=production
ExecStart=/usr/bin/node ./streaming
TimeoutSec=15
Restart=always
LimitNOFILE=65536
CapabilityBoundingSet=
NoNewPrivileges=true
ProcSubset=pid
ProtectProc=invisible
ProtectSystem=strict
PrivateTmp=true
PrivateDevices=true
PrivateUsers=true
PrivateMounts=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallFilter=~@cpu-emulation @debug @keyring @ipc @memlock @mount @obsolete @privileged @resources @setuid
SystemCallFilter=pipe pipe2
";

/// Which units there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Units {
    /// Since 4.2: a template by port, and a unit that starts and stops its instances.
    Template,
    /// Before: one service.
    Single,
}

/// Installs and starts everything, and the programs and units of `dist/` at `/usr/bin` and `/usr/local/bin`.
pub fn install(system: &Booted, units: Units) {
    let folder = "/etc/systemd/system";
    match units {
        Units::Template => {
            system.put(
                &format!("{folder}/mastodon-streaming.service"),
                "[Unit]\nWants=mastodon-streaming@4000.service\n\
                 [Service]\nType=oneshot\nExecStart=/bin/true\nRemainAfterExit=yes\n\
                 [Install]\nWantedBy=multi-user.target\n",
            );
            system.put(
                &format!("{folder}/mastodon-streaming@.service"),
                format!(
                    "[Unit]\nPartOf=mastodon-streaming.service\n{SERVICE}Environment=PORT=%I\n\
                     [Install]\nWantedBy=multi-user.target mastodon-streaming.service\n"
                ),
            );
        }
        Units::Single => system.put(
            &format!("{folder}/mastodon-streaming.service"),
            format!("{SERVICE}Environment=PORT=4000\n[Install]\nWantedBy=multi-user.target\n"),
        ),
    }
    system
        .succeed("useradd --create-home --shell /bin/bash mastodon; mkdir -p /home/mastodon/live/streaming");
    system.put("/home/mastodon/live/streaming/index.js", STAND_IN);
    system.put(ENV, SETTINGS);
    system.put("/tmp/schema.sql", SCHEMA);
    system.succeed(&format!(
        "set -e
        chown -R mastodon: /home/mastodon; chmod 640 {ENV}; cd /tmp
        sudo -u postgres psql -q -c \"CREATE ROLE mastodon LOGIN PASSWORD 'secret'\"
        sudo -u postgres createdb -O mastodon mastodon
        PGPASSWORD=secret psql -q -h 127.0.0.1 -U mastodon -f /tmp/schema.sql mastodon
        systemctl daemon-reload
        systemctl enable --now mastodon-streaming"
    ));
    until_served_by(system, 4000, "Node");
    system.succeed(&format!(
        "install {HOST}/tidegate /usr/bin/; install {HOST}/tidegate /usr/local/bin/
        install -m 644 {HOST}/tidegate*.service {HOST}/tidegate.socket /usr/lib/systemd/system/
        systemctl daemon-reload"
    ));
}

/// Which program answers on a port: `Node` or `Tidegate`.
pub fn served_by(system: &Booted, port: u16) -> Option<&'static str> {
    let response = system.get(port, "/api/v1/streaming/health")?;
    Some(if response.head.header("Server") == Some("stand-in") { "Node" } else { "Tidegate" })
}

#[track_caller]
pub fn until_served_by(system: &Booted, port: u16, who: &str) {
    wait_until(&format!("{who} answers on {port}"), LONG, || served_by(system, port) == Some(who));
}

/// Waits until clients are let in.
#[track_caller]
pub fn until_ready(system: &Booted, port: u16) {
    wait_until(&format!("{port} is ready"), LONG, || {
        system.get(port, "/ready").is_some_and(|response| response.status() == 200)
    });
}
