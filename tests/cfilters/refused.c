/* Filters that no server should take: one thing is wrong with each. */

#include <nbdkit-filter.h>

static struct nbdkit_filter filter = {
#ifdef BAD_NAME
  .name = BAD_NAME,
#elif !defined (NO_NAME)
  .name = "refused",
#endif
};

#ifndef NO_ENTRY
NBDKIT_PUBLIC struct nbdkit_filter *filter_init (void);

struct nbdkit_filter *
filter_init (void)
{
#ifdef NO_TABLE
  return NULL;
#endif
#ifdef BAD_API
  filter._api_version = BAD_API;
#else
  filter._api_version = NBDKIT_FILTER_API_VERSION;
#endif
#ifdef BAD_VERSION
  filter._version = BAD_VERSION;
#elif !defined (NO_VERSION)
  filter._version = NBDKIT_VERSION_STRING;
#endif
  return &filter;
}
#endif
