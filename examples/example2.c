/* Serves a file for reading: an example of parameters and of a debug flag.
 * See nbdkit-example2-plugin(1).
 *
 *     nbdkit cc example2.c file=disk.img
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static char *filename;

/* Set by -D example2.extra=1. */
int example2_debug_extra;

struct handle {
  int fd;
  int64_t size;
};

static void
example2_unload (void)
{
  free (filename);
}

static int
example2_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0) {
    /* The working directory may be another one when a client comes. */
    free (filename);
    filename = nbdkit_realpath (value);
    return filename ? 0 : -1;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
example2_config_complete (void)
{
  if (!filename) {
    nbdkit_error ("you must supply the file=<FILENAME> parameter after the "
                  "plugin name on the command line");
    return -1;
  }
  return 0;
}

static void
example2_dump_plugin (void)
{
  printf ("example2_extra=hello\n");
}

static void *
example2_open (int readonly)
{
  struct handle *h = malloc (sizeof *h);
  struct stat statbuf;

  if (!h) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  /* A pipe would wait for its other end. */
  h->fd = open (filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (h->fd == -1) {
    nbdkit_error ("open: %s: %m", filename);
    free (h);
    return NULL;
  }
  if (fstat (h->fd, &statbuf) == -1 || !S_ISREG (statbuf.st_mode)) {
    nbdkit_error ("file is not regular: %s", filename);
    close (h->fd);
    free (h);
    return NULL;
  }
  h->size = statbuf.st_size;
  if (example2_debug_extra)
    nbdkit_debug ("extra debugging: statbuf.st_size = %lld",
                  (long long) h->size);
  return h;
}

static void
example2_close (void *handle)
{
  struct handle *h = handle;

  close (h->fd);
  free (h);
}

static int64_t
example2_get_size (void *handle)
{
  struct handle *h = handle;

  return h->size;
}

static int
example2_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  struct handle *h = handle;

  while (count > 0) {
    ssize_t r = pread (h->fd, buf, count, offset);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      nbdkit_error ("pread: %m");
      return -1;
    }
    if (r == 0) {
      nbdkit_error ("pread: unexpected end of file");
      nbdkit_set_error (EIO);
      return -1;
    }
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name              = "example2",
  .unload            = example2_unload,
  .config            = example2_config,
  .config_complete   = example2_config_complete,
  .config_help       = "file=<FILENAME>     (required) The filename to serve.",
  .dump_plugin       = example2_dump_plugin,
  .open              = example2_open,
  .close             = example2_close,
  .get_size          = example2_get_size,
  .pread             = example2_pread,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
