/* A filter that manages contexts itself, in one of these ways (contexts=WAY):
 *
 * shared      one context, opened in after_fork, serves all connections and is never given to one; a thread of the
 *             filter's own reads from it all the time;
 * associated  the same, but connections have it as their layer below while they are open;
 * again       every read opens a context anew and puts it in place of the last one, as a filter that retries would;
 * none        nothing is opened below: the filter is the disk.
 */

#include <nbdkit-filter.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED, ASSOCIATED, AGAIN, NONE } way;

static nbdkit_next *shared;
static pthread_t thread;
static atomic_int stop;
static atomic_long reads;

struct handle {
  nbdkit_context *context;
  const char *exportname;
};

static int
contexts_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  static const char *ways[] = { "shared", "associated", "again", "none" };

  if (strcmp (key, "contexts") != 0)
    return next (nxdata, key, value);
  for (way = SHARED; way <= NONE; ++way)
    if (strcmp (value, ways[way]) == 0)
      return 0;
  nbdkit_error ("contexts=%s: there is no such way", value);
  return -1;
}

static int
#if NBDKIT_VERSION_MINOR >= 44
contexts_thread_model (int next_thread_model)
#else
contexts_thread_model (void)
#endif
{
  return way == AGAIN ? NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS : NBDKIT_THREAD_MODEL_PARALLEL;
}

static void *
read_on (void *unused)
{
  char buf[512];
  int err;

  while (!stop) {
    if (shared->pread (shared, buf, sizeof buf, 0, 0, &err) == -1)
      abort ();
    reads++;
  }
  return NULL;
}

static int
contexts_after_fork (nbdkit_backend *backend)
{
  int err;

  if (way == AGAIN || way == NONE)
    return 0;
#ifdef OUTSIDE
  if (nbdkit_next_context_open (backend, 0, "", 0) != NULL)
    abort ();
#endif
  shared = nbdkit_next_context_open (backend, 0, "", 1);
  if (shared == NULL)
    return -1;
  if (shared->prepare (shared) == -1 || shared->get_size (shared) == -1 || shared->can_write (shared) == -1)
    return -1;
  err = pthread_create (&thread, NULL, read_on, NULL);
  if (err != 0) {
    errno = err;
    nbdkit_error ("pthread_create: %m");
    return -1;
  }
  return 0;
}

static void
contexts_cleanup (nbdkit_backend *backend)
{
  if (shared == NULL)
    return;
  stop = 1;
  pthread_join (thread, NULL);
  nbdkit_debug ("contexts: the thread has read: %s", reads > 0 ? "yes" : "no");
  if (shared->finalize (shared) == -1)
    nbdkit_error ("finalize failed");
  nbdkit_next_context_close (shared);
}

static void *
contexts_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname, int is_tls)
{
  struct handle *handle = calloc (1, sizeof *handle);

  if (handle == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  handle->context = context;
  handle->exportname = nbdkit_strdup_intern (exportname);
  if (way == ASSOCIATED)
    nbdkit_context_set_next (context, shared);
  else if (way == AGAIN && next (context, readonly, exportname) == -1) {
    free (handle);
    return NULL;
  }
  return handle;
}

static void
contexts_close (void *handle)
{
  free (handle);
}

static int
contexts_finalize (nbdkit_next *next, void *v)
{
  struct handle *handle = v;

  if (way == ASSOCIATED && nbdkit_context_set_next (handle->context, NULL) != shared)
    abort ();
  return 0;
}

static int64_t
contexts_get_size (nbdkit_next *next, void *handle)
{
  switch (way) {
  case SHARED: return shared->get_size (shared);
  case NONE: return 65536;
  default: return next->get_size (next);
  }
}

static int
contexts_can_write (nbdkit_next *next, void *handle)
{
  switch (way) {
  case SHARED: return shared->can_write (shared);
  case NONE: return 0;
  default: return next->can_write (next);
  }
}

/* What is asked of a layer below that need not be there. */
static int
contexts_no (nbdkit_next *next, void *handle)
{
  return 0;
}

static const char *
contexts_export_description (nbdkit_next *next, void *handle)
{
  return NULL;
}

static int
contexts_block_size (nbdkit_next *next, void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  *minimum = *preferred = *maximum = 0;
  return 0;
}

static int
contexts_pread (nbdkit_next *next, void *v, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct handle *handle = v;
  nbdkit_next *old, *new;

  switch (way) {
  case SHARED:
    return shared->pread (shared, buf, count, offset, flags, err);
  case NONE:
    if (next != NULL)
      abort ();
    memset (buf, 'n', count);
    return 0;
  case AGAIN:
    old = nbdkit_context_set_next (handle->context, NULL);
    if (old != next || old->finalize (old) == -1)
      abort ();
    nbdkit_next_context_close (old);
    new = nbdkit_next_context_open (nbdkit_context_get_backend (handle->context), 0, handle->exportname, 0);
    if (new == NULL || new->prepare (new) == -1 || new->get_size (new) == -1 || new->can_write (new) == -1) {
      *err = ESHUTDOWN;
      return -1;
    }
    nbdkit_context_set_next (handle->context, new);
    return new->pread (new, buf, count, offset, flags, err);
  default:
    return next->pread (next, buf, count, offset, flags, err);
  }
}

static int
contexts_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags,
                 int *err)
{
  if (way == SHARED)
    return shared->pwrite (shared, buf, count, offset, flags, err);
  return next->pwrite (next, buf, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name           = "contexts",
  .config         = contexts_config,
  .thread_model   = contexts_thread_model,
  .after_fork     = contexts_after_fork,
  .cleanup        = contexts_cleanup,
  .open           = contexts_open,
  .close          = contexts_close,
  .finalize       = contexts_finalize,
  .get_size       = contexts_get_size,
  .export_description = contexts_export_description,
  .block_size     = contexts_block_size,
  .can_write      = contexts_can_write,
  .can_flush      = contexts_no,
  .is_rotational  = contexts_no,
  .can_trim       = contexts_no,
  .can_zero       = contexts_no,
  .can_fast_zero  = contexts_no,
  .can_extents    = contexts_no,
  .can_fua        = contexts_no,
  .can_multi_conn = contexts_no,
  .can_cache      = contexts_no,
  .pread          = contexts_pread,
  .pwrite         = contexts_pwrite,
};

NBDKIT_REGISTER_FILTER (filter)
