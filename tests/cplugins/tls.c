/* The disk says what is known of the client's TLS: whether there is any, and of its certificate subject and issuer. */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static void *
tls_open (int readonly)
{
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t tls_get_size (void *handle) { return 512; }

static int
tls_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  char text[512] = { 0 };
  char *dn = nbdkit_peer_tls_dn (), *issuer = nbdkit_peer_tls_issuer_dn ();

  snprintf (text, sizeof text, "%d <%s> <%s>", nbdkit_is_tls (), dn ? dn : "NULL", issuer ? issuer : "NULL");
  free (dn);
  free (issuer);
  memcpy (buf, text + offset, count);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "tls",
  .open = tls_open,
  .get_size = tls_get_size,
  .pread = tls_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
