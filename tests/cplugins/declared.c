/* Declares what the macros say, and tries what a client asks for. What is written at offset 0 is an order, what came of it
 * is read there: 0 or an errno, in decimal.
 *
 * -DFLAGS=N, -DISOLATION=N, -DVERSION=N, -DSIZE=N, -DRESERVED=N: members of the declaration. -DTAIL=N: a newer structure,
 * with a member that is N. -DOLD: an older one, that ends before warm_up. -DSILENT: needs fails without a word. -DIGNORE:
 * needs returns 0 whatever the server said. -DLOUD: warm_up fails.
 *
 * read=PATH, write=PATH, unix=PATH, tcp=PORT, flags=N: declare that; "read=" and "tcp=" a null pointer. many=N: N paths.
 *
 * "open PATH", "create PATH", "unlink PATH", "connect PORT" (of 127.0.0.1), "socket FAMILY TYPE PROTOCOL", "fork",
 * "shutdown", "pid" (which is not an errno).
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-confine.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
#define DISK 4096

#ifndef FLAGS
#define FLAGS 0
#endif
#ifndef ISOLATION
#define ISOLATION NBDKITD_ISOLATION_CONNECTION
#endif
#ifndef VERSION
#define VERSION NBDKITD_DECLARATION_VERSION
#endif
#ifndef RESERVED
#define RESERVED 0
#endif

static struct { char kind; const char *value; } declared[16];
static unsigned count;
static int many;
static char answer[DISK];

static int
declared_config (const char *key, const char *value)
{
  if (strcmp (key, "many") == 0)
    return nbdkit_parse_int (key, value, &many);
  if (count == sizeof declared / sizeof declared[0]) {
    nbdkit_error ("too many");
    return -1;
  }
  declared[count].kind = key[0];
  declared[count++].value = value;
  return 0;
}

static int
declared_needs (const struct nbdkitd_needs *needs, int readonly)
{
  int failed = 0, i;
  unsigned n;

  if (!NBDKITD_HAS (needs, flags) || needs->struct_size != sizeof *needs) {
    nbdkit_error ("the server's structure is of %d bytes", (int) needs->struct_size);
    return -1;
  }
  for (n = 0; n < count; n++) {
    const char *value = declared[n].value[0] != 0 ? declared[n].value : NULL;

    switch (declared[n].kind) {
    case 'r': failed |= needs->path (needs, value, NBDKITD_READ); break;
    case 'w': failed |= needs->path (needs, value, readonly ? NBDKITD_READ : NBDKITD_WRITE); break;
    case 'x': failed |= needs->path (needs, value, 77); break;
    case 'f': failed |= needs->flags (needs, value != NULL ? strtoull (value, NULL, 0) : 0); break;
    case 'u': failed |= needs->unix_socket (needs, value); break;
    case 't': failed |= needs->tcp (needs, value != NULL ? "localhost" : NULL, value != NULL ? atoi (value) : 1); break;
    }
  }
  for (i = 0; i < many; i++)
    failed |= needs->path (needs, "/", NBDKITD_READ);
#ifdef SILENT
  return -1;
#endif
#ifdef IGNORE
  return 0;
#endif
  return failed;
}

static int
declared_warm_up (void)
{
#ifdef LOUD
  nbdkit_error ("it is cold");
  return -1;
#endif
  return 0;
}

struct newer {
  struct nbdkitd_declaration known;
#ifdef TAIL
  uint64_t tail;
#endif
};

#ifndef SIZE
#ifdef TAIL
#define SIZE sizeof (struct newer)
#elif defined (OLD)
#define SIZE offsetof (struct nbdkitd_declaration, warm_up)
#else
#define SIZE sizeof (struct nbdkitd_declaration)
#endif
#endif
#define DECLARATION { VERSION, SIZE, FLAGS, ISOLATION, RESERVED, declared_needs, declared_warm_up }

#ifdef TAIL
extern const struct newer nbdkitd_newer __asm__ ("nbdkitd_declaration");
__attribute__ ((__visibility__ ("default"))) const struct newer nbdkitd_newer = { DECLARATION, TAIL };
#else
const struct nbdkitd_declaration nbdkitd_declaration = DECLARATION;
#endif

static int
connect_to (int port)
{
  struct sockaddr_in address;
  int result, fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd == -1)
    return errno;
  memset (&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_port = htons ((uint16_t) port);
  address.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  result = connect (fd, (struct sockaddr *) &address, sizeof address) == 0 ? 0 : errno;
  close (fd);
  return result;
}

static int
obey (const char *order)
{
  char path[DISK];
  int fd, a, b, c;
  pid_t pid;

  if (sscanf (order, "open %s", path) == 1 || sscanf (order, "create %s", path) == 1) {
    fd = open (path, order[0] == 'o' ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd == -1)
      return errno;
    close (fd);
    return 0;
  }
  if (sscanf (order, "unlink %s", path) == 1)
    return unlink (path) == 0 ? 0 : errno;
  if (sscanf (order, "connect %d", &a) == 1)
    return connect_to (a);
  if (sscanf (order, "socket %d %d %d", &a, &b, &c) == 3) {
    fd = socket (a, b, c);
    if (fd == -1)
      return errno;
    close (fd);
    return 0;
  }
  if (strcmp (order, "fork") == 0) {
    pid = fork ();
    if (pid == -1)
      return errno;
    if (pid == 0)
      _exit (0);
    return waitpid (pid, NULL, 0) == pid ? 0 : errno;
  }
  if (strcmp (order, "shutdown") == 0) {
    nbdkit_shutdown ();
    return 0;
  }
  if (strcmp (order, "pid") == 0)
    return getpid ();
  return EINVAL;
}

static void *declared_open (int readonly) { (void) readonly; return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t declared_get_size (void *handle) { (void) handle; return DISK; }

static int
declared_pread (void *handle, void *buf, uint32_t size, uint64_t offset, uint32_t flags)
{
  (void) handle, (void) flags;
  memcpy (buf, answer + offset, size);
  return 0;
}

static int
declared_pwrite (void *handle, const void *buf, uint32_t size, uint64_t offset, uint32_t flags)
{
  char order[DISK + 1];

  (void) handle, (void) offset, (void) flags;
  memcpy (order, buf, size);
  order[size] = 0;
  snprintf (answer, sizeof answer, "%d", obey (order));
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "declared",
  .config = declared_config,
  .open = declared_open,
  .get_size = declared_get_size,
  .pread = declared_pread,
  .pwrite = declared_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)
