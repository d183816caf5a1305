/* Sizes and offsets of the filter interface on LP64, asserted at compile time, as C and as C++. */

#include <nbdkit-filter.h>

#ifdef __cplusplus
#define ASSERT(condition) static_assert (condition, #condition)
#else
#define ASSERT(condition) _Static_assert (condition, #condition)
#endif

#define AT(offset, member) ASSERT (offsetof (struct nbdkit_filter, member) == offset)
#define NEXT(offset, member) ASSERT (offsetof (struct nbdkit_next_ops, member) == offset)

ASSERT (sizeof (struct nbdkit_filter) == 336);
AT (0, _api_version);
AT (8, _version);
AT (16, name);
AT (56, config);
AT (80, thread_model);
AT (88, dump_plugin);
AT (96, get_ready);
AT (144, open);
AT (160, prepare);
AT (200, can_write);
AT (272, can_cache);
AT (280, pread);
AT (328, cache);

ASSERT (sizeof (struct nbdkit_next_ops) == 176);
NEXT (0, prepare);
NEXT (16, get_size);
NEXT (32, block_size);
NEXT (40, can_write);
NEXT (112, can_cache);
NEXT (120, pread);
NEXT (168, cache);

ASSERT (sizeof (struct nbdkit_export) == 16);
ASSERT (NBDKIT_FILTER_API_VERSION == 6);
ASSERT (NBDKIT_ZERO_NONE == 0 && NBDKIT_ZERO_EMULATE == 1 && NBDKIT_ZERO_NATIVE == 2);

static struct nbdkit_filter filter;
NBDKIT_REGISTER_FILTER (filter)
