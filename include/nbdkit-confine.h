/* How a plugin or filter in a file tells nbdkitd what it needs, so that each client gets a process of its own that can do
 * nothing else. A module exports one more symbol, nbdkitd_declaration. Other servers, nbdkit among them, do not look for
 * it and load the file as it is.
 *
 *     #include <nbdkit-confine.h>
 *
 *     static int
 *     my_needs (const struct nbdkitd_needs *needs, int readonly)
 *     {
 *       return needs->path (needs, file, readonly ? NBDKITD_READ : NBDKITD_WRITE);
 *     }
 *
 *     const struct nbdkitd_declaration nbdkitd_declaration = {
 *       NBDKITD_DECLARATION_VERSION,
 *       sizeof nbdkitd_declaration,
 *       0,
 *       NBDKITD_ISOLATION_CONNECTION,
 *       0,
 *       my_needs,
 *       NULL
 *     };
 *
 * What a module opens up to and with get_ready needs no declaration: descriptors that are open stay open. What it touches
 * later and has not declared fails with EACCES, or, if no module may do it at all, ends the process that tried.
 *
 * Versions. Members are only ever added, at the end. A module that was compiled with an older header has a smaller
 * structure, and what it lacks counts as zero. A module that was compiled with a newer one loads as long as the members
 * that the server does not know are zero; if one is not, the module needs what this server cannot give, and the server
 * does not start. So it is with flags. The version is raised when nothing else helps.
 */

#ifndef NBDKIT_CONFINE_H
#define NBDKIT_CONFINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NBDKITD_DECLARATION_VERSION 1

/* How clients may be divided over processes. One process for all of them, on threads: what a client changes in memory,
 * another has to see. --isolation=connection is refused then.
 */
#define NBDKITD_ISOLATION_SHARED     1
/* A process for each client, forked once after_fork and warm_up have returned. Callbacks of a connection see what was in
 * memory then, and what this connection has changed. There must be no threads at that time.
 */
#define NBDKITD_ISOLATION_CONNECTION 2

/* Starts threads, and waits as threads do (epoll, eventfd, timerfd). With isolation "connection" in the processes of
 * clients only, from preconnect on. The threads in which the server runs callbacks need no declaration.
 */
#define NBDKITD_THREADS     (1 << 0)
/* Runs programs. They work as the final user's do, with paths and network, and so does the module: --sandbox=programs. */
#define NBDKITD_PROGRAMS    (1 << 1)
/* Calls nbdkit_shutdown. */
#define NBDKITD_SHUTDOWN    (1 << 2)
/* Connects by TCP and UDP to whatever it likes. Rather than this, declare endpoints. */
#define NBDKITD_NETWORK     (1 << 3)
/* Reads the system's certificates of authorities and the settings of TLS libraries, where distributions keep them. */
#define NBDKITD_TRUST_ROOTS (1 << 4)
/* What clients write is in memory of the process: a process that has crashed is not replaced by one without it. */
#define NBDKITD_KEEPS_STATE (1 << 5)
/* Connects to Unix domain sockets wherever they are. Rather than this, declare them. */
#define NBDKITD_UNIX_SOCKETS (1 << 6)
/* One process for all clients, whatever isolation says: for the callback needs, where it depends on the configuration.
 * Servers that do not know this flag do not start.
 */
#define NBDKITD_ONE_PROCESS (1 << 7)

/* What is done beneath a path: open for reading and list, or also write, truncate, create and remove. */
#define NBDKITD_READ  1
#define NBDKITD_WRITE 2

/* The server's functions for the callback needs. They return 0, or -1 if what was declared cannot be used; then the
 * server does not start, and says why. Strings are copied. Not to be called once the callback has returned.
 */
struct nbdkitd_needs {
  /* Size of the server's structure, bytes: see NBDKITD_HAS. */
  uint64_t struct_size;

  /* Opens path, or what is beneath it if it is a directory, by itself. path is absolute. The permission is for the file
   * that has the name when the server starts: where a file is replaced by renaming, or does not exist yet, declare its
   * directory. access is NBDKITD_READ or NBDKITD_WRITE.
   */
  int (*path) (const struct nbdkitd_needs *needs, const char *path, int access);

  /* Connects to the socket at path, which is absolute and has at most 107 bytes. */
  int (*unix_socket) (const struct nbdkitd_needs *needs, const char *path);

  /* Connects to this TCP port of host, a name or an address, and looks up the name. host is for the log: the kernel
   * restricts the port, from Linux 6.7 on, and not the address.
   */
  int (*tcp) (const struct nbdkitd_needs *needs, const char *host, unsigned port);

  /* Flags that depend on the configuration, besides those of the structure. */
  int (*flags) (const struct nbdkitd_needs *needs, uint64_t flags);
};

/* Whether the server has this function: for those that are added after version 1 came out. */
#define NBDKITD_HAS(needs, member) \
  ((needs)->struct_size >= offsetof (struct nbdkitd_needs, member) + sizeof ((needs)->member))

struct nbdkitd_declaration {
  uint32_t version;     /* NBDKITD_DECLARATION_VERSION */
  uint32_t struct_size; /* sizeof (struct nbdkitd_declaration) */
  uint64_t flags;       /* NBDKITD_THREADS and so on */
  uint32_t isolation;   /* NBDKITD_ISOLATION_* */
  uint32_t reserved;    /* 0 */

  /* Declares paths and endpoints, which depend on the configuration. Called once, after get_ready, as the user who starts
   * the server. readonly: no client may write (-r). Returns 0, or -1 after nbdkit_error. NULL: there are none.
   */
  int (*needs) (const struct nbdkitd_needs *needs, int readonly);

  /* Called once, after after_fork, as the final user (-u, -g) and as the last thing before the sandbox closes: loads what
   * libraries load when they are first used, and what they could not load any more. Name service modules, iconv, locales,
   * settings of OpenSSL. Whatever else it does other servers would not do. Returns 0, or -1 after nbdkit_error. May be
   * NULL.
   */
  int (*warm_up) (void);
};

#if defined (__GNUC__) || defined (__clang__)
__attribute__ ((__visibility__ ("default")))
#endif
extern const struct nbdkitd_declaration nbdkitd_declaration;

#ifdef __cplusplus
}
#endif

#endif /* NBDKIT_CONFINE_H */
