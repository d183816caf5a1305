/* Starts a thread in each of load, get_ready and after_fork, all signals blocked as libraries do it. What is written at
 * offset 0, text, is done by each of them, one after the other, and what came of it is read there, a line for each: its
 * number and 0 or an errno.
 *
 * -DONE: there is only that of load. -DDEAF: the first thread blocks even what the C library does not let it block. -DFILTERED: it has a filter of its own.
 *
 * "open PATH": opens it to be read. "mount": makes a bind mount. "program PATH": has another process execute it.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
#ifdef ONE
#define THREADS 1
#else
#define THREADS 3
#endif
#define SIZE 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static char order[SIZE], answer[SIZE];
static unsigned asked, done;

static int
obey (const char *text)
{
  char path[SIZE];
  int fd, status;
  pid_t pid;

  if (sscanf (text, "open %s", path) == 1) {
    fd = open (path, O_RDONLY | O_CLOEXEC);
    if (fd == -1)
      return errno;
    close (fd);
    return 0;
  }
  if (strncmp (text, "mount", 5) == 0)
    return mount ("/tmp", "/tmp", NULL, MS_BIND, NULL) == 0 ? 0 : errno;
  if (sscanf (text, "program %s", path) == 1) {
    pid = vfork ();
    if (pid == -1)
      return errno;
    if (pid == 0) {
      execl (path, path, (char *) NULL);
      _exit (126);
    }
    return waitpid (pid, &status, 0) == pid && WIFEXITED (status) ? WEXITSTATUS (status) : ECHILD;
  }
  return EINVAL;
}

/* So that a sandbox cannot hold for this thread. */
static void
resist (void)
{
#ifdef DEAF
  uint64_t all = -1;

  if (syscall (SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all) == -1)
    abort ();
#endif
#ifdef FILTERED
  struct sock_filter pass = BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog program = { 1, &pass };

  if (prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1 ||
      prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == -1)
    abort ();
#endif
}

static void *
work (void *argument)
{
  unsigned number = (unsigned) (size_t) argument, seen = 0;
  char line[64];

  if (number == 0)
    resist ();
  pthread_mutex_lock (&lock);
  for (;;) {
    while (asked == seen || done != number)
      pthread_cond_wait (&changed, &lock);
    seen = asked;
    snprintf (line, sizeof line, "%u %d\n", number, obey (order));
    strcat (answer, line);
    done++;
    pthread_cond_broadcast (&changed);
  }
  return NULL;
}

static void
start (size_t number)
{
  pthread_t thread;
  sigset_t all, before;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  if (pthread_create (&thread, NULL, work, (void *) number) != 0)
    abort ();
  pthread_sigmask (SIG_SETMASK, &before, NULL);
}

static void threads_load (void) { start (0); }
static int threads_get_ready (void) { if (THREADS > 1) start (1); return 0; }
static int threads_after_fork (void) { if (THREADS > 2) start (2); return 0; }
static void *threads_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t threads_get_size (void *handle) { return SIZE; }

static int
threads_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  memcpy (buf, answer + offset, count);
  return 0;
}

static int
threads_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  pthread_mutex_lock (&lock);
  memset (answer, 0, sizeof answer);
  memcpy (order + offset, buf, count);
  done = 0;
  asked++;
  pthread_cond_broadcast (&changed);
  while (done < THREADS)
    pthread_cond_wait (&changed, &lock);
  pthread_mutex_unlock (&lock);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "threads",
  .load = threads_load,
  .get_ready = threads_get_ready,
  .after_fork = threads_after_fork,
  .open = threads_open,
  .get_size = threads_get_size,
  .pread = threads_pread,
  .pwrite = threads_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)
