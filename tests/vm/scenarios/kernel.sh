# What the distribution's kernel has and a build machine often lacks: vsock, Landlock of an older
# version, the TLS module.
# vm: memory=1024 limit=900

modprobe vsock_loopback
modprobe tls
note "$(uname -r): $(cat /sys/kernel/security/lsm)"
head -c 8M /dev/urandom > "$state/data"
truncate -s 8M "$state/disk"

check "a server on vsock" nbdkit -P "$state/pid" --vsock file "$state/disk"
# 1 is this machine itself, vsock(7), VMADDR_CID_LOCAL.
expect "serves by vsock" "$(nbdinfo --size nbd+vsock://1)" 8388608
check "a disk is written by vsock" nbdcopy "$state/data" nbd+vsock://1
check "and read" sh -c "nbdcopy nbd+vsock://1 - | cmp - '$state/data'"
check "the file has it" cmp "$state/disk" "$state/data"
kill "$(cat "$state/pid")"

# Landlock 2 of Linux 6.1: no rights over truncation, devices and TCP. The strict sandbox has to
# work with it, and to say what it does not restrict.
rm -f "$state/pid" "$state/sock"
check "a strict server" sh -c "nbdkit -v --park-idle=0 --sandbox=strict -P '$state/pid' -U '$state/sock' file '$state/disk' 2> '$state/log'"
expect "serves" "$(nbdinfo --size "nbd+unix:///?socket=$state/sock")" 8388608
note "$(grep -i landlock "$state/log" | head -3 | tr '\n' '|')"
modprobe nbd
check "the kernel's client connects" nbd-client -unix "$state/sock" /dev/nbd0
worker=$(pgrep -x nbdkit:worker)
expect "the worker's filters, privileges and capabilities" \
    "$(status_of "$worker" Seccomp) $(status_of "$worker" NoNewPrivs) $(status_of "$worker" CapEff)" "2 1 0000000000000000"
check "written and read through it" sh -c "dd if='$state/data' of=/dev/nbd0 bs=1M oflag=direct status=none && \
    dd if=/dev/nbd0 bs=1M iflag=direct status=none | cmp - '$state/data'"
nbd-client -d /dev/nbd0
kill "$(cat "$state/pid")"

# TLS with certificates, and with pre-shared keys.
mkdir "$state/pki"
certificates() {
    cd "$state/pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
        -keyout ca-key.pem -out ca-cert.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server-key.pem -out request.pem
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > extensions
    openssl x509 -req -in request.pem -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions \
        -out server-cert.pem
}
check "certificates are made" certificates
rm -f "$state/pid"
check "a server with certificates" nbdkit -P "$state/pid" -p 10809 --tls=require --tls-certificates="$state/pki" file "$state/disk"
uri="nbds://localhost?tls-certificates=$state/pki"
check "a disk is read with TLS" sh -c "nbdcopy '$uri' - | cmp - '$state/data'"
check "and written" nbdcopy "$state/data" "$uri"
kill "$(cat "$state/pid")"
rm -f "$state/pid" "$state/sock"
echo "alice:$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" > "$state/keys"
chmod 600 "$state/keys"
check "a server with pre-shared keys" \
    nbdkit -P "$state/pid" -U "$state/sock" --tls=require --tls-psk="$state/keys" file "$state/disk"
uri="nbds+unix://alice@/?socket=$state/sock&tls-psk-file=$state/keys"
check "a disk is read with a pre-shared key" sh -c "nbdcopy '$uri' - | cmp - '$state/data'"
kill "$(cat "$state/pid")"
