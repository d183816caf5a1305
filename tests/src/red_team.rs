//! Having the worker of a red-team build attack: see `plugins/redteam`.

use nbd_protocol::constants::Rep;

use crate::client::Ask;
use crate::server::Server;

/// What came of an attack, in the attacker's words; `None` if its process ended instead; `not
/// opened` if a layer above refuses the export after it.
///
/// # Panics
/// If the server does not even greet.
#[must_use]
pub fn attack(server: &Server, attack: &str) -> Option<String> {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let answer = client.go(attack, &[]).ok()?;
    if answer.end.reply != Rep::ACK {
        return Some("not opened".to_owned());
    }
    let (size, _) = answer.export().expect("an export");
    let data = client.call(&Ask::read(0, size)).ok()?.data;
    Some(String::from_utf8_lossy(&data).into_owned())
}
