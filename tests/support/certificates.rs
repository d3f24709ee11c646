//! Certificates of one test's own, made by openssl(1) as operators make them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::machine::{Folder, left_out, program};

/// A folder with a certificate authority, and what it has signed.
pub struct Authority {
    folder: Folder,
    openssl: PathBuf,
}

/// A certificate and its key, PEM files.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

const RSA_2048: &[&str] = &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const P256: &[&str] = &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

impl Authority {
    /// A new one, or a word that openssl is not installed.
    pub fn new() -> Option<Authority> {
        let Some(openssl) = program("openssl") else {
            left_out("needs openssl");
            return None;
        };
        let authority = Authority { folder: Folder::new("certificates"), openssl };
        let subject = ["-subj", "/CN=Authority of a test"];
        authority.make("ca", &["-x509", "-days", "2"], &subject);
        Some(authority)
    }

    /// The authority's own certificate.
    pub fn root(&self) -> PathBuf {
        self.file("ca.crt")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate with that common name and these alternative names (`DNS:…`, `IP:…`), signed by the
    /// authority.
    pub fn issue(&self, name: &str, common: &str, names: &[&str]) -> Pair {
        self.issue_for(name, common, names, "2")
    }

    /// One with a key of another kind: `rsa`, `p256`; or signed by another kind of authority: `ed25519-signed`.
    pub fn issue_with(&self, name: &str, common: &str, names: &[&str], kind: &str) -> Pair {
        let extensions = format!("basicConstraints=CA:FALSE\nsubjectAltName={}\n", names.join(","));
        let own = |key: &[&str]| self.key(&format!("{name}-{kind}"), key);
        let ours = Pair { cert: self.root(), key: self.file("ca.key") };
        match kind {
            "ed25519-signed" => {
                let key = self.key("ed25519-ca", &["ED25519"]);
                let ca = self.certify(
                    "ed25519-ca",
                    &key,
                    "Ed25519",
                    None,
                    &["-sha256"],
                    Some("basicConstraints=CA:TRUE"),
                );
                self.certify(name, &own(RSA_2048), common, Some(&ca), &[], Some(&extensions))
            }
            "p256" => self.certify(name, &own(P256), common, Some(&ours), &["-sha256"], Some(&extensions)),
            _ => self.certify(name, &own(RSA_2048), common, Some(&ours), &["-sha256"], Some(&extensions)),
        }
    }

    /// A new key, by the words of `openssl genpkey -algorithm`.
    pub fn key(&self, name: &str, kind: &[&str]) -> PathBuf {
        let file = self.file(&format!("{name}.key"));
        let words = [&["genpkey", "-out", path(&file), "-algorithm"], kind].concat();
        self.run(&words);
        file
    }

    /// A certificate for a key, signed by another or by itself; without extensions it is of version 1. `how` is said to
    /// `openssl x509`.
    pub fn certify(
        &self,
        name: &str,
        key: &Path,
        common: &str,
        by: Option<&Pair>,
        how: &[&str],
        extensions: Option<&str>,
    ) -> Pair {
        let (request, cert) = (self.file(&format!("{name}.csr")), self.file(&format!("{name}.crt")));
        self.run(&[
            "req",
            "-new",
            "-key",
            path(key),
            "-subj",
            &format!("/CN={common}"),
            "-out",
            path(&request),
        ]);
        let mut words = vec!["x509", "-req", "-in", path(&request), "-out", path(&cert)];
        words.extend(how);
        if !how.contains(&"-days") {
            words.extend(["-days", "2"]);
        }
        let file = self.file(&format!("{name}.ext"));
        if let Some(extensions) = extensions {
            std::fs::write(&file, extensions).unwrap();
            words.extend(["-extfile", path(&file)]);
        }
        match by {
            Some(by) => words.extend(["-CA", path(&by.cert), "-CAkey", path(&by.key), "-CAcreateserial"]),
            None => words.extend(["-signkey", path(key)]),
        }
        self.run(&words);
        Pair { cert, key: key.to_owned() }
    }

    /// One that has expired.
    pub fn issue_expired(&self, name: &str, common: &str, names: &[&str]) -> Pair {
        // Older versions of openssl take no negative number of days, but an end before the beginning's day.
        self.issue_for(name, common, names, "-1")
    }

    fn issue_for(&self, name: &str, common: &str, names: &[&str], days: &str) -> Pair {
        let request = self.make(name, &[], &["-subj", &format!("/O=Test/CN={common}")]);
        let mut extensions = String::from("basicConstraints=CA:FALSE\n");
        if !names.is_empty() {
            extensions.push_str(&format!("subjectAltName={}\n", names.join(",")));
        }
        let file = self.file(&format!("{name}.ext"));
        std::fs::write(&file, extensions).unwrap();
        let (cert, ca, ca_key) = (self.file(&format!("{name}.crt")), self.root(), self.file("ca.key"));
        self.run(&[
            "x509",
            "-req",
            "-in",
            path(&request.cert),
            "-CA",
            path(&ca),
            "-CAkey",
            path(&ca_key),
            "-CAcreateserial",
            "-days",
            days,
            "-extfile",
            path(&file),
            "-out",
            path(&cert),
        ]);
        Pair { cert, key: request.key }
    }

    /// A certificate that is its own authority, as `openssl req -x509` makes it when nothing else is said.
    pub fn self_signed(&self, name: &str, common: &str) -> Pair {
        self.make(name, &["-x509", "-days", "2"], &["-subj", &format!("/CN={common}")])
    }

    /// A key with a request, or with a certificate (`-x509`).
    fn make(&self, name: &str, kind: &[&str], more: &[&str]) -> Pair {
        let ending = if kind.is_empty() { "csr" } else { "crt" };
        let pair =
            Pair { cert: self.file(&format!("{name}.{ending}")), key: self.file(&format!("{name}.key")) };
        let mut words = vec!["req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha256"];
        words.extend(kind);
        words.extend(more);
        words.extend(["-keyout", path(&pair.key), "-out", path(&pair.cert)]);
        self.run(&words);
        pair
    }

    fn run(&self, words: &[&str]) {
        let output = Command::new(&self.openssl).args(words).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
