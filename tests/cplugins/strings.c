/* A disk in memory whose callbacks use everything of the server's that has a lock: strings, messages, lists. */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static char disk[2 * 1024 * 1024];

static void *
strings_open (int readonly)
{
  return (void *) nbdkit_printf_intern ("%s/%d", nbdkit_export_name (), readonly);
}

static void
strings_close (void *handle)
{
  if (strcmp (handle, "/0") != 0)
    abort ();
}

static int64_t strings_get_size (void *handle) { return sizeof disk; }

static void
use_everything (void *handle, uint64_t offset)
{
  struct nbdkit_extents *extents = nbdkit_extents_new (0, sizeof disk);
  const char *text = nbdkit_printf_intern ("%lu", (unsigned long) offset);
  struct sockaddr_storage address;
  socklen_t length = sizeof address;

  if (strcmp (handle, "/0") != 0 || strtoul (text, NULL, 10) != offset || strcmp (nbdkit_export_name (), "") != 0)
    abort ();
  if (nbdkit_peer_name ((struct sockaddr *) &address, &length) == -1 || address.ss_family != AF_UNIX)
    abort ();
  nbdkit_add_extent (extents, 0, offset + 1, 0);
  nbdkit_set_error (EIO);
  nbdkit_debug ("%s", text);
  if (nbdkit_extents_count (extents) != 1)
    abort ();
  nbdkit_extents_free (extents);
}

static int
strings_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  use_everything (handle, offset);
  memcpy (buf, disk + offset, count);
  return 0;
}

static int
strings_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  use_everything (handle, offset);
  memcpy (disk + offset, buf, count);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "strings",
  .open = strings_open,
  .close = strings_close,
  .get_size = strings_get_size,
  .pread = strings_pread,
  .pwrite = strings_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)
