/* What the client is told when a callback fails: the export's name says how it fails. -DPRESERVED=1: errno is preserved. */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#ifndef PRESERVED
#define PRESERVED 0
#endif

static void *
errno_open (int readonly)
{
  return (void *) nbdkit_export_name ();
}

static int64_t
errno_get_size (void *handle)
{
  return 65536;
}

/* The name is a list of: eN (errno = N), sN (nbdkit_set_error (N)), m (a message with %m). */
static int
fail (const char *how)
{
  for (; *how; ++how) {
    if (*how == 'e')
      errno = atoi (how + 1);
    else if (*how == 's')
      nbdkit_set_error (atoi (how + 1));
    else if (*how == 'm')
      nbdkit_error ("failed: %m");
  }
  return -1;
}

static int
errno_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  return fail (handle);
}

static int
errno_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  return 0;
}

static int
errno_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return fail (handle);
}

static struct nbdkit_plugin plugin = {
  .name = "errno",
  .errno_is_preserved = PRESERVED,
  .open = errno_open,
  .get_size = errno_get_size,
  .pread = errno_pread,
  .pwrite = errno_pwrite,
  .zero = errno_zero,
};

NBDKIT_REGISTER_PLUGIN (plugin)
