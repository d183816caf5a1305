//! TLS in tests: certificates as a user makes them, with certtool(1), and our own client behind
//! rustls.

use std::fs::{File, create_dir_all};
use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbd_protocol::constants::{Opt, Rep};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::Client;
use crate::client::Transport;
use crate::command::run;

/// How long certtool may take for one file; RSA keys take long on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether certificates can be made here.
///
/// # Panics
/// If they cannot, with `CI` set.
#[must_use]
pub fn is_possible() -> bool {
    let found = Path::new("/usr/bin/certtool").exists();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "certtool is not installed");
        eprintln!("SKIPPED: certtool (gnutls-bin) is not installed");
    }
    found
}

/// Kinds of keys that certtool makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// On P-256: quick.
    Ecdsa,
    /// Ed25519.
    Ed25519,
    /// 3072 bits, certtool's default.
    Rsa,
}

/// A certificate authority with its files.
#[derive(Debug)]
pub struct Authority {
    key: PathBuf,
    certificate: PathBuf,
}

impl Authority {
    /// Makes one in `dir`: `ca-key.pem`, `ca-cert.pem`. As nbdkit-tls(1) has it, and it may sign
    /// revocation lists.
    ///
    /// # Panics
    /// If certtool fails.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Authority {
        create_dir_all(dir).expect("a directory");
        let authority =
            Authority { key: dir.join("ca-key.pem"), certificate: dir.join("ca-cert.pem") };
        private_key(&authority.key, KeyType::Ecdsa);
        let template = template(
            dir,
            &format!(
                "cn = \"{name}\"\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n"
            ),
        );
        certtool(&[
            "--generate-self-signed".as_ref(),
            "--load-privkey".as_ref(),
            &authority.key,
            "--template".as_ref(),
            &template,
            "--outfile".as_ref(),
            &authority.certificate,
        ]);
        authority
    }

    /// Issues a server's certificate for `localhost`: `server-key.pem`, `server-cert.pem` and
    /// `ca-cert.pem` in `dir`.
    ///
    /// # Panics
    /// If certtool fails.
    pub fn issue_server(&self, dir: &Path, key: KeyType) {
        let text = "organization = \"Disks\"\ncn = \"localhost\"\ndns_name = localhost\n\
                    ip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\nexpiration_days = 30\n";
        self.issue(dir, "server", key, text);
    }

    /// Issues a client's certificate, with more lines for certtool's template: `client-key.pem`,
    /// `client-cert.pem` and `ca-cert.pem` in `dir`. Our own client does not take certtool's ECDSA
    /// keys as they are; qemu wants RSA.
    ///
    /// # Panics
    /// If certtool fails.
    pub fn issue_client(&self, dir: &Path, key: KeyType, name: &str, more: &str) {
        let text = format!(
            "country = US\norganization = \"Example, Inc.\"\ncn = \"{name}\"\ntls_www_client\nencryption_key\n\
             signing_key\n{more}"
        );
        self.issue(dir, "client", key, &text);
    }

    fn issue(&self, dir: &Path, role: &str, kind: KeyType, text: &str) {
        create_dir_all(dir).expect("a directory");
        let key = dir.join(format!("{role}-key.pem"));
        private_key(&key, kind);
        certtool(&[
            "--generate-certificate".as_ref(),
            "--load-ca-certificate".as_ref(),
            &self.certificate,
            "--load-ca-privkey".as_ref(),
            &self.key,
            "--load-privkey".as_ref(),
            &key,
            "--template".as_ref(),
            &template(dir, text),
            "--outfile".as_ref(),
            &dir.join(format!("{role}-cert.pem")),
        ]);
        let ca = dir.join("ca-cert.pem");
        if ca != self.certificate {
            std::fs::copy(&self.certificate, ca).expect("copied");
        }
    }

    /// Issues a certificate of X.509 version 1, as `openssl x509 -req` does unless it is told of
    /// extensions: `role` is "server" or "client", and the files in `dir` are those of the other
    /// methods.
    ///
    /// # Panics
    /// If openssl fails.
    pub fn issue_version_1(&self, dir: &Path, role: &str) {
        create_dir_all(dir).expect("a directory");
        let path = |name: &str| dir.join(name).display().to_string();
        let (key, request) = (path(&format!("{role}-key.pem")), path("request"));
        let certificate = path(&format!("{role}-cert.pem"));
        let (ca, ca_key) = (self.certificate.display().to_string(), self.key.display().to_string());
        let curve = "ec_paramgen_curve:P-256";
        openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            curve,
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-days",
            "30",
            "-set_serial",
            "7",
            "-out",
            &certificate,
        ]);
        let ca = dir.join("ca-cert.pem");
        if ca != self.certificate {
            std::fs::copy(&self.certificate, ca).expect("copied");
        }
    }

    /// Revokes a certificate: `ca-crl.pem` in `dir`.
    ///
    /// # Panics
    /// If certtool fails.
    pub fn revoke(&self, certificate: &Path, dir: &Path) {
        self.revoke_until(certificate, dir, "crl_next_update = 30\n");
    }

    /// The same by a list that was out of date in 2021.
    ///
    /// # Panics
    /// If certtool fails.
    pub fn revoke_in_2020(&self, certificate: &Path, dir: &Path) {
        let dates = "crl_this_update_date = \"2020-11-01 00:00:00\"\n\
                     crl_next_update_date = \"2021-11-01 00:00:00\"\n";
        self.revoke_until(certificate, dir, dates);
    }

    fn revoke_until(&self, certificate: &Path, dir: &Path, dates: &str) {
        certtool(&[
            "--generate-crl".as_ref(),
            "--load-ca-certificate".as_ref(),
            &self.certificate,
            "--load-ca-privkey".as_ref(),
            &self.key,
            "--load-certificate".as_ref(),
            certificate,
            "--template".as_ref(),
            &template(dir, &format!("{dates}crl_number = 1\n")),
            "--outfile".as_ref(),
            &dir.join("ca-crl.pem"),
        ]);
    }

    /// A configuration of our own client that trusts this authority, with the client's certificate
    /// in `identity`.
    ///
    /// # Panics
    /// If the files are not there.
    #[must_use]
    pub fn client_config(&self, identity: Option<&Path>) -> ClientConfig {
        self.client_config_for(identity, rustls::DEFAULT_VERSIONS)
    }

    /// The same for these versions of TLS only.
    ///
    /// # Panics
    /// If the files are not there.
    #[must_use]
    pub fn client_config_for(
        &self,
        identity: Option<&Path>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let der = CertificateDer::from_pem_file(&self.certificate).expect("a certificate");
        roots.add(der).expect("an authority");
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(versions)
                .expect("versions")
                .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(dir) => {
                let certificate = CertificateDer::from_pem_file(dir.join("client-cert.pem"));
                let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem"));
                builder
                    .with_client_auth_cert(vec![certificate.expect("a file")], key.expect("a file"))
                    .expect("a key that rustls knows")
            }
        }
    }
}

