/* The interface between the server and filters in C. Unlike that of plugins it is not stable: the server loads a filter
 * only if it was compiled with headers of the same version. nbdkit-filter(3).
 */

#ifndef NBDKIT_FILTER_H
#define NBDKIT_FILTER_H

/* Whose signatures: 146 for those of nbdkit 1.46, or, defined before this is included, 116 for those of nbdkit 1.16, with
 * next_ops and nxdata in place of next. The server adapts them when it loads the filter.
 */
#ifndef NBDKIT_FILTER_API
#define NBDKIT_FILTER_API 146
#endif

#if NBDKIT_FILTER_API != 116 && NBDKIT_FILTER_API != 146
#error NBDKIT_FILTER_API must be 116 or 146
#endif

#include <nbdkit-common.h>

/* What the server knows the layout of the structure by. */
#if NBDKIT_FILTER_API == 116
#define NBDKIT_FILTER_API_VERSION 116
#else
#define NBDKIT_FILTER_API_VERSION 6
#endif

/* Results of can_zero, which filters answer otherwise than plugins. */
#define NBDKIT_ZERO_NONE    0
#define NBDKIT_ZERO_EMULATE 1
#define NBDKIT_ZERO_NATIVE  2

#ifdef __cplusplus
extern "C" {
#endif

#if NBDKIT_FILTER_API == 116

typedef int nbdkit_next_config (void *nxdata, const char *key, const char *value);
typedef int nbdkit_next_config_complete (void *nxdata);
typedef int nbdkit_next_open (void *nxdata, int readonly);

/* The layer below; nxdata is what the callback was called with. */
struct nbdkit_next_ops {
  /* Closes it, and opens it again. */
  int (*reopen) (void *nxdata, int readonly);

  int64_t (*get_size) (void *nxdata);

  int (*can_write) (void *nxdata);
  int (*can_flush) (void *nxdata);
  int (*is_rotational) (void *nxdata);
  int (*can_trim) (void *nxdata);
  int (*can_zero) (void *nxdata);
  int (*can_fast_zero) (void *nxdata);
  int (*can_extents) (void *nxdata);
  int (*can_fua) (void *nxdata);
  int (*can_multi_conn) (void *nxdata);
  int (*can_cache) (void *nxdata);

  int (*pread) (void *nxdata, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*pwrite) (void *nxdata, const void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*flush) (void *nxdata, uint32_t flags, int *err);
  int (*trim) (void *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*zero) (void *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*extents) (void *nxdata, uint32_t count, uint64_t offset, uint32_t flags,
                  struct nbdkit_extents *extents, int *err);
  int (*cache) (void *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
};

struct nbdkit_filter {
  int _api_version;
  const char *_version;

  const char *name;
  const char *longname;
  const char *description;

  void (*load) (void);
  void (*unload) (void);

  int (*config) (nbdkit_next_config *next, void *nxdata, const char *key, const char *value);
  int (*config_complete) (nbdkit_next_config_complete *next, void *nxdata);
  const char *config_help;
  int (*thread_model) (void);

  void * (*open) (nbdkit_next_open *next, void *nxdata, int readonly);
  void (*close) (void *handle);

  int (*prepare) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, int readonly);
  int (*finalize) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);

  int64_t (*get_size) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);

  int (*can_write) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_flush) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*is_rotational) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_trim) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_zero) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_fast_zero) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_extents) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_fua) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_multi_conn) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);
  int (*can_cache) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle);

  int (*pread) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, void *buf, uint32_t count,
                uint64_t offset, uint32_t flags, int *err);
  int (*pwrite) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags, int *err);
  int (*flush) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t flags, int *err);
  int (*trim) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,
               uint32_t flags, int *err);
  int (*zero) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,
               uint32_t flags, int *err);
  int (*extents) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,
                  uint32_t flags, struct nbdkit_extents *extents, int *err);
  int (*cache) (struct nbdkit_next_ops *next_ops, void *nxdata, void *handle, uint32_t count, uint64_t offset,
                uint32_t flags, int *err);
};

#else /* NBDKIT_FILTER_API == 146 */

struct nbdkit_export {
  char *name;
  char *description;
};

/* The layer below, and, in open, the connection's place for it. Filters may call the first one void *nxdata, as the manual
 * page does, or by its name.
 */
typedef void nbdkit_backend;
typedef struct nbdkit_context nbdkit_context;

typedef int nbdkit_next_config (nbdkit_backend *nxdata, const char *key, const char *value);
typedef int nbdkit_next_config_complete (nbdkit_backend *nxdata);
typedef int nbdkit_next_preconnect (nbdkit_backend *nxdata, int readonly);
typedef int nbdkit_next_list_exports (nbdkit_backend *nxdata, int readonly, struct nbdkit_exports *exports);
typedef const char *nbdkit_next_default_export (nbdkit_backend *nxdata, int readonly);
typedef int nbdkit_next_open (nbdkit_context *context, int readonly, const char *exportname);

/* The layer below as it was opened. There is more behind the last member: it must not be copied. */
typedef struct nbdkit_next_ops nbdkit_next;

struct nbdkit_next_ops {
  int (*prepare) (nbdkit_next *nxdata);
  int (*finalize) (nbdkit_next *nxdata);

  int64_t (*get_size) (nbdkit_next *nxdata);
  const char * (*export_description) (nbdkit_next *nxdata);
  int (*block_size) (nbdkit_next *nxdata, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum);

