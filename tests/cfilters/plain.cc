// The sample of nbdkit-filter(3), "Writing filters in C++", with something to do: every byte read is one more.

#include <nbdkit-filter.h>

#include <cstring>

static int
plain_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  return std::strcmp (key, "plain") == 0 ? 0 : next (nxdata, key, value);
}

static int
plain_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  unsigned char *bytes = static_cast<unsigned char *> (buf);

  if (next->pread (next, buf, count, offset, flags, err) == -1)
    return -1;
  for (uint32_t i = 0; i < count; ++i)
    bytes[i]++;
  return 0;
}

namespace {
  nbdkit_filter create_filter() {
    nbdkit_filter filter = nbdkit_filter ();
    filter.name   = "plain";
    filter.config = plain_config;
    filter.pread  = plain_pread;
    return filter;
  }
}
static struct nbdkit_filter filter = create_filter ();
NBDKIT_REGISTER_FILTER(filter)
