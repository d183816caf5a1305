/* Passes everything on. -DDECLARED: and says that it needs nothing. */

#include <nbdkit-filter.h>
#include <nbdkit-confine.h>

#ifdef DECLARED
const struct nbdkitd_declaration nbdkitd_declaration = {
  NBDKITD_DECLARATION_VERSION, sizeof (struct nbdkitd_declaration), 0, NBDKITD_ISOLATION_CONNECTION, 0, NULL, NULL
};
#endif

static struct nbdkit_filter filter = {
  .name = "declaring",
};

NBDKIT_REGISTER_FILTER (filter)