  int (*can_write) (nbdkit_next *nxdata);
  int (*can_flush) (nbdkit_next *nxdata);
  int (*is_rotational) (nbdkit_next *nxdata);
  int (*can_trim) (nbdkit_next *nxdata);
  int (*can_zero) (nbdkit_next *nxdata);
  int (*can_fast_zero) (nbdkit_next *nxdata);
  int (*can_extents) (nbdkit_next *nxdata);
  int (*can_fua) (nbdkit_next *nxdata);
  int (*can_multi_conn) (nbdkit_next *nxdata);
  int (*can_cache) (nbdkit_next *nxdata);

  int (*pread) (nbdkit_next *nxdata, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*pwrite) (nbdkit_next *nxdata, const void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*flush) (nbdkit_next *nxdata, uint32_t flags, int *err);
  int (*trim) (nbdkit_next *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*zero) (nbdkit_next *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*extents) (nbdkit_next *nxdata, uint32_t count, uint64_t offset, uint32_t flags,
                  struct nbdkit_extents *extents, int *err);
  int (*cache) (nbdkit_next *nxdata, uint32_t count, uint64_t offset, uint32_t flags, int *err);
};

/* Only the first two members stay where they are from one version to the next. */
struct nbdkit_filter {
  int _api_version;
  const char *_version;

  const char *name;
  const char *longname;
  const char *description;

  void (*load) (void);
  void (*unload) (void);

  int (*config) (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value);
  int (*config_complete) (nbdkit_next_config_complete *next, nbdkit_backend *nxdata);
  const char *config_help;
  int (*thread_model) (int next_thread_model);
  void (*dump_plugin) (void);
  int (*get_ready) (int thread_model);
  int (*after_fork) (nbdkit_backend *backend);
  void (*cleanup) (nbdkit_backend *backend);

  int (*preconnect) (nbdkit_next_preconnect *next, nbdkit_backend *nxdata, int readonly);
  int (*list_exports) (nbdkit_next_list_exports *next, nbdkit_backend *nxdata, int readonly, int is_tls,
                       struct nbdkit_exports *exports);
  const char * (*default_export) (nbdkit_next_default_export *next, nbdkit_backend *nxdata, int readonly, int is_tls);

  void * (*open) (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname, int is_tls);
  void (*close) (void *handle);

  int (*prepare) (nbdkit_next *next, void *handle, int readonly);
  int (*finalize) (nbdkit_next *next, void *handle);

  int64_t (*get_size) (nbdkit_next *next, void *handle);
  const char * (*export_description) (nbdkit_next *next, void *handle);
  int (*block_size) (nbdkit_next *next, void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum);

  int (*can_write) (nbdkit_next *next, void *handle);
  int (*can_flush) (nbdkit_next *next, void *handle);
  int (*is_rotational) (nbdkit_next *next, void *handle);
  int (*can_trim) (nbdkit_next *next, void *handle);
  int (*can_zero) (nbdkit_next *next, void *handle);
  int (*can_fast_zero) (nbdkit_next *next, void *handle);
  int (*can_extents) (nbdkit_next *next, void *handle);
  int (*can_fua) (nbdkit_next *next, void *handle);
  int (*can_multi_conn) (nbdkit_next *next, void *handle);
  int (*can_cache) (nbdkit_next *next, void *handle);

  int (*pread) (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*pwrite) (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags,
                 int *err);
  int (*flush) (nbdkit_next *next, void *handle, uint32_t flags, int *err);
  int (*trim) (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*zero) (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err);
  int (*extents) (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                  struct nbdkit_extents *extents, int *err);
  int (*cache) (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags, int *err);
};

/* Extents of a whole range, and in blocks. The caller frees the list. */
extern struct nbdkit_extents *nbdkit_extents_full (nbdkit_next *next, uint32_t count, uint64_t offset,
                                                   uint32_t flags, int *err);
extern int nbdkit_extents_aligned (nbdkit_next *next, uint32_t count, uint64_t offset, uint32_t flags, uint32_t align,
                                   struct nbdkit_extents *extents, int *err);

/* Lists of exports. */
extern struct nbdkit_exports *nbdkit_exports_new (void);
extern void nbdkit_exports_free (struct nbdkit_exports *exports);
extern size_t nbdkit_exports_count (const struct nbdkit_exports *exports);
extern struct nbdkit_export nbdkit_get_export (const struct nbdkit_exports *exports, size_t i);

/* Contexts that a filter opens and closes itself. */
extern nbdkit_backend *nbdkit_context_get_backend (nbdkit_context *context);
extern nbdkit_next *nbdkit_next_context_open (nbdkit_backend *backend, int readonly, const char *exportname,
                                              int shared);
extern void nbdkit_next_context_close (nbdkit_next *next);
extern nbdkit_next *nbdkit_context_set_next (nbdkit_context *context, nbdkit_next *next);

#endif /* NBDKIT_FILTER_API */

#ifdef __cplusplus
}
#endif

/* Once in every filter, with its struct nbdkit_filter. */
#define NBDKIT_REGISTER_FILTER(filter)                            \
  NBDKIT_LANGUAGE_C NBDKIT_PUBLIC                                 \
  struct nbdkit_filter *filter_init (void);                       \
  NBDKIT_LANGUAGE_C NBDKIT_PUBLIC                                 \
  struct nbdkit_filter *                                          \
  filter_init (void)                                              \
  {                                                               \
    (filter)._api_version = NBDKIT_FILTER_API_VERSION;            \
    (filter)._version = NBDKIT_VERSION_STRING;                    \
    return &(filter);                                             \
  }

#endif /* NBDKIT_FILTER_H */
