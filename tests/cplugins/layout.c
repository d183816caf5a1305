/* Sizes and offsets of the plugin interface on LP64, asserted at compile time. Compiled for both versions, as C and as
 * C++.
 */

#include <nbdkit-plugin.h>

#ifdef __cplusplus
#define ASSERT(condition) static_assert (condition, #condition)
#else
#define ASSERT(condition) _Static_assert (condition, #condition)
#endif

#define AT(offset, member) ASSERT (offsetof (struct nbdkit_plugin, member) == offset)

ASSERT (sizeof (struct nbdkit_plugin) == 384);
AT (0, _struct_size);
AT (8, _api_version);
AT (12, _thread_model);
AT (16, name);
AT (24, longname);
AT (32, version);
AT (40, description);
AT (48, load);
AT (56, unload);
AT (64, config);
AT (72, config_complete);
AT (80, config_help);
AT (88, open);
AT (96, close);
AT (104, get_size);
AT (112, can_write);
AT (120, can_flush);
AT (128, is_rotational);
AT (136, can_trim);
#if NBDKIT_API_VERSION == 1
AT (144, pread);
AT (152, pwrite);
AT (160, flush);
AT (168, trim);
AT (176, zero);
AT (216, _unused1);
AT (224, _unused2);
AT (232, _unused3);
AT (240, _unused4);
AT (248, _unused5);
#else
AT (144, _pread_v1);
AT (152, _pwrite_v1);
AT (160, _flush_v1);
AT (168, _trim_v1);
AT (176, _zero_v1);
AT (216, pread);
AT (224, pwrite);
AT (232, flush);
AT (240, trim);
AT (248, zero);
#endif
AT (184, errno_is_preserved);
AT (192, dump_plugin);
AT (200, can_zero);
AT (208, can_fua);
AT (256, magic_config_key);
AT (264, can_multi_conn);
AT (272, can_extents);
AT (280, extents);
AT (288, can_cache);
AT (296, cache);
AT (304, thread_model);
AT (312, can_fast_zero);
AT (320, preconnect);
AT (328, get_ready);
AT (336, after_fork);
AT (344, list_exports);
AT (352, default_export);
AT (360, export_description);
AT (368, cleanup);
AT (376, block_size);

ASSERT (sizeof (struct nbdkit_extent) == 24);
ASSERT (offsetof (struct nbdkit_extent, length) == 8);
ASSERT (offsetof (struct nbdkit_extent, type) == 16);

ASSERT (NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS == 0);
ASSERT (NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS == 1);
ASSERT (NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS == 2);
ASSERT (NBDKIT_THREAD_MODEL_PARALLEL == 3);
ASSERT (NBDKIT_FLAG_MAY_TRIM == 1 && NBDKIT_FLAG_FUA == 2);
ASSERT (NBDKIT_FLAG_REQ_ONE == 4 && NBDKIT_FLAG_FAST_ZERO == 8);
ASSERT (NBDKIT_FUA_NONE == 0 && NBDKIT_FUA_EMULATE == 1 && NBDKIT_FUA_NATIVE == 2);
ASSERT (NBDKIT_CACHE_NONE == 0 && NBDKIT_CACHE_EMULATE == 1 && NBDKIT_CACHE_NATIVE == 2);
ASSERT (NBDKIT_EXTENT_HOLE == 1 && NBDKIT_EXTENT_ZERO == 2);
ASSERT (NBDKIT_VERSION_MAJOR == 1 && NBDKIT_VERSION_MINOR % 2 == 0);
