#!/usr/sbin/nbdkit python
"""One disk in memory that all clients share, thrown away when the server ends.

    nbdkit python example4.py size=1M

See nbdkit-example4-plugin(1).
"""

import errno

import nbdkit

API_VERSION = 2

disk = None


def config(key, value):
    """Takes size=SIZE, in bytes or with a suffix."""
    global disk
    if key != "size":
        raise RuntimeError("unknown parameter " + key)
    disk = bytearray(nbdkit.parse_size(value))


def config_complete():
    if disk is None:
        raise RuntimeError("size was not set")


def open(readonly):
    return 1


def get_size(h):
    return len(disk)


def can_multi_conn(h):
    return True


def pread(h, buf, offset, flags):
    buf[:] = disk[offset:offset + len(buf)]


def pwrite(h, buf, offset, flags):
    disk[offset:offset + len(buf)] = buf


def flush(h, flags):
    pass


def zero(h, count, offset, flags):
    if flags & nbdkit.FLAG_FAST_ZERO:
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise RuntimeError("no faster than writing")
    disk[offset:offset + count] = bytearray(count)
