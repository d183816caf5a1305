/* A writable disk for each client, thrown away when it disconnects: an
 * example of a handle. See nbdkit-example3-plugin(1).
 *
 *     nbdkit cc example3.c size=1G
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static int64_t size = 100 * 1024 * 1024;

struct handle {
  int fd;
};

static int
example3_config (const char *key, const char *value)
{
  if (strcmp (key, "size") == 0) {
    size = nbdkit_parse_size (value);
    return size == -1 ? -1 : 0;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static void
example3_dump_plugin (void)
{
  printf ("example3_extra=hello\n");
}

static void *
example3_open (int readonly)
{
  const char *tmpdir = getenv ("TMPDIR");
  char template[4096];
  struct handle *h;
  int n;

  n = snprintf (template, sizeof template, "%s/nbdkitXXXXXX",
                tmpdir && *tmpdir ? tmpdir : "/var/tmp");
  if (n < 0 || (size_t) n >= sizeof template) {
    nbdkit_error ("TMPDIR is too long");
    return NULL;
  }
  h = malloc (sizeof *h);
  if (!h) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  h->fd = mkstemp (template);
  if (h->fd == -1) {
    nbdkit_error ("mkstemp: %s: %m", template);
    free (h);
    return NULL;
  }
  /* From now on the disk goes with the descriptor. */
  unlink (template);
  if (ftruncate (h->fd, size) == -1) {
    nbdkit_error ("ftruncate: %m");
    close (h->fd);
    free (h);
    return NULL;
  }
  return h;
}

static void
example3_close (void *handle)
{
  struct handle *h = handle;

  close (h->fd);
  free (h);
}

static int64_t
example3_get_size (void *handle)
{
  return size;
}

static int
example3_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  struct handle *h = handle;

  while (count > 0) {
    ssize_t r = pread (h->fd, buf, count, offset);
    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      nbdkit_error ("pread: %s", r == 0 ? "end of file" : strerror (errno));
      nbdkit_set_error (EIO);
      return -1;
    }
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

static int
example3_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  while (count > 0) {
    ssize_t r = pwrite (h->fd, buf, count, offset);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      nbdkit_error ("pwrite: %m");
      return -1;
    }
    buf = (const char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

static int
example3_flush (void *handle, uint32_t flags)
{
  struct handle *h = handle;

  if (fdatasync (h->fd) == -1) {
    nbdkit_error ("fdatasync: %m");
    return -1;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name              = "example3",
  .config            = example3_config,
  .config_help       = "size=<SIZE>  (optional) Size of the backing disk (default: 100M)",
  .dump_plugin       = example3_dump_plugin,
  .open              = example3_open,
  .close             = example3_close,
  .get_size          = example3_get_size,
  .pread             = example3_pread,
  .pwrite            = example3_pwrite,
  .flush             = example3_flush,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
