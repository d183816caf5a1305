//! nbdkit-ip-filter(1): admits clients by where they come from and who they are.
//!
//! Runs in the worker, before negotiation; rules about certificates can be judged only once TLS
//! stands, so if there are any, all rules are judged when the client asks for an export or for a
//! list.

mod file;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod glob;
mod rule;

use std::borrow::Cow;
use std::sync::Arc;

use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Exports, Filter, Layer, Needs, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value, debug,
};

use file::RuleFile;
use rule::Rule;

/// The filter: its rules, and the files that have more of them.
#[derive(Debug, Default)]
pub struct Ip {
    rules: Rules,
    allow_files: Vec<RuleFile>,
    deny_files: Vec<RuleFile>,
}

/// The two lists.
#[derive(Debug, Clone, Default)]
struct Rules {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl Filter for Ip {
    fn name(&self) -> &str {
        "ip"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit ip filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "allow=addr[,addr...]     Set allow list.\n\
             deny=addr[,addr...]      Set deny list.\n\
             allow-file=<FILE>        More rules to allow, one on each line.\n\
             deny-file=<FILE>         More rules to deny, one on each line.",
        )
    }

    fn debug_flags(&self) -> &'static [&'static str] {
        &["rules"]
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "allow" => self.rules.allow.extend(Rule::parse_list(key, value.str()?)?),
            "deny" => self.rules.deny.extend(Rule::parse_list(key, value.str()?)?),
            "allow-file" => self.allow_files.push(RuleFile::new(&value.absolute_path()?)),
            "deny-file" => self.deny_files.push(RuleFile::new(&value.absolute_path()?)),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        let rules = self.rules()?;
        if nbdkit_api::log::flag("ip", "rules") != 0 {
            for (list, rules) in [("allow", &rules.allow), ("deny", &rules.deny)] {
                for rule in rules {
                    debug!("ip: {list} {rule:?}");
                }
            }
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let files = self.allow_files.iter().chain(&self.deny_files);
        files.map(|file| file.declared.clone()).fold(below, Needs::declare)
    }

    fn preconnect(&self, below: &Arc<Layer>, client: &Arc<Client>, readonly: bool) -> Result<()> {
        let rules = self.rules()?;
        if !rules.need_tls() {
            rules.check(client)?;
        }
        below.preconnect(client, readonly)
    }

    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        self.check_late(client)?;
        below.list_exports(client, readonly, exports)
    }

    fn default_export(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
    ) -> Result<Option<String>> {
        self.check_late(client)?;
        below.default_export(client, readonly)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        match open.client {
            Some(client) => self.check_late(client)?,
            // A context for several clients is for none that could be judged.
            None if self.is_late(&*self.rules()?) => return Err(denied()),
            None => {}
        }
        below.open(open)?;
        Ok(Box::new(Handle))
    }
}

impl Ip {
    /// The rules that hold now.
    ///
    /// # Errors
    /// A file cannot be read, or has an invalid line: clients are refused until it is corrected.
    fn rules(&self) -> Result<Cow<'_, Rules>> {
        if self.allow_files.is_empty() && self.deny_files.is_empty() {
            return Ok(Cow::Borrowed(&self.rules));
        }
        let mut rules = self.rules.clone();
        for (list, key, files) in [
            (&mut rules.allow, "allow-file", &self.allow_files),
            (&mut rules.deny, "deny-file", &self.deny_files),
        ] {
            for file in files {
                list.extend(file.read(key)?);
            }
        }
        Ok(Cow::Owned(rules))
    }

    /// Whether the client was not judged before the greeting. A file may have had rules about
    /// certificates then, and now no more: then it is judged once more.
    fn is_late(&self, rules: &Rules) -> bool {
        rules.need_tls() || !self.allow_files.is_empty() || !self.deny_files.is_empty()
    }

    /// Judges a client that TLS has been negotiated with, if it has not been judged before.
    fn check_late(&self, client: &Client) -> Result<()> {
        let rules = self.rules()?;
        if self.is_late(&rules) { rules.check(client) } else { Ok(()) }
    }
}

