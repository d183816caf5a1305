//! qemu-img(1) and qemu-io(1), whose client speaks extended headers.

use nbdkit_tests::Server;

use crate::{has, may, must, sparse_disk, uri};

#[test]
fn qemu_img_converts_and_compares() {
    if !has("qemu-img") {
        return;
    }
    let builder = Server::nbdkit(["file", "{dir}/target"]);
    let source = builder.dir().join("source");
    sparse_disk(&source);
    std::fs::File::create(builder.dir().join("target"))
        .and_then(|f| f.set_len(16 << 20))
        .expect("a target");
    let server = builder.start();
    let (source, uri) = (source.to_string_lossy().into_owned(), uri(&server));
    must("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
    let qcow2 = server.dir().join("copy.qcow2");
    let qcow2 = qcow2.to_string_lossy();
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow2]);
    must("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &qcow2, &source]);
    must("qemu-io", &["-f", "raw", "-c", "write -P 7 8M 64k", &uri]);
    let differ = may("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
    assert_eq!(differ.status.code(), Some(1), "{}", differ.stdout);
}

#[test]
fn qemu_img_maps_holes() {
    if !has("qemu-img") {
        return;
    }
    let builder = Server::nbdkit(["file", "{dir}/disk"]);
    let disk = builder.dir().join("disk");
    sparse_disk(&disk);
    let server = builder.start();
    let map = |image: &str| must("qemu-img", &["map", "--output=json", "-f", "raw", image]).stdout;
    let shape = |json: &str| -> Vec<String> {
        json.lines()
            .map(|line| {
                line.split(", \"offset\"")
                    .next()
                    .unwrap_or_default()
                    .replace("\"compressed\": false, ", "")
            })
            .map(|line| line.split(", \"depth\"").next().unwrap_or_default().to_owned())
            .collect()
    };
    let (over_nbd, direct) = (map(&uri(&server)), map(&disk.to_string_lossy()));
    assert_eq!(shape(&over_nbd), shape(&direct), "{over_nbd}\n{direct}");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    if !has("qemu-io") {
        return;
    }
    for plugin in [&["memory", "8M"][..], &["--filter=cow", "file", "{dir}/disk"]] {
        let builder = Server::nbdkit(plugin);
        std::fs::File::create(builder.dir().join("disk"))
            .and_then(|f| f.set_len(8 << 20))
            .expect("a disk");
        let server = builder.start();
        let commands = [
            "write -P 0xab 0 1M",
            "write -f -P 0xcd 1M 64k",
            "write -z -u 128k 128k",
            "write -z 512k 4k",
            "discard 2M 1M",
            "aio_write -P 0x11 4M 1M",
            "aio_write -P 0x22 5M 1M",
            "aio_flush",
            "flush",
            "read -P 0xab 0 128k",
            "read -P 0 128k 128k",
            "read -P 0 512k 4k",
            "read -P 0xab 516k 4k",
            "read -P 0xcd 1M 64k",
            "read -P 0x11 4M 1M",
            "read -P 0x22 5M 1M",
        ];
        let uri = uri(&server);
        let mut arguments = vec!["-d", "unmap", "-f", "raw"];
        for command in &commands {
            arguments.extend(["-c", *command]);
        }
        arguments.push(&uri);
        let finished = must("qemu-io", &arguments);
        assert!(!finished.stdout.contains("failed"), "{plugin:?}\n{}", finished.stdout);
        let wrong = may("qemu-io", &["-f", "raw", "-c", "read -P 0xff 0 4k", &uri]);
        assert!(wrong.stdout.contains("Pattern verification failed"), "{}", wrong.stdout);
    }
}
