/* The samples of nbdkit-filter(3) of nbdkit 1.16 put together, with next_ops and nxdata. The disk begins shift=N bytes
 * further on; with reopen=1 every read reopens the layer below first.
 */

#define NBDKIT_FILTER_API 116
#include <nbdkit-filter.h>

#include <stdlib.h>
#include <string.h>

static int64_t shift;
static int reopen;
static int prepared;

static void
old_load (void)
{
  nbdkit_debug ("old: load");
}

static void
old_unload (void)
{
  nbdkit_debug ("old: unload");
}

static int
old_config (nbdkit_next_config *next, void *nxdata, const char *key, const char *value)
{
  if (strcmp (key, "shift") == 0) {
    shift = nbdkit_parse_size (value);
    return shift == -1 ? -1 : 0;
  }
  else if (strcmp (key, "reopen") == 0) {
    reopen = nbdkit_parse_bool (value);
    return reopen == -1 ? -1 : 0;
  }
  else {
    // pass through to next filter or plugin
    return next (nxdata, key, value);
  }
}

static int
old_config_complete (nbdkit_next_config_complete *next, void *nxdata)
{
  return next (nxdata);
}

static int
old_thread_model (void)
{
  return NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
}

static void *
old_open (nbdkit_next_open *next, void *nxdata, int readonly)
{
  if (next (nxdata, readonly) == -1)
    return NULL;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static void
old_close (void *handle)
{
  nbdkit_debug ("old: close");
}

static int
old_prepare (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, int readonly)
{
  if (next_ops->get_size (nxdata) == -1)
    return -1;
  prepared++;
  return 0;
}

static int
old_finalize (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle)
{
  prepared--;
  nbdkit_debug ("old: finalize, %d left", prepared);
  return 0;
}

static int64_t
old_get_size (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle)
{
  int64_t size = next_ops->get_size (nxdata);

  return size == -1 ? -1 : size - shift;
}

#define QUESTION(callback)                                                              \
  static int                                                                            \
  old_##callback (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle)         \
  {                                                                                     \
    return next_ops->callback (nxdata);                                                 \
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

static int
old_pread (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, void *buf, uint32_t count, uint64_t offset,
           uint32_t flags, int *err)
{
  if (reopen && next_ops->reopen (nxdata, 0) == -1) {
    *err = ESHUTDOWN;
    return -1;
  }
  return next_ops->pread (nxdata, buf, count, offset + shift, flags, err);
}

static int
old_pwrite (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, const void *buf, uint32_t count,
            uint64_t offset, uint32_t flags, int *err)
{
  return next_ops->pwrite (nxdata, buf, count, offset + shift, flags, err);
}

static int
old_flush (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t flags, int *err)
{
  return next_ops->flush (nxdata, flags, err);
}

#define RANGE(callback)                                                                                         \
  static int                                                                                                    \
  old_##callback (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,\
                  uint32_t flags, int *err)                                                                     \
  {                                                                                                             \
    return next_ops->callback (nxdata, count, offset + shift, flags, err);                                      \
  }

RANGE (trim)
RANGE (zero)
RANGE (cache)

static int
old_extents (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,
             uint32_t flags, struct nbdkit_extents *extents, int *err)
{
  size_t i;
  struct nbdkit_extents *extents2;
  struct nbdkit_extent e;
  int64_t size;

  size = next_ops->get_size (nxdata);
  extents2 = nbdkit_extents_new (offset + shift, size);
  if (next_ops->extents (nxdata, count, offset + shift, flags, extents2, err) == -1) {
    nbdkit_extents_free (extents2);
    return -1;
  }
  for (i = 0; i < nbdkit_extents_count (extents2); ++i) {
    e = nbdkit_get_extent (extents2, i);
    e.offset -= shift;
    nbdkit_add_extent (extents, e.offset, e.length, e.type);
  }
  nbdkit_extents_free (extents2);
  return 0;
}

static struct nbdkit_filter filter = {
  .name            = "old",
  .longname        = "My Filter",
  .description     = "This is my great filter for nbdkit",
  .load            = old_load,
  .unload          = old_unload,
  .config          = old_config,
  .config_complete = old_config_complete,
  .config_help     = "shift=N   Where the disk begins.",
  .thread_model    = old_thread_model,
  .open            = old_open,
  .close           = old_close,
  .prepare         = old_prepare,
  .finalize        = old_finalize,
  .get_size        = old_get_size,
  .can_write       = old_can_write,
  .can_flush       = old_can_flush,
  .is_rotational   = old_is_rotational,
  .can_trim        = old_can_trim,
  .can_zero        = old_can_zero,
  .can_fast_zero   = old_can_fast_zero,
  .can_extents     = old_can_extents,
  .can_fua         = old_can_fua,
  .can_multi_conn  = old_can_multi_conn,
  .can_cache       = old_can_cache,
  .pread           = old_pread,
  .pwrite          = old_pwrite,
  .flush           = old_flush,
  .trim            = old_trim,
  .zero            = old_zero,
  .extents         = old_extents,
  .cache           = old_cache,
};

NBDKIT_REGISTER_FILTER(filter)
