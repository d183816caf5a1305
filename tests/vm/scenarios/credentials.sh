# The drop-ins of systemd/examples as they are installed: TLS with a key and a password that only
# root may read, a passphrase, a dynamic user, TCP, a block device, a network and TLS there, swap.
# With the profiles of AppArmor, as on every Debian.
# vm: memory=1024 limit=900 disk=64

examples=/usr/local/share/doc/nbdkitd/examples/systemd

# drop_in UNIT EXAMPLE [SED-SCRIPT]: installs an example, with the words in it that are for whoever
# uses it replaced.
drop_in() {
    mkdir -p "/etc/systemd/system/$1.d"
    sed "${3:-}" "$examples/$2.conf" > "/etc/systemd/system/$1.d/$2.conf"
}

# serve NAME ARGUMENTS...: the instance of that name.
serve() {
    instance=$1
    shift
    echo "NBDKIT_ARGS=$*" > "/etc/nbdkit/$instance.conf"
    systemctl daemon-reload
    systemctl start "nbdkit@$instance.socket"
}

# The directory of an instance's control group.
group() {
    echo "/sys/fs/cgroup$(systemctl show -P ControlGroup "nbdkit@$1.service")"
}

# users INSTANCE [FORMAT]: of its processes, by name, or %u for the number.
users() {
    for pid in $(cat "$(group "$1")/cgroup.procs"); do
        stat -c "${2:-%U}" "/proc/$pid"
    done | sort -u | tr '\n' ' '
}

# A process of an instance, by the name that it gives itself.
member() {
    for pid in $(cat "$(group "$1")/cgroup.procs"); do
        [ "$(cat "/proc/$pid/comm")" != "$2" ] || echo "$pid"
    done | head -n 1
}

# What the log of an instance has.
says() {
    journalctl -u "nbdkit@$1.service" -o cat | grep -F "$2"
}

image() {
    truncate -s 8M "/var/lib/nbdkit/$1.img"
    chown nbdkit: "/var/lib/nbdkit/$1.img"
}

denials() {
    dmesg | grep 'apparmor="DENIED"' | grep nbdkit | head -3
}

sysctl -q -w kernel.printk_ratelimit=0
mkdir -p /etc/apparmor.d/local /etc/pki/nbdkit "$state/pki"
printf '  %s\n' '/dev/vdc rwk,' > /etc/apparmor.d/local/nbdkit-images
printf '  %s\n' 'include <abstractions/nameservice>' > /etc/apparmor.d/local/nbdkit-worker
check "the profiles of AppArmor are loaded" apparmor_parser -r /etc/apparmor.d/nbdkit /etc/apparmor.d/nbdkit-worker

# Certificates, as nbdkit-tls(1) makes them.
certificates() {
    new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'
    # shellcheck disable=SC2086 # a list of words
    openssl req -x509 $new -subj '/CN=My authority' -keyout ca-key.pem -out ca-cert.pem
    for name in server client; do
        # shellcheck disable=SC2086 # a list of words
        openssl req -x509 $new -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=CA:FALSE \
            -CA ca-cert.pem -CAkey ca-key.pem -keyout "$name-key.pem" -out "$name-cert.pem"
    done
    install -m 600 server-key.pem server-cert.pem ca-cert.pem /etc/pki/nbdkit
    rm server-key.pem
    mkdir stranger
    cp ca-cert.pem stranger
}
cd "$state/pki" || exit 1
check "certificates are made" certificates
cd "$state" || exit 1

image tls
drop_in nbdkit@tls.socket tcp
drop_in nbdkit@tls.service tls-certificates
check "a socket on TCP" serve tls file /var/lib/nbdkit/tls.img
expect "a client with a certificate is served" "$(nbdinfo --size "nbds://localhost?tls-certificates=$state/pki")" 8388608
check "one without a certificate is not" sh -c "! nbdinfo --size 'nbds://localhost?tls-certificates=$state/pki/stranger'"
check "and none without TLS" sh -c "! nbdinfo --size nbd://localhost"
expect "the users of it" "$(users tls)" "nbdkit nbdkit-listener "
for user in nbdkit nbdkit-listener; do
    check "$user may not read the key" sh -c "! setpriv --reuid=$user --regid=$user --clear-groups cat /etc/pki/nbdkit/server-key.pem"
