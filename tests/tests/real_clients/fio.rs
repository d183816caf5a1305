//! fio(1) with its nbd engine: random reads and writes, verified.

use nbdkit_tests::Server;

use crate::{has, must, uri};

#[test]
fn fio_verifies_what_it_wrote() {
    if !has("fio") {
        return;
    }
    for plugin in
        [&["memory", "32M"][..], &["file", "{dir}/disk"], &["--filter=cow", "memory", "32M"]]
    {
        let builder = Server::nbdkit(plugin);
        std::fs::File::create(builder.dir().join("disk"))
            .and_then(|f| f.set_len(32 << 20))
            .expect("a disk");
        let server = builder.start();
        let dir = server.dir().path().to_string_lossy().into_owned();
        let finished = must(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", uri(&server)),
                &format!("--aux-path={dir}"),
                "--rw=randrw",
                "--bssplit=512/10:4k/60:64k/20:200k/10",
                "--iodepth=32",
                "--size=32M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_backlog=256",
                "--randseed=1",
                "--fsync=64",
            ],
        );
        assert!(finished.stdout.contains("err= 0"), "{plugin:?}\n{}", finished.stdout);
    }
}
