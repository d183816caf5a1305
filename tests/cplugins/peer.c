/* The description of an export says who the client is. -DLATER: also by the functions that nbdkit 1.32 did not have; the
 * exports shutdown, disconnect=0 and disconnect=1 do what they are called when they are read.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static int
peer_preconnect (int readonly)
{
  const char *name = nbdkit_export_name ();

  nbdkit_debug ("preconnect: export %s tls %d", name ? name : "NULL", nbdkit_is_tls ());
  return nbdkit_peer_uid () == -2 ? -1 : 0;
}

static void *
peer_open (int readonly)
{
  return (void *) nbdkit_strdup_intern (nbdkit_export_name ());
}

static int64_t peer_get_size (void *handle) { return 65536; }

static const char *
peer_export_description (void *handle)
{
  struct sockaddr_storage address;
  struct sockaddr_in *in = (struct sockaddr_in *) &address;
  socklen_t length = sizeof address;
  int family, uid, gid, pid;

  memset (&address, 0, sizeof address);
  if (nbdkit_peer_name ((struct sockaddr *) &address, &length) == -1)
    return NULL;
  family = address.ss_family;
  if (family == AF_INET)
    return nbdkit_printf_intern ("inet %s %d %d", inet_ntoa (in->sin_addr), in->sin_port != 0, (int) length);
  uid = nbdkit_peer_uid () == getuid ();
  gid = nbdkit_peer_gid () == getgid ();
  pid = nbdkit_peer_pid () > 0;
  return nbdkit_printf_intern ("family %d uid %d gid %d pid %d", family, uid, gid, pid);
}

static int
peer_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  memset (buf, 0, count);
  if (strcmp (handle, "shutdown") == 0)
    nbdkit_shutdown ();
  if (strcmp (handle, "sleep") == 0 && nbdkit_nanosleep (60, 0) == -1)
    return -1;
#ifdef LATER
  if (strcmp (handle, "disconnect=0") == 0)
    nbdkit_disconnect (0);
  if (strcmp (handle, "disconnect=1") == 0)
    nbdkit_disconnect (1);
  if (strcmp (handle, "tls") == 0) {
    char *dn = nbdkit_peer_tls_dn (), *issuer = nbdkit_peer_tls_issuer_dn ();
    memset (buf, dn && issuer && !*dn && !*issuer && nbdkit_is_tls () == 0 ? 'y' : 'n', count);
    free (dn);
    free (issuer);
  }
#endif
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "peer",
  .preconnect = peer_preconnect,
  .open = peer_open,
  .get_size = peer_get_size,
  .export_description = peer_export_description,
  .pread = peer_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