fn private_key(path: &Path, kind: KeyType) {
    let kind = match kind {
        KeyType::Ecdsa => ["--key-type=ecdsa", "--curve=secp256r1"],
        KeyType::Ed25519 => ["--key-type=ed25519", "--sec-param=high"],
        KeyType::Rsa => ["--key-type=rsa", "--bits=3072"],
    };
    let mut arguments: Vec<&Path> = vec!["--generate-privkey".as_ref(), "--no-text".as_ref()];
    arguments.extend(kind.map(Path::new));
    arguments.extend(["--outfile".as_ref(), path]);
    certtool(&arguments);
}

fn template(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("template");
    std::fs::write(&path, text).expect("written");
    path
}

fn certtool(arguments: &[&Path]) {
    let finished = run(Command::new("/usr/bin/certtool").args(arguments), DEADLINE);
    assert!(
        finished.status.success(),
        "certtool {arguments:?}: {}\n{}",
        finished.status_text(),
        finished.stderr
    );
}

fn openssl(arguments: &[&str]) {
    let finished = run(Command::new("/usr/bin/openssl").args(arguments), DEADLINE);
    assert!(finished.status.success(), "openssl {arguments:?}: {}", finished.stderr);
}

/// Makes pre-shared keys of these identities with psktool(1).
///
/// # Panics
/// If psktool fails.
pub fn pre_shared_keys(file: &Path, identities: &[&str]) {
    File::create(file).expect("a file");
    for identity in identities {
        let mut psktool = Command::new("/usr/bin/psktool");
        let finished = run(psktool.args(["-u", identity, "-p"]).arg(file), DEADLINE);
        assert!(finished.status.success(), "psktool: {}", finished.stderr);
    }
}

/// A socket with TLS on it.
pub type Encrypted<T> = StreamOwned<ClientConnection, T>;

impl<T: Transport> Transport for Encrypted<T> {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.sock.set_timeout(timeout)
    }

    fn half_close(&self) -> io::Result<()> {
        self.sock.half_close()
    }
}

/// A socket that TLS can be put on.
pub trait Socket: Transport {}

impl Socket for UnixStream {}
impl Socket for TcpStream {}

impl<T: Socket> Client<T> {
    /// Negotiates TLS after [`handshake`](Client::handshake). What was negotiated before is
    /// forgotten, as the protocol has it.
    ///
    /// # Errors
    /// The server's refusal, or rustls's words.
    ///
    /// # Panics
    /// If there is no such client in rustls.
    pub fn starttls(mut self, config: ClientConfig) -> Result<Client<Encrypted<T>>, String> {
        let reply =
            self.simple_option(Opt::STARTTLS, &[]).map_err(|failure| failure.to_string())?;
        if reply.reply != Rep::ACK {
            return Err(format!("{}: {}", reply.reply, reply.message()));
        }
        let name = "localhost".try_into().expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut client = self.map(|stream| StreamOwned::new(session, stream));
        let stream = client.transport();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
        }
        client.forget();
        Ok(client)
    }
}
