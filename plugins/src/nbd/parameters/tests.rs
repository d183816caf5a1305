use super::*;

fn parameters(given: &[&str]) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for parameter in given {
        let (key, value) = parameter.split_once('=').unwrap();
        parameters.take(key, Value::new(value))?;
    }
    Ok(parameters)
}

fn check(given: &[&str]) -> Result<Checked> {
    parameters(given)?.check()
}

#[test]
fn there_is_one_upstream_server() {
    for (given, message) in [
        (&[][..], "exactly one of ‘socket’, ‘hostname’,"),
        (&["port=1"], "exactly one of ‘socket’, ‘hostname’,"),
        (&["socket=/s", "hostname=h"], "cannot mix Unix ‘socket’, TCP"),
        (&["uri=nbd://h", "vsock=2"], "cannot mix Unix ‘socket’, TCP"),
        (&["command=x", "socket-fd=3"], "cannot mix Unix ‘socket’, TCP"),
        (&["socket=/s", "port=1"], "‘port’ parameter should only be used with"),
        (&["socket=/s", "arg=x"], "‘arg’ parameter should only be used with ‘command’"),
        (&["hostname=h", "port=0"], "port number out of range: 0"),
        (&["hostname=h", "port=65536"], "port number out of range: 65536"),
        (&["hostname="], "the name of a host must not be empty"),
        (&["vsock=2", "port=4294967296"], "port: could not parse number"),
        (&["vsock=x"], "vsock_cid: "),
        (&["socket="], "cannot convert null or empty path"),
        (&["socket-fd=x"], "socket-fd: "),
        (&["retry=-1", "socket=/s"], "retry: negative numbers are not allowed"),
        (&["tls=maybe"], "could not decipher boolean (maybe)"),
        (&["tls-verify=maybe"], "could not decipher boolean (maybe)"),
        (&["shared=maybe"], "could not decipher boolean (maybe)"),
        (&["foo=bar"], "unknown parameter 'foo'"),
        (&["uri=nbd+unix:///?socket=%00abstract"], "NBD URI: sockets in the abstract namespace"),
    ] {
        let why = check(given).unwrap_err();
        assert!(why.message().starts_with(message), "{given:?}: {}", why.message());
    }
    let long = format!("socket=/{}", "a".repeat(107));
    assert_eq!(check(&[&long]).unwrap_err().message(), "socket file name too large");
}

#[test]
fn clients_choose_exports_only_of_connections_of_their_own() {
    let shared = "cannot use 'dynamic-export' with shared connection";
    for (given, message) in [
        (&["shared=true", "socket=/s", "dynamic-export=true"][..], shared),
        (&["command=x", "dynamic-export=true"], shared),
        (&["socket-fd=3", "dynamic-export=true"], shared),
        (
            &["socket=/s", "export=a", "dynamic-export=true"],
            "cannot mix 'dynamic-export' with explicit export name",
        ),
    ] {
        assert_eq!(check(given).unwrap_err().message(), message);
    }
    assert!(check(&["uri=nbd://h/a", "dynamic-export=true"]).unwrap().dynamic);
    // One connection is all that there is, whatever the parameter says.
    assert!(check(&["command=x", "shared=false"]).unwrap().shared);
    assert!(!check(&["socket=/s"]).unwrap().shared);
}

#[test]
fn the_upstream_server_is_where_the_parameters_say() {
    let endpoint = |given: &[&str]| match check(given).unwrap().target {
        Target::Endpoint(endpoint) => endpoint.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(endpoint(&["hostname=h"]), "tcp:h:10809");
    assert_eq!(endpoint(&["hostname=::1", "port=7"]), "tcp:::1:7");
    assert_eq!(endpoint(&["vsock=2"]), "vsock:2:10809");
    assert_eq!(endpoint(&["vsock=2", "port=4294967295"]), "vsock:2:4294967295");
    assert_eq!(endpoint(&["uri=nbd://[::1]:7/x"]), "tcp:::1:7");
    assert_eq!(endpoint(&["uri=nbd+unix:///x?socket=/a%20b"]), "unix:/a b");
    let here = std::env::current_dir().unwrap();
    assert_eq!(endpoint(&["socket=s"]), format!("unix:{}/s", here.display()));
    assert_eq!(endpoint(&["uri=nbd+unix:///?socket=s"]), format!("unix:{}/s", here.display()));
}

#[test]
fn the_export_of_a_uri_counts() {
    let export = |given: &[&str]| check(given).unwrap().export;
    assert_eq!(export(&["socket=/s"]), "");
    assert_eq!(export(&["socket=/s", "export=a"]), "a");
    assert_eq!(export(&["uri=nbd://h/b", "export=a"]), "b");
    assert_eq!(export(&["uri=nbd://h", "export=a"]), "");
}

#[test]
fn tls_is_on_if_any_of_its_parameters_is_given() {
    let mode = |given: &[&str]| check(given).unwrap().mode;
    assert_eq!(mode(&["socket=/s"]), TlsMode::Off);
    assert_eq!(mode(&["socket=/s", "tls-verify=false"]), TlsMode::On);
    assert_eq!(mode(&["socket=/s", "tls-certificates=/pki"]), TlsMode::On);
    assert_eq!(mode(&["socket=/s", "tls-psk=/keys", "tls=off"]), TlsMode::Off);
    assert_eq!(mode(&["socket=/s", "tls=on"]), TlsMode::On);
    assert_eq!(mode(&["socket=/s", "tls=require"]), TlsMode::Require);
    assert_eq!(mode(&["uri=nbds://h", "tls=off"]), TlsMode::Require);
    assert_eq!(mode(&["uri=nbd://h"]), TlsMode::Off);
}

#[test]
fn the_host_is_who_the_certificate_has_to_be_about() {
    let hostname = |given: &[&str]| check(given).unwrap().tls.hostname;
    assert_eq!(hostname(&["hostname=h.example"]).as_deref(), Some("h.example"));
    assert_eq!(hostname(&["uri=nbds://[fe80::1%25eth0]"]).as_deref(), Some("fe80::1"));
    assert_eq!(hostname(&["uri=nbds://h?tls-hostname=other"]).as_deref(), Some("other"));
    assert_eq!(hostname(&["socket=/s"]), None);
}
