/* The interface between the server and its plugins, which is stable: a plugin that was compiled once runs on every
 * later server. nbdkit-plugin(3).
 */

#ifndef NBDKIT_PLUGIN_H
#define NBDKIT_PLUGIN_H

/* A plugin that does not say which version it was written to was written before there were two. */
#ifndef NBDKIT_API_VERSION
#define NBDKIT_API_VERSION 1
#endif

#if (NBDKIT_API_VERSION - 0) < 1 || NBDKIT_API_VERSION > 2
#error NBDKIT_API_VERSION must be 1 or 2
#endif

#include <nbdkit-common.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Members are only ever added, at the end: their offsets are part of the interface. Those whose names begin with an
 * underscore belong to NBDKIT_REGISTER_PLUGIN, or to the other version of the interface.
 */
struct nbdkit_plugin {
  uint64_t _struct_size;
  int _api_version;
  int _thread_model;

  const char *name;
  const char *longname;
  const char *version;
  const char *description;

  void (*load) (void);
  void (*unload) (void);

  int (*config) (const char *key, const char *value);
  int (*config_complete) (void);
  const char *config_help;

  void * (*open) (int readonly);
  void (*close) (void *handle);

  int64_t (*get_size) (void *handle);

  int (*can_write) (void *handle);
  int (*can_flush) (void *handle);
  int (*is_rotational) (void *handle);
  int (*can_trim) (void *handle);

#if NBDKIT_API_VERSION == 1
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset);
  int (*pwrite) (void *handle, const void *buf, uint32_t count, uint64_t offset);
  int (*flush) (void *handle);
  int (*trim) (void *handle, uint32_t count, uint64_t offset);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, int may_trim);
#else
  int (*_pread_v1) (void *, void *, uint32_t, uint64_t);
  int (*_pwrite_v1) (void *, const void *, uint32_t, uint64_t);
  int (*_flush_v1) (void *);
  int (*_trim_v1) (void *, uint32_t, uint64_t);
  int (*_zero_v1) (void *, uint32_t, uint64_t, int);
#endif

  int errno_is_preserved;

  void (*dump_plugin) (void);

  int (*can_zero) (void *handle);
  int (*can_fua) (void *handle);

#if NBDKIT_API_VERSION == 1
  int (*_unused1) (void *, void *, uint32_t, uint64_t, uint32_t);
  int (*_unused2) (void *, const void *, uint32_t, uint64_t, uint32_t);
  int (*_unused3) (void *, uint32_t);
  int (*_unused4) (void *, uint32_t, uint64_t, uint32_t);
  int (*_unused5) (void *, uint32_t, uint64_t, uint32_t);
#else
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags);
  int (*pwrite) (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags);
  int (*flush) (void *handle, uint32_t flags);
  int (*trim) (void *handle, uint32_t count, uint64_t offset, uint32_t flags);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, uint32_t flags);
#endif

  const char *magic_config_key;

  int (*can_multi_conn) (void *handle);

  int (*can_extents) (void *handle);
  int (*extents) (void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents);

  int (*can_cache) (void *handle);
  int (*cache) (void *handle, uint32_t count, uint64_t offset, uint32_t flags);

  int (*thread_model) (void);

  int (*can_fast_zero) (void *handle);

  int (*preconnect) (int readonly);

  int (*get_ready) (void);
  int (*after_fork) (void);

  int (*list_exports) (int readonly, int is_tls, struct nbdkit_exports *exports);
  const char * (*default_export) (int readonly, int is_tls);
  const char * (*export_description) (void *handle);

  void (*cleanup) (void);

  int (*block_size) (void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum);
};

/* The errno that the client gets if the callback then fails. */
extern void nbdkit_set_error (int err);

/* The export that the client asked for: hostile. NULL after an error message outside of connections. */
extern const char *nbdkit_export_name (void);

/* 1 once the client has negotiated TLS, else 0; -1 after an error message outside of connections. */
extern int nbdkit_is_tls (void);

#ifdef __cplusplus
}
#endif

/* Once in every plugin, with its struct nbdkit_plugin, after THREAD_MODEL has been defined. */
#define NBDKIT_REGISTER_PLUGIN(plugin)                            \
  NBDKIT_LANGUAGE_C NBDKIT_PUBLIC                                 \
  struct nbdkit_plugin *plugin_init (void);                       \
  NBDKIT_LANGUAGE_C NBDKIT_PUBLIC                                 \
  struct nbdkit_plugin *                                          \
  plugin_init (void)                                              \
  {                                                               \
    (plugin)._struct_size = sizeof (plugin);                      \
    (plugin)._api_version = NBDKIT_API_VERSION;                   \
    (plugin)._thread_model = THREAD_MODEL;                        \
    return &(plugin);                                             \
  }

#endif /* NBDKIT_PLUGIN_H */