done
expect "the listener's profile" "$(tr -d '\0' < "/proc/$(systemctl show -P MainPID nbdkit@tls.service)/attr/current")" "nbdkit (enforce)"

image psk
echo "alice:$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" > /etc/nbdkit/psk.psk
chmod 600 /etc/nbdkit/psk.psk
drop_in nbdkit@psk.service tls-psk
check "a socket with pre-shared keys" serve psk file /var/lib/nbdkit/psk.img
expect "a client with a key is served" \
    "$(nbdinfo --size "nbds+unix://alice@/?socket=/run/nbdkit/psk.sock&tls-psk-file=/etc/nbdkit/psk.psk")" 8388608
check "one without is not" sh -c "! nbdinfo --size '$(uri psk)'"

image secret
printf 'a long passphrase' > /etc/nbdkit/secret.passphrase
chmod 600 /etc/nbdkit/secret.passphrase
truncate -s 32M /var/lib/nbdkit/secret.img
check "an encrypted disk" cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 \
    /var/lib/nbdkit/secret.img /etc/nbdkit/secret.passphrase
drop_in nbdkit@secret.service passphrase
check "a socket for it" serve secret --filter=luks file /var/lib/nbdkit/secret.img
yes "a line in the clear" | head -c 1M > "$state/data"
check "it is opened with the passphrase and written" nbdcopy "$state/data" "$(uri secret)"
check "and read" sh -c "nbdcopy '$(uri secret)' - | head -c 1M | cmp - '$state/data'"
check "the image has none of it in the clear" sh -c "! grep -qaF 'a line in the clear' /var/lib/nbdkit/secret.img"

# Its disk is in the directory that systemd makes for the user of the day.
mkdir -p /var/lib/nbdkit-dynamic
truncate -s 8M /var/lib/nbdkit-dynamic/disk.img
drop_in nbdkit@dynamic.service dynamic-user
check "a socket with a dynamic user" serve dynamic file /var/lib/nbdkit-dynamic/disk.img
expect "serves" "$(nbdinfo --size "$(uri dynamic)")" 8388608
check "is written to" sh -c "head -c 1M /dev/urandom | nbdcopy - '$(uri dynamic)'"
# By its number, systemd.exec(5), "DynamicUser=": there is no libnss-systemd here that knows the name.
user=$(users dynamic %u)
check "all of it is one dynamic user" [ "${user% }" -ge 61184 -a "${user% }" -le 65519 ]
expect "the listener has no capability" "$(status_of "$(systemctl show -P MainPID nbdkit@dynamic.service)" CapPrm)" 0000000000000000

drop_in nbdkit@device.service block-device 's|/dev/vg/volume|/dev/vdc|'
check "a socket for a block device" serve device -g disk file /dev/vdc
expect "the device is served" "$(nbdinfo --size "$(uri device)")" 67108864
check "and written to" nbdcopy "$state/data" "$(uri device)"
check "another device is not there" serve other -g disk file /dev/vdb
drop_in nbdkit@other.service block-device 's|/dev/vg/volume|/dev/vdc|'
systemctl daemon-reload
check "and not served" sh -c "! nbdinfo --size '$(uri other)'"

check "a server to connect to" systemd-run -q --unit=remote -p Type=notify "$(command -v nbdkit)" -f -p 10810 memory 8M
drop_in nbdkit@proxy.service network
check "a socket for a proxy" serve proxy nbd hostname=localhost port=10810
expect "the proxy serves" "$(nbdinfo --size "$(uri proxy)")" 8388608

# What the nbd plugin shows another server is root's as well.
install -d -m 700 /etc/pki/libnbd
install -m 600 pki/ca-cert.pem pki/client-cert.pem pki/client-key.pem /etc/pki/libnbd
cp -p /etc/nbdkit/psk.psk /etc/nbdkit/upstream-psk.client-psk
check "a server that asks for certificates" systemd-run -q --unit=remote-tls -p Type=notify "$(command -v nbdkit)" -f -p 10811 \
    --tls=require --tls-certificates=/etc/pki/nbdkit --tls-verify-peer memory 8M
