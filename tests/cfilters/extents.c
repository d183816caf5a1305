/* Extents by the two functions that do more than the layer below: extents=full, or extents=N for those aligned to N. */

#include <nbdkit-filter.h>

#include <string.h>

static uint32_t align;

static int
extents_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  if (strcmp (key, "extents") != 0)
    return next (nxdata, key, value);
  if (strcmp (value, "full") == 0)
    return 0;
  return nbdkit_parse_uint32_t ("extents", value, &align);
}

static int
extents_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                 struct nbdkit_extents *extents, int *err)
{
  struct nbdkit_extents *full;
  int r = 0;

  if (align != 0)
    return nbdkit_extents_aligned (next, count, offset, flags, align, extents, err);
  full = nbdkit_extents_full (next, count, offset, flags, err);
  if (full == NULL)
    return -1;
  for (size_t i = 0; r == 0 && i < nbdkit_extents_count (full); ++i) {
    struct nbdkit_extent e = nbdkit_get_extent (full, i);

    r = nbdkit_add_extent (extents, e.offset, e.length, e.type);
    if (r == -1)
      *err = errno;
  }
  nbdkit_extents_free (full);
  return r;
}

static struct nbdkit_filter filter = {
  .name    = "extents",
  .config  = extents_config,
  .extents = extents_extents,
};

NBDKIT_REGISTER_FILTER (filter)
