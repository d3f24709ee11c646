//! Keys, signatures and kinds of certificates that openssl makes, against each `sslmode` and against verification as Node
//! does it: libpq (psql) and Node say what should connect.
//!
//! Where we differ, `DIFFERENCES` says why.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::certificates::{Authority, Pair, path};
use support::encrypted::{ANYONE, ask, judge};
use support::left_out;
use support::machine::{Folder, PATIENCE, free_port, program, wait_until};
use support::postgres::{Postgres, own};
use tidegate::config::{Config, Env, Mode};

/// A server's certificate with what it sends besides, and the authority to trust.
struct Case {
    name: &'static str,
    pair: Pair,
    between: Option<PathBuf>,
    root: PathBuf,
}

/// Whose verdict is another than ours, about which certificate, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("libpq", "ed448 key", "Ed448 is not supported: nobody keeps a stable verifier for it"),
    ("Node", "ed448 key", "the same"),
    ("libpq", "signed by ed448", "the same"),
    ("Node", "signed by ed448", "the same"),
    ("Node", "rsa-1024 key", "too short to prove anything; so says OpenSSL from security level 2 on"),
    ("Node", "signed by rsa-1024", "the same"),
    ("libpq", "an intermediate that stands among the trusted", "the file says that it is trusted"),
    ("Node", "an intermediate that stands among the trusted", "the same"),
    ("libpq", "itself trusted, of no authority", "the same"),
    ("Node", "itself trusted, of no authority", "the same"),
];

const LEAF: &str = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost\n";
const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";

fn rsa(bits: u32) -> Vec<String> {
    ["RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")].map(str::to_owned).into()
}

fn ec(curve: &str) -> Vec<String> {
    ["EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")].map(str::to_owned).into()
}

fn plain(kind: &str) -> Vec<String> {
    vec![kind.to_owned()]
}

