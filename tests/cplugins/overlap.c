/* Measures how many callbacks run at the same time: reads at offset 0 take MILLISECONDS; one elsewhere returns the most that
 * were seen together, the number of the process, and of the thread. -DMODEL=N: the thread model. -DBACKGROUND: the plugin
 * has a thread of its own.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREAD_MODEL MODEL

#ifndef MILLISECONDS
#define MILLISECONDS 100
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t running, most, reads;

static void *overlap_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t overlap_get_size (void *handle) { return 65536; }

static int
overlap_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  uint64_t answer[4];

  memset (buf, 0, count);
  if (offset != 0) {
    answer[0] = most;
    answer[1] = getpid ();
    answer[2] = syscall (SYS_gettid);
    answer[3] = reads;
    memcpy (buf, answer, count < sizeof answer ? count : sizeof answer);
    return 0;
  }
  pthread_mutex_lock (&lock);
  reads++;
  if (++running > most)
    most = running;
  pthread_mutex_unlock (&lock);
  if (nbdkit_nanosleep (0, MILLISECONDS * 1000000) == -1)
    return -1;
  pthread_mutex_lock (&lock);
  running--;
  pthread_mutex_unlock (&lock);
  return 0;
}

#ifdef BACKGROUND
static void *
overlap_thread (void *argument)
{
  for (;;)
    pause ();
  return NULL;
}

static int
overlap_after_fork (void)
{
  pthread_t thread;

  return pthread_create (&thread, NULL, overlap_thread, NULL) == 0 ? 0 : -1;
}
#endif

static struct nbdkit_plugin plugin = {
  .name = "overlap",
#ifdef BACKGROUND
  .after_fork = overlap_after_fork,
#endif
  .open = overlap_open,
  .get_size = overlap_get_size,
  .pread = overlap_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
