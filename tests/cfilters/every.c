/* A filter with every callback, which writes one line for each to the file that $ORDER_LOG names and then does what the
 * layer below does. NAME=fail:CALLBACK makes that callback fail. Compiled with different NAMEs, several can be stacked.
 */

#include <nbdkit-filter.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef NAME
#define NAME every
#endif
#define STRING(x) #x
#define EXPAND(x) STRING (x)
#define NAMED EXPAND (NAME)

int every_debug_loud;

static const char *fail = "";
static nbdkit_backend *the_backend;

__attribute__ ((__format__ (__printf__, 1, 2))) static void
note (const char *format, ...)
{
  char line[1024];
  const char *path = getenv ("ORDER_LOG");
  va_list args;
  int length, fd;

  if (path == NULL)
    return;
  length = snprintf (line, sizeof line, "%s: ", NAMED);
  va_start (args, format);
  length += vsnprintf (line + length, sizeof line - length - 1, format, args);
  va_end (args);
  line[length++] = '\n';
  fd = open (path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd >= 0) {
    if (write (fd, line, length) != length)
      abort ();
    close (fd);
  }
}

static int
fails (const char *callback)
{
  if (strcmp (fail, callback) != 0)
    return 0;
  nbdkit_error ("%s was asked to fail", callback);
  return 1;
}

/* Notes whether this is the backend that there was all the time. */
static const char *
known (nbdkit_backend *backend)
{
  if (the_backend == NULL)
    the_backend = backend;
  return backend == the_backend ? "same" : "other";
}

static void
every_load (void)
{
  note ("load debug=%d", every_debug_loud);
}

static void
every_unload (void)
{
  note ("unload");
}

static int
every_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  note ("config %s=%s", key, value);
  if (strcmp (key, NAMED) != 0)
    return next (nxdata, key, value);
  if (strncmp (value, "fail:", 5) == 0)
    fail = value + 5;
  return fails ("config") ? -1 : 0;
}

static int
every_config_complete (nbdkit_next_config_complete *next, nbdkit_backend *nxdata)
{
  note ("config_complete");
  return fails ("config_complete") ? -1 : next (nxdata);
}

/* Older headers give no argument. */
#if NBDKIT_VERSION_MINOR >= 44
static int
every_thread_model (int next_thread_model)
{
  nbdkit_debug ("the thread model below is %d", next_thread_model);
#else
static int
every_thread_model (void)
{
#endif
  note ("thread_model");
  return fails ("thread_model") ? -1 : NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
}

static int
every_get_ready (int thread_model)
{
  note ("get_ready %d", thread_model);
  return fails ("get_ready") ? -1 : 0;
}

static int
every_after_fork (nbdkit_backend *backend)
{
  note ("after_fork %s", known (backend));
  return fails ("after_fork") ? -1 : 0;
}

static void
every_cleanup (nbdkit_backend *backend)
{
  note ("cleanup %s", known (backend));
}

static int
every_preconnect (nbdkit_next_preconnect *next, nbdkit_backend *nxdata, int readonly)
{
  note ("preconnect %s readonly=%d", known (nxdata), readonly);
  return fails ("preconnect") ? -1 : next (nxdata, readonly);
}

static int
every_list_exports (nbdkit_next_list_exports *next, nbdkit_backend *nxdata, int readonly, int is_tls,
                    struct nbdkit_exports *exports)
{
  note ("list_exports %s readonly=%d is_tls=%d", known (nxdata), readonly, is_tls);
  return fails ("list_exports") ? -1 : next (nxdata, readonly, exports);
}

static const char *
every_default_export (nbdkit_next_default_export *next, nbdkit_backend *nxdata, int readonly, int is_tls)
{
  note ("default_export %s readonly=%d is_tls=%d", known (nxdata), readonly, is_tls);
  return fails ("default_export") ? NULL : next (nxdata, readonly);
}

static void *
every_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname, int is_tls)
{
  int *handle;

  note ("open %s readonly=%d exportname=%s is_tls=%d", known (nbdkit_context_get_backend (context)), readonly,
        exportname, is_tls);
  if (fails ("open") || next (context, readonly, exportname) == -1)
    return NULL;
  handle = malloc (sizeof *handle);
  if (handle == NULL) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  *handle = 42;
  return handle;
}

static void
every_close (void *handle)
{
  note ("close %d", *(int *) handle);
  free (handle);
}

static int
every_prepare (nbdkit_next *next, void *handle, int readonly)
{
  note ("prepare %d readonly=%d size=%ld", *(int *) handle, readonly, (long) next->get_size (next));
  return fails ("prepare") ? -1 : 0;
}