fn cases(made: &Authority) -> Vec<Case> {
    let key = |name: &str, words: &[String]| {
        made.key(&name.replace(' ', "-"), &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let usual = Pair { cert: made.root(), key: made.folder().join("ca.key") };
    let mut cases = Vec::new();
    let mut add = |name: &'static str, pair: Pair, between: Option<&Pair>, root: &Pair| {
        let between = between.map(|between| between.cert.clone());
        cases.push(Case { name, pair, between, root: root.cert.clone() });
    };
    let file = |name: &str| name.replace(' ', "-");

    // Keys, signed by the usual authority (RSA 2048, SHA-256).
    for (name, words) in [
        ("rsa-1024 key", rsa(1024)),
        ("rsa-2048 key", rsa(2048)),
        ("rsa-3072 key", rsa(3072)),
        ("rsa-4096 key", rsa(4096)),
        ("rsa-pss key", ["RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"].map(str::to_owned).into()),
        ("p-256 key", ec("P-256")),
        ("p-384 key", ec("P-384")),
        ("p-521 key", ec("P-521")),
        ("ed25519 key", plain("ED25519")),
        ("ed448 key", plain("ED448")),
    ] {
        let pair = made.certify(
            &file(name),
            &key(name, &words),
            "localhost",
            Some(&usual),
            &["-sha256"],
            Some(LEAF),
        );
        add(name, pair, None, &usual);
    }
    let leaf_key = key("leaf", &rsa(2048));
    let leaf = |name: &str, by: Option<&Pair>, how: &[&str], extensions: Option<&str>| {
        made.certify(&file(name), &leaf_key, "localhost", by, how, extensions)
    };
    // Signatures by the usual authority.
    for (name, how) in [
        ("sha-1", &["-sha1"][..]),
        ("sha-224", &["-sha224"]),
        ("sha-384", &["-sha384"]),
        ("sha-512", &["-sha512"]),
        ("pss sha-256", &["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"]),
        (
            "pss sha-512 with the longest salt",
            &["-sha512", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-2"],
        ),
    ] {
        add(name, leaf(name, Some(&usual), how, Some(LEAF)), None, &usual);
    }
    // Authorities of other kinds.
    for (name, words, how) in [
        ("signed by rsa-1024", rsa(1024), "-sha256"),
        ("signed by rsa-4096 with sha-512", rsa(4096), "-sha512"),
        (
            "signed by an rsa-pss key",
            ["RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"].map(str::to_owned).into(),
            "-sha256",
        ),
        ("signed by p-256", ec("P-256"), "-sha256"),
        ("signed by p-256 with sha-512", ec("P-256"), "-sha512"),
        ("signed by p-256 with sha-224", ec("P-256"), "-sha224"),
        ("signed by p-384 with sha-512", ec("P-384"), "-sha512"),
        ("signed by p-521", ec("P-521"), "-sha512"),
        ("signed by p-521 with sha-256", ec("P-521"), "-sha256"),
        ("signed by p-521 with sha-1", ec("P-521"), "-sha1"),
        ("signed by ed25519", plain("ED25519"), "-sha256"),
        ("signed by ed448", plain("ED448"), "-sha256"),
    ] {
        let ca_name = format!("ca of {name}");
        let ca = made.certify(&file(&ca_name), &key(&ca_name, &words), &ca_name, None, &[how], Some(CA));
        add(name, leaf(name, Some(&ca), &[how], Some(LEAF)), None, &ca);
    }
    // Versions and constraints.
    add("version 1", leaf("version 1", Some(&usual), &["-sha256"], None), None, &usual);
    let between = |name: &'static str, extensions: Option<&str>| {
        let name = format!("between {name}");
        made.certify(&file(&name), &key(&name, &rsa(2048)), &name, Some(&usual), &["-sha256"], extensions)
    };
    for (name, extensions, leaf_extensions) in [
        ("version 1 of an intermediate", Some(CA), None),
        ("of an intermediate", Some(CA), Some(LEAF)),
        ("of an intermediate that is no authority", Some("basicConstraints=CA:FALSE\n"), Some(LEAF)),
        ("version 1 of one that is no authority", Some("basicConstraints=CA:FALSE\n"), None),
        ("of an intermediate of version 1", None, Some(LEAF)),
        (
            "version 1 of one that may not sign",
            Some("basicConstraints=CA:TRUE\nkeyUsage=digitalSignature\n"),
            None,
        ),
        (
            "version 1 of one for clients",
            Some("basicConstraints=CA:TRUE\nextendedKeyUsage=clientAuth\n"),
            None,
        ),
    ] {
        let ca = between(name, extensions);
        add(name, leaf(name, Some(&ca), &["-sha256"], leaf_extensions), Some(&ca), &usual);
    }
    let ca = between("trusted by itself", Some(CA));
    let pair = leaf("trusted by itself", Some(&ca), &["-sha256"], Some(LEAF));
    add("an intermediate that stands among the trusted", pair, Some(&ca), &ca);
    let unknown = Authority::new().unwrap();
    let unknown_ca = Pair { cert: unknown.root(), key: unknown.folder().join("ca.key") };
    add(
        "of an unknown authority",
        leaf("unknown", Some(&unknown_ca), &["-sha256"], Some(LEAF)),
        None,
        &usual,
    );
    add(
        "version 1 of an unknown authority",
        leaf("unknown 1", Some(&unknown_ca), &["-sha256"], None),
        None,
        &usual,
    );
    add(
        "an authority's own",
        leaf("ca leaf", Some(&usual), &["-sha256"], Some(&format!("{CA}subjectAltName=DNS:localhost\n"))),
        None,
        &usual,
    );
    let extensions = "basicConstraints=CA:TRUE\nsubjectAltName=DNS:localhost\n";
    let pair = leaf("ca leaf without usages", Some(&usual), &["-sha256"], Some(extensions));
    add("an authority's own, for anything", pair, None, &usual);
    for (name, extensions) in [
        ("self-signed, version 1", None),
        ("self-signed, no authority", Some(LEAF)),
        ("self-signed, an authority", Some("basicConstraints=CA:TRUE\nsubjectAltName=DNS:localhost\n")),
    ] {
        let pair = leaf(name, None, &["-sha256"], extensions);
        add(name, pair.clone(), None, &pair);
        let not_trusted = match name {
            "self-signed, version 1" => "self-signed and not trusted, version 1",
            "self-signed, no authority" => "self-signed and not trusted, no authority",
            _ => "self-signed and not trusted, an authority",
        };
        add(not_trusted, pair, None, &usual);
    }
    let itself = leaf("itself", Some(&unknown_ca), &["-sha256"], Some(LEAF));
    add("itself trusted, of no authority", itself.clone(), None, &itself);
    add(
        "a common name alone",
        leaf("common", Some(&usual), &["-sha256"], Some("basicConstraints=CA:FALSE\n")),
        None,
        &usual,
    );
    add("expired", leaf("expired", Some(&usual), &["-sha256", "-days", "-1"], Some(LEAF)), None, &usual);
    add(
        "expired, version 1",
        leaf("expired 1", Some(&usual), &["-sha256", "-days", "-1"], None),
        None,
        &usual,
    );
    let clients = format!("{LEAF}extendedKeyUsage=clientAuth\n");
    add("for clients", leaf("clients", Some(&usual), &["-sha256"], Some(&clients)), None, &usual);
    let servers =
        format!("{LEAF}extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n");
    add("for servers", leaf("servers", Some(&usual), &["-sha256"], Some(&servers)), None, &usual);
    let critical = format!("{LEAF}1.2.3.4=critical,ASN1:UTF8String:unheard of\n");
    add(
        "with an unknown critical extension",
        leaf("critical", Some(&usual), &["-sha256"], Some(&critical)),
        None,
        &usual,
    );
    let other = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:db.example\n";
    add("for another name", leaf("other", Some(&usual), &["-sha256"], Some(other)), None, &usual);
    cases
}

/// Takes short keys and SHA-1 too, as servers elsewhere do.
fn lenient(folder: &Folder) -> PathBuf {
    let file = folder.path().join("openssl.cnf");
    let text = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = lenient\n[lenient]\n\
        CipherString = DEFAULT:@SECLEVEL=0\n";
    std::fs::write(&file, text).unwrap();
    file
}

/// What a server shows.
fn shown(port: u16, how: &[&str]) -> String {
    let output = Command::new(program("openssl").unwrap())
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
        .args(how)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let begin = text.find("-----BEGIN").unwrap_or(text.len());
    text[begin..].split_inclusive("-----END CERTIFICATE-----").next().unwrap_or_default().to_owned()
}

fn is_shown(port: u16, how: &[&str], pair: &Pair) -> bool {
    let text = shown(port, how);
    !text.is_empty() && std::fs::read_to_string(&pair.cert).unwrap().contains(&text)
}

/// What a server has to send, in one file.
fn chain(case: &Case) -> Vec<u8> {
    let mut bytes = std::fs::read(&case.pair.cert).unwrap();
    if let Some(between) = &case.between {
        bytes.extend(std::fs::read(between).unwrap());
    }
    bytes
}

/// What was found: the certificates about which the judge says something else, each with what both say.
type Found = Vec<(&'static str, String)>;

/// Fails on what does not stand in [`DIFFERENCES`], and on what stands there and is not so.
fn settle(judge: &str, found: &Found) {
    let expected = |name: &str| DIFFERENCES.iter().any(|entry| (entry.0, entry.1) == (judge, name));
    let wrong: Vec<&str> =
        found.iter().filter(|(name, _)| !expected(name)).map(|(_, text)| text.as_str()).collect();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    for (_, name, why) in DIFFERENCES.iter().filter(|entry| entry.0 == judge) {
        assert!(found.iter().any(|(found, _)| found == name), "no difference any more: {name} ({why})");
    }
}

/// Compares case by case, three at a time.
fn in_parts(cases: &[Case], compare: impl Fn(&[Case]) -> Found + Sync) -> Found {
    let compare = &compare;
    std::thread::scope(|scope| {
        let parts = cases.chunks(cases.len().div_ceil(3));
        let running: Vec<_> = parts.map(|part| scope.spawn(move || compare(part))).collect();
        running.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

#[test]
fn postgresql_connects_wherever_libpq_does() {
    let Some(made) = Authority::new() else { return };
    if program("postgres").is_none() {
        return left_out("needs postgresql");
    }
    settle("libpq", &in_parts(&cases(&made), compare_with_libpq));
}

fn compare_with_libpq(cases: &[Case]) -> Found {
    let files = Folder::new("matrix");
    own(files.path());
    let (hba, cert, key) = (files.path().join("hba"), files.path().join("crt"), files.path().join("key"));
    let put = |file: &Path, bytes: &[u8]| {
        let mut new = std::fs::File::create(file).unwrap();
        new.write_all(bytes).unwrap();
        own(file);
        assert!(Command::new("chmod").arg("600").arg(file).status().unwrap().success());
    };
    put(&hba, ANYONE.as_bytes());
    let settings = [
        "ssl=on",
        &format!("hba_file={}", path(&hba)),
        &format!("ssl_cert_file={}", path(&cert)),
        &format!("ssl_key_file={}", path(&key)),
    ];
    let configuration = lenient(&files);
    own(&configuration);
    let environment = format!("OPENSSL_CONF={}", path(&configuration));
    let show = |case: &Case| {
        put(&cert, &chain(case));
        put(&key, &std::fs::read(&case.pair.key).unwrap());
    };
    show(&cases[0]);
    let postgres = Postgres::start_with_environment(&environment, &settings).unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        show(case);
        postgres.psql("postgres", "SELECT pg_reload_conf()");
        wait_until(&format!("PostgreSQL shows {:?}", case.name), PATIENCE, || {
            is_shown(postgres.port, &["-starttls", "postgres"], &case.pair)
        });
        for (mode, with_root) in [
            ("disable", false),
            ("allow", false),
            ("prefer", false),
            ("require", false),
            ("prefer", true),
            ("require", true),
            ("verify-ca", true),
            ("verify-full", true),
        ] {
            let root = if with_root { format!("&sslrootcert={}", path(&case.root)) } else { String::new() };
            let url =
                format!("postgres://mastodon@localhost:{}/postgres?sslmode={mode}{root}", postgres.port);
            let (expected, got) = (judge(&url), ask(&url, &[]));
            if got.as_ref().ok() != expected.as_ref() {
                let root = if with_root { " with its root" } else { "" };
                let text = format!("{}, {mode}{root}: libpq {expected:?}, here {got:?}", case.name);
                wrong.push((case.name, text));
            }
        }
    }
    wrong
}

/// Whether a TLS server is believed as one of Redis is, with that file as `NODE_EXTRA_CA_CERTS`; what is wrong if not.
fn ours(port: u16, root: &Path, verify: bool) -> Result<(), String> {
    let pairs = [
        ("NODE_ENV", "production"),
        ("NODE_EXTRA_CA_CERTS", path(root)),
        ("NODE_TLS_REJECT_UNAUTHORIZED", if verify { "1" } else { "0" }),
    ];
    let config = Config::from_env(&Env::from_pairs(pairs), Mode::Serve).unwrap();
    let client = tidegate::tls::Client::for_redis(&config.tls).unwrap();
    let mut connection = client.connection("localhost").unwrap();
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|error| match tidegate::tls::inside(&error) {
            Some(found) => tidegate::tls::cause(found),
            None => error.to_string(),
        })?;
    }
    Ok(())
}

fn nodes(port: u16, root: &Path, verify: bool) -> Result<(), String> {
    let script = "const s = require('tls').connect({host: '127.0.0.1', port: +process.argv[1], servername: 'localhost'},\
        () => { console.log('connected'); process.exit(0) });\
        s.on('error', e => { console.log(e.code || e.message); process.exit(0) })";
    let output = Command::new(program("node").unwrap())
        .args(["-e", script, &port.to_string()])
        .env_clear()
        .env("NODE_EXTRA_CA_CERTS", root)
        .env("NODE_TLS_REJECT_UNAUTHORIZED", if verify { "1" } else { "0" })
        .output()
        .unwrap();
    match String::from_utf8_lossy(&output.stdout).trim() {
        "connected" => Ok(()),
        code => Err(code.to_owned()),
    }
}

#[test]
fn redis_over_tls_connects_wherever_node_does() {
    let Some(made) = Authority::new() else { return };
    if program("node").is_none() {
        return left_out("needs node");
    }
    settle("Node", &in_parts(&cases(&made), |part| part.iter().flat_map(compare_with_node).collect()));
}

/// A server that ends with this, or with the thread.
struct Openssl(Child);

impl Drop for Openssl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn compare_with_node(case: &Case) -> Found {
    let folder = Folder::new("s_server");
    let configuration = lenient(&folder);
    let all = folder.path().join("chain");
    std::fs::write(&all, chain(case)).unwrap();
    let started = (0..10).find_map(|_| {
        let port = free_port();
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", path(&program("openssl").unwrap()), "s_server"])
            .args(["-accept", &format!("127.0.0.1:{port}"), "-cert", path(&case.pair.cert)])
            .args(["-cert_chain", path(&all), "-key", path(&case.pair.key)])
            .env("OPENSSL_CONF", &configuration)
            // It ends when it has read this to its end.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Openssl(server.expect("setpriv"));
        let mut is_up = false;
        wait_until(&format!("openssl shows {:?} or ends", case.name), PATIENCE, || {
            is_up = is_shown(port, &[], &case.pair);
            is_up || matches!(server.0.try_wait(), Ok(Some(_)))
        });
        // The port may have been taken meanwhile.
        is_up.then_some((server, port))
    });
    let (_server, port) = started.expect("a server of openssl's");
    let mut wrong = Vec::new();
    for verify in [true, false] {
        let (expected, got) = (nodes(port, &case.root, verify), ours(port, &case.root, verify));
        if expected.is_ok() != got.is_ok() {
            let text = format!("{}, verified {verify}: Node {expected:?}, here {got:?}", case.name);
            wrong.push((case.name, text));
        }
    }
    wrong
}