impl Rules {
    /// Whether the rules need what TLS tells.
    fn need_tls(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(Rule::needs_tls)
    }

    /// Allow list first, then deny list, otherwise admitted.
    fn check(&self, client: &Client) -> Result<()> {
        let (peer, tls) = (client.peer(), client.tls());
        if self.allow.is_empty() && self.deny.is_empty() {
            return Ok(());
        }
        if !rule::is_known(peer) {
            debug!("ip: the peer has no address that rules could match");
            return Err(denied());
        }
        if let Some(rule) = self.allow.iter().find(|rule| rule.matches(peer, tls)) {
            debug!("ip: allowed by {rule:?}");
            return Ok(());
        }
        if let Some(rule) = self.deny.iter().find(|rule| rule.matches(peer, tls)) {
            debug!("ip: denied by {rule:?}");
            return Err(denied());
        }
        Ok(())
    }
}

fn denied() -> Error {
    Error::new(
        Errno::EPERM,
        "client not permitted to connect because of source address restriction",
    )
}

struct Handle;

impl OpenLayer for Handle {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use nbdkit_api::client::{Peer, PeerAddress, TlsPeer};

    fn client(address: PeerAddress) -> Arc<Client> {
        let credentials = (address == PeerAddress::Unix).then_some((100, 1000, 2000));
        let peer = Peer { address, credentials, security_context: None };
        Client::new(1, peer, None, Box::new(|| ()))
    }

    fn tcp(address: &str) -> Arc<Client> {
        client(PeerAddress::Inet((address.parse::<std::net::IpAddr>().unwrap(), 5000).into()))
    }

    fn admits(params: &[(&str, &str)], client: &Arc<Client>) -> bool {
        let layer = testing::layer(&Arc::new(Disk::new(512)), &["ip"], params);
        match layer.preconnect(client, false) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(
                    error.message(),
                    "client not permitted to connect because of source address restriction"
                );
                false
            }
        }
    }

    #[test]
    fn the_allow_list_comes_before_the_deny_list() {
        let params = [("deny", "all"), ("allow", "127.0.0.1,::1"), ("allow", "10.0.0.0/8")];
        for (address, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("10.255.0.1", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.0", false),
            ("::2", false),
        ] {
            assert_eq!(admits(&params, &tcp(address)), expected, "{address}");
        }
        assert!(admits(&[("deny", "8.0.0.0/8")], &tcp("9.0.0.1")));
        assert!(!admits(&[("deny", "8.0.0.0/8")], &tcp("8.0.0.1")));
    }

    #[test]
    fn peers_without_address_are_denied_once_there_is_a_rule() {
        let unknown = client(PeerAddress::Unknown);
        assert!(admits(&[], &unknown));
        assert!(!admits(&[("allow", "all")], &unknown));
        assert!(!admits(&[("deny", "1.2.3.4")], &unknown));
    }

    #[test]
    fn certificate_rules_are_judged_after_tls_also_for_lists() {
        let disk = Arc::new(Disk::new(512));
        let params = [("allow", "dn:CN=Alice,O=*"), ("deny", "all")];
        let layer = testing::layer(&disk, &["ip"], &params);
        for (dn, expected) in [("cn=alice,O=Example", true), ("CN=Mallory,O=Example", false)] {
            let client = tcp("127.0.0.1");
            layer.preconnect(&client, false).unwrap();
            client.set_tls(TlsPeer { dn: dn.to_owned(), issuer_dn: String::new() });
            assert_eq!(layer.list_exports(&client, false, &mut Exports::new()).is_ok(), expected);
            assert_eq!(layer.default_export(&client, false).is_ok(), expected);
            let open = Open { client: Some(&client), readonly: false, export: "", tls: true };
            assert_eq!(layer.open(&open).is_ok(), expected);
        }
        let open = Open { client: None, readonly: false, export: "", tls: false };
        assert!(layer.open(&open).is_err());
    }
}
