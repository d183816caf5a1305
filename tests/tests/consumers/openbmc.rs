//! OpenBMC's virtual media service (`openbmc/jsnbd`).
//!
//! In proxy mode the browser is the server, and the BMC runs `nbd-client -u SOCKET -n -L -t 30
//! /dev/nbd0` at a socket of nbd-proxy's: there is no nbdkit. In legacy mode, for images on
//! https:// and CIFS shares, it runs the lines below (`ActivatingState::spawnNbdKit`), here with
//! http: and with a stand-in for nbd-client, which needs the kernel's module. The server ends when
//! nbd-client does.

use crate::probe::Need::Plugin;
use crate::row::{Row, check, typed};

const ROWS: &[Row] = &[
    typed(
        "OpenBMC virtual-media: mountSmbShare",
        "nbdkit --unix {dir}/nbd0.sock --run 'nbd-client -t 30 -u {dir}/nbd0.sock {dir}/nbd0 -n' --readonly file \
         file={dir}/disk.img && cmp nbd0 disk.img && echo same",
    )
    .tools(&["nbdcopy"])
    .prints(&["same"]),
    typed(
        "OpenBMC virtual-media: mountHttpsShare",
        "nbdkit --unix {dir}/nbd0.sock --run 'nbd-client -t 30 -u {dir}/nbd0.sock {dir}/nbd0 -n' --readonly curl \
         url={http}/disk.iso cainfo= capath=/etc/ssl/certs/authority ssl-version=tlsv1.2 followlocation=false \
         ssl-cipher-list=ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384 \
         tls13-ciphers=TLS_AES_256_GCM_SHA384 && cmp nbd0 disk.img && echo same",
    )
    .needs(&[Plugin("curl")])
    .tools(&["nbdcopy"])
    .prints(&["same"]),
    typed(
        "OpenBMC virtual-media: mountHttpsShare with credentials, the password in a file of mode 0400",
        "nbdkit --unix {dir}/nbd0.sock --run 'nbd-client -t 30 -u {dir}/nbd0.sock {dir}/nbd0 -n' --readonly curl \
         url={http}/private/disk.iso cainfo= capath=/etc/ssl/certs/authority ssl-version=tlsv1.2 followlocation=false \
         'cookie=name1=value1; name2=value2' user=myname password=+{dir}/secret && cmp nbd0 disk.img && echo same",
    )
    .needs(&[Plugin("curl")])
    .tools(&["nbdcopy"])
    .before("chmod 0400 secret")
    .prints(&["same"]),
];

#[test]
fn openbmc_mounts_virtual_media() {
    check(ROWS);
}
