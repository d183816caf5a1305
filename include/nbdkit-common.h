/* What plugins and filters have in common: constants, types, and the server's functions for both.
 * Included by nbdkit-plugin.h and nbdkit-filter.h, which are the ones to include.
 *
 * The functions are in the server: a module leaves them undefined, and they are found when the server loads it.
 * nbdkit-plugin(3).
 */

#ifndef NBDKIT_COMMON_H
#define NBDKIT_COMMON_H

#if !defined (NBDKIT_PLUGIN_H) && !defined (NBDKIT_FILTER_H)
#error this header file should not be directly included, use nbdkit-plugin.h or nbdkit-filter.h
#endif

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <nbdkit-version.h>

#if defined (__GNUC__) || defined (__clang__)
#define NBDKIT_ATTRIBUTE_FORMAT_PRINTF(fmt, args) __attribute__ ((__format__ (__printf__, fmt, args)))
#define NBDKIT_PUBLIC __attribute__ ((__visibility__ ("default")))
#else
#define NBDKIT_ATTRIBUTE_FORMAT_PRINTF(fmt, args)
#define NBDKIT_PUBLIC
#endif

/* What a plugin's or filter's own functions are marked with that the server looks for. */
#define NBDKIT_DLL_PUBLIC NBDKIT_PUBLIC

#ifdef __cplusplus
#define NBDKIT_LANGUAGE_C extern "C"
extern "C" {
#else
#define NBDKIT_LANGUAGE_C
#endif

/* How much may run at the same time. "Threads". */
#define NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS  0
#define NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS 1
#define NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS     2
#define NBDKIT_THREAD_MODEL_PARALLEL               3

/* Flags of data requests. "Flags". */
#define NBDKIT_FLAG_MAY_TRIM  (1 << 0)
#define NBDKIT_FLAG_FUA       (1 << 1)
#define NBDKIT_FLAG_REQ_ONE   (1 << 2)
#define NBDKIT_FLAG_FAST_ZERO (1 << 3)

/* Results of can_fua. */
#define NBDKIT_FUA_NONE    0
#define NBDKIT_FUA_EMULATE 1
#define NBDKIT_FUA_NATIVE  2

/* Results of can_cache. */
#define NBDKIT_CACHE_NONE    0
#define NBDKIT_CACHE_EMULATE 1
#define NBDKIT_CACHE_NATIVE  2

/* Types of extents; 0 is allocated data. */
#define NBDKIT_EXTENT_HOLE (1 << 0)
#define NBDKIT_EXTENT_ZERO (1 << 1)

/* What open returns if there is nothing to point to. */
#define NBDKIT_HANDLE_NOT_NEEDED (&errno)

struct nbdkit_exports;
struct nbdkit_extents;

struct nbdkit_extent {
  uint64_t offset;
  uint64_t length;
  uint32_t type;
};

/* Messages. errno is left as it is; %m is its text. */
extern void nbdkit_error (const char *msg, ...)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 2);
extern void nbdkit_verror (const char *msg, va_list args)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 0);
extern void nbdkit_debug (const char *msg, ...)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 2);
extern void nbdkit_vdebug (const char *msg, va_list args)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 0);

/* Parameters. 0, or -1 after an error message; *r is then unchanged. r may be NULL. */
extern int64_t nbdkit_parse_size (const char *str);
extern int nbdkit_parse_bool (const char *str);
extern int nbdkit_parse_probability (const char *what, const char *str, double *r);
extern int nbdkit_parse_delay (const char *what, const char *str, unsigned *sec, unsigned *nsec);
extern int nbdkit_parse_int (const char *what, const char *str, int *r);
extern int nbdkit_parse_unsigned (const char *what, const char *str, unsigned *r);
extern int nbdkit_parse_int8_t (const char *what, const char *str, int8_t *r);
extern int nbdkit_parse_uint8_t (const char *what, const char *str, uint8_t *r);
extern int nbdkit_parse_int16_t (const char *what, const char *str, int16_t *r);
extern int nbdkit_parse_uint16_t (const char *what, const char *str, uint16_t *r);
extern int nbdkit_parse_int32_t (const char *what, const char *str, int32_t *r);
extern int nbdkit_parse_uint32_t (const char *what, const char *str, uint32_t *r);
extern int nbdkit_parse_int64_t (const char *what, const char *str, int64_t *r);
extern int nbdkit_parse_uint64_t (const char *what, const char *str, uint64_t *r);
extern int nbdkit_read_password (const char *value, char **password);
extern int nbdkit_stdio_safe (void);

/* Paths. The caller frees the result. */
extern char *nbdkit_absolute_path (const char *path);
extern char *nbdkit_realpath (const char *path);

/* Strings that live as long as the server, or the connection in which they were made. */
extern const char *nbdkit_strdup_intern (const char *str);
extern const char *nbdkit_strndup_intern (const char *str, size_t n);
extern const char *nbdkit_printf_intern (const char *msg, ...)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 2);
extern const char *nbdkit_vprintf_intern (const char *msg, va_list args)
  NBDKIT_ATTRIBUTE_FORMAT_PRINTF (1, 0);

/* The client being served. The caller frees strings. */
extern int nbdkit_peer_name (struct sockaddr *addr, socklen_t *addrlen);
extern int64_t nbdkit_peer_pid (void);
extern int64_t nbdkit_peer_uid (void);
extern int64_t nbdkit_peer_gid (void);
extern char *nbdkit_peer_security_context (void);
extern char *nbdkit_peer_tls_dn (void);
extern char *nbdkit_peer_tls_issuer_dn (void);

/* The course of things. */
extern int nbdkit_nanosleep (unsigned sec, unsigned nsec);
extern void nbdkit_disconnect (int force);
extern void nbdkit_shutdown (void);

/* Lists. */
extern int nbdkit_add_export (struct nbdkit_exports *exports, const char *name, const char *description);
extern int nbdkit_use_default_export (struct nbdkit_exports *exports);
extern int nbdkit_add_extent (struct nbdkit_extents *extents, uint64_t offset, uint64_t length, uint32_t type);
extern struct nbdkit_extents *nbdkit_extents_new (uint64_t start, uint64_t end);
extern void nbdkit_extents_free (struct nbdkit_extents *extents);
extern size_t nbdkit_extents_count (const struct nbdkit_extents *extents);
extern struct nbdkit_extent nbdkit_get_extent (const struct nbdkit_extents *extents, size_t i);

#ifdef __cplusplus
}
#endif

#endif /* NBDKIT_COMMON_H */