static int
every_finalize (nbdkit_next *next, void *handle)
{
  note ("finalize %d size=%ld", *(int *) handle, (long) next->get_size (next));
  return fails ("finalize") ? -1 : 0;
}

static int64_t
every_get_size (nbdkit_next *next, void *handle)
{
  note ("get_size %d", *(int *) handle);
  return fails ("get_size") ? -1 : next->get_size (next);
}

static const char *
every_export_description (nbdkit_next *next, void *handle)
{
  note ("export_description %d", *(int *) handle);
  return fails ("export_description") ? NULL : next->export_description (next);
}

static int
every_block_size (nbdkit_next *next, void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  note ("block_size %d", *(int *) handle);
  return fails ("block_size") ? -1 : next->block_size (next, minimum, preferred, maximum);
}

#define QUESTION(callback)                              \
  static int                                            \
  every_##callback (nbdkit_next *next, void *handle)    \
  {                                                     \
    note (#callback " %d", *(int *) handle);            \
    return fails (#callback) ? -1 : next->callback (next); \
  }

QUESTION (can_write)
QUESTION (can_flush)
QUESTION (is_rotational)
QUESTION (can_trim)
QUESTION (can_zero)
QUESTION (can_fast_zero)
QUESTION (can_extents)
QUESTION (can_fua)
QUESTION (can_multi_conn)
QUESTION (can_cache)

/* A data callback that fails says what with; ENOSPC is one that clients can be told. */
#define FAILS(callback)                                 \
  if (fails (callback)) {                               \
    *err = ENOSPC;                                      \
    return -1;                                          \
  }

static int
every_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  note ("pread %d count=%u offset=%lu flags=%u", *(int *) handle, count, (unsigned long) offset, flags);
  FAILS ("pread");
  return next->pread (next, buf, count, offset, flags, err);
}

static int
every_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  note ("pwrite %d count=%u offset=%lu flags=%u", *(int *) handle, count, (unsigned long) offset, flags);
  FAILS ("pwrite");
  return next->pwrite (next, buf, count, offset, flags, err);
}

static int
every_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  note ("flush %d flags=%u", *(int *) handle, flags);
  FAILS ("flush");
  return next->flush (next, flags, err);
}

#define RANGE(callback)                                                                                 \
  static int                                                                                            \
  every_##callback (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,   \
                    int *err)                                                                           \
  {                                                                                                     \
    note (#callback " %d count=%u offset=%lu flags=%u", *(int *) handle, count, (unsigned long) offset, flags); \
    FAILS (#callback);                                                                                  \
    return next->callback (next, count, offset, flags, err);                                            \
  }

RANGE (trim)
RANGE (zero)
RANGE (cache)

static int
every_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents, int *err)
{
  note ("extents %d count=%u offset=%lu flags=%u", *(int *) handle, count, (unsigned long) offset, flags);
  FAILS ("extents");
  return next->extents (next, count, offset, flags, extents, err);
}

#if NBDKIT_VERSION_MINOR >= 36
static void
every_dump_plugin (void)
{
  note ("dump_plugin");
  printf ("every_dump_plugin=1\n");
}
#endif

static struct nbdkit_filter filter = {
  .name               = NAMED,
  .longname           = "a filter with everything",
  .description        = "Notes every callback.",
  .load               = every_load,
  .unload             = every_unload,
  .config             = every_config,
  .config_complete    = every_config_complete,
  .config_help        = NAMED "=fail:CALLBACK   What is to fail.",
  .thread_model       = every_thread_model,
#if NBDKIT_VERSION_MINOR >= 36
  .dump_plugin        = every_dump_plugin,
#endif
  .get_ready          = every_get_ready,
  .after_fork         = every_after_fork,
  .cleanup            = every_cleanup,
  .preconnect         = every_preconnect,
  .list_exports       = every_list_exports,
  .default_export     = every_default_export,
  .open               = every_open,
  .close              = every_close,
  .prepare            = every_prepare,
  .finalize           = every_finalize,
  .get_size           = every_get_size,
  .export_description = every_export_description,
  .block_size         = every_block_size,
  .can_write          = every_can_write,
  .can_flush          = every_can_flush,
  .is_rotational      = every_is_rotational,
  .can_trim           = every_can_trim,
  .can_zero           = every_can_zero,
  .can_fast_zero      = every_can_fast_zero,
  .can_extents        = every_can_extents,
  .can_fua            = every_can_fua,
  .can_multi_conn     = every_can_multi_conn,
  .can_cache          = every_can_cache,
  .pread              = every_pread,
  .pwrite             = every_pwrite,
  .flush              = every_flush,
  .trim               = every_trim,
  .zero               = every_zero,
  .extents            = every_extents,
  .cache              = every_cache,
};

NBDKIT_REGISTER_FILTER (filter)
