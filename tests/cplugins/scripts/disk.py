import nbdkit

API_VERSION = 2
disk = bytearray(65536)


def config(key, value):
    nbdkit.debug("config %s=%s" % (key, value))


def list_exports(readonly, is_tls):
    return [("", "the only one")]


def open(readonly):
    return nbdkit.export_name()


def get_size(h):
    return len(disk)


def pread(h, buf, offset, flags):
    buf[:] = disk[offset:offset + len(buf)]


def pwrite(h, buf, offset, flags):
    disk[offset:offset + len(buf)] = buf


def zero(h, count, offset, flags):
    if flags & nbdkit.FLAG_MAY_TRIM:
        disk[offset:offset + count] = bytearray(count)
    else:
        nbdkit.set_error(95)
        raise Exception("not that way")


def trim(h, count, offset, flags):
    pass


def flush(h, flags):
    pass


def extents(h, count, offset, flags):
    return [(0, 32768, 0), (32768, 32768, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO)]
