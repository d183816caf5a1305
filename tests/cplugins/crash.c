/* Ends its process in several ways, by the offset that is read: 0 not at all, 512 a null pointer, 1024 abort, 1536
 * a system call that no server of disks makes.
 */

#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static void *crash_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t crash_get_size (void *handle) { return 65536; }

static int
crash_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  volatile char *null = NULL;

  memset (buf, 'c', count);
  if (offset == 512)
    *null = 1;
  if (offset == 1024)
    abort ();
  if (offset == 1536 && unshare (CLONE_NEWUSER) == -1) {
    nbdkit_error ("unshare: %m");
    return -1;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "crash",
  .errno_is_preserved = 1,
  .open = crash_open,
  .get_size = crash_get_size,
  .pread = crash_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
