use super::*;
use crate::testing::{self, Disk};

fn layer(disk: &Arc<Disk>, params: &[(&str, &str)]) -> Arc<Layer> {
    testing::layer(disk, &["multi-conn"], params)
}

/// How often the layer below is flushed by this.
fn flushes(disk: &Disk, request: impl FnOnce() -> Result<()>) -> usize {
    disk.take_calls();
    request().unwrap();
    disk.take_calls().iter().filter(|call| *call == "flush").count()
}

fn write(disk: &Disk, client: &Next) {
    assert_eq!(flushes(disk, || client.pwrite(&[1], 0, Flags::empty())), 0);
}

#[test]
fn emulation_flushes_the_connections_that_need_it() {
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    for (track, counts) in
        [("connection", [0, 1, 0, 2, 0]), ("fast", [0, 3, 0, 3, 0]), ("off", [3; 5])]
    {
        let layer = layer(&disk, &[("multi-conn-track-dirty", track)]);
        let [a, b, _idle] = [0, 1, 2].map(|_| testing::open(&layer));
        assert!(a.can_multi_conn().unwrap());
        let mut got = vec![flushes(&disk, || a.flush())];
        write(&disk, &a);
        got.push(flushes(&disk, || b.flush()));
        testing::read(&a, 1, 0);
        got.push(flushes(&disk, || a.flush()));
        write(&disk, &b);
        a.try_pread(&mut [0], 0).unwrap().unwrap();
        got.push(flushes(&disk, || a.flush()));
        got.push(flushes(&disk, || b.flush()));
        assert_eq!(got, counts, "{track}");
    }
}

#[test]
fn a_connection_that_has_ended_is_not_flushed() {
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    let layer = layer(&disk, &[]);
    let (a, b) = (testing::open(&layer), testing::open(&layer));
    write(&disk, &a);
    a.finalize().unwrap();
    drop(a);
    assert_eq!(flushes(&disk, || b.flush()), 0);
    // Another one in its place begins clean.
    let _again = testing::open(&layer);
    write(&disk, &b);
    assert_eq!(flushes(&disk, || b.flush()), 1);
}

#[test]
fn exports_are_flushed_together_unless_they_are_kept_apart() {
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    for (apart, wanted) in [("false", 1), ("true", 0)] {
        let layer = layer(&disk, &[("multi-conn-exportname", apart)]);
        let a = testing::try_open(&layer, "a", false).unwrap();
        let b = testing::try_open(&layer, "b", false).unwrap();
        write(&disk, &a);
        assert_eq!(flushes(&disk, || b.flush()), wanted);
        assert_eq!(flushes(&disk, || a.flush()), 1 - wanted);
    }
}

#[test]
fn a_killed_flusher_has_everything_flushed_again() {
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    let next = testing::backend(&disk, &[], &[]);
    let group = Group::new().unwrap();
    let _members = [0, 1].map(|_| group.join(&next, 0, false, false).unwrap());
    group.flush(None, None, Track::Connection).unwrap();
    assert_eq!(flushes(&disk, || group.flush(None, None, Track::Connection)), 0);
    group.abandon_flush();
    assert_eq!(flushes(&disk, || group.flush(None, None, Track::Connection)), 2);
}

#[test]
fn a_plugin_that_is_multi_conn_is_flushed_once_for_all() {
    let disk = Arc::new(Disk::new(4096));
    for track in ["connection", "fast"] {
        let layer = layer(&disk, &[("multi-conn-track-dirty", track)]);
        let (a, b) = (testing::open(&layer), testing::open(&layer));
        assert_eq!(flushes(&disk, || a.flush()), 0);
        write(&disk, &a);
        assert_eq!(flushes(&disk, || b.flush()), 1, "what another connection has written");
        assert_eq!(flushes(&disk, || b.flush()), 0);
        a.pwrite(&[1], 0, Flags::FUA).unwrap();
        assert_eq!(flushes(&disk, || b.flush()), 1);
    }
}

#[test]
fn a_plugin_that_is_not_is_flushed_by_each_connection() {
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    for mode in ["plugin", "unsafe", "disable"] {
        let layer = layer(&disk, &[("multi-conn-mode", mode)]);
        let a = testing::open(&layer);
        assert_eq!(a.can_multi_conn().unwrap(), mode == "unsafe");
        write(&disk, &a);
        assert_eq!(flushes(&disk, || a.flush()), 1);
        testing::read(&a, 1, 0);
        assert_eq!(flushes(&disk, || a.flush()), 1, "what it has read may be old");
        a.try_pread(&mut [0], 0).unwrap().unwrap();
        assert_eq!(flushes(&disk, || a.flush()), 1, "on whatever thread");
        assert_eq!(flushes(&disk, || a.flush()), 0);
    }
}

#[test]
fn emulation_needs_flush_and_does_fua_by_it() {
    let disk = Arc::new(Disk { multi_conn: false, flush: false, ..Disk::new(4096) });
    let error = testing::try_open(&layer(&disk, &[]), "", false).unwrap_err();
    assert_eq!(error.message(), "emulating multi-conn requires working flush");
    testing::open(&layer(&disk, &[("multi-conn-mode", "plugin")]));
    let disk = Arc::new(Disk { multi_conn: false, ..Disk::new(4096) });
    let layer = layer(&disk, &[]);
    let (a, b) = (testing::open(&layer), testing::open(&layer));
    assert_eq!(a.can_fua().unwrap(), Fua::Native);
    write(&disk, &a);
    assert_eq!(flushes(&disk, || b.zero(1, 0, Flags::FUA)), 2);
    b.trim(1, 0, Flags::FUA).unwrap();
    assert_eq!(disk.take_calls(), ["trim 1@0", "flush"]);
}
