/* The samples of nbdkit-filter(3) put together: the disk begins shift=N bytes further on, and exports have names and
 * descriptions of their own. With contexts=manual the layer below is opened step by step, as the page says one may.
 */

#include <nbdkit-filter.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t shift;
static int manual;

/* As in the synopsis, where nxdata is a void pointer. */
static int
shift_config (nbdkit_next_config *next, void *nxdata, const char *key, const char *value)
{
  if (strcmp (key, "shift") == 0) {
    shift = nbdkit_parse_size (value);
    return shift == -1 ? -1 : 0;
  }
  else if (strcmp (key, "contexts") == 0) {
    manual = strcmp (value, "manual") == 0;
    return 0;
  }
  else {
    // pass through to next filter or plugin
    return next (nxdata, key, value);
  }
}

static int
shift_list_exports (nbdkit_next_list_exports *next, nbdkit_backend *nxdata, int readonly, int is_tls,
                    struct nbdkit_exports *exports)
{
  struct nbdkit_exports *exports2 = nbdkit_exports_new ();
  char name[256], description[256];
  int r;

  if (exports2 == NULL)
    return -1;
  r = next (nxdata, readonly, exports2);
  for (size_t i = 0; r == 0 && i < nbdkit_exports_count (exports2); ++i) {
    struct nbdkit_export e = nbdkit_get_export (exports2, i);

    snprintf (name, sizeof name, "shifted-%s", e.name);
    snprintf (description, sizeof description, "shifted: %s", e.description ? e.description : "none");
    r = nbdkit_add_export (exports, name, description);
  }
  nbdkit_exports_free (exports2);
  return r;
}

static const char *
shift_default_export (nbdkit_next_default_export *next, nbdkit_backend *nxdata, int readonly, int is_tls)
{
  const char *name = next (nxdata, readonly);

  return name == NULL ? NULL : nbdkit_printf_intern ("shifted-%s", name);
}

static void *
shift_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname, int is_tls)
{
  nbdkit_next *opened;

  if (strncmp (exportname, "shifted-", 8) == 0)
    exportname += 8;
  if (!manual) {
    if (next (context, readonly, exportname) == -1)
      return NULL;
  }
  else {
    opened = nbdkit_next_context_open (nbdkit_context_get_backend (context), readonly, exportname, 0);
    if (opened == NULL)
      return NULL;
    if (nbdkit_context_set_next (context, opened) != NULL)
      abort ();
  }
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
shift_get_size (nbdkit_next *next, void *handle)
{
  int64_t size = next->get_size (next);

  if (size == -1)
    return -1;
  if (size < shift) {
    nbdkit_error ("the disk is shorter than the shift");
    return -1;
  }
  return size - shift;
}

static const char *
shift_export_description (nbdkit_next *next, void *handle)
{
  const char *description = next->export_description (next);

  return nbdkit_printf_intern ("shifted: %s", description ? description : "none");
}

static int
shift_block_size (nbdkit_next *next, void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  if (next->block_size (next, minimum, preferred, maximum) == -1)
    return -1;
  *minimum = 1;
  *preferred = 8192;
  *maximum = 0xffffffff;
  return 0;
}

static int
shift_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return next->pread (next, buf, count, offset + shift, flags, err);
}

static int
shift_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  return next->pwrite (next, buf, count, offset + shift, flags, err);
}

static int
shift_trim (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return next->trim (next, count, offset + shift, flags, err);
}

static int
shift_zero (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return next->zero (next, count, offset + shift, flags, err);
}

static int
shift_cache (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return next->cache (next, count, offset + shift, flags, err);
}

static int
shift_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents, int *err)
{
  struct nbdkit_extents *extents2;
  int64_t size = next->get_size (next);
  int r;

  extents2 = nbdkit_extents_new (offset + shift, size);
  if (extents2 == NULL) {
    *err = errno;
    return -1;
  }
  r = next->extents (next, count, offset + shift, flags, extents2, err);
  for (size_t i = 0; r == 0 && i < nbdkit_extents_count (extents2); ++i) {
    struct nbdkit_extent e = nbdkit_get_extent (extents2, i);

    r = nbdkit_add_extent (extents, e.offset - shift, e.length, e.type);
    if (r == -1)
      *err = errno;
  }
  nbdkit_extents_free (extents2);
  return r;
}

static struct nbdkit_filter filter = {
  .name               = "shift",
  .longname           = "My Filter",
  .description        = "This is my great filter for nbdkit",
  .config             = shift_config,
  .config_help        = "shift=N   Where the disk begins.",
  .list_exports       = shift_list_exports,
  .default_export     = shift_default_export,
  .open               = shift_open,
  .get_size           = shift_get_size,
  .export_description = shift_export_description,
  .block_size         = shift_block_size,
  .pread              = shift_pread,
  .pwrite             = shift_pwrite,
  .trim               = shift_trim,
  .zero               = shift_zero,
  .cache              = shift_cache,
  .extents            = shift_extents,
};

NBDKIT_REGISTER_FILTER(filter)
