/* Crashes when the second sector is read. */

#include <nbdkit-filter.h>

#include <stdlib.h>

static int
crash_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  if (offset == 512)
    abort ();
  return next->pread (next, buf, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name  = "crash",
  .pread = crash_pread,
};

NBDKIT_REGISTER_FILTER (filter)
