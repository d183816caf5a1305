//! Debian's plugins for scripting languages, each with a disk in memory written in its language.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::{Ask, Server, Single};

use crate::support::{debian_or_skip, exercise, open, top};

fn script(extension: &str) -> String {
    top().join(format!("tests/cplugins/scripts/disk.{extension}")).to_str().unwrap().to_owned()
}

#[test]
fn a_disk_in_a_script() {
    for_each(
        &[("python", "py"), ("perl", "pl"), ("lua", "lua"), ("tcl", "tcl")],
        |(language, extension)| {
            let Some(plugin) = debian_or_skip(language) else { return };
            Row::new(row_name!(), &[&plugin, &script(extension), "key=value"])
                .variant(language)
                .compare(exercise);
        },
    );
}

#[test]
fn a_disk_in_a_script_that_all_clients_share() {
    for (language, extension) in [("python", "py"), ("perl", "pl"), ("lua", "lua"), ("tcl", "tcl")]
    {
        let Some(plugin) = debian_or_skip(language) else { continue };
        let server = Server::nbdkit([&plugin, &script(extension)]).start();
        let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(open);
        for (number, client) in (0..).zip(&mut clients) {
            let reply = client.call(&Ask::write(number * 512, vec![number as u8 + 1; 512]));
            assert_eq!(reply.expect("a reply").error, None, "{language}");
        }
        for client in &mut clients {
            let data = client.call(&Ask::read(0, 2048)).expect("a reply").data;
            let expected: Vec<u8> = (1..=4).flat_map(|value| [value; 512]).collect();
            assert_eq!(data, expected, "{language}");
        }
    }
}

/// libruby may be entered only from the thread that initialised it, which Debian's nbdkit does not
/// heed: there every client is served by another thread, and the first one crashes the server. A
/// process for each client has one thread.
#[test]
fn a_disk_in_ruby() {
    let Some(plugin) = debian_or_skip("ruby") else { return };
    let mut server =
        Server::nbdkit(["--isolation=connection", &plugin, &script("rb"), "key=value"]).start();
    for _ in 0..2 {
        let mut client = server.connect();
        open(&mut client);
        assert_eq!(client.call(&Ask::write(500, [7; 100])).expect("a reply").error, None);
        let data = client.call(&Ask::read(0, 65536)).expect("a reply").data;
        let mut expected = vec![0; 65536];
        expected[500..600].fill(7);
        assert_eq!(data, expected);
        client.disconnect().expect("gone");
    }
    assert!(server.stop().success());
}

/// The one client of `-s` is served by the thread that initialised it, by both servers.
#[test]
fn a_disk_in_ruby_for_a_single_client() {
    let Some(plugin) = debian_or_skip("ruby") else { return };
    let (mut server, mut client) = Single::start([&plugin, &script("rb")]);
    open(&mut client);
    assert_eq!(client.call(&Ask::write(500, [7; 100])).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(599, 2)).expect("a reply").data, [7, 0]);
    client.disconnect().expect("gone");
    assert!(server.wait().success());
}

#[test]
fn the_short_name_of_an_installed_plugin_is_enough() {
    let Some(plugin) = debian_or_skip("python") else { return };
    let server = Server::nbdkit(["python", &script("py")]).start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::read(0, 4)).expect("a reply").data, [0; 4]);
    Row::new(row_name!(), &["--dump-plugin", "python"]).compare_command();
    assert!(plugin.contains("/nbdkit/plugins/"));
}

#[test]
fn a_script_that_fails() {
    for_each(&["python", "perl", "lua", "tcl"], |language| {
        let Some(plugin) = debian_or_skip(language) else { return };
        let names = |line: &str| line.contains("exit").then(|| line.to_owned());
        Row::new(row_name!(), &["-f", "-U", "-", &plugin, "/nonexistent"])
            .variant(language)
            .normalise(names)
            .compare_command();
    });
}