check "and one with pre-shared keys" systemd-run -q --unit=remote-psk -p Type=notify "$(command -v nbdkit)" -f -p 10812 \
    --tls=require --tls-psk=/etc/nbdkit/psk.psk memory 8M
drop_in nbdkit@upstream.service network
drop_in nbdkit@upstream.service upstream-tls
check "a socket for a proxy with a certificate" serve upstream nbd hostname=localhost port=10811
expect "the proxy serves by TLS" "$(nbdinfo --size "$(uri upstream)")" 8388608
template=$(member upstream nbdkit:template)
check "its template is killed" kill -9 "$template"
check "another one is made and reads the files again" wait_for 120 \
    sh -c "[ ! -e '/proc/$template' ] && nbdinfo --size '$(uri upstream)'"
drop_in nbdkit@upstream-psk.service network
drop_in nbdkit@upstream-psk.service upstream-tls '/^LoadCredential\|^Environment/d; s/^#\(LoadCredential\|Environment\)/\1/'
check "a socket for a proxy with a pre-shared key" serve upstream-psk nbd hostname=localhost port=10812
expect "this proxy serves" "$(nbdinfo --size "$(uri upstream-psk)")" 8388608
drop_in nbdkit@unreadable.service network
check "a proxy that is to read the files itself" serve unreadable nbd hostname=localhost port=10811 tls=require \
    tls-certificates=/etc/pki/libnbd
check "does not serve" sh -c "! nbdinfo --size '$(uri unreadable)'"
check "and says why" says unreadable 'open: /etc/pki/libnbd/ca-cert.pem: Permission denied'

image logged
check "a socket for a server with a log of its own" serve logged --log=/var/log/nbdkit/logged.log --log-connections file /var/lib/nbdkit/logged.img
log=/var/log/nbdkit/logged.log
expect "it serves" "$(nbdinfo --size "$(uri logged)")" 8388608
check "its log has the client" wait_for 120 grep 'connection ended' "$log"
expect "others do not read it" "$(stat -c '%U %a' "$log") $(stat -c %a /var/log/nbdkit)" "nbdkit-listener 600 750"
mv "$log" "$log.1"
check "the log is rotated" systemctl kill --kill-whom=main --signal=SIGUSR1 nbdkit@logged.service
check "and opened anew" wait_for 120 test -e "$log"
expect "it serves again" "$(nbdinfo --size "$(uri logged)")" 8388608
check "the new log has the client" wait_for 120 grep 'connection ended' "$log"

image swap
modprobe nbd
drop_in nbdkit@swap.service swap
check "a socket for a disk that is swapped on" serve swap --swap -t 4 file /var/lib/nbdkit/swap.img
check "a client connects" nbd-client -unix /run/nbdkit/swap.sock -swap /dev/nbd0
check "and swaps on it" sh -e -c 'mkswap /dev/nbd0; swapon /dev/nbd0; grep -q ^/dev/nbd0 /proc/swaps; swapoff /dev/nbd0'
check "its worker is locked into memory" [ "$(status_of "$(member swap nbdkit:worker)" VmLck)" -gt 10000 ]
expect "all of it is spared when memory is short" "$(for pid in $(cat "$(group swap)/cgroup.procs"); do
    cat "/proc/$pid/oom_score_adj"
done | sort -u)" -1000
expect "nothing of it may be in swap" "$(cat "$(group swap)/memory.swap.max")" 0
check "the client disconnects" nbd-client -d /dev/nbd0
image unlocked
check "a disk that is swapped on, without the drop-in" serve unlocked --swap -t 4 file /var/lib/nbdkit/unlocked.img
check "is not served" sh -c "! nbdinfo --size '$(uri unlocked)'"
check "and the log names the limit" says unlocked RLIMIT_MEMLOCK

expect "no denial of AppArmor" "$(denials)" ""
expect "no secret is in the journal" "$(journalctl -o cat | grep -cF -e 'a long passphrase' -e "$(cut -d: -f2 /etc/nbdkit/psk.psk)")" 0
