/* Compiled as old C and as C++: the header alone, with the structure where it is expected. */

#include <nbdkit-confine.h>

typedef char size_is_40[sizeof (struct nbdkitd_declaration) == 40 ? 1 : -1];
typedef char needs_is_at_24[offsetof (struct nbdkitd_declaration, needs) == 24 ? 1 : -1];
typedef char functions_are_40[sizeof (struct nbdkitd_needs) == 40 ? 1 : -1];

static int
confine_needs (const struct nbdkitd_needs *needs, int readonly)
{
  return NBDKITD_HAS (needs, flags) ? needs->path (needs, "/", readonly ? NBDKITD_READ : NBDKITD_WRITE) : -1;
}

const struct nbdkitd_declaration nbdkitd_declaration = {
  NBDKITD_DECLARATION_VERSION,
  sizeof (struct nbdkitd_declaration),
  NBDKITD_THREADS | NBDKITD_SHUTDOWN,
  NBDKITD_ISOLATION_CONNECTION,
  0,
  confine_needs,
  NULL
};
