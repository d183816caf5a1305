/* Stands in for nbdkit-vddk-plugin, which needs VMware's library and hosts: takes that plugin's parameters, wants the password
 * "secret", and serves the file whose name is the last component of the disk's path, "[datastore] directory/name".
 */

#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* -D vddk.datapath=0 -D vddk.stats=1 */
int vddk_debug_datapath = 1;
int vddk_debug_stats;

static char *file;
static char *password;
static int moref;

static void vddk_unload (void) { free (file); free (password); }

static int
vddk_config (const char *key, const char *value)
{
  static const char *const others[] = {
    "compression", "config", "libdir", "nfchostport", "port", "server", "single-link", "snapshot", "thumbprint",
    "transports", "user",
  };
  const char *name;

  if (strcmp (key, "file") == 0) {
    name = strrchr (value, '/');
    free (file);
    file = nbdkit_realpath (name ? name + 1 : value);
    return file ? 0 : -1;
  }
  if (strcmp (key, "password") == 0) {
    free (password);
    return nbdkit_read_password (value, &password);
  }
  if (strcmp (key, "vm") == 0) {
    moref = strncmp (value, "moref=", 6) == 0;
    return 0;
  }
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
    if (strcmp (key, others[i]) == 0)
      return 0;
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
vddk_config_complete (void)
{
  if (!file || !moref || !password || strcmp (password, "secret") != 0) {
    nbdkit_error ("wrong file, virtual machine or password");
    return -1;
  }
  return 0;
}

static void vddk_dump_plugin (void) { printf ("vddk_default_libdir=/usr/lib/vmware-vix-disklib\n"); }

static void *
vddk_open (int readonly)
{
  int fd = open (file, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

  if (fd == -1) {
    nbdkit_error ("%s: %m", file);
    return NULL;
  }
  return (void *) (intptr_t) (fd + 1);
}

static int fd_of (void *handle) { return (int) (intptr_t) handle - 1; }

static void vddk_close (void *handle) { close (fd_of (handle)); }

static int64_t
vddk_get_size (void *handle)
{
  struct stat st;

  return fstat (fd_of (handle), &st) == -1 ? -1 : st.st_size;
}

static int
vddk_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  while (count > 0) {
    ssize_t r = pread (fd_of (handle), buf, count, (off_t) offset);

    if (r <= 0) {
      nbdkit_error ("pread: %m");
      return -1;
    }
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "vddk",
  .errno_is_preserved = 1,
  .unload = vddk_unload,
  .config = vddk_config,
  .config_complete = vddk_config_complete,
  .magic_config_key = "file",
  .dump_plugin = vddk_dump_plugin,
  .open = vddk_open,
  .close = vddk_close,
  .get_size = vddk_get_size,
  .pread = vddk_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
