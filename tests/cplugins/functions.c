/* Calls the server's functions with the values of parameters and prints what they return, for --dump-plugin. -DLATER: those
 * that nbdkit 1.32 did not have, too.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define INTEGER(name, type, format)                                   \
  if (strcmp (key, #name) == 0) {                                     \
    type r = 99;                                                      \
    int result = nbdkit_parse_##name ("what", value, &r);             \
    printf ("%s(%s)=%d %" format "\n", key, value, result, r);        \
    return result == 0 ? nbdkit_parse_##name ("what", value, NULL) : 0; \
  }

static int
functions_config (const char *key, const char *value)
{
  char *text = NULL;

  errno = 0;
  INTEGER (int, int, "d")
  INTEGER (unsigned, unsigned, "u")
  INTEGER (int8_t, int8_t, PRIi8)
  INTEGER (uint8_t, uint8_t, PRIu8)
  INTEGER (int16_t, int16_t, PRIi16)
  INTEGER (uint16_t, uint16_t, PRIu16)
  INTEGER (int32_t, int32_t, PRIi32)
  INTEGER (uint32_t, uint32_t, PRIu32)
  INTEGER (int64_t, int64_t, PRIi64)
  INTEGER (uint64_t, uint64_t, PRIu64)
  if (strcmp (key, "size") == 0)
    printf ("size(%s)=%" PRIi64 "\n", value, nbdkit_parse_size (value));
  else if (strcmp (key, "bool") == 0)
    printf ("bool(%s)=%d\n", value, nbdkit_parse_bool (value));
  else if (strcmp (key, "password") == 0) {
    int result = nbdkit_read_password (value, &text);
    printf ("password=%d %s\n", result, text ? text : "NULL");
  }
  else if (strcmp (key, "absolute") == 0) {
    text = nbdkit_absolute_path (value);
    printf ("absolute=%s\n", text ? text : "NULL");
  }
  else if (strcmp (key, "realpath") == 0) {
    text = nbdkit_realpath (value);
    printf ("realpath=%s\n", text ? text : "NULL");
  }
  else if (strcmp (key, "intern") == 0) {
    const char *a = nbdkit_strdup_intern (value);
    const char *b = nbdkit_strndup_intern (value, 3);
    const char *c = nbdkit_printf_intern ("%s:%d:%2000s", value, 42, "x");
    printf ("intern=%s,%s,%zu,%d\n", a, b, strlen (c), a != value);
  }
  else if (strcmp (key, "message") == 0) {
    errno = ENOSPC;
    nbdkit_error ("%s: %d: %m", value, 42);
    printf ("errno=%d\n", errno);
    nbdkit_debug ("%s: %m", value);
    printf ("errno=%d\n", errno);
    nbdkit_error ("%2000s|", "long");
  }
  else if (strcmp (key, "outside") == 0) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    const char *name = nbdkit_export_name ();
    printf ("export_name=%s\n", name ? name : "NULL");
    printf ("is_tls=%d\n", nbdkit_is_tls ());
    printf ("peer_name=%d\n", nbdkit_peer_name ((struct sockaddr *) &address, &length));
    printf ("peer_pid=%" PRIi64 "\n", nbdkit_peer_pid ());
    printf ("stdio_safe=%d\n", nbdkit_stdio_safe ());
    printf ("nanosleep=%d\n", nbdkit_nanosleep (0, 1000));
    printf ("long nanosleep=%d\n", nbdkit_nanosleep (3000000000, 0));
  }
#ifdef LATER
  else if (strcmp (key, "probability") == 0) {
    double r = 99;
    int result = nbdkit_parse_probability ("what", value, &r);
    printf ("probability(%s)=%d %g\n", value, result, r);
  }
  else if (strcmp (key, "delay") == 0) {
    unsigned sec = 99, nsec = 99;
    int result = nbdkit_parse_delay ("what", value, &sec, &nsec);
    printf ("delay(%s)=%d %u %u\n", value, result, sec, nsec);
  }
  else if (strcmp (key, "extents") == 0) {
    struct nbdkit_extents *extents = nbdkit_extents_new (100, 1000);
    nbdkit_add_extent (extents, 0, 200, 0);
    nbdkit_add_extent (extents, 200, 50, 0);
    nbdkit_add_extent (extents, 250, 5000, NBDKIT_EXTENT_HOLE);
    for (size_t i = 0; i < nbdkit_extents_count (extents); ++i) {
      struct nbdkit_extent e = nbdkit_get_extent (extents, i);
      printf ("extent %" PRIu64 " %" PRIu64 " %u\n", e.offset, e.length, e.type);
    }
    int gap = nbdkit_add_extent (extents, 7000, 1, 0);
    printf ("gap=%d errno=%d\n", gap, errno == ERANGE);
    nbdkit_extents_free (extents);
    printf ("new=%d\n", nbdkit_extents_new (10, 5) == NULL);
  }
  else if (strcmp (key, "later-outside") == 0) {
    printf ("security_context=%d\n", nbdkit_peer_security_context () == NULL);
    printf ("tls_dn=%d\n", nbdkit_peer_tls_dn () == NULL);
    printf ("tls_issuer_dn=%d\n", nbdkit_peer_tls_issuer_dn () == NULL);
    nbdkit_disconnect (1);
  }
#endif
  free (text);
  return 0;
}

static void *functions_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t functions_get_size (void *handle) { return 0; }

static int
functions_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "functions",
  .config = functions_config,
  .magic_config_key = "size",
  .open = functions_open,
  .get_size = functions_get_size,
  .pread = functions_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
