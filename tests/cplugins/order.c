/* Writes one line for every callback to the file that $ORDER_LOG names: its name, its arguments, and what the server's
 * functions about the client say in it. Every member of the structure is there.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS

#define SIZE (1024 * 1024)

int order_debug_loud;
int order_debug_two_words;

static char disk[SIZE];
static const char *fail = "";

__attribute__ ((__format__ (__printf__, 1, 2))) static void
note (const char *format, ...)
{
  char line[1024];
  const char *path = getenv ("ORDER_LOG");
  va_list args;
  int length, fd;

  if (path == NULL)
    return;
  va_start (args, format);
  length = vsnprintf (line, sizeof line - 1, format, args);
  va_end (args);
  line[length++] = '\n';
  fd = open (path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd >= 0) {
    if (write (fd, line, length) != length)
      abort ();
    close (fd);
  }
}

/* Fails in the callback that fail=NAME asks for. */
static int
result (const char *callback)
{
  if (strcmp (fail, callback) != 0)
    return 0;
  nbdkit_error ("%s was asked to fail", callback);
  nbdkit_set_error (ENOSPC);
  return -1;
}

static void
order_load (void)
{
  note ("load debug=%d,%d", order_debug_loud, order_debug_two_words);
}

static void
order_unload (void)
{
  note ("unload");
}

static void
order_dump_plugin (void)
{
  note ("dump_plugin");
  printf ("order_dump_plugin=1\n");
}

static int
order_config (const char *key, const char *value)
{
  note ("config %s=%s", key, value);
  if (strcmp (key, "fail") == 0)
    fail = value;
  if (strcmp (key, "exit") == 0)
    exit (atoi (value));
  return result ("config");
}

static int
order_config_complete (void)
{
  note ("config_complete");
  return result ("config_complete");
}

static int
order_thread_model (void)
{
  note ("thread_model");
  if (result ("thread_model") == -1)
    return -1;
  return NBDKIT_THREAD_MODEL_PARALLEL;
}

static int
order_get_ready (void)
{
  note ("get_ready");
  return result ("get_ready");
}

static int
order_after_fork (void)
{
  note ("after_fork");
  return result ("after_fork");
}

static void
order_cleanup (void)
{
  note ("cleanup");
}

static int
order_preconnect (int readonly)
{
  note ("preconnect readonly=%d", readonly);
  return result ("preconnect");
}

static int
order_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  note ("list_exports readonly=%d is_tls=%d", readonly, is_tls);
  if (result ("list_exports") == -1)
    return -1;
  if (nbdkit_add_export (exports, "first", "the first one") == -1
      || nbdkit_add_export (exports, "second", NULL) == -1)
    return -1;
  return 0;
}

static const char *
order_default_export (int readonly, int is_tls)
{
  note ("default_export readonly=%d is_tls=%d", readonly, is_tls);
  if (result ("default_export") == -1)
    return NULL;
  return nbdkit_printf_intern ("%s-%d", "default", 1);
}

static void *
order_open (int readonly)
{
  const char *name = nbdkit_export_name ();

  note ("open readonly=%d export=%s is_tls=%d", readonly, name ? name : "(null)", nbdkit_is_tls ());
  if (result ("open") == -1)
    return NULL;
  return (void *) nbdkit_strdup_intern ("handle");
}

static int
is_handle (void *handle)
{
  return strcmp (handle, "handle") == 0;
}

static void
order_close (void *handle)
{
  note ("close handle=%d export=%s", is_handle (handle), nbdkit_export_name ());
}

static int64_t
order_get_size (void *handle)
{
  note ("get_size handle=%d", is_handle (handle));
  return result ("get_size") == -1 ? -1 : SIZE;
}

static const char *
order_export_description (void *handle)
{
  note ("export_description handle=%d", is_handle (handle));
  return nbdkit_strndup_intern ("described in full", 9);
}

static int
order_block_size (void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  note ("block_size handle=%d", is_handle (handle));
  *minimum = 1;
  *preferred = 8192;
  *maximum = 0xffffffff;
  return result ("block_size");
}

#define ASK(name, value)                            \
  static int                                        \
  order_##name (void *handle)                       \
  {                                                 \
    note (#name " handle=%d", is_handle (handle));  \
    return result (#name) == -1 ? -1 : (value);     \
  }

ASK (can_write, 1)
ASK (can_flush, 1)
ASK (is_rotational, 1)
ASK (can_trim, 1)
ASK (can_zero, 1)
ASK (can_fast_zero, 1)
ASK (can_extents, 1)
ASK (can_fua, NBDKIT_FUA_NATIVE)
ASK (can_multi_conn, 1)
ASK (can_cache, NBDKIT_CACHE_NATIVE)

static int
order_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("pread %u %lu %u", count, (unsigned long) offset, flags);
  memcpy (buf, disk + offset, count);
  return result ("pread");
}

static int
order_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("pwrite %u %lu %u", count, (unsigned long) offset, flags);
  memcpy (disk + offset, buf, count);
  return result ("pwrite");
}

static int
order_flush (void *handle, uint32_t flags)
{
  note ("flush %u", flags);
  return result ("flush");
}

static int
order_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("trim %u %lu %u", count, (unsigned long) offset, flags);
  return result ("trim");
}

static int
order_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("zero %u %lu %u", count, (unsigned long) offset, flags);
  if (flags & NBDKIT_FLAG_FAST_ZERO) {
    nbdkit_set_error (EOPNOTSUPP);
    return -1;
  }
  memset (disk + offset, 0, count);
  return result ("zero");
}

static int
order_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
  note ("extents %u %lu %u", count, (unsigned long) offset, flags);
  if (nbdkit_add_extent (extents, 0, SIZE / 2, 0) == -1
      || nbdkit_add_extent (extents, SIZE / 2, SIZE / 2, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) == -1)
    return -1;
  return result ("extents");
}

static int
order_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  note ("cache %u %lu %u", count, (unsigned long) offset, flags);
  return result ("cache");
}

static struct nbdkit_plugin plugin = {
  .name = "order",
  .longname = "the order of callbacks",
  .version = "3.4.5",
  .description = "Notes every callback.",
  .load = order_load,
  .unload = order_unload,
  .config = order_config,
  .config_complete = order_config_complete,
  .config_help = "fail=CALLBACK  The callback that fails.",
  .open = order_open,
  .close = order_close,
  .get_size = order_get_size,
  .can_write = order_can_write,
  .can_flush = order_can_flush,
  .is_rotational = order_is_rotational,
  .can_trim = order_can_trim,
  .dump_plugin = order_dump_plugin,
  .can_zero = order_can_zero,
  .can_fua = order_can_fua,
  .pread = order_pread,
  .pwrite = order_pwrite,
  .flush = order_flush,
  .trim = order_trim,
  .zero = order_zero,
  .magic_config_key = "fail",
  .can_multi_conn = order_can_multi_conn,
  .can_extents = order_can_extents,
  .extents = order_extents,
  .can_cache = order_can_cache,
  .cache = order_cache,
  .thread_model = order_thread_model,
  .can_fast_zero = order_can_fast_zero,
  .preconnect = order_preconnect,
  .get_ready = order_get_ready,
  .after_fork = order_after_fork,
  .list_exports = order_list_exports,
  .default_export = order_default_export,
  .export_description = order_export_description,
  .cleanup = order_cleanup,
  .block_size = order_block_size,
};

NBDKIT_REGISTER_PLUGIN (plugin)
