//! The private key is in the listener and nowhere else: the whole memory of template and worker is
//! searched from outside, as root, in the middle of a session.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nbdkit_tests::processes::children;
use nbdkit_tests::tls::KeyType;
use nbdkit_tests::{Ask, Server};
use nix::unistd::geteuid;

use super::{Pki, must};

/// What is looked for at once. Windows of the secret that are not windows of what is public as
/// well.
const WINDOW: usize = 16;

/// Every readable byte of a process, map by map.
fn memory(pid: i32, mut each: impl FnMut(&[u8])) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let file = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut total = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').expect("a map");
        if !rest.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let mut bytes = vec![0; (number(end) - number(start)) as usize];
        // A page of a file beyond its end cannot be read; what comes before it can.
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], number(start) + read as u64) {
                Ok(0) | Err(_) => break,
                Ok(count) => read += count,
            }
        }
        each(&bytes[..read]);
        total += read as u64;
    }
    total
}

/// How often any of the needles occurs, and in how many bytes.
pub(super) fn search(pid: i32, needles: &[Vec<u8>]) -> (usize, u64) {
    let mut found = 0;
    let total = memory(pid, |bytes| {
        // By their first two bytes: there are many needles and much hay.
        let mut first = vec![Vec::new(); 1 << 16];
        for needle in needles {
            first[usize::from(u16::from_le_bytes([needle[0], needle[1]]))].push(needle);
        }
        for (at, pair) in bytes.windows(2).enumerate() {
            let candidates = &first[usize::from(u16::from_le_bytes([pair[0], pair[1]]))];
            found += candidates.iter().filter(|needle| bytes[at..].starts_with(needle)).count();
        }
    });
    (found, total)
}

pub(super) fn hexadecimal(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The secret numbers of a key, as openssl(1) prints them, big-endian.
fn secrets(key: &str) -> Vec<Vec<u8>> {
    let text = must("openssl", &["pkey", "-in", key, "-noout", "-text"]).stdout;
    let names = ["priv:", "privateExponent:", "prime1:", "prime2:", "exponent1:", "exponent2:"];
    let mut secrets = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if names.contains(&line) {
            let mut digits = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
                digits.push_str(line);
            }
            secrets.push(hexadecimal(&digits));
        }
    }
    assert!(!secrets.is_empty(), "{text}");
    secrets
}

/// All windows of the secrets, as they are and with their bytes reversed, which is how bignums lie
/// in memory.
pub(super) fn windows(secrets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut needles = Vec::new();
    for secret in secrets {
        let reversed: Vec<u8> = secret.iter().rev().copied().collect();
        needles.extend(secret.windows(WINDOW).map(<[u8]>::to_vec));
        needles.extend(reversed.windows(WINDOW).map(<[u8]>::to_vec));
    }
    needles
}

/// The lines of a PEM file.
fn pem_lines(path: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path).expect("a file");
    let lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN")).skip(1);
    let lines: Vec<Vec<u8>> = lines
        .take_while(|line| !line.starts_with("-----END"))
        .filter(|line| line.len() >= WINDOW)
        .map(|line| line.as_bytes().to_vec())
        .collect();
    assert!(!lines.is_empty());
    lines
}

/// The middle of a certificate, DER.
fn certificate(path: &str) -> Vec<u8> {
    let text = must("openssl", &["x509", "-in", path, "-noout", "-pubkey"]).stdout;
    assert!(text.contains("PUBLIC KEY"));
    let hex =
        must("sh", &["-c", &format!("openssl x509 -in {path} -outform DER | od -An -v -tx1")]);
    hexadecimal(&hex.stdout)[40..80].to_vec()
}

/// Listener, template and workers.
pub(super) fn processes(server: &Server) -> (i32, i32, Vec<i32>) {
    let listener = server.pid().as_raw();
    let template = children(listener)[0];
    (listener, template, children(template))
}

#[test]
fn no_worker_holds_the_private_key() {
    if !geteuid().is_root() {
        return eprintln!("SKIPPED: needs root, to read the memory of others");
    }
    for (key, isolation) in [
        (KeyType::Ecdsa, "--isolation=connection"),
        (KeyType::Rsa, "--isolation=connection"),
        (KeyType::Ecdsa, "--isolation=shared"),
    ] {
        let Some(pki) = Pki::with(key) else { return };
        let arguments = [isolation, "--tls=require", "--tls-verify-peer", "memory", "8M"];
        let server = pki.server(&arguments).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let config = pki.authority.client_config(Some(&pki.dir.join("alice")));
        let mut client = client.starttls(config).expect("TLS");
        client.go("", &[]).expect("an export");
        assert_eq!(client.call(&Ask::write(0, vec![7; 100_000])).expect("a reply").error, None);
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [7; 512]);

        let path = pki.path("server/server-key.pem");
        let mut needles = windows(&secrets(&path));
        needles.extend(pem_lines(&path));
        let public = [certificate(&pki.path("server/server-cert.pem"))];
        let (listener, template, workers) = processes(&server);
        assert_eq!(workers.len(), usize::from(isolation == "--isolation=connection"));
        for pid in workers.iter().copied().chain([template]) {
            let (found, bytes) = search(pid, &needles);
            assert_eq!(found, 0, "{key:?} {isolation}: process {pid} of {server:?}");
            assert!(bytes > 1 << 20, "{bytes}");
            // The search does find what is there.
            assert!(search(pid, &public).0 > 0, "{key:?} {isolation}: process {pid}");
        }
        assert!(search(listener, &needles).0 > 0, "{key:?}: the listener signs with it");
        // The session has lived through it.
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").data, [7; 512]);
    }
}

#[test]
fn the_listener_cannot_be_dumped() {
    let Some(pki) = Pki::new() else { return };
    if !geteuid().is_root() {
        return eprintln!("SKIPPED: needs root, to see whose the files of /proc are");
    }
    use std::os::unix::fs::MetadataExt;
    must("chown", &["-R", "65534:65534", &pki.path("")]);
    let server = pki
        .server(&["--tls=require", "null"])
        .through_shell(
            "chown -R 65534:65534 {dir}; exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$0\" \"$@\"",
        )
        .start();
    // proc(5): the files of a process that is not dumpable are root's.
    let owner = std::fs::metadata(format!("/proc/{}/mem", server.pid())).expect("a process").uid();
    assert_eq!(owner, 0);
}
