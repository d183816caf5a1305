//! libnbd's tools and qemu's, both of which speak TLS by GnuTLS.

use nbdkit_tests::TempDir;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::tls::KeyType;

use super::{Pki, has, may, must};

/// `length` bytes that differ everywhere and are the same in every run.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

#[test]
fn nbdinfo_connects_with_tls_and_says_so() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdinfo") {
        return;
    }
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let text = must("nbdinfo", &[&pki.uri(&server, "alice")]).stdout;
    assert!(text.contains("protocol: newstyle-fixed with TLS"), "{text}");
    assert!(text.contains("export-size: 1048576"), "{text}");
    let plain = format!("nbd+unix:///?socket={}", server.socket().display());
    let refused = may("nbdinfo", &[&plain]);
    assert!(!refused.status.success());
}

#[test]
fn on_serves_both_kinds_of_clients() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdinfo") {
        return;
    }
    let server = pki.server(&["--tls=on", "memory", "1M"]).start();
    assert!(must("nbdinfo", &[&pki.uri(&server, "alice")]).stdout.contains("with TLS"));
    let plain = format!("nbd+unix:///?socket={}", server.socket().display());
    assert!(must("nbdinfo", &[&plain]).stdout.contains("without TLS"));
}

/// Both directions, many requests at once, in every way of serving.
#[test]
fn large_copies_keep_every_byte() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdcopy") {
        return;
    }
    let content = noise(48 << 20);
    for arguments in [
        &["memory", "48M"][..],
        &["--isolation=shared", "memory", "48M"],
        &["--filter=cow", "file", "{dir}/disk"],
        &["-t", "1", "file", "{dir}/disk"],
    ] {
        let builder = pki.server(&["--tls=require", "--tls-verify-peer"]).args(arguments);
        let (source, target) = (builder.dir().join("source"), builder.dir().join("target"));
        std::fs::write(&source, &content).expect("written");
        let disk = std::fs::File::create(builder.dir().join("disk")).expect("a file");
        disk.set_len(content.len() as u64).expect("a size");
        let server = builder.start();
        let uri = pki.uri(&server, "alice");
        let many = ["--requests=16", "--connections=2"];
        must("nbdcopy", &[many[0], many[1], &source.to_string_lossy(), &uri]);
        must("nbdcopy", &[many[0], many[1], &uri, &target.to_string_lossy()]);
        assert!(std::fs::read(&target).expect("a copy") == content, "{arguments:?}");
    }
}

#[test]
fn nbdsh_uses_every_command() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdsh") {
        return;
    }
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let script = r#"
h.pwrite(b"hello", 1000)
h.pwrite(b"x" * 300000, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(7, 999) == b"\0hello\0"
h.zero(4096, 8192)
h.trim(65536, 131072)
h.cache(65536, 0)
h.flush()
assert h.pread(4096, 8192) == bytearray(4096)
extents = []
h.block_status(1048576, 0, lambda context, offset, entries, error: extents.extend(entries) or 0)
assert sum(extents[0::2]) == 1048576, extents
print(h.get_tls_negotiated())
"#;
    let context = "h.add_meta_context(\"base:allocation\")";
    let local = "h.set_uri_allow_local_file(True)";
    let connect = format!("h.connect_uri(\"{}\")", pki.uri(&server, "alice"));
    let output = must("nbdsh", &["-c", context, "-c", local, "-c", &connect, "-c", script]).stdout;
    assert_eq!(output.trim(), "True");
}

#[test]
fn qemu_img_converts_with_tls_1_2_and_1_3() {
    for key in [KeyType::Ecdsa, KeyType::Rsa] {
        let Some(pki) = Pki::with(key) else { return };
        if !has("qemu-img") {
            return;
        }
        let name = pki.dir.join("qemu");
        pki.authority.issue_client(&name, KeyType::Rsa, "qemu", "expiration_days = 30\n");
        for (priority, version) in [
            ("NORMAL:-VERS-ALL:+VERS-TLS1.2", "(TLS1.2)"),
            ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "(TLS1.3)"),
        ] {
            let arguments =
                ["--tls=require", "--tls-verify-peer", "-v", "-D", "nbdkit.tls.session=1"];
            let server = pki.server(&arguments).args(["memory", "8M"]).tcp().start();
            let dir = TempDir::new();
            let source = dir.join("source").to_string_lossy().into_owned();
            std::fs::write(&source, noise(8 << 20)).expect("written");
            let object = format!(
                "tls-creds-x509,id=tls0,endpoint=client,dir={},priority={priority}",
                pki.path("qemu")
            );
            let image = format!(
                "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={},file.tls-creds=tls0",
                server.address().port()
            );
            must(
                "qemu-img",
                &[
                    "convert",
                    "--object",
                    &object,
                    "-n",
                    "--target-image-opts",
                    "-f",
                    "raw",
                    &source,
                    &image,
                ],
            );
            let back = dir.join("back").to_string_lossy().into_owned();
            must(
                "qemu-img",
                &["convert", "--object", &object, "--image-opts", &image, "-O", "raw", &back],
            );
            must("cmp", &[&source, &back]);
            let _ = server.wait_for_stderr(version);
        }
    }
}

#[test]
fn versions_before_1_2_are_refused() {
    let Some(pki) = Pki::new() else { return };
    if !has("qemu-img") {
        return;
    }
    std::fs::create_dir(pki.dir.join("anonymous")).expect("a directory");
    std::fs::copy(pki.dir.join("ca/ca-cert.pem"), pki.dir.join("anonymous/ca-cert.pem"))
        .expect("copied");
    let server = pki.server(&["--tls=require", "memory", "1M"]).tcp().start();
    let priority = "NORMAL:-VERS-ALL:+VERS-TLS1.1:+SHA1:+SIGN-ALL";
    let object = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={},priority={priority}",
        pki.path("anonymous")
    );
    let image = format!(
        "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={},file.tls-creds=tls0",
        server.address().port()
    );
    assert!(
        !may("qemu-img", &["info", "--object", &object, "--image-opts", &image]).status.success()
    );
    let _ = server.wait_for_stderr("TLS:");
}

#[test]
fn an_ordinary_user_serves_with_tls() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdinfo") || !has("setpriv") || !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: needs root, to become somebody else");
    }
    let builder = pki.server(&["--tls=require", "--tls-verify-peer", "memory", "1M"]).through_shell(
        "chown -R 65534:65534 {dir}; exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$0\" \"$@\"",
    );
    must("chown", &["-R", "65534:65534", &pki.path("")]);
    let server = builder.start();
    assert!(must("nbdinfo", &[&pki.uri(&server, "alice")]).stdout.contains("with TLS"));
}

/// With `-s` the client is on standard input and output.
#[test]
fn a_client_on_standard_input_speaks_tls() {
    let Some(pki) = Pki::new() else { return };
    if !has("nbdsh") {
        return;
    }
    let script = format!(
        r#"
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_certificates("{}")
h.connect_command(["{}", "-s", "--exit-with-parent", "--tls=require", "--tls-verify-peer",
                   "--tls-certificates={}", "memory", "8M"])
data = bytearray(range(256)) * 8192
h.pwrite(data, 4096)
assert h.pread(len(data), 4096) == data
print(h.get_tls_negotiated())
h.shutdown()
"#,
        pki.path("alice"),
        Binary::ours().path().display(),
        pki.path("server"),
    );
    assert_eq!(must("nbdsh", &["-c", &script]).stdout.trim(), "True");
}
