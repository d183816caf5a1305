/* A plugin as it was compiled long ago: version 1 of the interface, a table that ends after zero, and no header but
 * the documented layout. -DSIZE=N says how much of the table there is, -DAPI=N and -DMODEL=N what it claims.
 */

#include <stdint.h>
#include <string.h>

#ifndef SIZE
#define SIZE 184
#endif
#ifndef API
#define API 1
#endif
#ifndef MODEL
#define MODEL 1
#endif
#ifndef NAME
#define NAME "old"
#endif

extern void nbdkit_error (const char *, ...);
extern void nbdkit_set_error (int);

static char disk[65536];

static void *old_open (int readonly) { return disk; }
static int64_t old_get_size (void *handle) { return sizeof disk; }

static int
old_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  memcpy (buf, disk + offset, count);
  return 0;
}

static int
old_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset)
{
  if (offset >= 32768) {
    nbdkit_error ("the second half is full");
    nbdkit_set_error (28); /* ENOSPC */
    return -1;
  }
  memcpy (disk + offset, buf, count);
  return 0;
}

static int old_flush (void *handle) { return 0; }
static int old_trim (void *handle, uint32_t count, uint64_t offset) { return 0; }

static int
old_zero (void *handle, uint32_t count, uint64_t offset, int may_trim)
{
  memset (disk + offset, may_trim ? 0 : 'z', count);
  return 0;
}

/* Whatever follows a shorter table must not be called. */
static int trap (void) { __builtin_trap (); }

static struct {
  uint64_t struct_size;
  int api_version, thread_model;
  const char *name, *texts[3];
  void *load, *unload, *config, *config_complete;
  const char *config_help;
  void *open, *close, *get_size, *can_write, *can_flush, *is_rotational, *can_trim;
  void *pread, *pwrite, *flush, *trim, *zero;
  void *beyond[25];
} table;

__attribute__ ((__visibility__ ("default"))) void *
plugin_init (void)
{
  table.struct_size = SIZE;
  table.api_version = API;
  table.thread_model = MODEL;
  table.name = NAME;
  table.open = old_open;
  table.get_size = old_get_size;
  table.pread = old_pread;
  table.pwrite = old_pwrite;
  table.flush = old_flush;
  table.trim = old_trim;
  table.zero = old_zero;
  for (int i = 0; i < 25; ++i)
    table.beyond[i] = trap;
  return &table;
}
